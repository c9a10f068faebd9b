//! What survives a restart: SVID, roots and keys, sealed in the runtime directory. Never in backups, dumps or logs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aip_api::{Digest, SpiffeId};
use aip_runtime::files;
use aip_runtime::sealing::{SealError, SealingKey};
use aip_runtime::svid::Svid;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{Config, Keys};
use crate::mesh::world::Origin;

/// What the file is sealed for.
const LABEL: &str = "aip-sidecar identity";
/// The variable that may hold the sealing key.
const KEY_VARIABLE: &str = "AIP_DATA_KEY";

#[derive(Serialize, Deserialize)]
struct Stored {
    id: SpiffeId,
    measured: Digest,
    #[serde(default)]
    run: Option<String>,
    svid: String,
    roots: Vec<String>,
    signing_keys: Vec<String>,
}

/// The sealed identity and the key that seals it, and the cache's note.
#[derive(Debug, Clone)]
pub struct Vault {
    path: PathBuf,
    /// The sealing key.
    pub key: Arc<SealingKey>,
}

/// An identity that was kept.
pub struct SealedIdentity {
    /// The SVID; still valid when it was read.
    pub svid: Svid,
    /// Roots and keys that came with it.
    pub origin: Origin,
    /// Fingerprint of what was measured when it was issued.
    pub measured: Digest,
    /// Which run of the agent that was.
    pub run: Option<String>,
}

impl Vault {
    /// The vault of this configuration; none with `keys: memory`. The key comes from the environment, else the file
    /// that was named, else a file in the runtime directory.
    ///
    /// # Errors
    /// The key can't be read or made.
    pub fn open(config: &Config) -> Result<Option<Self>, SealError> {
        if config.keys == Keys::Memory {
            return Ok(None);
        }
        let key = match SealingKey::from_env(KEY_VARIABLE)? {
            Some(key) => key,
            None => match &config.key_file {
                Some(path) => SealingKey::from_file(path)?,
                None => SealingKey::from_file_or_new(&config.runtime_dir.join("sealing.key"))?,
            },
        };
        Ok(Some(Self {
            path: config.runtime_dir.join("identity.sealed"),
            key: Arc::new(key),
        }))
    }

    /// Where the sealed identity lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps an identity.
    ///
    /// # Errors
    /// The disk.
    pub fn store(&self, svid: &Svid, origin: &Origin, measured: Digest, run: &str) -> std::io::Result<()> {
        let all = |ders: &[Vec<u8>]| ders.iter().map(hex::encode).collect();
        let stored = Stored {
            id: origin.id.clone(),
            measured,
            run: Some(run.to_owned()),
            svid: hex::encode(&*svid.to_bytes()),
            roots: all(&origin.roots),
            signing_keys: all(&origin.signing_keys),
        };
        let plain = Zeroizing::new(serde_json::to_vec(&stored)?);
        let sealed = self.key.seal(LABEL, &plain).map_err(std::io::Error::other)?;
        files::write_private(&self.path, &sealed)
    }

    /// Forgets the identity.
    ///
    /// # Errors
    /// The disk.
    pub fn forget(&self) -> std::io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The identity that was kept, if there is one that a peer would still accept; else why not.
    ///
    /// # Errors
    /// A sentence for the log.
    pub fn load(&self) -> Result<Option<SealedIdentity>, String> {
        let sealed = match std::fs::read(&self.path) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let plain = self.key.open(LABEL, &sealed).map_err(|e| e.to_string())?;
        let stored: Stored = serde_json::from_slice(&plain).map_err(|e| e.to_string())?;
        let all = |texts: &[String]| texts.iter().map(hex::decode).collect::<Result<Vec<_>, _>>();
        let origin = Origin {
            id: stored.id,
            roots: all(&stored.roots).map_err(|e| e.to_string())?,
            signing_keys: all(&stored.signing_keys).map_err(|e| e.to_string())?,
        };
        let bytes = Zeroizing::new(hex::decode(stored.svid).map_err(|e| e.to_string())?);
        let svid = Svid::from_bytes(&bytes, &origin.trust()).map_err(|e| e.to_string())?;
        Ok(Some(SealedIdentity {
            svid,
            origin,
            measured: stored.measured,
            run: stored.run,
        }))
    }
}

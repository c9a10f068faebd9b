//! The set on disk, and the heartbeat that granted the lease: what a restarted sidecar goes on from. Private, whole, and
//! on the disk when it is acknowledged; believed only where its signatures are good.

use std::io;
use std::path::{Path, PathBuf};

use aip_api::kill::{Lease, MAX_HEARTBEAT_BYTES, MAX_KILL_SET_BYTES};
use aip_api::wire::{SignedHeartbeat, SignedKillSet};
use aip_runtime::files::write_private;
use aip_runtime::kill::{KillError, open_heartbeat, open_set};
use aip_runtime::trust::TrustState;
use serde::{Deserialize, Serialize};

use super::hold::Held;

/// Its name in the data directory.
const FILE: &str = "kill.json";
/// Version of the file.
const VERSION: u32 = 1;
/// Largest file that is read: a set and a heartbeat whose every byte is escaped, and what is around them.
const MAX_FILE_BYTES: u64 = 6 * (MAX_KILL_SET_BYTES + MAX_HEARTBEAT_BYTES) as u64;

/// Where the set is kept.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
}

/// What a heartbeat granted, as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Granted {
    /// What it granted.
    pub lease: Lease,
    /// How it was signed.
    pub signed: SignedHeartbeat,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    v: u32,
    set: Document,
    /// What granted the lease last; a lease itself does not outlive its process.
    heartbeat: Option<Document>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    payload: String,
    kid: String,
    signature: String,
}

/// Why there is nothing to go on from.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is none.
    #[error("no kill set is on disk")]
    Absent,
    /// It can't be read.
    #[error("the kill set on disk can't be read: {0}")]
    Unreadable(String),
    /// It is not what the control plane signed.
    #[error("the kill set on disk is not the control plane's: {0}")]
    NotSigned(#[from] KillError),
}

impl Disk {
    /// In this data directory.
    pub fn new(data: &Path) -> Self {
        Self { path: data.join(FILE) }
    }

    /// What was kept. A heartbeat that can't be believed is as none: then nothing goes on until the control plane is heard.
    ///
    /// # Errors
    /// Nothing that can be believed: the next set decides, and until then everything is refused.
    pub fn load(&self, trust: &TrustState) -> Result<(Held, Option<Granted>), Unusable> {
        let unreadable = |error: &dyn std::fmt::Display| Unusable::Unreadable(error.to_string());
        let length = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unusable::Absent),
            Err(error) => return Err(unreadable(&error)),
        };
        if length > MAX_FILE_BYTES {
            return Err(unreadable(&format!("{length} bytes")));
        }
        let bytes = std::fs::read(&self.path).map_err(|e| unreadable(&e))?;
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))?;
        if stored.v != VERSION {
            return Err(unreadable(&format!("version {}", stored.v)));
        }
        let (payload, kid, signature) = stored.set.parts().map_err(|e| unreadable(&e))?;
        let signed = SignedKillSet {
            payload,
            kid,
            signature,
        };
        let set = open_set(trust, &signed)?;
        let granted = stored.heartbeat.and_then(|heartbeat| granted(trust, heartbeat));
        Ok((Held { set, signed }, granted))
    }

    /// Keeps a set, and what granted the lease last.
    ///
    /// # Errors
    /// Not on disk: the file from before stays.
    pub fn store(&self, set: &SignedKillSet, heartbeat: Option<&SignedHeartbeat>) -> io::Result<()> {
        let heartbeat = heartbeat
            .map(|h| Document::of(&h.payload, &h.kid, &h.signature))
            .transpose()?;
        let stored = Stored {
            v: VERSION,
            set: Document::of(&set.payload, &set.kid, &set.signature)?,
            heartbeat,
        };
        write_private(&self.path, &serde_json::to_vec(&stored).map_err(io::Error::other)?)
    }
}

impl Document {
    fn of(payload: &[u8], kid: &str, signature: &[u8]) -> io::Result<Self> {
        Ok(Self {
            payload: String::from_utf8(payload.to_vec()).map_err(io::Error::other)?,
            kid: kid.to_owned(),
            signature: hex::encode(signature),
        })
    }

    fn parts(self) -> Result<(Vec<u8>, String, Vec<u8>), hex::FromHexError> {
        Ok((self.payload.into_bytes(), self.kid, hex::decode(self.signature)?))
    }
}

fn granted(trust: &TrustState, heartbeat: Document) -> Option<Granted> {
    let (payload, kid, signature) = heartbeat.parts().ok()?;
    let signed = SignedHeartbeat {
        payload,
        kid,
        signature,
    };
    match open_heartbeat(trust, &signed) {
        Ok(heartbeat) => Some(Granted {
            lease: heartbeat.lease,
            signed,
        }),
        Err(error) => {
            tracing::warn!(reason = error.reason(), %error, "the lease on disk is not the control plane's");
            None
        }
    }
}

#[cfg(test)]
mod tests;

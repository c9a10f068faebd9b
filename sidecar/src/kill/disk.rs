//! The set on disk, and what was granted last: what a restarted sidecar goes on from. Private, whole, and on the disk
//! when it is acknowledged; believed only where its signature is good.

use std::io;
use std::path::{Path, PathBuf};

use aip_api::kill::{Lease, MAX_KILL_SET_BYTES};
use aip_api::wire::SignedKillSet;
use aip_runtime::files::write_private;
use aip_runtime::kill::{KillError, open_set};
use aip_runtime::trust::TrustState;
use serde::{Deserialize, Serialize};

use super::hold::Held;

/// Its name in the data directory.
const FILE: &str = "kill.json";
/// Largest file that is read: a set whose every byte is escaped, and what is around it.
const MAX_FILE_BYTES: u64 = 6 * MAX_KILL_SET_BYTES as u64;

/// Where the set is kept.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    v: u32,
    payload: String,
    kid: String,
    signature: String,
    /// What a heartbeat granted last; a lease itself does not outlive its process.
    lease: Option<Lease>,
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

    /// What was kept.
    ///
    /// # Errors
    /// Nothing that can be believed: the next set decides, and until then everything is refused.
    pub fn load(&self, trust: &TrustState) -> Result<(Held, Option<Lease>), Unusable> {
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
        let signed = SignedKillSet {
            payload: stored.payload.into_bytes(),
            kid: stored.kid,
            signature: hex::decode(stored.signature).map_err(|e| unreadable(&e))?,
        };
        let set = open_set(trust, &signed)?;
        Ok((Held { set, signed }, stored.lease))
    }

    /// Keeps a set, and what was granted last.
    ///
    /// # Errors
    /// Not on disk: the file from before stays.
    pub fn store(&self, signed: &SignedKillSet, lease: Option<Lease>) -> io::Result<()> {
        let stored = Stored {
            v: 1,
            payload: String::from_utf8(signed.payload.clone()).map_err(io::Error::other)?,
            kid: signed.kid.clone(),
            signature: hex::encode(&signed.signature),
            lease,
        };
        write_private(&self.path, &serde_json::to_vec(&stored).map_err(io::Error::other)?)
    }
}

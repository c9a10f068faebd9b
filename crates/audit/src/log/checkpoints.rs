//! `checkpoints.jsonl`: what was signed, with the certificates that a verifier needs years later.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{Lines, LogError, MAX_CHECKPOINT_BYTES};
use crate::checkpoint::Checkpoint;

/// A checkpoint as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its line in the file, from 1.
    pub line: u64,
    /// The JWS.
    pub statement: String,
    /// The chain of the SVID that signed it, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    statement: String,
    chain: Vec<String>,
}

/// Where they are kept.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("checkpoints.jsonl")
}

/// The line for a checkpoint, with its end.
pub(super) fn line(statement: &str, chain: &[Vec<u8>]) -> Vec<u8> {
    let text = Text {
        statement: statement.to_owned(),
        chain: chain.iter().map(|der| STANDARD.encode(der)).collect(),
    };
    // Two kinds of strings: this can't fail to be JSON.
    let mut line = serde_json::to_vec(&text).unwrap_or_default();
    line.push(b'\n');
    line
}

/// All that were kept in `dir`, in order. A last line without its end is one whose write was cut off, and left out.
///
/// # Errors
/// The file can't be read, or a line in it is no checkpoint.
pub fn kept(dir: &Path) -> Result<Vec<Kept>, LogError> {
    let path = path(dir);
    if path.exists() {
        read_checkpoints(&path)
    } else {
        Ok(Vec::new())
    }
}

/// The same, of a file of any name.
///
/// # Errors
/// The file can't be read, or a line in it is no checkpoint.
pub fn read_checkpoints(path: &Path) -> Result<Vec<Kept>, LogError> {
    let mut all = Vec::new();
    for line in Lines::open(path, MAX_CHECKPOINT_BYTES)? {
        let line = line?;
        if !line.ended {
            break;
        }
        let bad = |why: String| LogError::damaged(path, line.number, None, why);
        let text: Text = serde_json::from_slice(&line.bytes).map_err(|e| bad(format!("not a kept checkpoint: {e}")))?;
        let chain: Result<Vec<_>, _> = text.chain.iter().map(|der| STANDARD.decode(der)).collect();
        all.push(Kept {
            line: line.number,
            statement: text.statement,
            chain: chain.map_err(|e| bad(format!("a certificate is not base64: {e}")))?,
        });
    }
    Ok(all)
}

/// What a statement claims. The signature is NOT looked at: this is for one's own files and for messages.
pub fn claims_of(statement: &str) -> Option<Checkpoint> {
    let payload = statement.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

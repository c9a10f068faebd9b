//! The logs in a folder: a sidecar's own, the control plane's copies, or an export.

use std::fs;
use std::path::{Path, PathBuf};

use crate::log::{self, LogError, Manifest, segments};

/// The folder of an export that holds the control plane's log of checkpoints, beside one for each agent: an agent's name
/// has no underscore, so none can take this one's place.
pub const LEDGER_DIR: &str = "_ledger";
/// How deep logs are looked for: `<export>/<agent>/<log>`, `<home>/<agent>/data/audit/<log>`.
const DEPTH: usize = 6;
/// Folders that are looked into: more is not an export.
const MAX_FOLDERS: usize = 100_000;

/// A log to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub log: String,
    /// Its directory.
    pub dir: PathBuf,
}

/// The control plane's log of checkpoints, exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// The checkpoints as it took them, in order: lines as in `checkpoints.jsonl`.
    pub checkpoints: PathBuf,
    /// Tree heads that it signed: a statement a line.
    pub heads: PathBuf,
    /// What it signed of the checkpoints that it keeps no more: a statement; no file where it keeps all.
    pub begins: PathBuf,
}

/// What is to be verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Each log once; of several copies the longest that has checkpoints.
    pub logs: Vec<Source>,
    /// The control plane's word about them.
    pub ledger: Option<Ledger>,
    /// Folders that can't be read: what is in them is not verified.
    pub unread: Vec<PathBuf>,
    /// Other copies of these logs, which are not verified either.
    pub copies: Vec<PathBuf>,
}

impl Sources {
    /// Finds the logs at or below `dir`.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn find(dir: &Path) -> Result<Self, LogError> {
        let mut sources = Self::default();
        let mut folders = vec![(dir.canonicalize().map_err(|e| LogError::io(dir, e))?, 0)];
        let mut looked = 0;
        while let Some((folder, depth)) = folders.pop() {
            looked += 1;
            let ledger = Ledger {
                checkpoints: folder.join("checkpoints.jsonl"),
                heads: folder.join("heads.jsonl"),
                begins: folder.join("begins.jws"),
            };
            if folder.file_name().is_some_and(|n| n == LEDGER_DIR) && ledger.checkpoints.is_file() {
                sources.ledger = Some(ledger);
                continue;
            }
            if let Ok(name) = log::name_of(&folder)
                && (!segments(&folder)?.is_empty() || folder.join("checkpoints.jsonl").is_file())
            {
                sources.add(Source { log: name, dir: folder })?;
                continue;
            }
            if depth == DEPTH || looked > MAX_FOLDERS {
                continue;
            }
            // A folder below that this user may not read is not this user's to verify, and said.
            let Ok(entries) = fs::read_dir(&folder) else {
                sources.unread.push(folder);
                continue;
            };
            let below = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
            folders.extend(below.map(|e| (e.path(), depth + 1)));
        }
        sources.logs.sort_by(|a, b| a.log.cmp(&b.log));
        Ok(sources)
    }

    fn add(&mut self, source: Source) -> Result<(), LogError> {
        match self.logs.iter_mut().find(|s| s.log == source.log) {
            Some(held) if worth(&held.dir)? < worth(&source.dir)? => {
                self.copies.push(std::mem::replace(&mut held.dir, source.dir));
            }
            Some(_) => self.copies.push(source.dir),
            None => self.logs.push(source),
        }
        Ok(())
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> Result<u64, LogError> {
        self.logs.iter().map(|source| bytes(&source.dir)).sum()
    }
}

/// Which of two copies is read: one with the checkpoints beside it, which the control plane keeps elsewhere; else the longer.
fn worth(dir: &Path) -> Result<(bool, u64), LogError> {
    let signed = fs::metadata(dir.join("checkpoints.jsonl")).is_ok_and(|m| m.len() > 0);
    Ok((signed, bytes(dir)?))
}

fn bytes(dir: &Path) -> Result<u64, LogError> {
    let begins = Manifest::read(dir)?.begins();
    let mut sum = 0;
    for number in segments(dir)?.into_iter().filter(|n| *n >= begins) {
        let path = log::segment_path(dir, number);
        sum += fs::metadata(&path).map_err(|e| LogError::io(&path, e))?.len();
    }
    Ok(sum)
}

//! The logs in a folder: a sidecar's own, the control plane's copies, or an export.

use std::fs;
use std::path::{Path, PathBuf};

use crate::index;
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
    /// Its directory: of several copies that with the checkpoints beside it, and of those the longest.
    pub dir: PathBuf,
    /// The other copies, which are held to the same.
    pub copies: Vec<PathBuf>,
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
    /// Each log once.
    pub logs: Vec<Source>,
    /// The control plane's word about them: one, or several exports'.
    pub ledgers: Vec<Ledger>,
    /// Folders that can't be read: what is in them is not verified.
    pub unread: Vec<PathBuf>,
}

impl Sources {
    /// Finds the logs at or below `dir`.
    ///
    /// # Errors
    /// `dir` is not there, or can't be read.
    pub fn find(dir: &Path) -> Result<Self, LogError> {
        let mut sources = Self::default();
        let top = dir.canonicalize().map_err(|e| LogError::io(dir, e))?;
        fs::read_dir(&top).map_err(|e| LogError::io(dir, e))?;
        let mut folders = vec![(top, 0)];
        let mut looked = 0;
        while let Some((folder, depth)) = folders.pop() {
            looked += 1;
            if folder.file_name().is_some_and(|n| n == LEDGER_DIR) {
                sources.ledgers.push(Ledger {
                    checkpoints: folder.join("checkpoints.jsonl"),
                    heads: folder.join("heads.jsonl"),
                    begins: folder.join("begins.jws"),
                });
                continue;
            }
            if let Ok(name) = log::name_of(&folder)
                && is_log(&folder)
            {
                sources.add(name, folder);
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
        sources.ledgers.sort_by(|a, b| a.checkpoints.cmp(&b.checkpoints));
        Ok(sources)
    }

    fn add(&mut self, log: String, dir: PathBuf) {
        match self.logs.iter_mut().find(|s| s.log == log) {
            Some(held) if worth(&held.dir) < worth(&dir) => {
                held.copies.push(std::mem::replace(&mut held.dir, dir));
            }
            Some(held) => held.copies.push(dir),
            None => self.logs.push(Source {
                log,
                dir,
                copies: Vec::new(),
            }),
        }
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        let dirs = self
            .logs
            .iter()
            .flat_map(|source| source.copies.iter().chain([&source.dir]));
        dirs.map(|dir| bytes(dir)).fold(0, u64::saturating_add)
    }
}

/// Whether a folder that is named as a log is one. One that can't be read is: that it can't be verified is to be said.
fn is_log(folder: &Path) -> bool {
    segments(folder).map_or(true, |all| !all.is_empty()) || folder.join("checkpoints.jsonl").exists()
}

/// Which of two copies is read for the hops: one with the checkpoints beside it, which the control plane keeps elsewhere; else
/// the longer.
fn worth(dir: &Path) -> (bool, u64) {
    let signed = fs::metadata(dir.join("checkpoints.jsonl")).is_ok_and(|m| m.is_file() && m.len() > 0);
    (signed, bytes(dir))
}

/// Whether this is the control plane's copy of a log, and not its sidecar's own: in an export it stands as `<agent>/<log>` beside
/// the control plane's log of checkpoints, and in the control plane's data it has an index beside its segments.
pub(super) fn is_collected(dir: &Path) -> bool {
    let export = dir.parent().and_then(Path::parent);
    export.is_some_and(|export| export.join(LEDGER_DIR).is_dir()) || index::is_beside(dir)
}

/// Bytes of the segments, of those that are files.
fn bytes(dir: &Path) -> u64 {
    let begins = manifest(dir).map_or(0, |manifest| manifest.begins());
    let all = segments(dir).unwrap_or_default().into_iter();
    let sizes = all.filter(|n| *n >= begins).filter_map(|n| {
        let path = log::segment_path(dir, n);
        fs::metadata(path).ok().filter(fs::Metadata::is_file)
    });
    // A file with holes says any size.
    sizes.map(|file| file.len()).fold(0, u64::saturating_add)
}

/// What a log says of its segments.
pub(super) fn manifest(dir: &Path) -> Result<Manifest, LogError> {
    let path = Manifest::path(dir);
    if path.exists() {
        is_file(&path)?;
    }
    Manifest::read(dir)
}

/// A pipe or a device in a file's place would never end.
pub(super) fn is_file(path: &Path) -> Result<(), LogError> {
    let found = fs::metadata(path).map_err(|e| LogError::io(path, e))?;
    match found.is_file() {
        true => Ok(()),
        false => Err(LogError::io(path, std::io::Error::other("it is not a file"))),
    }
}

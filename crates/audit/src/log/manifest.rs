//! How each closed segment ended, and which were dropped: enough that chain and tree go on without the files.
//!
//! Nothing here is signed. What a later checkpoint signs commits to it: with other subtrees the roots come out different.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aip_api::Digest;
use serde::{Deserialize, Serialize};

use super::{Lines, LogError, Step};
use crate::merkle::Tree;

/// Longest line: 64 subtrees of 67 bytes, and the rest.
const LONGEST: usize = 8 * 1024;

/// How a segment ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// Its number.
    pub segment: u64,
    /// Sequence number of its first record.
    pub first: u64,
    /// Its records.
    pub records: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Time of its last record, Unix milliseconds.
    pub at: u64,
    /// Leaf hash of its last line: what the next segment's first record names as `prev`.
    pub last: Digest,
    /// The complete subtrees over all records of the log up to its end, the largest first.
    pub subtrees: Vec<Digest>,
}

impl Closed {
    /// Records of the log up to its end.
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.records)
    }

    /// The tree over them; none where the line contradicts itself.
    pub fn tree(&self) -> Option<Tree> {
        Tree::from_peaks(self.end(), self.subtrees.clone())
    }
}

/// Segments that a quota took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// The last of them: this one and all before are gone.
    pub through: u64,
    /// When, Unix milliseconds.
    pub at: u64,
    /// Which quota: `size` or `age`.
    pub quota: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Closed(Closed),
    Dropped(Dropped),
}

/// `segments.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// By number, without holes: those that are there, and the last that was dropped.
    pub closed: Vec<Closed>,
    /// The last word about what is gone.
    pub dropped: Option<Dropped>,
}

impl Manifest {
    /// Where it stands.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("segments.jsonl")
    }

    /// Reads it; empty where there is none. It ends at the first line that is not one: whoever needs more reads the
    /// segments.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn read(dir: &Path) -> Result<Self, LogError> {
        let path = Self::path(dir);
        let mut manifest = Self::default();
        if !path.exists() {
            return Ok(manifest);
        }
        for line in Lines::open(&path, LONGEST)? {
            let line = match line {
                Err(LogError::Damaged { .. }) => break,
                line => line?,
            };
            if !line.ended {
                break;
            }
            match serde_json::from_slice(&line.bytes) {
                Ok(Entry::Closed(closed)) if manifest.fits(&closed) => manifest.closed.push(closed),
                Ok(Entry::Dropped(dropped)) => {
                    manifest.closed.retain(|closed| closed.segment >= dropped.through);
                    manifest.dropped = Some(dropped);
                }
                _ => break,
            }
        }
        Ok(manifest)
    }

    fn fits(&self, next: &Closed) -> bool {
        let follows = match self.closed.last() {
            None => (next.segment == 0) == (next.first == 0),
            Some(last) => last.segment.checked_add(1) == Some(next.segment) && next.first == last.end(),
        };
        follows && next.tree().is_some()
    }

    /// What is known of a segment.
    pub fn of(&self, segment: u64) -> Option<&Closed> {
        let first = self.closed.first()?.segment;
        self.closed.get(usize::try_from(segment.checked_sub(first)?).ok()?)
    }

    /// The segment after the last one that was dropped.
    pub fn begins(&self) -> u64 {
        self.dropped.as_ref().map_or(0, |d| d.through.saturating_add(1))
    }
}

impl Manifest {
    /// What the file is to say.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        self.closed
            .iter()
            .for_each(|closed| text.extend(line_of_closed(closed)));
        if let Some(dropped) = &self.dropped {
            text.extend(dropped.line());
        }
        text
    }

    /// Brings the file to what is known: it may end in the middle of a line.
    pub(super) fn write(&self, dir: &Path, step: Step) -> Result<(), LogError> {
        let path = Self::path(dir);
        let text = self.text();
        if std::fs::read(&path).is_ok_and(|held| held == text) {
            return Ok(());
        }
        replace(&path, &text, step)
    }
}

impl Dropped {
    /// Its line, with its end.
    pub(super) fn line(&self) -> Vec<u8> {
        line_of(&Entry::Dropped(self.clone()))
    }
}

/// The line of a closed segment, with its end.
pub(super) fn line_of_closed(closed: &Closed) -> Vec<u8> {
    line_of(&Entry::Closed(closed.clone()))
}

fn line_of(entry: &Entry) -> Vec<u8> {
    // Numbers, hex and fixed keys: this can't fail to be JSON.
    let mut line = serde_json::to_vec(entry).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Replaces a file of the log: a reader sees the old one or the new one, also after a power loss.
fn replace(path: &Path, bytes: &[u8], step: Step) -> Result<(), LogError> {
    let failed = |e| LogError::io(path, e);
    let temp = path.with_extension("jsonl.new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temp)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    step("log:manifest_written");
    file.sync_all().map_err(failed)?;
    step("log:manifest_synced");
    std::fs::rename(&temp, path).map_err(failed)?;
    step("log:manifest_renamed");
    path.parent().map_or(Ok(()), super::disk::sync_dir)
}

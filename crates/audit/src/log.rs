//! A sidecar's audit log: a directory of segment files, with what was signed about them.
//!
//! | file | holds |
//! |---|---|
//! | `segment-<number:08>.jsonl` | records, one a line: the bytes that are hashed, and a line end |
//! | `segments.jsonl` | of each closed segment, how it ended; and which were dropped by a quota |
//! | `checkpoints.jsonl` | signed checkpoints, with the certificates that signed them |
//!
//! The directory's name is the log's: a UUID. One process writes; who holds the data directory's lock does.

mod checkpoints;
mod cut;
mod disk;
mod gather;
mod lines;
mod manifest;
mod quota;
mod reader;
mod receive;
mod recover;
mod shorten;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

pub use checkpoints::{
    Certificates, CheckpointLines, Kept, MaybeSigned, Signed, Statements, chain_id, claims_of, each_checkpoint, kept,
    read_checkpoints,
};
pub use cut::cut_to;
pub use disk::SyncHandle;
pub use lines::{Line, Lines};
pub use manifest::{Closed, Dropped, Manifest};
pub use quota::Gone;
pub use reader::{Entry, Reader};
pub use receive::{ChainError, Staged};
pub use recover::Recovered;
pub use shorten::{Long, Shorter};
pub use writer::Writer;

use aip_api::Digest;

use crate::record::{MAX_RECORD_BYTES, RecordError};

/// A segment is closed at this size: small enough to be sent, verified and dropped in one piece.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// A segment is closed at this age, so that a quiet sidecar's records can be dropped by age too.
pub const SEGMENT_MILLIS: u64 = 3600 * 1000;
/// What a log may take on disk unless told otherwise: a sidecar is one of many on a machine.
pub const TOTAL_BYTES: u64 = 1024 * 1024 * 1024;
/// How long closed segments are kept unless told otherwise.
pub const TOTAL_MILLIS: u64 = 30 * 24 * 3600 * 1000;
/// Beside a copy's segments: what the control plane signed of the records that its retention took.
pub const RETIRED_FILE: &str = "retired.jws";
/// Longest line of `checkpoints.jsonl`: a chain of three certificates of at most 16 KiB each, or a statement.
pub const MAX_CHECKPOINT_BYTES: usize = 128 * 1024;

/// Is told of each step that makes something durable, by a name: where a test ends the process, or lets it fail.
pub type Step = fn(&'static str);

/// The steps, each named before and after something becomes durable or goes: whoever adds one adds it here, and a test that
/// ends at each of them fails for one that it never reaches.
pub const STEPS: [&str; 30] = [
    "log:made",
    "log:made_synced",
    "log:appended",
    "log:flush",
    "log:flushed_data",
    "log:flushed",
    "log:rotating",
    "log:rotated",
    "log:kept",
    "log:dropping",
    "log:dropped",
    "log:sweeping",
    "log:swept",
    "log:manifest_written",
    "log:manifest_synced",
    "log:manifest_renamed",
    "log:shorter_written",
    "log:shorter_synced",
    "log:shorter_renaming",
    "log:shorter_renamed",
    "log:shortened",
    "log:leftover_removing",
    "log:leftover_removed",
    "log:statement_cutting",
    "log:statement_cut",
    "log:later_removing",
    "log:later_removed",
    "log:tail_cutting",
    "log:tail_cut",
    "log:tail_synced",
];

/// Bounds of a log.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A segment is closed when it has this many bytes.
    pub segment_bytes: u64,
    /// A segment is closed when its first record is this old, in milliseconds.
    pub segment_millis: u64,
    /// All segments together: beyond it nothing is appended until some are dropped.
    pub total_bytes: u64,
    /// What a segment counts at least of `total_bytes`: in a copy somebody else decides when one is closed, and each costs files.
    pub least_bytes: u64,
    /// What a record counts of `total_bytes` beside its line: in a copy, its row of the index, of which the smallest records have as
    /// many as others.
    pub record_bytes: u64,
    /// Closed segments at most; the oldest may be dropped beyond it.
    pub most_segments: u64,
    /// Closed segments whose last record is older than this may be dropped, in milliseconds.
    pub total_millis: u64,
    /// Who is told of steps.
    pub step: Step,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES,
            segment_millis: SEGMENT_MILLIS,
            total_bytes: TOTAL_BYTES,
            least_bytes: 0,
            record_bytes: 0,
            most_segments: u64::MAX,
            total_millis: TOTAL_MILLIS,
            step: |_| (),
        }
    }
}

/// How far a log reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its name.
    pub log: String,
    /// Records from the first.
    pub size: u64,
    /// RFC 6962 root over their leaves.
    pub root: Digest,
}

/// A log that can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory is not named by a UUID.
    #[error("{0} is not a log: its name is not a UUID")]
    Name(PathBuf),
    /// The disk is full, or this user's share of it.
    #[error("the disk is full at {path}: {source}")]
    DiskFull {
        /// Which file.
        path: PathBuf,
        /// As the system says.
        source: io::Error,
    },
    /// Another failure of the disk.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// As the system says.
        source: io::Error,
    },
    /// The log holds as much as it may, and nothing of it may be dropped yet.
    #[error("the log holds {held} bytes of at most {most}; no segment may be dropped yet")]
    Quota {
        /// Bytes of all segments.
        held: u64,
        /// The quota.
        most: u64,
    },
    /// A write or sync failed in a way after which nobody knows what is on disk: open a new log.
    #[error("an earlier write failed half way; what is on disk is not known, so nothing more is written here")]
    Poisoned,
    /// A line that can't be what was written.
    #[error("{path} line {line}{}: {why}", .seq.map(|s| format!(" (record {s})")).unwrap_or_default())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// The record that should stand there, where that is known.
        seq: Option<u64>,
        /// What is wrong.
        why: String,
    },
    /// More rows to look through than a search may.
    #[error("there are too many records to look through: ask for one agent, or for a shorter time up to now")]
    Search,
    /// The event can't be a record.
    #[error("not recorded: {0}")]
    Record(#[from] RecordError),
}

impl LogError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Name(_) => "audit_log_name",
            Self::DiskFull { .. } => "disk_full",
            Self::Io { .. } => "io",
            Self::Quota { .. } => "quota",
            Self::Poisoned => "audit_log_poisoned",
            Self::Damaged { .. } => "audit_log_damaged",
            Self::Search => "search_too_large",
            Self::Record(_) => "audit_record",
        }
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, source },
            _ => Self::Io { path, source },
        }
    }

    pub(crate) fn damaged(path: &Path, line: u64, seq: Option<u64>, why: impl ToString) -> Self {
        let why = why.to_string();
        Self::Damaged {
            path: path.to_owned(),
            line,
            seq,
            why,
        }
    }
}

/// A name for a new log.
pub fn fresh_name() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// The log's name: the directory's.
///
/// # Errors
/// It is not a UUID.
pub fn name_of(dir: &Path) -> Result<String, LogError> {
    dir.file_name()
        .and_then(|name| name.to_str())
        .filter(|name| uuid::Uuid::try_parse(name).is_ok_and(|id| id.to_string() == *name))
        .map(str::to_owned)
        .ok_or_else(|| LogError::Name(dir.to_owned()))
}

/// What the first record names as the line before it.
pub fn first_prev(log: &str) -> Digest {
    Digest::sha256(log.as_bytes())
}

/// The file of a segment.
pub fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("segment-{number:08}.jsonl"))
}

/// The number in a segment's file name.
fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".jsonl")?;
    let number = digits.parse().ok()?;
    (format!("{number:08}") == digits).then_some(number)
}

/// The segments that are there, by number.
///
/// # Errors
/// The directory can't be read.
pub fn segments(dir: &Path) -> Result<Vec<u64>, LogError> {
    let failed = |e| LogError::io(dir, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.to_str().and_then(segment_number));
    }
    found.sort_unstable();
    Ok(found)
}

/// The longest line of a segment, without its end.
pub(crate) const LONGEST: usize = MAX_RECORD_BYTES;

#[cfg(test)]
mod tests;

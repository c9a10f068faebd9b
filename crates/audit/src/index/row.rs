//! The rows of one segment.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{Filter, Said};
use crate::log::{Lines, LogError, segment_path, segments};
use crate::record::{MAX_RECORD_BYTES, Record};

/// Bytes of a row: seven numbers of 8, big endian.
pub const ROW_BYTES: usize = 56;

/// FNV-1a: a hit is read and compared, so a collision costs a look and decides nothing.
fn hash(text: &str) -> u64 {
    match text {
        "" => 0,
        text => text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        }),
    }
}

/// The row of a record whose line begins at `offset`.
pub fn row(record: &Record, offset: u64) -> [u8; ROW_BYTES] {
    let said = Said::of(record);
    let words = [&said.hop, &said.trace, &said.decision, &said.verdict, &said.tool];
    let mut row = [0; ROW_BYTES];
    let numbers = [record.at, offset]
        .into_iter()
        .chain(words.into_iter().map(|w| hash(w)));
    for (at, number) in row.chunks_exact_mut(8).zip(numbers) {
        at.copy_from_slice(&number.to_be_bytes());
    }
    row
}

fn number(row: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&row[at * 8..at * 8 + 8]);
    u64::from_be_bytes(bytes)
}

/// What a filter asks of rows.
pub(super) struct Wanted<'a> {
    filter: &'a Filter,
    words: Vec<(usize, u64)>,
}

impl<'a> Wanted<'a> {
    pub(super) fn of(filter: &'a Filter) -> Self {
        let words = [
            &filter.hop,
            &filter.trace,
            &filter.decision,
            &filter.verdict,
            &filter.tool,
        ];
        let asked = words.into_iter().enumerate();
        let words = asked
            .filter_map(|(i, word)| Some((i + 2, hash(word.as_deref()?))))
            .collect();
        Self { filter, words }
    }

    /// The time, which is `latest` at the most, and the place of a row that may be asked for.
    pub(super) fn hit(&self, row: &[u8], latest: u64) -> Option<(u64, u64)> {
        let at = number(row, 0).min(latest);
        let all = self.words.iter().all(|(i, hash)| number(row, *i) == *hash);
        (all && self.filter.in_time(at)).then(|| (at, number(row, 1)))
    }
}

/// Where the rows of a segment stand.
fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("index-{segment:08}.bin"))
}

/// Whether the rows of a segment stand beside it, as beside those that the control plane receives.
pub(crate) fn is_beside(dir: &Path) -> bool {
    let all = segments(dir).unwrap_or_default();
    all.into_iter().any(|segment| path(dir, segment).is_file())
}

/// How many rows stand beside a segment.
pub(super) fn counted(dir: &Path, segment: u64) -> u64 {
    fs::metadata(path(dir, segment)).map_or(0, |file| file.len() / ROW_BYTES as u64)
}

/// The rows of a segment that is being received.
#[derive(Debug)]
pub struct Rows {
    file: fs::File,
    path: PathBuf,
}

impl Rows {
    /// Begins the rows of a segment anew.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn begin(dir: &Path, segment: u64) -> Result<Self, LogError> {
        let path = path(dir, segment);
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).write(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(|e| LogError::io(&path, e))?;
        Ok(Self { file, path })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// The disk does not allow it: the rows are made anew when somebody asks.
    pub fn add(&mut self, rows: &[[u8; ROW_BYTES]]) -> Result<(), LogError> {
        self.file
            .write_all(rows.as_flattened())
            .map_err(|e| LogError::io(&self.path, e))
    }
}

/// The rows of a segment of `records` records (`None`: it is open), made anew where they are not all of them.
///
/// # Errors
/// The segment can't be read.
pub(super) fn rows(dir: &Path, segment: u64, records: Option<u64>) -> Result<Vec<u8>, LogError> {
    let mut held = fs::read(path(dir, segment)).unwrap_or_default();
    match records {
        Some(records) if held.len() as u64 == records * ROW_BYTES as u64 => Ok(held),
        Some(_) => rebuild(dir, segment),
        None => {
            held.truncate(held.len() / ROW_BYTES * ROW_BYTES);
            match covers(dir, segment, &held)? {
                true => Ok(held),
                // Whoever writes the segment may write these rows: the file is left alone.
                false => made(dir, segment),
            }
        }
    }
}

/// Whether the last row is of the segment's last line.
fn covers(dir: &Path, segment: u64, held: &[u8]) -> Result<bool, LogError> {
    let Some(last) = held.chunks_exact(ROW_BYTES).next_back() else {
        return Ok(false);
    };
    let mut lines = Lines::open_at(&segment_path(dir, segment), MAX_RECORD_BYTES, number(last, 1))?;
    let first = lines.next().transpose()?;
    Ok(first.is_some_and(|line| line.ended) && lines.next().is_none())
}

/// Makes the rows of a segment anew, and keeps them where that is possible.
///
/// # Errors
/// The segment can't be read.
pub fn rebuild(dir: &Path, segment: u64) -> Result<Vec<u8>, LogError> {
    let made = made(dir, segment)?;
    let (path, new) = (path(dir, segment), dir.join(format!("index-{segment:08}.new")));
    let mut options = fs::OpenOptions::new();
    let file = options.create(true).write(true).truncate(true).mode(0o600).open(&new);
    // A copy on a medium that takes nothing is searched all the same.
    let _ = file
        .and_then(|mut file| file.write_all(&made).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path));
    Ok(made)
}

fn made(dir: &Path, segment: u64) -> Result<Vec<u8>, LogError> {
    let mut made = Vec::new();
    for line in Lines::open(&segment_path(dir, segment), MAX_RECORD_BYTES)? {
        let line = line?;
        match Record::from_bytes(&line.bytes) {
            Ok(record) if line.ended => made.extend_from_slice(&row(&record, line.offset)),
            // What is no record is found by the verifier, not by a query.
            _ => break,
        }
    }
    Ok(made)
}

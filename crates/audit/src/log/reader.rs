//! Records of a log in order, for whoever trusts the files: `verify` is for whoever does not.

use std::path::{Path, PathBuf};

use super::{LONGEST, Lines, LogError, Manifest, name_of, segment_path, segments};
use crate::record::Record;

/// A record and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its segment.
    pub segment: u64,
    /// Its line in the segment's file, from 1.
    pub line: u64,
    /// Its place in the log.
    pub seq: u64,
    /// The bytes that are hashed.
    pub bytes: Vec<u8>,
    /// What they say.
    pub record: Record,
}

/// Reads the records of a log, oldest first. It ends after the first error, and before a last line that is still
/// being written.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    log: String,
    segments: std::vec::IntoIter<u64>,
    current: Option<(u64, Lines)>,
    next: Option<u64>,
    done: bool,
}

impl Reader {
    /// Opens the log in `dir`.
    ///
    /// # Errors
    /// It is no log, or can't be read.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        let begins = Manifest::read(dir)?.begins();
        let mut all = segments(dir)?;
        all.retain(|number| *number >= begins);
        Ok(Self {
            log: name_of(dir)?,
            dir: dir.to_owned(),
            segments: all.into_iter(),
            current: None,
            next: None,
            done: false,
        })
    }

    /// The log's name.
    pub fn log(&self) -> &str {
        &self.log
    }

    fn read(&mut self) -> Result<Option<Entry>, LogError> {
        loop {
            let Some((segment, lines)) = &mut self.current else {
                let Some(number) = self.segments.next() else {
                    return Ok(None);
                };
                let lines = Lines::open(&segment_path(&self.dir, number), LONGEST)?;
                self.current = Some((number, lines));
                continue;
            };
            let segment = *segment;
            let Some(line) = lines.next().transpose()? else {
                self.current = None;
                continue;
            };
            let path = segment_path(&self.dir, segment);
            if !line.ended && self.segments.len() == 0 {
                return Ok(None);
            }
            let record =
                Record::from_bytes(&line.bytes).map_err(|e| LogError::damaged(&path, line.number, self.next, e))?;
            if self.next.is_some_and(|next| next != record.seq) {
                let why = format!("record {} stands here", record.seq);
                return Err(LogError::damaged(&path, line.number, self.next, why));
            }
            self.next = record.seq.checked_add(1);
            return Ok(Some(Entry {
                segment,
                line: line.number,
                seq: record.seq,
                bytes: line.bytes,
                record,
            }));
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Entry, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let read = self.read().transpose();
        self.done = !matches!(read, Some(Ok(_)));
        read
    }
}

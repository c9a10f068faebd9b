//! A log as somebody else keeps a copy of it: lines come as they were written, and are checked before they are kept.

use aip_api::Digest;

use super::{Closed, LogError, Writer};
use crate::merkle::{self, Tree};
use crate::record::{Record, RecordError};

/// Lines that don't continue a log.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A line is no record.
    #[error("record {seq}: {why}")]
    Record {
        /// Which should stand there.
        seq: u64,
        /// Why not.
        why: RecordError,
    },
    /// A record of another place.
    #[error("record {found} stands where {expected} belongs")]
    Place {
        /// Which should stand there.
        expected: u64,
        /// Which does.
        found: u64,
    },
    /// A record that does not name the line before it.
    #[error("record {0} does not name the line before it")]
    Chain(u64),
}

/// Lines that continue a log, checked and not yet kept.
#[derive(Debug, Clone)]
pub struct Staged {
    /// The lines, with their ends.
    bytes: Vec<u8>,
    /// What they say, in order, each with where its line begins in `bytes`.
    pub records: Vec<(usize, Record)>,
    /// The hashes of their leaves.
    pub leaves: Vec<Digest>,
    last: Digest,
    tree: Tree,
}

impl Staged {
    /// Bytes of the lines, their ends included.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl Writer {
    /// The tree over all records so far.
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Checks whole lines that are to come next: each a record in canonical form, in its place, that names the line
    /// before it.
    ///
    /// # Errors
    /// One does not continue the log.
    pub fn stage(&self, bytes: Vec<u8>) -> Result<Staged, ChainError> {
        let (mut tree, mut last) = (self.tree.clone(), self.open.last);
        let (mut records, mut leaves, mut offset) = (Vec::new(), Vec::new(), 0);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let seq = tree.size();
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            let record = Record::from_bytes(text).map_err(|why| ChainError::Record { seq, why })?;
            if record.seq != seq {
                return Err(ChainError::Place {
                    expected: seq,
                    found: record.seq,
                });
            }
            if record.prev != last {
                return Err(ChainError::Chain(seq));
            }
            let leaf = merkle::leaf(text);
            last = leaf;
            tree.append(leaf);
            leaves.push(leaf);
            records.push((offset, record));
            offset += line.len();
        }
        Ok(Staged {
            bytes,
            records,
            leaves,
            last,
            tree,
        })
    }

    /// Keeps lines that were staged on this log as it now is, in one write. Segments are closed by [`Writer::rotate`], when
    /// whoever wrote the log has closed them.
    ///
    /// # Errors
    /// The quota or the disk does not allow it; the log is then as it was before.
    pub fn take(&mut self, staged: &Staged) -> Result<(), LogError> {
        if self.disk.poisoned() {
            return Err(LogError::Poisoned);
        }
        let (Some((_, first)), Some((_, last))) = (staged.records.first(), staged.records.last()) else {
            return Ok(());
        };
        // What its own records count beside their lines comes on top while it is open: a segment that its writer has closed by
        // its bytes would else never fit in a quota of its size.
        let held = self.weight_of_closed() + self.weighs(self.segment.bytes, 0);
        if held + staged.bytes.len() as u64 > self.options.total_bytes {
            return Err(LogError::Quota {
                held,
                most: self.options.total_bytes,
            });
        }
        self.segment.add(&staged.bytes, &self.disk)?;
        self.open.last = staged.last;
        let newest = staged.records.iter().map(|(_, record)| record.at).max();
        self.open.passed(newest.unwrap_or(last.at));
        self.open.since = self.open.since.or(Some(first.at));
        self.tree = staged.tree.clone();
        self.disk
            .wrote(&self.segment.path, &self.segment.file, self.tree.size());
        Ok(())
    }

    /// Bytes that a quota counts of the segments: of each at least so many, and so many for each record, where the bounds say so.
    pub fn weight(&self) -> u64 {
        if self.options.least_bytes == 0 && self.options.record_bytes == 0 {
            return self.bytes();
        }
        let open = self.segment.bytes + self.gathered.bytes();
        self.weight_of_closed() + self.weighs(open, self.size() - self.open.first)
    }

    fn weight_of_closed(&self) -> u64 {
        let begins = self.manifest.begins();
        let there = self.manifest.closed.iter().filter(|c| c.segment >= begins);
        there.map(|closed| self.weight_of(closed)).sum()
    }

    /// What a closed segment counts.
    pub(super) fn weight_of(&self, closed: &Closed) -> u64 {
        self.weighs(closed.bytes, closed.records)
    }

    /// What a segment counts that has so many bytes in so many records.
    fn weighs(&self, bytes: u64, records: u64) -> u64 {
        match bytes {
            0 => 0,
            bytes => (bytes + records * self.options.record_bytes).max(self.options.least_bytes),
        }
    }

    /// Other bounds from now on.
    pub const fn bounded(&mut self, options: super::Options) {
        self.options = options;
    }

    /// Segments that are there, the open one included.
    pub fn kept_segments(&self) -> std::ops::RangeInclusive<u64> {
        self.manifest.begins()..=self.open.number
    }
}

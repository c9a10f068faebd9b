//! Records that wait for the next write, so that those of one moment share it.
//!
//! They are in the chain already, and nowhere else: whoever gathers has to have them written before anybody learns of what
//! they say. Where the write fails the log is again as it was before the first of them.

use super::recover::Open;
use super::{LogError, Writer};
use crate::merkle::Tree;
use crate::record::Settled;

/// Past so many bytes the next record waits for no other: some sixty records. What is held is this and one record more.
const MAX_GATHERED_BYTES: usize = 64 * 1024;

/// Lines that wait, and the log as it was before them.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    lines: Vec<u8>,
    before: Option<(Tree, Open)>,
    /// Records that waited and could not be written.
    undone: u64,
}

impl Gathered {
    /// Bytes that wait.
    pub(super) const fn bytes(&self) -> u64 {
        self.lines.len() as u64
    }
}

impl Writer {
    /// As [`Self::append_settled`], but for the write, which waits for [`Self::write_gathered`] or for the next record that is
    /// appended.
    ///
    /// # Errors
    /// As [`Self::append_settled`]. Also where what was gathered before can't be written: see [`Self::take_undone`].
    pub fn gather(&mut self, event: &mut Settled, at: u64) -> Result<u64, LogError> {
        if self.gathered.lines.len() >= MAX_GATHERED_BYTES {
            self.write_gathered()?;
        }
        let (line, leaf) = self.admit(event, at, 0)?;
        if self.gathered.before.is_none() {
            self.gathered.before = Some((self.tree.clone(), self.open));
        }
        self.gathered.lines.extend_from_slice(line);
        Ok(self.chained(leaf, at))
    }

    /// Whether records wait for their write.
    pub const fn has_gathered(&self) -> bool {
        self.gathered.before.is_some()
    }

    /// Writes what was gathered, in one write: a crash of this process does not lose it any more.
    ///
    /// # Errors
    /// The disk does not allow it; the log is then as it was before the first of them.
    pub fn write_gathered(&mut self) -> Result<(), LogError> {
        let Some((tree, open)) = self.gathered.before.take() else {
            return Ok(());
        };
        let added = self.segment.add(&self.gathered.lines, &self.disk);
        self.gathered.lines.clear();
        match added {
            Ok(()) => self.written(),
            Err(_) => {
                self.gathered.undone += self.tree.size() - tree.size();
                (self.tree, self.open) = (tree, open);
            }
        }
        added
    }

    /// How many gathered records could not be written since this was last asked: their places are those of others now.
    pub fn take_undone(&mut self) -> u64 {
        std::mem::take(&mut self.gathered.undone)
    }
}

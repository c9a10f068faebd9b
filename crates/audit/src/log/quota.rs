//! What a quota takes of one's own log: said in a record of that log first, and gone when that record is signed. Nobody can
//! take records away and call it a quota.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Dropped, LogError, SyncHandle, Writer, segment_path};
use crate::record::{Dropped as Said, Event};

/// Bytes beyond the quota that a log may take for saying what it drops: without them a full one could not make room.
pub(super) const RESERVE: u64 = 16 * 1024;

/// Segments whose going was said.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The record that says it.
    seq: u64,
    dropped: Dropped,
}

/// Segments that are gone from the log, and not yet from the disk.
#[derive(Debug)]
#[must_use]
pub struct Gone {
    dir: PathBuf,
    first: u64,
    dropped: Dropped,
    sync: SyncHandle,
}

impl Writer {
    /// Says in the log what a quota takes: the oldest closed segments, only those before segment `sent`, which somebody else
    /// holds, and only what a kept checkpoint covers. Half of the quota is kept free: room for what comes while nobody says
    /// that they hold it. Whether something was said.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn say_dropped(&mut self, sent: u64, now: u64) -> Result<bool, LogError> {
        if self.leaving.is_some() {
            return Ok(false);
        }
        let Some(dropped) = self.due_to_go(sent, now, self.options.total_bytes / 2) else {
            return Ok(false);
        };
        let (begins, through) = (self.manifest.begins(), dropped.through);
        let (Some(first), Some(last)) = (self.manifest.of(begins), self.manifest.of(through)) else {
            return Ok(false);
        };
        let said = Said {
            log: None,
            first: first.first,
            records: last.end() - first.first,
            until: last.at,
            quota: dropped.quota.clone(),
        };
        let seq = self.add(&mut Event::Dropped(said).settled()?, now, RESERVE)?;
        self.leaving = Some(Leaving { seq, dropped });
        Ok(true)
    }

    /// What was said to go and may go now, because a kept checkpoint covers the record that says so.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn drop_said(&mut self) -> Result<Option<Gone>, LogError> {
        let signed = self.signed();
        let Some(leaving) = self.leaving.take_if(|leaving| leaving.seq < signed) else {
            return Ok(None);
        };
        let (dropped, first) = (leaving.dropped, self.manifest.begins());
        self.book.add(&dropped.line(), &self.disk)?;
        let size = self.size();
        self.disk.wrote(&self.book.path, &self.book.file, size);
        self.forget(&dropped);
        Ok(Some(Gone {
            dir: self.dir().to_owned(),
            first,
            dropped,
            sync: self.sync_handle(),
        }))
    }
}

impl Gone {
    /// Takes the files away, once it is on disk that they are gone: one that is missing without that is an attack.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn remove(self) -> Result<Dropped, LogError> {
        self.sync.sync()?;
        for number in self.first..=self.dropped.through {
            self.sync.step("log:dropping");
            remove(&segment_path(&self.dir, number))?;
            self.sync.step("log:dropped");
        }
        Ok(self.dropped)
    }
}

fn remove(path: &Path) -> Result<(), LogError> {
    fs::remove_file(path).map_err(|e| LogError::io(path, e))
}

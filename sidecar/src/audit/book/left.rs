//! A log that could not be brought to disk any more: what of it was there before is signed for the last time, so that those
//! records are vouched for and sent. What came after is not known to be there: it is cut away, and counted as lost.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aip_api::SpiffeId;
use aip_audit::Closing;
use aip_audit::log::{self, Head, LogError, Options, Writer};

use super::{Book, Unsigned};
use crate::audit::Shared;

/// Time between two attempts to bring such a log into order, on a disk that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Such a log.
#[derive(Debug)]
pub(in crate::audit) struct Left {
    dir: PathBuf,
    /// How far it surely reaches.
    durable: Head,
    tried: Option<Instant>,
    /// Once it is cut to that.
    writer: Option<Writer>,
    /// The last word about it is kept.
    signed: bool,
}

impl Left {
    fn new(dir: &Path, durable: Head) -> Self {
        Self {
            dir: dir.to_owned(),
            durable,
            tried: None,
            writer: None,
            signed: false,
        }
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is to be signed of it: that it went on from a failure, and then that it is at its end.
    pub(in crate::audit) fn unsigned(&self, agent: &SpiffeId, at: u64) -> Vec<Unsigned> {
        let Some(writer) = self.writer.as_ref().filter(|_| !self.signed) else {
            return Vec::new();
        };
        let unsigned = |closing| Unsigned::of(writer, agent, closing, at);
        [Closing::Recovery, Closing::Close].map(unsigned).into()
    }

    /// Keeps the last words about it.
    pub(in crate::audit) fn keep(&mut self, statements: &[String], chain: &[Vec<u8>]) -> Result<(), LogError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        for statement in statements {
            writer.keep(statement, chain)?;
        }
        self.signed = true;
        Ok(())
    }
}

impl Book {
    /// What of this log is on disk is signed once more; the rest is lost.
    pub(super) fn leave(&mut self, writer: &Writer, life: u64) {
        let synced = self.synced.take().filter(|(of, _)| *of == life).map(|(_, head)| head);
        let synced = synced.filter(|head| head.size > writer.signed());
        let sure = synced.as_ref().map_or(0, |head| head.size).max(writer.signed());
        let unsure = writer.size().saturating_sub(sure);
        if unsure > 0 {
            self.lost.add("io", unsure);
        }
        // One that goes on after a crash, and of which nobody knows yet whether it rests on what this sidecar signed, is not
        // signed on.
        if let Some(head) = synced.filter(|_| !self.recovers) {
            self.left = Some(Left::new(writer.dir(), head));
        }
    }

    pub(in crate::audit) const fn left_mut(&mut self) -> Option<&mut Left> {
        self.left.as_mut()
    }

    /// Whether more is to be signed of this log, though nothing is written to it.
    pub(in crate::audit) fn is_left(&self, dir: &Path) -> bool {
        self.left.as_ref().is_some_and(|left| left.dir() == dir)
    }

    /// The log that was left is as every earlier one.
    pub(in crate::audit) fn let_go(&mut self) {
        self.left = None;
    }

    /// How far the log reaches, where that is further than what is known to be on disk.
    pub(in crate::audit) fn unsynced(&self) -> Option<Head> {
        let known = self.synced.as_ref().filter(|(life, _)| *life == self.life);
        let writer = self.writer.as_ref()?;
        (writer.size() > known.map_or(0, |(_, head)| head.size)).then(|| writer.head())
    }

    /// So far the log of `life` is on disk.
    pub(in crate::audit) fn synced(&mut self, life: u64, head: Head) {
        if self.life == life {
            self.synced = Some((life, head));
        }
    }
}

/// What is to be done about it now.
enum Work {
    Cut(PathBuf, Head, Options),
    Sync(log::SyncHandle),
}

impl Shared {
    /// Brings the log that was left into order, and lets go of it once its last word is on disk. Not while somebody holds the
    /// book.
    pub(in crate::audit) fn see_to_left(&self) {
        let work = {
            let mut book = self.book();
            let options = *book.options();
            let Some(left) = book.left_mut() else { return };
            match &left.writer {
                Some(writer) if left.signed => Work::Sync(writer.sync_handle()),
                Some(_) => return,
                None if left.tried.is_some_and(|tried| tried.elapsed() < RETRY) => return,
                None => {
                    left.tried = Some(Instant::now());
                    Work::Cut(left.dir.clone(), left.durable.clone(), options)
                }
            }
        };
        match work {
            Work::Cut(dir, durable, options) => {
                let cut = log::cut_to(&dir, &durable, options);
                self.cut(&dir, cut);
            }
            Work::Sync(handle) => {
                if let Err(error) = handle.sync() {
                    tracing::warn!(reason = error.reason(), %error, "the last word about an audit log can't be brought to disk");
                }
                // It is an earlier log from now on, which is sent as far as it is signed.
                self.book().let_go();
                self.kept.send_modify(|kept| *kept += 1);
            }
        }
    }

    fn cut(&self, dir: &Path, cut: Result<Writer, LogError>) {
        let mut book = self.book();
        match (cut, book.left_mut()) {
            (Ok(writer), Some(left)) => left.writer = Some(writer),
            (Ok(_), None) => {}
            // What is there is not what was written: nobody signs that.
            (Err(error @ LogError::Damaged { .. }), _) => {
                tracing::error!(%error, log = %dir.display(), "this audit log stays as it is, for the auditor");
                book.let_go();
            }
            (Err(error), _) => {
                tracing::warn!(reason = error.reason(), %error, log = %dir.display(), "an audit log can't be ended in order yet");
            }
        }
    }
}

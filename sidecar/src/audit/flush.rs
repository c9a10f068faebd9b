//! The thread that brings records to disk: every flush interval, and at once where an answer waits. Who comes while it
//! does so waits for the next time, together with all others that came.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aip_audit::log::LogError;

use super::book::{self, Book, Place};
use super::earlier::Earlier;
use super::{Shared, When, unix_millis};

/// How often strangers are recorded, and quotas looked at.
const TIDY: Duration = Duration::from_secs(5);

/// What the thread is asked for.
#[derive(Debug, Default)]
pub(super) struct Wants {
    sync: bool,
    stop: bool,
}

/// How many records of which log are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Durable {
    life: u64,
    pub(super) records: u64,
}

impl Durable {
    pub(super) const fn of(book: &Book) -> Self {
        Self {
            life: book.life(),
            records: 0,
        }
    }

    /// Whether the record is on disk.
    pub(super) const fn has(self, place: Place) -> bool {
        self.life == place.life && self.records > place.seq
    }

    /// Whether it is, or never will be.
    pub(super) const fn settles(self, place: Place) -> bool {
        self.life > place.life || self.has(place)
    }
}

pub(super) fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("audit".into()).spawn(move || {
        // Requests wait for this thread: it says that it failed, and goes on with a new log.
        while catch_unwind(AssertUnwindSafe(|| shared.run())).is_err() {
            shared.panicked();
        }
    })
}

impl Shared {
    /// Asks for a flush now.
    pub(super) fn want(&self) {
        let mut wants = self.wants.lock().unwrap_or_else(PoisonError::into_inner);
        if !wants.sync {
            wants.sync = true;
            self.wake.notify_one();
        }
    }

    pub(super) fn stop(&self) {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.wake.notify_one();
    }

    fn run(&self) {
        let (mut tidied, mut earlier) = (Instant::now(), Earlier::default());
        loop {
            let stop = self.next();
            self.flush();
            self.begin();
            self.see_to_left();
            if stop || tidied.elapsed() >= TIDY {
                tidied = Instant::now();
                self.tidy(&mut earlier);
            }
            if stop {
                self.flush();
                return;
            }
        }
    }

    /// Waits until there is something to do; whether it is the last time.
    fn next(&self) -> bool {
        let interval = Duration::from_millis(self.flush_ms.load(Ordering::Relaxed));
        let wants = self.wants.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .wake
            .wait_timeout_while(wants, interval, |wants| !wants.sync && !wants.stop);
        let (mut wants, _) = waited.unwrap_or_else(PoisonError::into_inner);
        wants.sync = false;
        wants.stop
    }

    /// Begins a log where there is none: not while somebody holds the book, since a new directory is synced.
    pub(super) fn begin(&self) {
        let wanted = self.book().to_begin();
        if let Some((root, options)) = wanted {
            let begun = book::begin(&root, options);
            self.book().began(begun);
        }
        self.publish();
    }

    /// What is in the log's memory may be half done: the log is left as it is, and whoever waits for it is told so.
    fn panicked(&self) {
        tracing::error!(
            reason = "audit_thread_panicked",
            "the audit's thread failed, and begins a new log"
        );
        self.metrics.panicked();
        {
            let mut book = self.book();
            let life = book.life();
            book.broken(life, &LogError::Poisoned);
            book.wait_to_begin();
        }
        self.publish();
    }

    pub(super) fn flush(&self) {
        let (handle, reaches) = {
            let book = self.book();
            (book.sync_handle(), book.unsynced())
        };
        let Some((handle, life)) = handle else { return };
        let (begun, before) = (Instant::now(), handle.durable());
        // Also where no record is new: checkpoints are lines in files, too.
        match handle.sync() {
            Ok(records) => {
                if records > before {
                    self.metrics.flushed(begun.elapsed());
                }
                if let Some(head) = reaches {
                    self.book().synced(life, head);
                }
                self.settle(Durable { life, records });
            }
            Err(error) => {
                self.book().broken(life, &error);
            }
        }
    }

    /// Tells those who wait which log is written now.
    fn publish(&self) {
        let (life, open) = {
            let book = self.book();
            (book.life(), book.is_open())
        };
        self.metrics.open(open);
        self.settle(Durable { life, records: 0 });
    }

    /// Tells those who wait what is on disk. What is said of an earlier log comes too late.
    fn settle(&self, next: Durable) {
        self.durable.send_if_modified(|known| {
            let newer = next.life > known.life || (next.life == known.life && next.records > known.records);
            if newer {
                *known = next;
            }
            newer
        });
    }

    fn tidy(&self, earlier: &mut Earlier) {
        for event in self.strangers.take() {
            // Counted where it can't be written.
            let _ = self.append(event, None, When::AtOnce);
        }
        let dir = self.book().dir().map(ToOwned::to_owned);
        let sent = dir.map_or(0, |dir| self.sent().segment_of(&dir));
        let gone = self.book().tidy(sent, unix_millis());
        if let Some(gone) = gone {
            match gone.remove() {
                Ok(dropped) => {
                    let (segments, quota) = (dropped.through, &dropped.quota);
                    tracing::info!(segments, quota, "audit records were dropped up to this segment");
                }
                Err(error) => tracing::warn!(reason = error.reason(), %error, "dropped audit records are still there"),
            }
        }
        self.shorten();
        earlier.tidy(self);
        let (unsigned, oldest) = {
            let book = self.book();
            (book.size().saturating_sub(book.signed()), book.unsigned_for())
        };
        self.metrics.unsigned(unsigned, oldest);
    }

    /// Makes files shorter that have grown long.
    fn shorten(&self) {
        let long = self.book().long();
        let Some((life, long)) = long else { return };
        let done = long.shorten().and_then(|shorter| self.book().shortened(life, shorter));
        if let Err(error) = done {
            tracing::warn!(reason = error.reason(), %error, "a file of the audit log can't be made shorter");
        }
    }
}

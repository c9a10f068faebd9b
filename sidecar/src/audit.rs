//! The audit trail of this sidecar: two records of each request, in a log that shows every later change.
//!
//! | file | what |
//! |---|---|
//! | `book` | the log that is being written; what is lost while none can be; the last word about one that the disk failed |
//! | `earlier` | logs of earlier lives |
//! | `lost` | what could not be written, counted over crashes |
//! | `shares` | who may write how much, while room is short |
//! | `flush` | brings records to disk, and whoever waits for that on |
//! | `digest` | salted digests of bodies as they stream |
//! | `strangers` | refusals of parties that nobody knows: counted, not recorded one by one |
//! | [`checkpoint`] | what this sidecar signs of its log, every few seconds |
//! | [`stream`] | the `Audit` stream to the control plane |
//! | `trusted` | whether a log that goes on rests on what this sidecar signed |
//!
//! A record is written into a file by the thread of its request and before anything goes out that it is about, so that a
//! crash of this process loses nothing that anybody knows of. Requests of one turn share a write: their records are gathered,
//! and written before the first byte of any of them leaves (`proxy/recorded`). When they must be on the disk, too, is a matter
//! of durability; what is to be there soon is written at once.

mod book;
pub mod checkpoint;
pub(crate) mod digest;
mod earlier;
mod flush;
mod lost;
mod metrics;
mod shares;
mod strangers;
pub mod stream;
mod trusted;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aip_audit::log::Options;
use aip_audit::record::Event;
use serde_json::{Value, json};
use tokio::sync::watch;

use book::{Book, Entry};
pub(crate) use book::{Place, Unrecorded};
use flush::{Durable, Wants};
use strangers::Strangers;

/// How often written records are brought to disk until the mesh's settings say otherwise.
const FLUSH: Duration = Duration::from_secs(1);

/// How long a flush may take: a disk that takes longer is as good as none.
const DISK: Duration = Duration::from_secs(10);

/// When a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Before this is answered.
    AtOnce,
    /// With [`Audit::write_gathered`], which is called before anything goes out on a connection.
    WithOthers,
}

/// The audit of a sidecar, or none. Cloning shares it; its thread ends with the last clone.
#[derive(Clone)]
pub struct Audit(Option<Arc<Owner>>);

struct Owner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the requests' threads and the audit's own share.
struct Shared {
    book: Mutex<Book>,
    /// Whether records wait for their write: set with the book held.
    gathered: AtomicBool,
    wants: Mutex<Wants>,
    wake: Condvar,
    durable: watch::Sender<Durable>,
    /// Raised with each checkpoint that was kept.
    kept: watch::Sender<u64>,
    /// What the control plane has.
    sent: Mutex<stream::Sent>,
    strangers: Strangers,
    flush_ms: AtomicU64,
    metrics: metrics::Metrics,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Audit" } else { "Audit(none)" })
    }
}

impl Audit {
    /// Records nothing: for sidecars inside a test that looks at something else.
    pub const fn none() -> Self {
        Self(None)
    }

    /// The audit whose logs are below `root`. A log that was not closed goes on. Where none can be opened it is tried
    /// again: what is to be recorded surely is refused meanwhile, and the rest counted.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn open(root: &Path, options: Options) -> std::io::Result<Self> {
        let book = Book::open(root, options);
        let shared = Arc::new(Shared {
            durable: watch::Sender::new(Durable::of(&book)),
            book: Mutex::new(book),
            gathered: AtomicBool::new(false),
            wants: Mutex::default(),
            wake: Condvar::new(),
            kept: watch::Sender::new(0),
            sent: Mutex::default(),
            strangers: Strangers::default(),
            flush_ms: AtomicU64::new(millis(FLUSH)),
            metrics: metrics::Metrics::register(),
        });
        let thread = flush::start(shared.clone())?;
        Ok(Self(Some(Arc::new(Owner {
            shared,
            thread: Some(thread),
        }))))
    }

    fn shared(&self) -> Option<&Arc<Shared>> {
        self.0.as_ref().map(|owner| &owner.shared)
    }

    /// Whether anything is recorded.
    pub(crate) const fn records(&self) -> bool {
        self.0.is_some()
    }

    /// Writes a record, at once or with those of the same turn; where it stands, if anything is recorded.
    ///
    /// # Errors
    /// It can't be written. It is counted, and the log will say how many are missing.
    pub(crate) fn append(&self, event: Event, when: When) -> Result<Option<Place>, Unrecorded> {
        let Some(shared) = self.shared() else { return Ok(None) };
        shared.append(event, None, when)
    }

    /// Writes the record of an end, into the log that has its decision; nothing where that was gathered and lost, since an end
    /// alone would say nothing.
    ///
    /// # Errors
    /// As [`Self::append`]; or that log is not written any more.
    pub(crate) fn append_end(&self, event: Event, decision: Place, when: When) -> Result<Option<Place>, Unrecorded> {
        let Some(shared) = self.shared() else { return Ok(None) };
        shared.append(event, Some(decision), when)
    }

    /// Writes what was gathered, before anything goes out that it is about. What can't be written is counted as lost, as any
    /// record is for which nobody waits.
    pub(crate) fn write_gathered(&self) {
        if let Some(shared) = self.shared()
            && shared.gathered.load(Ordering::Acquire)
        {
            drop(shared.book());
        }
    }

    /// Counts a refusal of somebody who is not known.
    pub(crate) fn stranger(&self, reason: &'static str, sample: impl FnOnce() -> String) {
        if let Some(shared) = self.shared() {
            shared.strangers.count(reason, sample);
        }
    }

    /// Resolves when the record is on disk: true, or false where it never will be.
    pub(crate) fn on_disk(&self, place: Place) -> impl Future<Output = bool> + Send + Sync + use<> {
        let durable = self.shared().map(|shared| {
            shared.want();
            shared.durable.subscribe()
        });
        async move {
            let Some(mut durable) = durable else { return true };
            let settled = durable.wait_for(|known| known.settles(place));
            let settled = tokio::time::timeout(DISK, settled).await;
            settled.is_ok_and(|settled| settled.is_ok_and(|known| known.has(place)))
        }
    }

    /// How often written records are brought to disk.
    pub(crate) fn flush_every(&self, every_ms: u64) {
        if let Some(shared) = self.shared() {
            shared.flush_ms.store(every_ms.max(1), Ordering::Relaxed);
        }
    }

    /// The log that is being written, for the admin port.
    pub fn page(&self) -> Value {
        let Some(shared) = self.shared() else {
            return Value::Null;
        };
        let durable = *shared.durable.borrow();
        let (sent, mut page) = (shared.sent().page(), shared.book().page());
        page["durable"] = durable.records.into();
        json!({ "log": page, "sent": sent, "flush_ms": shared.flush_ms.load(Ordering::Relaxed) })
    }
}

impl Shared {
    /// The book, with all that was gathered in its file: nobody but who appends sees it otherwise.
    fn book(&self) -> MutexGuard<'_, Book> {
        let mut book = self.book_as_is();
        book.write_gathered();
        self.note(&mut book);
        book
    }

    fn book_as_is(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is gathered now, and what of it was lost.
    fn note(&self, book: &mut Book) {
        self.gathered.store(book.has_gathered(), Ordering::Release);
        let (undone, why) = book.take_undone();
        if undone > 0 {
            self.metrics.lost(why, undone);
        }
    }

    fn sent(&self) -> MutexGuard<'_, stream::Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, event: Event, after: Option<Place>, when: When) -> Result<Option<Place>, Unrecorded> {
        let kind = metrics::Kind::of(&event);
        let from = match &event {
            Event::Decision(decision) => Some(decision.source.id.clone()),
            _ => None,
        };
        // Made ready before anybody is kept waiting.
        let entry = Entry {
            event: event.settled(),
            after,
            from: from.as_deref(),
            gathers: when == When::WithOthers,
        };
        let (written, bytes, to_begin) = {
            let mut book = self.book_as_is();
            if after.is_some_and(|decision| book.has_lost(decision)) {
                return Ok(None);
            }
            let before = book.bytes();
            let written = book.append(entry, unix_millis());
            self.note(&mut book);
            let to_begin = written.is_err() && book.to_begin().is_some();
            (written, book.bytes().saturating_sub(before), to_begin)
        };
        match &written {
            Ok(_) => self.metrics.recorded(kind, bytes),
            Err(error) => self.metrics.lost(error.0, 1),
        }
        if to_begin {
            self.want();
        }
        written.map(Some)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn unix_millis() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! The store: a versioned key-value store with transactions and watch, as etcd's.
//!
//! [`Backend`] is the small blocking trait that a database implements ([`disk`]: redb, [`memory`]: the model and
//! oracle). [`Store`] is what everything else uses: it keeps blocking work off the async path, lets one writer in at
//! a time, and wakes watchers.
//!
//! Every transaction raises the revision, carries one audit entry, and stands in a bounded change log. A watcher that
//! asks for what the log no longer holds is told so ([`StoreError::Compacted`]) and resyncs from a [`Snapshot`].

mod backend;
pub mod disk;
mod error;
pub mod memory;
mod transaction;
mod watch;

#[cfg(test)]
mod conformance;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, watch as signal};

pub use backend::Backend;
pub use error::StoreError;
use transaction::expected;
pub use transaction::{Change, Entry, Expect, Keep, Op, Snapshot, Transaction, check};
pub use watch::Watch;

/// Version of the layout on disk. A newer one is refused, so that a downgrade can't damage what it doesn't know.
pub const FORMAT: u64 = 1;
/// Changes that watchers can catch up on: minutes of a busy mesh; past it a snapshot is cheaper than a replay.
pub const LOG_REVISIONS: u64 = 10_000;
/// Audit entries that are kept of what people did, and of what sidecars made happen: about a year at two changes a
/// minute; some 300 MB each at most. Each kind has its own, so that no agent can push out what an operator did.
pub const AUDIT_ENTRIES: u64 = 1_000_000;
/// Longest key: a prefix and the longest resource name.
pub const MAX_KEY_BYTES: usize = 512;
/// Largest value: a resource with its envelope; evidence is never stored.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// Most operations of one transaction. Only a recovery, which rewrites every resource, comes near.
pub const MAX_OPS: usize = 200_000;
/// Rows that one scan answers.
pub const MAX_SCAN: usize = 10_000;
/// Commit times that are remembered, for the time from commit to acknowledgement.
const COMMIT_TIMES: usize = 4_096;

/// The store of this process. Cloning shares it.
#[derive(Clone)]
pub struct Store {
    // Empty once it was closed.
    backend: Arc<RwLock<Option<Arc<dyn Backend>>>>,
    // One blocking thread waits in the database's own writer lock, not one per request.
    writer: Arc<AsyncMutex<()>>,
    revision: signal::Sender<u64>,
    commits: Arc<Mutex<VecDeque<(u64, Instant)>>>,
    // Whether it is the mesh's: the metrics of the store are of that one.
    measured: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store(at revision {})", *self.revision.borrow())
    }
}

impl Store {
    /// A store over `backend`.
    ///
    /// # Errors
    /// The database fails.
    pub fn new(backend: impl Backend) -> Result<Self, StoreError> {
        let revision = backend.revision()?;
        Ok(Self {
            backend: Arc::new(RwLock::new(Some(Arc::new(backend)))),
            writer: Arc::default(),
            revision: signal::Sender::new(revision),
            commits: Arc::default(),
            measured: true,
        })
    }

    /// A store beside the mesh's, which the metrics of the store do not count.
    ///
    /// # Errors
    /// The database fails.
    pub fn apart(backend: impl Backend) -> Result<Self, StoreError> {
        Ok(Self {
            measured: false,
            ..Self::new(backend)?
        })
    }

    async fn off<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Backend) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let open = self.backend.read().unwrap_or_else(PoisonError::into_inner).clone();
        let backend = open.ok_or_else(|| StoreError::Failed("the store is closed".into()))?;
        let joined = tokio::task::spawn_blocking(move || work(&*backend)).await;
        joined.unwrap_or_else(|e| Err(StoreError::Failed(format!("a database call died: {e}"))))
    }

    /// Closes the database when the calls that are running have ended; every later call fails. Whoever still holds
    /// the store (a connection that lingers) does not keep its file open.
    pub async fn close(&self) {
        let _writer = self.writer.lock().await;
        let backend = self.backend.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(backend) = backend else { return };
        // Reads take microseconds, and no new one begins.
        while Arc::strong_count(&backend) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let _ = tokio::task::spawn_blocking(move || drop(backend)).await;
    }

    /// The revision of the last transaction.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// One entry.
    ///
    /// # Errors
    /// The database fails.
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Entry>, StoreError> {
        let key = key.into();
        self.off(move |b| b.get(&key)).await
    }

    /// Up to `limit` (at most [`MAX_SCAN`]) entries whose key begins with `prefix` and lies after `after`, by key.
    ///
    /// # Errors
    /// The database fails.
    pub async fn scan(
        &self,
        prefix: impl Into<String>,
        after: impl Into<String>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let (prefix, after) = (prefix.into(), after.into());
        self.off(move |b| b.scan(&prefix, &after, limit.min(MAX_SCAN))).await
    }

    /// All entries below `prefix`, at one revision.
    ///
    /// # Errors
    /// The database fails.
    pub async fn snapshot(&self, prefix: impl Into<String>) -> Result<Snapshot, StoreError> {
        let prefix = prefix.into();
        self.off(move |b| b.snapshot(&prefix)).await
    }

    /// Audit entries before revision `before` (exclusive), newest first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn audit(&self, before: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, StoreError> {
        self.off(move |b| b.audit(before, limit.min(MAX_SCAN))).await
    }

    /// Applies a transaction; answers its revision, when it is on disk.
    ///
    /// # Errors
    /// Something is not as expected, a bound is broken, or the database fails; nothing of it happened then.
    pub async fn txn(&self, transaction: Transaction) -> Result<u64, StoreError> {
        check(&transaction)?;
        let begun = Instant::now();
        let store = self.clone();
        // A task of its own: a caller that goes away must not leave a commit that nobody was woken for.
        let task = tokio::spawn(async move {
            let _writer = store.writer.lock().await;
            let revision = store.off(move |b| b.txn(&transaction)).await?;
            store.committed(revision);
            Ok(revision)
        });
        let done = task
            .await
            .unwrap_or_else(|e| Err(StoreError::Failed(format!("the writer died: {e}"))));
        if self.measured {
            metrics::histogram!("aip_store_txn_seconds").record(begun.elapsed().as_secs_f64());
        }
        if let Err(error) = &done {
            metrics::counter!("aip_store_txn_failures_total", "reason" => error.reason()).increment(1);
            self.look_again(error).await;
        }
        done
    }

    /// A commit whose flush failed may stand all the same: watchers are told of what does.
    async fn look_again(&self, error: &StoreError) {
        if !matches!(error, StoreError::Full(_) | StoreError::Failed(_)) {
            return;
        }
        let _writer = self.writer.lock().await;
        match self.off(Backend::revision).await {
            Ok(revision) if revision > self.revision() => self.committed(revision),
            _ => {}
        }
    }

    fn committed(&self, revision: u64) {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if commits.len() == COMMIT_TIMES {
            commits.pop_front();
        }
        commits.push_back((revision, Instant::now()));
        drop(commits);
        self.revision.send_replace(revision);
        if self.measured {
            metrics::gauge!("aip_store_revision").set(revision as f64);
        }
    }

    /// When `revision` was committed by this process; `None` for one that is older than what is remembered.
    pub fn committed_at(&self, revision: u64) -> Option<Instant> {
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        commits.iter().find(|(r, _)| *r == revision).map(|(_, at)| *at)
    }

    /// Watches what changes after revision `from`.
    pub fn watch(&self, from: u64) -> Watch {
        Watch::new(self.clone(), self.revision.subscribe(), from)
    }

    async fn changes(&self, from: u64, limit: usize) -> Result<Vec<Change>, StoreError> {
        self.off(move |b| b.changes(from, limit)).await
    }
}

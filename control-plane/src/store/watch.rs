//! Watching: reads the change log from where it stands, and waits for more. No queue, so a slow watcher costs nothing.

use tokio::sync::watch::Receiver;

use super::{Change, Store, StoreError};

/// Changes that one read takes from the log.
const BATCH: usize = 1_000;

/// A place in the change log.
#[derive(Debug)]
pub struct Watch {
    store: Store,
    revision: Receiver<u64>,
    seen: u64,
}

impl Watch {
    pub(super) fn new(store: Store, revision: Receiver<u64>, from: u64) -> Self {
        Self {
            store,
            revision,
            seen: from,
        }
    }

    /// The revision up to which everything was answered.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Waits for the next changes, in order; whole revisions only. Empty where a revision changed no key.
    ///
    /// # Errors
    /// Compacted: take a snapshot and watch from its revision. Or the database fails.
    pub async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        let known = loop {
            let known = *self.revision.borrow_and_update();
            if known > self.seen {
                break known;
            }
            // The store outlives its watches: they hold it.
            let _ = self.revision.changed().await;
        };
        let changes = self.store.changes(self.seen, BATCH).await?;
        // What was read may reach further than what was announced; a full batch may end before it.
        self.seen = match changes.last() {
            Some(last) if changes.len() >= BATCH => last.revision,
            Some(last) => last.revision.max(known),
            None => known,
        };
        Ok(changes)
    }
}

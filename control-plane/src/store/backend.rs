//! The small trait that a database implements.

use bytes::Bytes;

use super::{Change, Entry, Snapshot, StoreError, Transaction};

/// A database. All calls block.
pub trait Backend: Send + Sync + 'static {
    /// The revision of the last transaction.
    ///
    /// # Errors
    /// The database fails.
    fn revision(&self) -> Result<u64, StoreError>;
    /// One entry.
    ///
    /// # Errors
    /// The database fails.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// Up to `limit` entries whose key begins with `prefix` and lies after `after`, by key.
    ///
    /// # Errors
    /// The database fails.
    fn scan(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Entry>, StoreError>;
    /// Applies a transaction that passed [`check`](super::check); answers its revision.
    ///
    /// # Errors
    /// Something is not as expected, or the database fails; nothing of it happened then.
    fn txn(&self, transaction: &Transaction) -> Result<u64, StoreError>;
    /// Changes after revision `from`, whole revisions, until at least `limit` are found.
    ///
    /// # Errors
    /// Compacted, or the database fails.
    fn changes(&self, from: u64, limit: usize) -> Result<Vec<Change>, StoreError>;
    /// Audit entries before revision `before` (exclusive), newest first.
    ///
    /// # Errors
    /// The database fails.
    fn audit(&self, before: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, StoreError>;
    /// All entries below `prefix`, at one revision.
    ///
    /// # Errors
    /// The database fails.
    fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError>;
}

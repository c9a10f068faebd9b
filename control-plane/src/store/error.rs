//! Why the store did not do it.

use super::FORMAT;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A key is not as expected: somebody else changed it meanwhile.
    #[error("{key} was changed meanwhile (now at revision {at:?}); read it again and repeat")]
    Conflict {
        /// Which key.
        key: String,
        /// Its revision, if it exists.
        at: Option<u64>,
    },
    /// The change log no longer reaches back that far.
    #[error("changes after revision {from} are no longer kept (the oldest is {oldest}); resync from a snapshot")]
    Compacted {
        /// What was asked for.
        from: u64,
        /// What there is.
        oldest: u64,
    },
    /// The transaction breaks a bound.
    #[error("the transaction is not allowed: {0}")]
    Invalid(String),
    /// Written by a newer version.
    #[error("the data is of format {found}, this version knows {FORMAT}: use the newer version, or a backup")]
    NewerFormat {
        /// What stands on disk.
        found: u64,
    },
    /// Another process has it open.
    #[error("the database is open in another process; stop that one")]
    InUse,
    /// There is no room to write.
    #[error("there is no room to write: {0}; free some on the data directory's disk, nothing was lost")]
    Full(String),
    /// What stands on disk is not what was written.
    #[error("the database is damaged or none of ours: {0}; it was left as it is, restore a backup in its place")]
    Damaged(String),
    /// The database failed.
    #[error("the database failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::Compacted { .. } => "compacted",
            Self::Invalid(_) => "transaction_invalid",
            Self::NewerFormat { .. } => "store_newer_format",
            Self::InUse => "store_in_use",
            Self::Full(_) => "store_full",
            Self::Damaged(_) => "store_damaged",
            Self::Failed(_) => "store_failed",
        }
    }
}

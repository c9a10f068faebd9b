//! What is in the store, and what a transaction does to it.

use std::collections::HashSet;

use bytes::Bytes;

use super::{AUDIT_ENTRIES, LOG_REVISIONS, MAX_KEY_BYTES, MAX_OPS, MAX_VALUE_BYTES, StoreError};

/// One key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// The revision of the transaction that wrote it.
    pub revision: u64,
}

/// What a transaction expects of a key; else nothing of it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// No such key.
    Absent,
    /// Written by this revision.
    At(u64),
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a value.
    Put {
        /// Where.
        key: String,
        /// What.
        value: Bytes,
        /// If.
        expect: Expect,
    },
    /// Removes a key; removing an absent one changes nothing.
    Delete {
        /// Which.
        key: String,
        /// If.
        expect: Expect,
    },
    /// Only expects.
    Check {
        /// Which.
        key: String,
        /// What.
        expect: Expect,
    },
}

impl Op {
    /// The key that it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Check { key, .. } => key,
        }
    }

    fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } | Self::Check { expect, .. } => *expect,
        }
    }
}

/// How much is kept of what is over.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Transactions in the change log.
    pub log: u64,
    /// Audit entries of each kind.
    pub audit: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            log: LOG_REVISIONS,
            audit: AUDIT_ENTRIES,
        }
    }
}

/// Operations that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// At most one per key.
    pub ops: Vec<Op>,
    /// The audit entry, stored under the transaction's revision.
    pub audit: Bytes,
    /// Whether a sidecar, or time, made it happen: its audit entry is kept apart from those of people.
    pub routine: bool,
    /// The revision is at least this: how a restored copy is lifted above what sidecars have seen.
    pub at_least: u64,
}

/// A key that changed. What it says now is read from the store, which may be newer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Change {
    /// By which revision.
    pub revision: u64,
    /// Which key.
    pub key: String,
    /// Whether it was removed.
    pub deleted: bool,
}

/// Entries below a prefix, as of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// As of.
    pub revision: u64,
    /// By key.
    pub entries: Vec<Entry>,
}

/// Holds a transaction against the bounds that every backend shares.
///
/// # Errors
/// Too many operations, a key twice, a key or value too large.
pub fn check(transaction: &Transaction) -> Result<(), StoreError> {
    let refuse = |why: String| Err(StoreError::Invalid(why));
    if transaction.ops.len() > MAX_OPS {
        return refuse(format!("{} operations; at most {MAX_OPS}", transaction.ops.len()));
    }
    let mut seen = HashSet::with_capacity(transaction.ops.len());
    for op in &transaction.ops {
        let key = op.key();
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return refuse(format!("a key of {} bytes; 1 to {MAX_KEY_BYTES}", key.len()));
        }
        if !seen.insert(key) {
            return refuse(format!("{key} stands in it twice"));
        }
        if let Op::Put { value, .. } = op
            && value.len() > MAX_VALUE_BYTES
        {
            return refuse(format!("{key}: {} bytes; at most {MAX_VALUE_BYTES}", value.len()));
        }
    }
    Ok(())
}

/// Whether a key is as an operation expects it.
pub(super) fn expected(op: &Op, at: Option<u64>) -> Result<(), StoreError> {
    let met = match op.expect() {
        Expect::Any => true,
        Expect::Absent => at.is_none(),
        Expect::At(revision) => at == Some(revision),
    };
    if met {
        Ok(())
    } else {
        Err(StoreError::Conflict {
            key: op.key().to_owned(),
            at,
        })
    }
}

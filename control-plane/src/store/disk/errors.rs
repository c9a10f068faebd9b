//! What redb's errors mean to us.

use std::io::ErrorKind;

use redb::{Error, TableError};

use crate::store::StoreError;

/// An error of redb, as one of ours.
pub(super) fn failed(error: impl Into<Error>) -> StoreError {
    match error.into() {
        Error::DatabaseAlreadyOpen => StoreError::InUse,
        Error::Corrupted(what) => StoreError::Damaged(what),
        Error::Io(error) => match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                StoreError::Full(error.to_string())
            }
            // How it says that what it read is not what it wrote.
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => StoreError::Damaged(error.to_string()),
            _ => StoreError::Failed(error.to_string()),
        },
        other => StoreError::Failed(other.to_string()),
    }
}

/// A table that every store has can't be opened.
pub(super) fn unreadable(error: TableError) -> StoreError {
    match error {
        TableError::Storage(error) => failed(error),
        other => StoreError::Damaged(other.to_string()),
    }
}

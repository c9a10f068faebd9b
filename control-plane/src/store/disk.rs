//! The store on disk: redb, one file, every commit flushed before it is answered.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition};

use super::{
    AUDIT_ENTRIES, Backend, Change, Entry, FORMAT, LOG_REVISIONS, Op, Snapshot, StoreError, Transaction, expected,
};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const DATA: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("data");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");

/// Pages that stay in memory: the hot part of a mesh of ten thousand agents.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// A redb database.
#[derive(Debug)]
pub struct DiskStore {
    database: Database,
    log_revisions: u64,
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl DiskStore {
    /// Opens the database in `path`, or makes it.
    ///
    /// # Errors
    /// In use, of a newer format, damaged, or not readable.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with_log(path, LOG_REVISIONS)
    }

    /// As [`Self::open`], with a change log of `log_revisions` transactions.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_log(path: &Path, log_revisions: u64) -> Result<Self, StoreError> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|e| match e {
                DatabaseError::DatabaseAlreadyOpen => StoreError::InUse,
                other => failed(other),
            })?;
        // Secrets in it are sealed; the rest is still nobody else's to read.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let write = database.begin_write().map_err(failed)?;
        {
            let mut meta = write.open_table(META).map_err(failed)?;
            let found = meta.get("format").map_err(failed)?.map(|v| v.value());
            match found {
                Some(found) if found > FORMAT => return Err(StoreError::NewerFormat { found }),
                Some(_) => {}
                None => {
                    meta.insert("format", FORMAT).map_err(failed)?;
                    meta.insert("revision", 0).map_err(failed)?;
                    meta.insert("compacted", 0).map_err(failed)?;
                }
            }
            // Readers need the tables to exist.
            write.open_table(DATA).map_err(failed)?;
            write.open_table(LOG).map_err(failed)?;
            write.open_table(AUDIT).map_err(failed)?;
        }
        write.commit().map_err(failed)?;
        Ok(Self {
            database,
            log_revisions,
        })
    }
}

fn number(meta: &impl ReadableTable<&'static str, u64>, key: &str) -> Result<u64, StoreError> {
    Ok(meta.get(key).map_err(failed)?.map_or(0, |v| v.value()))
}

fn collect(
    data: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<Entry>, StoreError> {
    let from = if after < prefix { prefix } else { after };
    let mut out = Vec::new();
    for row in data.range::<&str>(from..).map_err(failed)? {
        let (key, value) = row.map_err(failed)?;
        let key = key.value();
        if !key.starts_with(prefix) || out.len() >= limit {
            break;
        }
        if key > after {
            let (revision, value) = value.value();
            out.push(Entry {
                key: key.to_owned(),
                value: Bytes::copy_from_slice(value),
                revision,
            });
        }
    }
    Ok(out)
}

/// Drops the oldest rows of a table until `keep` are left; answers the last key that went.
fn trim(table: &mut Table<'_, u64, &'static [u8]>, keep: u64) -> Result<Option<u64>, StoreError> {
    let mut last = None;
    while table.len().map_err(failed)? > keep {
        let Some((oldest, _)) = table.pop_first().map_err(failed)? else {
            break;
        };
        last = Some(oldest.value());
    }
    Ok(last)
}

fn apply(
    data: &mut Table<'_, &'static str, (u64, &'static [u8])>,
    ops: &[Op],
    revision: u64,
) -> Result<Vec<(String, bool)>, StoreError> {
    let mut changed = Vec::new();
    for op in ops {
        let at = data.get(op.key()).map_err(failed)?.map(|v| v.value().0);
        expected(op, at)?;
        match op {
            Op::Put { key, value, .. } => {
                data.insert(key.as_str(), (revision, &**value)).map_err(failed)?;
                changed.push((key.clone(), false));
            }
            Op::Delete { key, .. } => {
                if data.remove(key.as_str()).map_err(failed)?.is_some() {
                    changed.push((key.clone(), true));
                }
            }
            Op::Check { .. } => {}
        }
    }
    Ok(changed)
}

impl Backend for DiskStore {
    fn revision(&self) -> Result<u64, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        number(&read.open_table(META).map_err(failed)?, "revision")
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let data = read.open_table(DATA).map_err(failed)?;
        let found = ReadableTable::get(&data, key).map_err(failed)?;
        Ok(found.map(|v| {
            let (revision, value) = v.value();
            Entry {
                key: key.to_owned(),
                value: Bytes::copy_from_slice(value),
                revision,
            }
        }))
    }

    fn scan(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        collect(&read.open_table(DATA).map_err(failed)?, prefix, after, limit)
    }

    fn txn(&self, transaction: &Transaction) -> Result<u64, StoreError> {
        let write = self.database.begin_write().map_err(failed)?;
        let revision = {
            let mut meta = write.open_table(META).map_err(failed)?;
            let revision = (number(&meta, "revision")? + 1).max(transaction.at_least);
            // An error drops `write`, and with it everything done so far: keys are unique within a transaction, so
            // checking and writing in one pass is the same as checking first.
            let mut data = write.open_table(DATA).map_err(failed)?;
            let changed = apply(&mut data, &transaction.ops, revision)?;
            let mut log = write.open_table(LOG).map_err(failed)?;
            let line = serde_json::to_vec(&changed).map_err(failed)?;
            log.insert(revision, line.as_slice()).map_err(failed)?;
            if let Some(compacted) = trim(&mut log, self.log_revisions)? {
                meta.insert("compacted", compacted).map_err(failed)?;
            }
            let mut audit = write.open_table(AUDIT).map_err(failed)?;
            audit.insert(revision, &*transaction.audit).map_err(failed)?;
            trim(&mut audit, AUDIT_ENTRIES)?;
            meta.insert("revision", revision).map_err(failed)?;
            revision
        };
        write.commit().map_err(failed)?;
        Ok(revision)
    }

    fn changes(&self, from: u64, limit: usize) -> Result<Vec<Change>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let oldest = number(&read.open_table(META).map_err(failed)?, "compacted")?;
        if from < oldest {
            return Err(StoreError::Compacted { from, oldest });
        }
        let log = read.open_table(LOG).map_err(failed)?;
        let mut out = Vec::new();
        for row in ReadableTable::range(&log, from + 1..).map_err(failed)? {
            if out.len() >= limit {
                break;
            }
            let (revision, line) = row.map_err(failed)?;
            let changed: Vec<(String, bool)> = serde_json::from_slice(line.value()).map_err(failed)?;
            let revision = revision.value();
            out.extend(
                changed
                    .into_iter()
                    .map(|(key, deleted)| Change { revision, key, deleted }),
            );
        }
        Ok(out)
    }

    fn audit(&self, before: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let audit = read.open_table(AUDIT).map_err(failed)?;
        let rows = ReadableTable::range(&audit, ..before)
            .map_err(failed)?
            .rev()
            .take(limit);
        rows.map(|row| {
            let (revision, value) = row.map_err(failed)?;
            Ok((revision.value(), Bytes::copy_from_slice(value.value())))
        })
        .collect()
    }

    fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let revision = number(&read.open_table(META).map_err(failed)?, "revision")?;
        let entries = collect(&read.open_table(DATA).map_err(failed)?, prefix, "", usize::MAX)?;
        Ok(Snapshot { revision, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_and_a_second_opener_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = DiskStore::open(&path).unwrap();
        assert_eq!(DiskStore::open(&path).unwrap_err().reason(), "store_in_use");
        let write = store.database.begin_write().unwrap();
        write.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        write.commit().unwrap();
        drop(store);
        let refused = DiskStore::open(&path).unwrap_err();
        assert_eq!(refused.reason(), "store_newer_format");
        assert!(refused.to_string().contains("newer version"));
    }
}

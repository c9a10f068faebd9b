//! The store on disk: redb, one file, every commit flushed before it is answered.

mod errors;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use aip_runtime::fault;
use bytes::Bytes;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};

use super::{Backend, Change, Entry, FORMAT, Keep, Op, Snapshot, StoreError, Transaction, expected};
use errors::{failed, unreadable};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const DATA: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("data");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
const ROUTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit-routine");

/// Pages that stay in memory: the hot part of a mesh of ten thousand agents.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Opens the database; again, after the disk was full.
type Open = Box<dyn Fn() -> Result<Database, StoreError> + Send + Sync>;

/// A redb database.
pub struct DiskStore {
    open: Open,
    // Empty while it can't be opened again.
    database: RwLock<Option<Database>>,
    // redb takes nothing more after a write that failed, until it is opened again.
    stale: AtomicBool,
    keep: Keep,
    /// What the file is called, for the points at which a test ends the process.
    name: String,
}

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskStore")
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// What redb does to a file that it does not understand must not end the process.
fn guarded(open: impl FnOnce() -> Result<Database, redb::DatabaseError>) -> Result<Database, StoreError> {
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(failed),
        Err(_) => Err(StoreError::Damaged("it can't be made sense of".into())),
    }
}

/// Makes a new database where none is. It appears whole: a crash in the middle leaves none.
fn make(path: &Path) -> Result<(), StoreError> {
    let io = |error: std::io::Error| failed(redb::Error::Io(error));
    let unfinished = path.with_extension("new");
    let _ = fs::remove_file(&unfinished);
    let database = guarded(|| builder().create(&unfinished))?;
    // Secrets in it are sealed; the rest is still nobody else's to read.
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600)).map_err(io)?;
    prepare(&database)?;
    drop(database);
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(io)?;
    fault::point(|| format!("{}:made", stem(path)));
    fs::rename(&unfinished, path).map_err(io)?;
    fault::point(|| format!("{}:renamed", stem(path)));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A point of a transaction, with what it is for: the action of its audit entry, where it has one.
fn of_transaction(name: &str, step: &str, transaction: &Transaction) -> String {
    let entry: serde_json::Value = serde_json::from_slice(&transaction.audit).unwrap_or_default();
    match entry["action"].as_str() {
        Some(action) => format!("{name}:{step}:{action}"),
        None => format!("{name}:{step}"),
    }
}

/// Writes what every store has.
fn prepare(database: &Database) -> Result<(), StoreError> {
    let write = database.begin_write().map_err(failed)?;
    {
        let mut meta = write.open_table(META).map_err(failed)?;
        for (key, value) in [("format", FORMAT), ("revision", 0), ("compacted", 0)] {
            meta.insert(key, value).map_err(failed)?;
        }
        // Readers need the tables to exist.
        write.open_table(DATA).map_err(failed)?;
        for table in [LOG, AUDIT, ROUTINE] {
            write.open_table(table).map_err(failed)?;
        }
    }
    write.commit().map_err(failed)
}

/// Whether it is a store that this version knows.
fn known(database: &Database) -> Result<(), StoreError> {
    let read = database.begin_read().map_err(failed)?;
    let meta = read.open_table(META).map_err(unreadable)?;
    match ReadableTable::get(&meta, "format").map_err(failed)?.map(|v| v.value()) {
        Some(found) if found > FORMAT => Err(StoreError::NewerFormat { found }),
        Some(_) => Ok(()),
        None => Err(StoreError::Damaged("it does not say its format".into())),
    }
}

impl DiskStore {
    /// Opens the database in `path`, or makes it where nothing is. What is there and is no store of ours is not touched.
    ///
    /// # Errors
    /// In use, of a newer format, damaged, or not readable.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::keeping(path, Keep::default())
    }

    /// As [`Self::open`], with so much kept of what is over.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn keeping(path: &Path, keep: Keep) -> Result<Self, StoreError> {
        if fs::symlink_metadata(path).is_err() {
            make(path)?;
        }
        let (path, name): (PathBuf, _) = (path.to_owned(), stem(path));
        Self::with(Box::new(move || guarded(|| builder().open(&path))), keep, name)
    }

    fn with(open: Open, keep: Keep, name: String) -> Result<Self, StoreError> {
        let database = open()?;
        known(&database)?;
        Ok(Self {
            open,
            database: RwLock::new(Some(database)),
            stale: AtomicBool::new(false),
            keep,
            name,
        })
    }

    /// Works on the database. After the disk was full it is opened again, once for the next call.
    fn on<T>(&self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.stale.load(Ordering::Acquire) {
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if self.stale.load(Ordering::Acquire) {
                *database = None;
                *database = Some((self.open)()?);
                self.stale.store(false, Ordering::Release);
            }
        }
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let closed = || StoreError::Failed("it is being opened again".into());
        let done = work(database.as_ref().ok_or_else(closed)?);
        if matches!(done, Err(StoreError::Full(_))) {
            self.stale.store(true, Ordering::Release);
        }
        done
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
        self.on(|database| {
            let read = database.begin_read().map_err(failed)?;
            number(&read.open_table(META).map_err(unreadable)?, "revision")
        })
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.on(|database| {
            let read = database.begin_read().map_err(failed)?;
            let data = read.open_table(DATA).map_err(unreadable)?;
            let found = ReadableTable::get(&data, key).map_err(failed)?;
            Ok(found.map(|v| {
                let (revision, value) = v.value();
                Entry {
                    key: key.to_owned(),
                    value: Bytes::copy_from_slice(value),
                    revision,
                }
            }))
        })
    }

    fn scan(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.on(|database| {
            let read = database.begin_read().map_err(failed)?;
            collect(&read.open_table(DATA).map_err(unreadable)?, prefix, after, limit)
        })
    }

    fn txn(&self, transaction: &Transaction) -> Result<u64, StoreError> {
        self.on(|database| {
            let write = database.begin_write().map_err(failed)?;
            // An error drops `write`, and with it everything done so far.
            let revision = change(&write, transaction, self.keep)?;
            fault::point(|| of_transaction(&self.name, "changed", transaction));
            write.commit().map_err(failed)?;
            fault::point(|| of_transaction(&self.name, "committed", transaction));
            Ok(revision)
        })
    }

    fn changes(&self, from: u64, limit: usize) -> Result<Vec<Change>, StoreError> {
        self.on(|database| {
            let read = database.begin_read().map_err(failed)?;
            let oldest = number(&read.open_table(META).map_err(unreadable)?, "compacted")?;
            if from < oldest {
                return Err(StoreError::Compacted { from, oldest });
            }
            let log = read.open_table(LOG).map_err(unreadable)?;
            let mut out = Vec::new();
            for row in ReadableTable::range(&log, from + 1..).map_err(failed)? {
                if out.len() >= limit {
                    break;
                }
                let (revision, line) = row.map_err(failed)?;
                let damaged = |e: serde_json::Error| StoreError::Damaged(format!("a line of the change log: {e}"));
                let changed: Vec<(String, bool)> = serde_json::from_slice(line.value()).map_err(damaged)?;
                let revision = revision.value();
                let change = |(key, deleted)| Change { revision, key, deleted };
                out.extend(changed.into_iter().map(change));
            }
            Ok(out)
        })
    }

    fn audit(&self, before: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, StoreError> {
        self.on(|database| {
            let read = database.begin_read().map_err(failed)?;
            let mut rows = Vec::new();
            for table in [AUDIT, ROUTINE] {
                let table = read.open_table(table).map_err(unreadable)?;
                let newest = ReadableTable::range(&table, ..before).map_err(failed)?.rev();
                for row in newest.take(limit) {
                    let (revision, value) = row.map_err(failed)?;
                    rows.push((revision.value(), Bytes::copy_from_slice(value.value())));
                }
            }
            rows.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
            rows.truncate(limit);
            Ok(rows)
        })
    }

    fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.on(|database| {
            let read = database.begin_read().map_err(failed)?;
            let revision = number(&read.open_table(META).map_err(unreadable)?, "revision")?;
            let data = read.open_table(DATA).map_err(unreadable)?;
            let entries = collect(&data, prefix, "", usize::MAX)?;
            Ok(Snapshot { revision, entries })
        })
    }
}

/// Does what a transaction says, short of the commit.
fn change(write: &WriteTransaction, transaction: &Transaction, keep: Keep) -> Result<u64, StoreError> {
    let mut meta = write.open_table(META).map_err(failed)?;
    let revision = (number(&meta, "revision")? + 1).max(transaction.at_least);
    // Keys are unique within a transaction, so checking and writing in one pass is the same as checking first.
    let mut data = write.open_table(DATA).map_err(failed)?;
    let changed = apply(&mut data, &transaction.ops, revision)?;
    let mut log = write.open_table(LOG).map_err(failed)?;
    let line = serde_json::to_vec(&changed).map_err(|e| StoreError::Failed(e.to_string()))?;
    log.insert(revision, line.as_slice()).map_err(failed)?;
    if let Some(compacted) = trim(&mut log, keep.log)? {
        meta.insert("compacted", compacted).map_err(failed)?;
    }
    let audit = if transaction.routine { ROUTINE } else { AUDIT };
    let mut audit = write.open_table(audit).map_err(failed)?;
    audit.insert(revision, &*transaction.audit).map_err(failed)?;
    trim(&mut audit, keep.audit)?;
    meta.insert("revision", revision).map_err(failed)?;
    Ok(revision)
}

#[cfg(test)]
mod crashes;
#[cfg(test)]
mod damage;

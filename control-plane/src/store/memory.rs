//! The store in memory: the model that every backend is compared with, and what tests run on.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Backend, Change, Entry, Keep, Op, Snapshot, StoreError, Transaction, expected};

#[derive(Debug, Default)]
struct State {
    revision: u64,
    entries: BTreeMap<String, (u64, Bytes)>,
    log: BTreeMap<u64, Vec<(String, bool)>>,
    // Of people, and of everything else.
    audit: [BTreeMap<u64, Bytes>; 2],
    // Changes after this revision are in the log.
    compacted: u64,
}

/// A store that forgets.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    keep: Keep,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::keeping(Keep::default())
    }
}

impl MemoryStore {
    /// A store that keeps so much of what is over.
    pub fn keeping(keep: Keep) -> Self {
        Self {
            state: Mutex::default(),
            keep,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry((key, (revision, value)): (&String, &(u64, Bytes))) -> Entry {
    Entry {
        key: key.clone(),
        value: value.clone(),
        revision: *revision,
    }
}

fn below<'a>(state: &'a State, prefix: &'a str, after: &str) -> impl Iterator<Item = Entry> + 'a {
    let from = if after < prefix { prefix } else { after };
    let after = after.to_owned();
    let rest = state.entries.range::<str, _>((Bound::Included(from), Bound::Unbounded));
    rest.take_while(move |(key, _)| key.starts_with(prefix))
        .filter(move |(key, _)| key.as_str() > after.as_str())
        .map(entry)
}

impl Backend for MemoryStore {
    fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.state().revision)
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.state().entries.get_key_value(key).map(entry))
    }

    fn scan(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Entry>, StoreError> {
        Ok(below(&self.state(), prefix, after).take(limit).collect())
    }

    fn txn(&self, transaction: &Transaction) -> Result<u64, StoreError> {
        let mut state = self.state();
        for op in &transaction.ops {
            expected(op, state.entries.get(op.key()).map(|(revision, _)| *revision))?;
        }
        let revision = (state.revision + 1).max(transaction.at_least);
        let mut changed = Vec::new();
        for op in &transaction.ops {
            match op {
                Op::Put { key, value, .. } => {
                    state.entries.insert(key.clone(), (revision, value.clone()));
                    changed.push((key.clone(), false));
                }
                Op::Delete { key, .. } => {
                    if state.entries.remove(key).is_some() {
                        changed.push((key.clone(), true));
                    }
                }
                Op::Check { .. } => {}
            }
        }
        state.revision = revision;
        state.log.insert(revision, changed);
        let audit = &mut state.audit[usize::from(transaction.routine)];
        audit.insert(revision, transaction.audit.clone());
        while audit.len() as u64 > self.keep.audit {
            audit.pop_first();
        }
        while state.log.len() as u64 > self.keep.log {
            let Some((oldest, _)) = state.log.pop_first() else {
                break;
            };
            state.compacted = oldest;
        }
        Ok(revision)
    }

    fn changes(&self, from: u64, limit: usize) -> Result<Vec<Change>, StoreError> {
        let state = self.state();
        if from < state.compacted {
            return Err(StoreError::Compacted {
                from,
                oldest: state.compacted,
            });
        }
        let mut out = Vec::new();
        for (&revision, changed) in state.log.range(from + 1..) {
            if out.len() >= limit {
                break;
            }
            out.extend(changed.iter().map(|(key, deleted)| Change {
                revision,
                key: key.clone(),
                deleted: *deleted,
            }));
        }
        Ok(out)
    }

    fn audit(&self, before: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let state = self.state();
        let both = state.audit.iter().flat_map(|kind| kind.range(..before));
        let all: BTreeMap<_, _> = both.map(|(r, v)| (*r, v.clone())).collect();
        Ok(all.into_iter().rev().take(limit).collect())
    }

    fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let state = self.state();
        let entries = below(&state, prefix, "").collect();
        Ok(Snapshot {
            revision: state.revision,
            entries,
        })
    }
}

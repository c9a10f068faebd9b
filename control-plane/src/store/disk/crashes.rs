//! The store on a disk that forgets, tears and fills up: whatever was answered stands after every crash, and what was
//! not answered happened whole or not at all.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

use super::super::memory::MemoryStore;
use super::super::{Expect, Transaction};
use super::*;

/// A write that has not been flushed.
#[derive(Debug, Clone)]
enum Pending {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

/// A disk: what it has for certain, and what it may lose.
#[derive(Debug, Default)]
struct Platter {
    flushed: Vec<u8>,
    seen: Vec<u8>,
    pending: Vec<Pending>,
    // How many operations it will still do before the machine dies.
    left: Option<usize>,
    done: usize,
    // How long it can get.
    room: Option<u64>,
}

fn write(to: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (from, end) = (offset as usize, offset as usize + bytes.len());
    if to.len() < end {
        to.resize(end, 0);
    }
    to[from..end].copy_from_slice(bytes);
}

impl Platter {
    fn step(&mut self) -> io::Result<()> {
        self.done += 1;
        match &mut self.left {
            Some(0) => Err(io::Error::other("the machine died")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn room_for(&self, end: u64) -> io::Result<()> {
        match self.room {
            Some(room) if end > room => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    /// What is found after the machine died, when of the unflushed writes those got through that `through` says; the
    /// last one only half.
    fn after_a_crash(&self, through: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut found = self.flushed.clone();
        let last = self.pending.len().saturating_sub(1);
        for (at, pending) in self.pending.iter().enumerate().filter(|(at, _)| through(*at)) {
            match pending {
                Pending::Length(length) => found.resize(*length as usize, 0),
                Pending::Bytes(offset, bytes) if at == last => write(&mut found, *offset, &bytes[..bytes.len() / 2]),
                Pending::Bytes(offset, bytes) => write(&mut found, *offset, bytes),
            }
        }
        found
    }
}

/// The disk, as redb writes to it.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    fn holding(bytes: Vec<u8>) -> Self {
        let platter = Platter {
            flushed: bytes.clone(),
            seen: bytes,
            ..Platter::default()
        };
        Self(Arc::new(Mutex::new(platter)))
    }

    /// The store on it.
    fn store(&self) -> Result<DiskStore, StoreError> {
        let disk = self.clone();
        let open = move || guarded(|| builder().create_with_backend(disk.clone()));
        DiskStore::with(Box::new(open), Keep { log: 4, audit: 4 }, "store".into())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        let from = offset as usize;
        let found = platter.seen.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        platter.room_for(len)?;
        platter.seen.resize(len as usize, 0);
        platter.pending.push(Pending::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        platter.flushed = platter.seen.clone();
        platter.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        platter.room_for(offset + data.len() as u64)?;
        write(&mut platter.seen, offset, data);
        platter.pending.push(Pending::Bytes(offset, data.to_vec()));
        Ok(())
    }
}

fn transaction(i: u64) -> Transaction {
    let put = |key: String, bytes: usize| Op::Put {
        key,
        value: vec![i as u8; bytes].into(),
        expect: Expect::Any,
    };
    let mut ops = vec![put("same".into(), 100), put(format!("own/{i}"), 3_000)];
    if i > 2 {
        ops.push(Op::Delete {
            key: format!("own/{}", i - 2),
            expect: Expect::At(i - 2),
        });
    }
    Transaction {
        ops,
        audit: format!("{i}").into(),
        routine: i.is_multiple_of(2),
        at_least: 0,
    }
}

const TRANSACTIONS: u64 = 6;

/// A disk with an empty store.
fn fresh() -> Vec<u8> {
    let disk = Disk::default();
    let database = builder().create_with_backend(disk.clone()).unwrap();
    prepare(&database).unwrap();
    drop(database);
    let platter = disk.platter();
    platter.seen.clone()
}

/// What stands in the model after each transaction.
fn expected_at() -> Vec<String> {
    let model = MemoryStore::keeping(Keep { log: 4, audit: 4 });
    let all = |model: &MemoryStore| {
        format!(
            "{:?} {:?}",
            model.snapshot("").unwrap(),
            model.audit(u64::MAX, 99).unwrap()
        )
    };
    let mut states = vec![all(&model)];
    for i in 1..=TRANSACTIONS {
        model.txn(&transaction(i)).unwrap();
        states.push(all(&model));
    }
    states
}

/// Writes until the machine dies after `left` operations; answers the last revision that was acknowledged, and whether
/// it died.
fn until_death(disk: &Disk, left: usize) -> (u64, bool) {
    disk.platter().left = Some(left);
    let mut acknowledged = 0;
    let Ok(store) = disk.store() else { return (0, true) };
    for i in 1..=TRANSACTIONS {
        match store.txn(&transaction(i)) {
            Ok(revision) => acknowledged = revision,
            Err(_) => return (acknowledged, true),
        }
    }
    (acknowledged, false)
}

#[test]
fn whatever_was_acknowledged_stands_after_a_crash_at_any_write() {
    let (empty, expected) = (fresh(), expected_at());
    let mut crashes = 0;
    for left in 0.. {
        let disk = Disk::holding(empty.clone());
        let (acknowledged, died) = until_death(&disk, left);
        if !died {
            break;
        }
        // None of the unflushed writes, all of them, and either half of them in any order.
        let platter = disk.platter();
        let found = [
            platter.after_a_crash(|_| false),
            platter.after_a_crash(|_| true),
            platter.after_a_crash(|at| at % 2 == 0),
            platter.after_a_crash(|at| at % 2 == 1),
            platter.after_a_crash(|at| at * 2 > platter.pending.len()),
        ];
        for (kind, found) in found.into_iter().enumerate() {
            let store = Disk::holding(found).store();
            let store = store.unwrap_or_else(|e| panic!("crash {left}.{kind}: {e}"));
            let revision = store.revision().unwrap();
            assert!(
                revision == acknowledged || revision == acknowledged + 1,
                "crash {left}.{kind}: {acknowledged} was acknowledged, {revision} is there"
            );
            let all = format!(
                "{:?} {:?}",
                store.snapshot("").unwrap(),
                store.audit(u64::MAX, 99).unwrap()
            );
            assert_eq!(
                all, expected[revision as usize],
                "crash {left}.{kind}: whole, or not at all"
            );
            assert_eq!(
                store.txn(&transaction(revision + 1)).unwrap(),
                revision + 1,
                "and it goes on"
            );
            crashes += 1;
        }
    }
    assert!(crashes > 100, "{crashes} crashes");
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room() {
    let disk = Disk::holding(fresh());
    let store = disk.store().unwrap();
    store.txn(&transaction(1)).unwrap();
    let length = disk.platter().seen.len() as u64;
    disk.platter().room = Some(length);
    let large = |i: u64| Transaction {
        ops: vec![Op::Put {
            key: format!("large/{i}"),
            value: vec![7; 900_000].into(),
            expect: Expect::Any,
        }],
        ..Transaction::default()
    };
    let mut acknowledged = 1;
    let refused = loop {
        match store.txn(&large(acknowledged)) {
            Ok(revision) => acknowledged = revision,
            Err(refused) => break refused,
        }
        assert!(acknowledged < 1_000, "it never filled up");
    };
    assert_eq!(refused.reason(), "store_full", "{refused}");
    assert!(refused.to_string().contains("free some"), "{refused}");
    for _ in 0..3 {
        let again = store.txn(&large(0)).unwrap_err();
        assert_eq!(again.reason(), "store_full", "{again}");
    }
    assert_eq!(store.revision().unwrap(), acknowledged, "what is there is still read");
    assert!(store.get("same").unwrap().is_some());
    disk.platter().room = None;
    assert_eq!(store.txn(&large(0)).unwrap(), acknowledged + 1, "without a restart");
    drop(store);
    assert_eq!(disk.store().unwrap().revision().unwrap(), acknowledged + 1);
}

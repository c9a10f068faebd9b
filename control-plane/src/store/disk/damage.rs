//! Files that are not what was written: a clear error, and nothing lost or overwritten.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::super::{Expect, Transaction};
use super::*;

fn put(key: &str, value: &[u8]) -> Transaction {
    Transaction {
        ops: vec![Op::Put {
            key: key.into(),
            value: Bytes::copy_from_slice(value),
            expect: Expect::Any,
        }],
        ..Transaction::default()
    }
}

/// A store with something in it, closed.
fn written(dir: &Path) -> PathBuf {
    let path = dir.join("store.redb");
    let store = DiskStore::open(&path).unwrap();
    for i in 0..20 {
        store.txn(&put(&format!("k{i}"), &vec![i; 5_000])).unwrap();
    }
    path
}

#[test]
fn a_newer_format_and_a_second_opener_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = DiskStore::open(&path).unwrap();
    assert_eq!(DiskStore::open(&path).unwrap_err().reason(), "store_in_use");
    let newer = |database: &Database| {
        let write = database.begin_write().map_err(failed)?;
        write.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        write.commit().map_err(failed)
    };
    store.on(newer).unwrap();
    drop(store);
    for _ in 0..2 {
        let refused = DiskStore::open(&path).unwrap_err();
        assert_eq!(refused.reason(), "store_newer_format", "as often as it is tried");
        assert!(refused.to_string().contains("newer version"));
    }
}

#[test]
fn a_new_store_appears_whole_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    // What a crash in the middle of the making left.
    fs::write(dir.path().join("store.new"), "half").unwrap();
    drop(DiskStore::open(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    for garbage in [&b""[..], b"x", b"precious notes", &[0; 8_192], &[0xff; 100_000]] {
        fs::write(&path, garbage).unwrap();
        let refused = DiskStore::open(&path).unwrap_err();
        assert_eq!(refused.reason(), "store_damaged", "{} bytes: {refused}", garbage.len());
        assert!(refused.to_string().contains("restore a backup"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), garbage);
    }
    fs::remove_file(&path).unwrap();
    // Somebody else's database.
    let other: TableDefinition<'_, u64, u64> = TableDefinition::new("other");
    let database = Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(other).unwrap().insert(1, 2).unwrap();
    write.commit().unwrap();
    drop(database);
    assert_eq!(DiskStore::open(&path).unwrap_err().reason(), "store_damaged");
    let database = Database::open(&path).unwrap();
    let read = database.begin_read().unwrap();
    assert_eq!(
        read.list_tables().unwrap().count(),
        1,
        "nothing of ours was put into it"
    );
}

#[test]
fn a_file_that_was_cut_is_refused_wherever_it_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let whole = fs::read(&path).unwrap();
    let copy = dir.path().join("copy.redb");
    for part in [
        1,
        100,
        320,
        511,
        512,
        4_095,
        4_096,
        whole.len() / 4,
        whole.len() / 2,
        whole.len() - 4_096,
    ] {
        fs::write(&copy, &whole).unwrap();
        OpenOptions::new()
            .write(true)
            .open(&copy)
            .unwrap()
            .set_len(part as u64)
            .unwrap();
        match DiskStore::open(&copy) {
            Err(refused) => assert_eq!(refused.reason(), "store_damaged", "cut to {part}: {refused}"),
            // Only where nothing that was cut off is missing.
            Ok(store) => {
                let all = store.snapshot("").unwrap();
                assert_eq!((all.revision, all.entries.len()), (20, 20), "cut to {part}");
            }
        }
    }
    assert_eq!(DiskStore::open(&path).unwrap().snapshot("").unwrap().entries.len(), 20);
}

#[test]
fn altered_bytes_never_end_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let whole = fs::read(&path).unwrap();
    let copy = dir.path().join("copy.redb");
    for at in (0..320)
        .step_by(7)
        .chain((4_096..whole.len()).step_by(whole.len() / 60))
    {
        let mut altered = whole.clone();
        altered[at] ^= 0x55;
        fs::write(&copy, &altered).unwrap();
        // Refused, or opened; reading what was altered may fail, and is not the end either.
        let read = || DiskStore::open(&copy).and_then(|store| store.snapshot(""));
        let _ = catch_unwind(AssertUnwindSafe(read));
        let length = fs::metadata(&copy).unwrap().len() as usize;
        assert!(length >= whole.len() / 2, "byte {at}: it was not made anew");
    }
}

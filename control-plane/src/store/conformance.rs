//! What every backend promises, run on each of them; and redb against the model under random operations.

use std::path::Path;

use proptest::prelude::*;

use super::disk::DiskStore;
use super::memory::MemoryStore;
use super::*;

const LOG: u64 = 8;
/// As much as these tests keep.
const KEEP: Keep = Keep { log: LOG, audit: 20 };

fn put(key: &str, value: &str, expect: Expect) -> Op {
    Op::Put {
        key: key.into(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expect,
    }
}

fn delete(key: &str, expect: Expect) -> Op {
    Op::Delete {
        key: key.into(),
        expect,
    }
}

fn of(ops: Vec<Op>) -> Transaction {
    Transaction {
        ops,
        audit: Bytes::from_static(b"who"),
        ..Transaction::default()
    }
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|e| e.key.as_str()).collect()
}

fn conforms(store: &dyn Backend) {
    a_transaction_happens_whole_or_not_at_all(store);
    scans_are_by_key_and_bounded(store);
    changes_are_whole_revisions(store);
    revisions_are_lifted_and_never_lowered(store);
    what_is_compacted_is_said_to_be(store);
    what_agents_do_pushes_out_nothing_that_people_did(store);
}

fn a_transaction_happens_whole_or_not_at_all(store: &dyn Backend) {
    assert_eq!(store.revision().unwrap(), 0);
    assert_eq!(
        store
            .txn(&of(vec![put("a/1", "x", Expect::Absent), put("b/1", "y", Expect::Any)]))
            .unwrap(),
        1
    );
    let entry = store.get("a/1").unwrap().unwrap();
    assert_eq!((entry.revision, &*entry.value), (1, &b"x"[..]));
    assert_eq!(store.get("a/2").unwrap(), None);

    // A failed expectation leaves nothing behind, wherever in the transaction it stands.
    let refused = store.txn(&of(vec![put("a/2", "z", Expect::Any), put("a/1", "z", Expect::At(7))]));
    assert!(
        matches!(refused, Err(StoreError::Conflict { at: Some(1), .. })),
        "{refused:?}"
    );
    assert!(store.txn(&of(vec![delete("a/1", Expect::Absent)])).is_err());
    assert!(
        store
            .txn(&of(vec![Op::Check {
                key: "a/9".into(),
                expect: Expect::At(1)
            }]))
            .is_err()
    );
    assert_eq!((store.get("a/2").unwrap(), store.revision().unwrap()), (None, 1));

    assert_eq!(
        store
            .txn(&of(vec![
                put("a/1", "x2", Expect::At(1)),
                put("a/2", "z", Expect::Absent)
            ]))
            .unwrap(),
        2
    );
    assert_eq!(
        store
            .txn(&of(vec![delete("b/1", Expect::At(1)), delete("none", Expect::Any)]))
            .unwrap(),
        3
    );
}

fn scans_are_by_key_and_bounded(store: &dyn Backend) {
    assert_eq!(keys(&store.scan("a/", "", 10).unwrap()), ["a/1", "a/2"]);
    assert_eq!(keys(&store.scan("a/", "a/1", 10).unwrap()), ["a/2"]);
    assert_eq!(keys(&store.scan("a/", "", 1).unwrap()), ["a/1"]);
    assert_eq!(store.scan("c", "", 10).unwrap(), []);
    let snapshot = store.snapshot("").unwrap();
    assert_eq!((snapshot.revision, keys(&snapshot.entries)), (3, vec!["a/1", "a/2"]));
}

fn changes_are_whole_revisions(store: &dyn Backend) {
    let change = |revision, key: &str, deleted| Change {
        revision,
        key: key.into(),
        deleted,
    };
    assert_eq!(
        store.changes(1, 10).unwrap(),
        [change(2, "a/1", false), change(2, "a/2", false), change(3, "b/1", true)]
    );
    assert_eq!(store.changes(1, 1).unwrap().len(), 2, "a revision is never cut in two");
    assert_eq!(store.changes(3, 10).unwrap(), []);
}

fn revisions_are_lifted_and_never_lowered(store: &dyn Backend) {
    assert_eq!(
        store
            .txn(&Transaction {
                at_least: 100,
                ..of(vec![])
            })
            .unwrap(),
        100
    );
    assert_eq!(
        store
            .txn(&Transaction {
                at_least: 50,
                ..of(vec![])
            })
            .unwrap(),
        101
    );
    assert_eq!(
        store
            .audit(u64::MAX, 2)
            .unwrap()
            .iter()
            .map(|(r, _)| *r)
            .collect::<Vec<_>>(),
        [101, 100]
    );
    assert_eq!(store.audit(100, 10).unwrap().len(), 3);
}

fn what_is_compacted_is_said_to_be(store: &dyn Backend) {
    for _ in 0..LOG {
        store.txn(&of(vec![put("a/1", "again", Expect::Any)])).unwrap();
    }
    assert!(matches!(
        store.changes(3, 10),
        Err(StoreError::Compacted { oldest: 101, .. })
    ));
    assert_eq!(store.changes(101, 100).unwrap().len(), LOG as usize);
}

fn what_agents_do_pushes_out_nothing_that_people_did(store: &dyn Backend) {
    let people = store.audit(u64::MAX, 1_000).unwrap();
    for i in 0..KEEP.audit + 5 {
        let routine = Transaction {
            routine: true,
            audit: format!("{i}").into(),
            ..Transaction::default()
        };
        store.txn(&routine).unwrap();
    }
    let all = store.audit(u64::MAX, 1_000).unwrap();
    assert_eq!(all.len(), people.len() + KEEP.audit as usize);
    assert!(all.is_sorted_by(|a, b| a.0 > b.0), "newest first, whoever did it");
    assert_eq!(all[KEEP.audit as usize..], people);
    let middle = all[3].0;
    assert_eq!(store.audit(middle, 2).unwrap(), all[4..6]);
}

#[test]
fn the_model_conforms() {
    conforms(&MemoryStore::keeping(KEEP));
}

#[test]
fn redb_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(&DiskStore::keeping(&dir.path().join("s"), KEEP).unwrap());
}

#[test]
fn transactions_past_a_bound_are_refused() {
    let twice = of(vec![put("a", "1", Expect::Any), delete("a", Expect::Any)]);
    let long = of(vec![put(&"k".repeat(MAX_KEY_BYTES + 1), "1", Expect::Any)]);
    let large = of(vec![put("a", &"v".repeat(MAX_VALUE_BYTES + 1), Expect::Any)]);
    for bad in [twice, long, large] {
        assert_eq!(check(&bad).unwrap_err().reason(), "transaction_invalid");
    }
}

#[tokio::test]
async fn a_watch_sees_every_change_once_and_says_when_it_can_not() {
    let store = Store::new(MemoryStore::keeping(KEEP)).unwrap();
    let mut watch = store.watch(0);
    let pending = tokio::spawn(async move {
        let first = watch.next().await;
        (first, watch)
    });
    store.txn(of(vec![put("a", "1", Expect::Any)])).await.unwrap();
    let (first, mut watch) = pending.await.unwrap();
    assert_eq!(
        first.unwrap(),
        [Change {
            revision: 1,
            key: "a".into(),
            deleted: false
        }]
    );
    for _ in 0..2 {
        store.txn(of(vec![put("b", "1", Expect::Any)])).await.unwrap();
    }
    assert_eq!(watch.next().await.unwrap().len(), 2);
    assert_eq!(watch.seen(), 3);
    for _ in 0..=LOG {
        store.txn(of(vec![put("c", "1", Expect::Any)])).await.unwrap();
    }
    assert_eq!(watch.next().await.unwrap_err().reason(), "compacted");
    assert!(store.committed_at(3).is_some());
}

#[derive(Debug, Clone)]
enum Step {
    Txn(Vec<Op>, u64, bool),
    Scan(String, String, usize),
    Changes(u64),
    Reopen,
}

fn key() -> impl Strategy<Value = String> {
    "[ab]/[a-c]{1,2}"
}

fn op() -> impl Strategy<Value = Op> {
    let expect = prop_oneof![4 => Just(Expect::Any), 1 => Just(Expect::Absent), 1 => (1u64..12).prop_map(Expect::At)];
    (key(), "[xyz]{0,3}", expect, 0..5).prop_map(|(key, value, expect, kind)| match kind {
        0 => Op::Delete { key, expect },
        1 => Op::Check { key, expect },
        _ => Op::Put {
            key,
            value: value.into_bytes().into(),
            expect,
        },
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (prop::collection::vec(op(), 0..4), prop_oneof![9 => Just(0), 1 => 0u64..40], any::<bool>())
            .prop_map(|(ops, at_least, routine)| Step::Txn(ops, at_least, routine)),
        2 => ("[ab]?/?", "([ab]/[a-c])?", 0usize..5).prop_map(|(p, a, n)| Step::Scan(p, a, n)),
        1 => (0u64..30).prop_map(Step::Changes),
        1 => Just(Step::Reopen),
    ]
}

fn said<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{error}"),
    }
}

fn agree(path: &Path, steps: Vec<Step>) {
    let model = MemoryStore::keeping(KEEP);
    let mut disk = DiskStore::keeping(path, KEEP).unwrap();
    for step in steps {
        match step {
            Step::Txn(ops, at_least, routine) => {
                let transaction = Transaction {
                    at_least,
                    routine,
                    ..of(ops)
                };
                if check(&transaction).is_ok() {
                    assert_eq!(said(model.txn(&transaction)), said(disk.txn(&transaction)));
                }
            }
            Step::Scan(prefix, after, limit) => {
                assert_eq!(
                    said(model.scan(&prefix, &after, limit)),
                    said(disk.scan(&prefix, &after, limit))
                );
            }
            Step::Changes(from) => assert_eq!(said(model.changes(from, 5)), said(disk.changes(from, 5))),
            Step::Reopen => {
                drop(disk);
                disk = DiskStore::keeping(path, KEEP).unwrap();
            }
        }
    }
    assert_eq!(said(model.snapshot("")), said(disk.snapshot("")));
    assert_eq!(said(model.audit(u64::MAX, 100)), said(disk.audit(u64::MAX, 100)));
}

proptest! {
    // Each case opens a database; commits are flushed.
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn redb_and_the_model_agree(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        agree(&dir.path().join("s"), steps);
    }
}

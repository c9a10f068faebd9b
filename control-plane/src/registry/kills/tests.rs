//! Orders under loss, delay, restart, partition and restored copies: random schedules on the real documents, with
//! sidecars that take a set only if it is higher, and show what they hold.

use std::collections::BTreeSet;

use aip_api::resource::MeshMode;
use bytes::Bytes;

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{Op, Store, Transaction};
use crate::testing::mesh;

/// A small generator of numbers: the same seed is the same schedule.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        // Marsaglia's xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }
}

fn wanted(agent: usize) -> Wanted {
    let agent = format!("a{agent}").parse().unwrap();
    Wanted {
        scope: Scope::Agent { agent },
        mode: Mode::Kill,
        reason: "it leaks".into(),
        seconds: None,
    }
}

async fn registry() -> Registry {
    let registry = mesh(MeshMode::Dev).await.registry;
    registry.first_kill_set(&"aip.internal".parse().unwrap()).await.unwrap();
    registry
}

/// A copy of the store as it is now.
async fn copy(of: &Registry) -> Registry {
    let entries = of.store.snapshot("").await.unwrap().entries;
    let store = Store::new(MemoryStore::default()).unwrap();
    let put = |entry: crate::store::Entry| Op::Put {
        key: entry.key,
        value: entry.value,
        expect: Expect::Any,
    };
    let transaction = Transaction {
        ops: entries.into_iter().map(put).collect(),
        audit: Bytes::from_static(b"{}"),
        routine: false,
        at_least: of.store.revision(),
    };
    store.txn(transaction).await.unwrap();
    Registry { store, ..of.clone() }
}

/// A sidecar: what it holds, as bytes on its disk.
#[derive(Clone, Default)]
struct Sidecar(Option<String>);

impl Sidecar {
    fn set(&self) -> Option<KillSet> {
        self.0.as_ref().map(|payload| serde_json::from_str(payload).unwrap())
    }

    /// Greets, shows, and takes what is higher; the message may be lost.
    async fn greet(&mut self, registry: &Registry, lost: bool) {
        if let (Some(payload), Some(set)) = (&self.0, self.set()) {
            registry
                .shown_kill_set(&set, Digest::sha256(payload.as_bytes()))
                .await
                .unwrap();
        }
        let current = registry.kill_set().await.unwrap();
        if !lost && self.set().is_none_or(|held| current.set.version() > held.version()) {
            self.0 = Some(current.payload);
        }
    }

    fn orders(&self) -> BTreeSet<String> {
        self.set()
            .into_iter()
            .flat_map(|set| set.orders)
            .map(|order| order.id)
            .collect()
    }
}

async fn schedule(seed: u64) {
    let mut random = Random(seed * 2 + 1);
    let (mut registry, mut sidecars) = (registry().await, vec![Sidecar::default(); 3]);
    let (mut copies, mut resumed) = (Vec::new(), BTreeSet::new());
    for _ in 0..60 {
        let before: Vec<_> = sidecars.iter().map(Sidecar::orders).collect();
        match random.below(10) {
            0 | 1 => drop(registry.stop("ann", wanted(random.below(4))).await.unwrap()),
            2 => {
                let orders = registry.kill_set().await.unwrap().set.orders;
                if !orders.is_empty() {
                    let id = orders[random.below(orders.len())].id.clone();
                    resumed.insert(id.clone());
                    registry.resume("ann", vec![id]).await.unwrap();
                }
            }
            3 => copies.push(copy(&registry).await),
            4 if !copies.is_empty() => registry = copy(&copies[random.below(copies.len())]).await,
            _ => {
                let (which, lost) = (random.below(3), random.below(4) == 0);
                sidecars[which].greet(&registry, lost).await;
            }
        }
        for (before, after) in before.iter().zip(sidecars.iter().map(Sidecar::orders)) {
            let lifted: Vec<_> = before.difference(&after).filter(|id| !resumed.contains(*id)).collect();
            assert!(
                lifted.is_empty(),
                "seed {seed}: {lifted:?} were lifted and nobody resumed them"
            );
        }
    }
    // When all are heard again, all hold the same, and it is what the store says.
    for _ in 0..4 {
        for sidecar in &mut sidecars {
            sidecar.greet(&registry, false).await;
        }
    }
    let current = registry.kill_set().await.unwrap();
    for sidecar in &sidecars {
        assert_eq!(sidecar.0.as_ref(), Some(&current.payload), "seed {seed}");
    }
}

#[tokio::test]
async fn no_schedule_lifts_an_order_that_nobody_resumed() {
    for seed in 0..40 {
        schedule(seed).await;
    }
}

/// The copy went on by itself past the epoch that a sidecar holds: a lower version is no proof of an own one.
#[tokio::test]
async fn a_copy_that_has_overtaken_what_a_sidecar_holds_lifts_nothing() {
    let registry = registry().await;
    let old = copy(&registry).await;
    let (_, lost) = registry.stop("ann", wanted(0)).await.unwrap();
    let mut sidecar = Sidecar::default();
    sidecar.greet(&registry, false).await;
    for agent in 1..4 {
        old.stop("bob", wanted(agent)).await.unwrap();
    }
    sidecar.greet(&old, false).await;
    assert!(sidecar.orders().contains(&lost));
    assert_eq!((sidecar.orders().len(), sidecar.set().unwrap().term), (4, 2));
}

#[tokio::test]
async fn what_was_resumed_does_not_come_back_by_a_late_sidecar() {
    let registry = registry().await;
    let (_, id) = registry.stop("ann", wanted(0)).await.unwrap();
    let mut late = Sidecar::default();
    late.greet(&registry, false).await;
    registry.resume("ann", vec![id]).await.unwrap();
    late.greet(&registry, false).await;
    assert!(late.orders().is_empty());
    assert_eq!(late.set().unwrap().term, 1, "an own set begins no term");
}

#[tokio::test]
async fn in_prod_a_resume_takes_two_and_a_broad_order_where_it_is_set() {
    let mesh = mesh(MeshMode::Prod).await;
    let registry = mesh.registry;
    registry.first_kill_set(mesh.ca.trust_domain()).await.unwrap();
    let broad = || Wanted {
        scope: Scope::Mesh {},
        ..wanted(0)
    };
    let (done, id) = registry.stop("ann", broad()).await.unwrap();
    assert!(
        matches!(done, Outcome::Done { .. }),
        "stopping is fast unless it is set otherwise"
    );
    let Outcome::Proposed { id: proposal, .. } = registry.resume("ann", vec![id]).await.unwrap() else {
        panic!("one person resumed");
    };
    assert!(
        registry.approve_proposal("ann", &proposal).await.is_err(),
        "not the same one"
    );
    registry.approve_proposal("bob", &proposal).await.unwrap();
    assert!(registry.kill_set().await.unwrap().set.orders.is_empty());
    let held = registry.mesh_config().await.unwrap();
    let mut config = held.value;
    config.kill.second_approver = true;
    let draft = registry.change(&Actor::admin("x"), "t", "t");
    draft.resource(&config, Expect::Any).commit().await.unwrap();
    let (narrow, _) = registry.stop("ann", wanted(0)).await.unwrap();
    assert!(matches!(narrow, Outcome::Done { .. }), "one agent");
    let (Outcome::Proposed { id: proposal, .. }, order) = registry.stop("ann", broad()).await.unwrap() else {
        panic!("one person stopped the mesh");
    };
    registry.approve_proposal("bob", &proposal).await.unwrap();
    let orders = registry.kill_set().await.unwrap().set.orders;
    let broad = orders.iter().find(|o| o.id == order).unwrap();
    assert_eq!(broad.issued_by, ["ann", "bob"]);
}

/// A thousand narrow orders don't keep anybody from stopping the mesh.
#[tokio::test]
async fn room_is_kept_for_orders_that_stop_more() {
    let many = |n: usize| {
        let order = |i: usize| Order {
            id: format!("00000000-0000-7000-8000-{i:012x}"),
            scope: wanted(i).scope,
            mode: Mode::Kill,
            reason: String::new(),
            issued_by: vec!["ann".into()],
            issued_at: 1,
            expires: None,
        };
        KillSet {
            orders: (0..n).map(order).collect(),
            ..KillSet::empty("aip.internal".parse().unwrap(), 1, 1)
        }
    };
    let labels = [("team".to_owned(), "a".to_owned())].into();
    let (narrow, broad) = (wanted(0).scope, Scope::Selector { labels });
    for (scope, mode, most) in [
        (narrow, Mode::Kill, 900),
        (broad, Mode::Kill, 990),
        (Scope::Mesh {}, Mode::Pause, 995),
        (Scope::Mesh {}, Mode::Kill, 1_000),
    ] {
        assert!(has_room(&many(most), kept_free(&scope, mode)).is_ok(), "{scope}");
        assert!(has_room(&many(most + 1), kept_free(&scope, mode)).is_err(), "{scope}");
    }
}

/// As many others as may be, as large as they may be: the mesh is killed all the same.
#[tokio::test]
async fn the_largest_orders_that_fit_leave_room_to_kill_the_mesh() {
    let registry = registry().await;
    let current = registry.kill_set().await.unwrap();
    let labels = (0..aip_api::kill::MAX_SELECTOR_LABELS).map(|n| {
        let key = format!("{n:0128}");
        (key, "\u{1}".repeat(128))
    });
    let large = |id: u64| Order {
        id: format!("00000000-0000-7000-8000-{id:012x}"),
        scope: Scope::Selector {
            labels: labels.clone().collect(),
        },
        mode: Mode::Kill,
        reason: "\u{1}".repeat(aip_api::kill::MAX_REASON_BYTES),
        issued_by: vec!["ann".into()],
        issued_at: 1,
        expires: None,
    };
    let mut next = KillSet {
        epoch: 1,
        ..current.set.clone()
    };
    for id in 0.. {
        next.orders.push(large(id));
        if has_room(&next, kept_free(&large(id).scope, Mode::Kill)).is_err() {
            next.orders.pop();
            break;
        }
    }
    let draft = registry.change(&Actor::control_plane(), "t", "t");
    let draft = with_set(draft, &next, Expect::Any).unwrap();
    draft.commit().await.unwrap();
    let mesh = Wanted {
        scope: Scope::Mesh {},
        reason: "\u{1}".repeat(aip_api::kill::MAX_REASON_BYTES),
        ..wanted(0)
    };
    registry.stop("ann", mesh).await.expect("the mesh is killed");
    assert!(registry.stop("ann", wanted(0)).await.is_err(), "one agent has no room");
}

/// What was lifted a moment ago must not come back because many older orders are remembered as well.
#[tokio::test]
async fn an_order_that_was_lifted_last_is_remembered_however_many_were_before() {
    let registry = registry().await;
    let (_, id) = registry.stop("ann", wanted(0)).await.unwrap();
    let held = registry.kill_set().await.unwrap().set;
    registry.resume("ann", vec![id.clone()]).await.unwrap();
    let older = (0..REMEMBERED).map(|n| format!("00000000-0000-7000-8000-{n:012x}"));
    let draft = older.fold(
        registry.change(&Actor::control_plane(), "t", "t").routine(),
        |draft, id| {
            let ended = EndedOrder {
                order: Order {
                    id: id.clone(),
                    ..held.orders[0].clone()
                },
                by: "ann".into(),
                at: 1,
            };
            draft.put(keys::ended_order(&id), &ended, Expect::Any)
        },
    );
    draft.commit().await.unwrap();
    // A set that this store never issued, which has the order.
    let shown = KillSet { term: 9, ..held };
    registry
        .shown_kill_set(&shown, Digest::sha256(b"never issued"))
        .await
        .unwrap();
    assert!(registry.kill_set().await.unwrap().set.orders.is_empty());
}

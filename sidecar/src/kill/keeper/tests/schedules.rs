//! Sets that are given, lifted, delayed, said again and forged; streams that are lost, disks that refuse to write, processes
//! that end, and a store that is restored from a copy: in any order, with the code that takes sets and the disk that it
//! keeps them on. Only the control plane is as small as the rule that it follows ([`sets`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::testing::order;

const SIDECARS: usize = 2;
/// Agents that orders are about.
const AGENTS: [&str; 3] = ["ann", "bob", "cid"];

/// What happens next; the number is the sidecar's.
#[derive(Debug, Clone)]
enum Step {
    /// An operator stops this agent.
    Stop(usize),
    /// An operator lifts one of the orders in force.
    Resume(prop::sample::Index),
    Copy,
    Restore,
    Connect(usize),
    Cut(usize),
    Push(usize),
    /// The oldest push arrives, is taken, and the answer goes back.
    Arrives(usize),
    /// Any set that was ever signed, said again by whoever kept it.
    Replayed(usize, prop::sample::Index),
    Forged(usize),
    DiskBreaks(usize),
    DiskMends(usize),
    Beat(usize),
    Restarts(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Step::*;
    let n = || 0..SIDECARS;
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        3 => (0..AGENTS.len()).prop_map(Stop),
        2 => index().prop_map(Resume),
        1 => Just(Copy),
        1 => Just(Restore),
        4 => n().prop_map(Connect),
        1 => n().prop_map(Cut),
        5 => n().prop_map(Push),
        8 => n().prop_map(Arrives),
        3 => (n(), index()).prop_map(|(n, i)| Replayed(n, i)),
        1 => n().prop_map(Forged),
        1 => n().prop_map(DiskBreaks),
        2 => n().prop_map(DiskMends),
        3 => n().prop_map(Beat),
        2 => n().prop_map(Restarts),
    ];
    prop::collection::vec(step, 1..60)
}

/// What the control plane has on disk.
#[derive(Clone)]
struct Store {
    current: KillSet,
    /// Sets that it knows to be its own.
    issued: Vec<KillSet>,
    ended: BTreeSet<String>,
}

impl Store {
    fn put(&mut self, set: KillSet) {
        self.issued.push(set.clone());
        self.current = set;
    }

    /// Takes up what a sidecar shows.
    fn shown(&mut self, shown: &SignedKillSet) {
        let set: KillSet = serde_json::from_slice(&shown.payload).unwrap();
        if !self.issued.contains(&set) {
            let next = sets::above(&self.current, &set, &self.ended, 1).unwrap();
            self.issued.push(set);
            self.put(next);
        }
    }
}

/// A sidecar, its stream, and what was true of it.
struct Sidecar {
    rig: Rig,
    broken: bool,
    /// Pushes on their way, where there is a stream.
    stream: Option<VecDeque<KillSet>>,
    acknowledged: (u64, u64),
    /// Orders that it ever acknowledged, and that this process ever enforced.
    wrote: BTreeSet<String>,
    enforced: BTreeSet<String>,
}

impl Sidecar {
    fn in_force(&self) -> BTreeSet<String> {
        let orders = self.rig.keeper.gate.orders();
        let all = orders.iter().flat_map(|orders| orders.all());
        all.map(|order| order.id.clone()).collect()
    }

    /// What an answer says of a set is so.
    fn answered(&mut self, ack: &KillAck, sent: &KillSet) {
        match ack.rejected.as_str() {
            "" => {
                assert_eq!((ack.term, ack.epoch), sent.version());
                let kept = self.rig.on_disk().expect("acknowledged, and not on disk");
                assert_eq!(&kept, sent, "acknowledged, and another one is on disk");
                self.acknowledged = self.acknowledged.max(sent.version());
                self.wrote.extend(sent.orders.iter().map(|order| order.id.clone()));
            }
            "not_persisted" => assert!(self.broken, "{}", ack.detail),
            other => assert!(["stale", "fork"].contains(&other), "{ack:?}"),
        }
    }
}

struct Mesh {
    store: Store,
    copy: Option<Store>,
    next: u64,
    /// Everything that was ever signed.
    signed: Vec<KillSet>,
    lifted: BTreeSet<String>,
    sidecars: Vec<Sidecar>,
}

impl Mesh {
    fn new() -> Self {
        let keys = Arc::new(Keys::new());
        let first = kill_set(1, 0, &[]);
        let sidecar = |_| Sidecar {
            rig: Rig::of(keys.clone()),
            broken: false,
            stream: None,
            acknowledged: (0, 0),
            wrote: BTreeSet::new(),
            enforced: BTreeSet::new(),
        };
        Self {
            sidecars: (0..SIDECARS).map(sidecar).collect(),
            store: Store {
                issued: vec![first.clone()],
                current: first.clone(),
                ended: BTreeSet::new(),
            },
            copy: None,
            next: 0,
            signed: vec![first],
            lifted: BTreeSet::new(),
        }
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Stop(agent) => {
                self.next += 1;
                let mut set = sets::following(&self.store.current, |_| false, self.next);
                set.orders.push(order(self.next, AGENTS[agent]));
                self.put(set);
            }
            Step::Resume(which) => {
                let orders = &self.store.current.orders;
                if orders.is_empty() {
                    return;
                }
                let id = which.get(orders).id.clone();
                self.next += 1;
                let set = sets::following(&self.store.current, |order| order.id == id, self.next);
                self.put(set);
                self.store.ended.insert(id.clone());
                self.lifted.insert(id);
            }
            Step::Copy => self.copy = Some(self.store.clone()),
            Step::Restore => {
                if let Some(copy) = self.copy.clone() {
                    self.store = copy;
                    self.sidecars.iter_mut().for_each(|sidecar| sidecar.stream = None);
                }
            }
            Step::Connect(n) => self.connect(n),
            Step::Cut(n) => self.sidecars[n].stream = None,
            Step::Push(n) => {
                let current = self.store.current.clone();
                let stream = self.sidecars[n].stream.as_mut();
                if let Some(stream) = stream.filter(|stream| stream.back() != Some(&current)) {
                    stream.push_back(current);
                }
            }
            Step::Arrives(n) => self.arrives(n).await,
            Step::Replayed(n, which) => {
                let set = which.get(&self.signed).clone();
                let sidecar = &mut self.sidecars[n];
                let held = sidecar.rig.keeper.held().map(|held| held.set.version());
                // One that is higher is no replay: it has yet to come by the stream.
                if held.is_some_and(|held| set.version() <= held) {
                    let ack = sidecar.rig.take(&set).await;
                    sidecar.answered(&ack, &set);
                }
            }
            Step::Forged(n) => {
                let set = kill_set(u64::MAX, 0, &[]);
                let rig = &mut self.sidecars[n].rig;
                let ack = rig.keeper.take(&rig.proxy, Keys::new().set(&set)).await;
                assert_eq!(ack.rejected, "unknown_key");
            }
            _ => self.of_sidecar(step).await,
        }
    }

    /// What happens to one sidecar alone.
    async fn of_sidecar(&mut self, step: &Step) {
        match *step {
            Step::DiskBreaks(n) if !self.sidecars[n].broken => {
                self.sidecars[n].rig.break_disk();
                self.sidecars[n].broken = true;
            }
            Step::DiskMends(n) if self.sidecars[n].broken => {
                self.sidecars[n].rig.mend_disk();
                self.sidecars[n].broken = false;
            }
            Step::Beat(n) => {
                let sidecar = &mut self.sidecars[n];
                let unwritten = sidecar.rig.keeper.unwritten().map(|held| held.set.clone());
                if let Some(set) = unwritten {
                    let ack = sidecar.rig.keeper.retry(&sidecar.rig.proxy).await.unwrap();
                    sidecar.answered(&ack, &set);
                }
            }
            // It does not begin where it has no directory.
            Step::Restarts(n) if !self.sidecars[n].broken => {
                let sidecar = &mut self.sidecars[n];
                sidecar.rig.restart();
                (sidecar.stream, sidecar.enforced) = (None, BTreeSet::new());
            }
            _ => {}
        }
    }

    fn put(&mut self, set: KillSet) {
        self.signed.push(set.clone());
        self.store.put(set);
    }

    /// A greeting shows what is held, and what is enforced and not written, before anything is sent.
    fn connect(&mut self, n: usize) {
        let keeper = &self.sidecars[n].rig.keeper;
        for shown in keeper.unwritten().into_iter().chain(keeper.held()) {
            self.store.shown(&shown.signed);
        }
        self.signed.push(self.store.current.clone());
        self.sidecars[n].stream = Some(VecDeque::new());
    }

    async fn arrives(&mut self, n: usize) {
        let sidecar = &mut self.sidecars[n];
        let Some(set) = sidecar.stream.as_mut().and_then(VecDeque::pop_front) else {
            return;
        };
        let ack = sidecar.rig.take(&set).await;
        sidecar.answered(&ack, &set);
        if let Some(held) = &ack.held {
            self.store.shown(held);
            self.signed.push(self.store.current.clone());
        }
    }

    /// What must be so whatever happened.
    fn holds(&mut self, after: &Step) {
        for (n, sidecar) in self.sidecars.iter_mut().enumerate() {
            let now = sidecar.in_force();
            let must = sidecar.wrote.union(&sidecar.enforced);
            let lost: Vec<_> = must
                .filter(|id| !self.lifted.contains(*id) && !now.contains(*id))
                .collect();
            assert!(lost.is_empty(), "sidecar {n}: {after:?} lifts {lost:?}, and nobody did");
            sidecar.enforced.extend(now);
            if !sidecar.broken {
                let kept = sidecar.rig.on_disk().map(|set| set.version()).unwrap_or_default();
                assert!(
                    kept >= sidecar.acknowledged,
                    "sidecar {n}: {after:?} leaves {kept:?} on disk"
                );
            }
        }
    }

    /// When nothing fails any more, all hold the same, and that is what the store says.
    async fn comes_together(&mut self) {
        for round in 0..4 * SIDECARS {
            let n = round % SIDECARS;
            for step in [
                Step::DiskMends(n),
                Step::Beat(n),
                Step::Connect(n),
                Step::Push(n),
                Step::Arrives(n),
            ] {
                self.step(&step).await;
                self.holds(&step);
            }
        }
        let current = &self.store.current;
        let orders: BTreeMap<_, _> = current.orders.iter().map(|order| (&order.id, order)).collect();
        for sidecar in &self.sidecars {
            assert_eq!(sidecar.rig.on_disk().as_ref(), Some(current));
            assert_eq!(sidecar.in_force(), orders.keys().map(|id| (*id).clone()).collect());
            for id in sidecar.wrote.difference(&self.lifted) {
                assert!(orders.contains_key(id), "{id} is in force nowhere any more");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_schedule_lifts_an_order_that_nobody_lifted(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut mesh = Mesh::new();
            for step in &steps {
                mesh.step(step).await;
                mesh.holds(step);
            }
            mesh.comes_together().await;
        });
    }
}

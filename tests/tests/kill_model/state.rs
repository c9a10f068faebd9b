//! What the control plane and the sidecars know, as small as it can be: sets are numbers, and become real ones where the
//! real functions decide.

use std::collections::BTreeSet;

use aip_api::kill::{KillSet, Mode, Order, Scope, sets};

/// Orders, a bit each.
pub(crate) type Orders = u8;

/// How many there are.
pub(crate) const ORDERS: u8 = 2;

/// A kill set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Set {
    pub(crate) term: u8,
    pub(crate) epoch: u8,
    pub(crate) orders: Orders,
    /// Of which life of the store: two lives make different documents of the same term and epoch.
    pub(crate) life: u8,
}

impl Set {
    const FIRST: Self = Self {
        term: 1,
        epoch: 0,
        orders: 0,
        life: 0,
    };

    pub(crate) fn version(self) -> (u8, u8) {
        (self.term, self.epoch)
    }

    pub(crate) fn real(self) -> KillSet {
        let orders = (0..ORDERS).filter(|n| self.orders & (1 << n) != 0).map(order);
        KillSet {
            epoch: self.epoch.into(),
            orders: orders.collect(),
            ..KillSet::empty("aip.internal".parse().unwrap(), self.term.into(), self.life.into())
        }
    }

    pub(crate) fn of(set: &KillSet) -> Self {
        let small = |n: u64| u8::try_from(n).unwrap();
        Self {
            term: small(set.term),
            epoch: small(set.epoch),
            orders: set.orders.iter().fold(0, |all, order| all | 1 << number(&order.id)),
            life: small(set.issued_at),
        }
    }
}

/// The order with this number.
pub(crate) fn order(n: u8) -> Order {
    Order {
        id: id(n),
        scope: Scope::Mesh {},
        mode: Mode::Kill,
        reason: String::new(),
        issued_by: vec!["ann".into()],
        issued_at: 1,
        expires: None,
    }
}

pub(crate) fn id(n: u8) -> String {
    format!("00000000-0000-7000-8000-{n:012}")
}

fn number(id: &str) -> u8 {
    id.rsplit('-').next().unwrap().parse().unwrap()
}

/// What the control plane has on disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) current: Set,
    /// Sets that it knows to be its own.
    pub(crate) issued: BTreeSet<Set>,
    /// Orders that it knows to be lifted.
    pub(crate) ended: Orders,
}

/// A stream that is open, and what is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Stream {
    pub(crate) push: Option<Set>,
    /// What it showed that it could not write.
    pub(crate) unwritten: Option<Set>,
    pub(crate) answer: Option<Answer>,
    /// The control plane's end: what the sidecar holds, what waits for an answer, and the lowest that may be sent.
    pub(crate) held: Option<Set>,
    pub(crate) outstanding: Option<Set>,
    pub(crate) floor: (u8, u8),
}

/// What a sidecar answers a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Taken((u8, u8)),
    NotPersisted,
    NotHigher(Set),
}

/// Where a sidecar is with the set that it is taking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Taking {
    #[default]
    Nothing,
    /// It is enforced, and not yet written.
    Enforced(Set),
    /// It is written, and not yet acknowledged.
    Written(Set),
}

/// A sidecar, and what was true of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sidecar {
    pub(crate) disk: Set,
    pub(crate) enforced: Orders,
    pub(crate) unwritten: Option<Set>,
    pub(crate) taking: Taking,
    pub(crate) stream: Option<Stream>,
    /// What this life of the control plane was told.
    pub(crate) acknowledged: Option<Set>,
    /// Orders that it ever wrote, and the highest set.
    pub(crate) wrote: Orders,
    pub(crate) highest: (u8, u8),
    /// Orders that this process ever enforced.
    pub(crate) enforced_once: Orders,
}

/// All there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mesh {
    pub(crate) store: Store,
    pub(crate) copy: Option<Store>,
    /// What streams are sent: it follows the store.
    pub(crate) published: Set,
    pub(crate) life: u8,
    /// Orders that were given, and that somebody lifted.
    pub(crate) given: Orders,
    pub(crate) lifted: Orders,
    /// How often something may still fail.
    pub(crate) failures: u8,
    pub(crate) sidecars: Vec<Sidecar>,
}

impl Mesh {
    /// With so many sidecars, of which so many things may fail.
    pub(crate) fn of(sidecars: usize, failures: u8) -> Self {
        let sidecar = Sidecar {
            disk: Set::FIRST,
            enforced: 0,
            unwritten: None,
            taking: Taking::Nothing,
            stream: None,
            acknowledged: None,
            wrote: 0,
            highest: Set::FIRST.version(),
            enforced_once: 0,
        };
        Self {
            store: Store {
                current: Set::FIRST,
                issued: BTreeSet::from([Set::FIRST]),
                ended: 0,
            },
            copy: None,
            published: Set::FIRST,
            life: 0,
            given: 0,
            lifted: 0,
            failures,
            sidecars: vec![sidecar; sidecars],
        }
    }
}

impl Store {
    pub(crate) fn put(&mut self, set: Set) {
        self.current = set;
        self.issued.insert(set);
    }

    /// Takes up what a sidecar shows; the version from which a set has its orders.
    pub(crate) fn shown(&mut self, shown: Set, life: u8) -> (u8, u8) {
        if !self.issued.contains(&shown) {
            let ended = (0..ORDERS).filter(|n| self.ended & (1 << n) != 0).map(id).collect();
            let next = sets::above(&self.current.real(), &shown.real(), &ended, life.into());
            self.issued.insert(shown);
            self.put(Set::of(&next.unwrap()));
        }
        self.current.version()
    }
}

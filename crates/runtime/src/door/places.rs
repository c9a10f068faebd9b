//! Who has a place at a port, and who gives way where there are none.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::{Bounds, GaveWay};

/// A connection's place among those of its port and of its source; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    id: u64,
    source: IpAddr,
    settled: Arc<Notify>,
    _connection: OwnedSemaphorePermit,
}

/// How far it is known who is there. In the order in which they give way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Has not said a whole first flight.
    Silent,
    /// Has, and the handshake is on.
    Spoke,
    /// Needs no certificate, and has not proved anything yet.
    Anonymous,
}

#[derive(Debug)]
struct Waiting {
    source: IpAddr,
    stage: Stage,
    settled: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// Connections of each source that has any.
    connections: HashMap<IpAddr, usize>,
    /// Those that nobody is known on, oldest first.
    waiting: BTreeMap<u64, Waiting>,
}

/// The places of one port.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Table>>);

impl Places {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the source may have one more: where it has as many as it may, if another of its own gives way.
    pub(super) fn has_room(&self, address: IpAddr, bounds: &Bounds) -> bool {
        let source = source_of(address);
        let mut table = self.table();
        let held = table.connections.get(&source).copied().unwrap_or_default();
        held < bounds.connections_per_source || table.give_way(|waiting| waiting.source == source, GaveWay::Source)
    }

    /// One more stranger; another gives way where there are as many as may be.
    pub(super) fn enter(&self, address: IpAddr, bounds: &Bounds, connection: OwnedSemaphorePermit) -> Place {
        let (source, settled) = (source_of(address), Arc::new(Notify::new()));
        let mut table = self.table();
        table.make_room(|w| w.stage != Stage::Anonymous, bounds.strangers, GaveWay::Stranger);
        let id = table.next;
        table.next += 1;
        *table.connections.entry(source).or_default() += 1;
        let waiting = Waiting {
            source,
            stage: Stage::Silent,
            settled: settled.clone(),
        };
        table.waiting.insert(id, waiting);
        drop(table);
        Place {
            places: self.clone(),
            id,
            source,
            settled,
            _connection: connection,
        }
    }

    /// Lets one that nobody is known on give way, if there is any: all places are taken.
    pub(super) fn give_way(&self) {
        self.table().give_way(|_| true, GaveWay::Full);
    }
}

impl Table {
    fn make_room(&mut self, which: impl Fn(&Waiting) -> bool, bound: usize, why: GaveWay) {
        if self.waiting.values().filter(|w| which(w)).count() >= bound {
            self.give_way(which, why);
        }
    }

    /// Of the source that has most of them, so that nobody displaces others by the number of their own: who has said
    /// least, and came first.
    fn give_way(&mut self, which: impl Fn(&Waiting) -> bool, why: GaveWay) -> bool {
        let mut of_source: HashMap<IpAddr, usize> = HashMap::new();
        for waiting in self.waiting.values().filter(|w| which(w)) {
            *of_source.entry(waiting.source).or_default() += 1;
        }
        let most = of_source.values().copied().max();
        let candidates = self.waiting.iter().filter(|(_, w)| which(w));
        let candidates = candidates.filter(|(_, w)| of_source.get(&w.source).copied() == most);
        let chosen = candidates.min_by_key(|(id, w)| (w.stage, **id)).map(|(id, _)| *id);
        let Some(gone) = chosen.and_then(|id| self.waiting.remove(&id)) else {
            return false;
        };
        metrics::counter!(super::REFUSED, "reason" => why.reason()).increment(1);
        gone.settled.notify_one();
        true
    }
}

impl Place {
    /// Its first flight is there.
    pub(super) fn spoke(&self) {
        if let Some(waiting) = self.places.table().waiting.get_mut(&self.id) {
            waiting.stage = Stage::Spoke;
        }
    }

    /// Its handshake is over, or there is none, and it has shown nothing.
    pub(super) fn is_anonymous(&self, bounds: &Bounds) {
        let mut table = self.places.table();
        // Not when it has just given way itself.
        if table.waiting.contains_key(&self.id) {
            table.make_room(|w| w.stage == Stage::Anonymous, bounds.anonymous, GaveWay::Anonymous);
            if let Some(waiting) = table.waiting.get_mut(&self.id) {
                waiting.stage = Stage::Anonymous;
            }
        }
    }

    /// It is known who is there: from now on it gives way to nobody.
    pub fn is_known(&self) {
        self.places.table().waiting.remove(&self.id);
    }

    /// Resolves when it must give way to another, which one that is known never must. For one waiter.
    pub fn gives_way(&self) -> impl Future<Output = ()> + Send + use<> {
        let settled = self.settled.clone();
        async move { settled.notified().await }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.places.table();
        table.waiting.remove(&self.id);
        if let Some(count) = table.connections.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                table.connections.remove(&self.source);
            }
        }
    }
}

/// What counts as one source: an IPv4 address, or the /56 that an IPv6 site has at least (RFC 6177). This machine is
/// one, by whatever address: each of its processes has all of 127.0.0.0/8.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        own if own.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 72 << 72)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use tokio::sync::Semaphore;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        connections: 64,
        connections_per_source: 6,
        strangers: 4,
        anonymous: 2,
    };

    fn enter(places: &Places, address: &str) -> Place {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        places.enter(address.parse().unwrap(), &BOUNDS, permit)
    }

    fn gone(places: &[&Place]) -> Vec<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut gone = |i: &usize| pin!(places[*i].gives_way()).poll(&mut cx).is_ready();
        (0..places.len()).filter(|i| gone(i)).collect()
    }

    #[test]
    fn who_has_most_gives_way_and_others_keep_theirs() {
        let places = Places::default();
        let honest = enter(&places, "192.0.2.1");
        let flood: Vec<_> = (0..3).map(|_| enter(&places, "192.0.2.9")).collect();
        let next = enter(&places, "192.0.2.9");
        let other = enter(&places, "192.0.2.2");
        let all = [&honest, &flood[0], &flood[1], &flood[2], &next, &other];
        assert_eq!(gone(&all), [1, 2], "the flood's own, oldest first");
    }

    #[test]
    fn who_said_its_first_flight_gives_way_after_who_did_not_and_who_is_known_never() {
        let places = Places::default();
        let all: Vec<_> = (0..4).map(|_| enter(&places, "127.0.0.1")).collect();
        all[0].is_known();
        all[1].spoke();
        let more = [enter(&places, "127.0.0.1"), enter(&places, "127.0.0.1")];
        assert_eq!(gone(&all.iter().collect::<Vec<_>>()), [2]);
        for _ in 0..8 {
            drop(enter(&places, "127.0.0.1"));
            places.give_way();
        }
        assert_eq!(gone(&[&all[0]]), [0usize; 0], "all that could have given way");
        drop((all, more));
        let table = places.table();
        assert!(
            table.waiting.is_empty() && table.connections.is_empty(),
            "nothing is remembered"
        );
    }

    #[test]
    fn who_proves_nothing_has_places_of_its_own() {
        let places = Places::default();
        let all: Vec<_> = (0..3).map(|_| enter(&places, "192.0.2.1")).collect();
        let stranger = enter(&places, "192.0.2.1");
        for place in &all {
            place.is_anonymous(&BOUNDS);
        }
        assert_eq!(gone(&[&all[0], &all[1], &all[2], &stranger]), [0]);
    }

    #[test]
    fn this_machine_is_one_source_and_so_is_an_ipv6_site() {
        let places = Places::default();
        let mut held = Vec::new();
        for (of_one, stranger) in [
            (["127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.2"], "192.0.2.1"),
            (
                ["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:ff::", "2001:db8::"],
                "2001:db8:0:100::",
            ),
        ] {
            for address in of_one.into_iter().chain(of_one) {
                let address_of = address.parse().unwrap();
                if places.has_room(address_of, &BOUNDS) {
                    held.push(enter(&places, address));
                    held.iter().for_each(Place::is_known);
                }
            }
            assert!(!places.has_room(of_one[0].parse().unwrap(), &BOUNDS));
            assert!(places.has_room(stranger.parse().unwrap(), &BOUNDS));
        }
        assert_eq!(held.len(), 2 * BOUNDS.connections_per_source);
    }
}

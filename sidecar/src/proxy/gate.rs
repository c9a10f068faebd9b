//! Rates and concurrency, and what of both a single peer may have.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use aip_api::AgentName;
use aip_api::resource::Traffic;
use dashmap::DashMap;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::backlog::Unread;
use super::limits::{MAX_CONNECTIONS_OF_PEER, SWEEP};

/// One peer's rate.
#[derive(Debug)]
pub(crate) struct Gate {
    rate: u32,
    burst: u32,
    limiter: DefaultDirectRateLimiter,
    /// Nobody held it when it was last looked at.
    unused: AtomicBool,
}

impl Gate {
    fn new(traffic: &Traffic) -> Self {
        let (rate, burst) = (traffic.peer_rate_per_second, traffic.peer_burst);
        let at_least_one = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(rate)).allow_burst(at_least_one(burst));
        Self {
            rate,
            burst,
            limiter: RateLimiter::direct(quota),
            unused: AtomicBool::new(false),
        }
    }

    fn fits(&self, traffic: &Traffic) -> bool {
        (self.rate, self.burst) == (traffic.peer_rate_per_second, traffic.peer_burst)
    }

    /// Whether it is as good as new once it was not used from one sweep to the next: then its burst is full again.
    const fn refills(&self) -> bool {
        self.burst as u64 <= self.rate as u64 * SWEEP.as_secs()
    }

    /// Whether one more request may come now.
    pub(crate) fn passes(&self) -> bool {
        self.limiter.check().is_ok()
    }
}

/// The rates of all peers: all connections of one peer share one.
#[derive(Debug, Default)]
pub(crate) struct Gates(DashMap<AgentName, Arc<Gate>>);

impl Gates {
    /// The peer's gate for these limits; a changed limit begins with a full burst.
    pub(crate) fn of(&self, peer: &AgentName, traffic: &Traffic) -> Arc<Gate> {
        if let Some(gate) = self.0.get(peer).filter(|gate| gate.fits(traffic)) {
            gate.unused.store(false, Ordering::Relaxed);
            return gate.clone();
        }
        let mut entry = self
            .0
            .entry(peer.clone())
            .or_insert_with(|| Arc::new(Gate::new(traffic)));
        if !entry.fits(traffic) {
            *entry = Arc::new(Gate::new(traffic));
        }
        entry.clone()
    }

    /// Forgets the gates of peers that have no connection, and had none at the last sweep.
    pub(crate) fn sweep(&self) {
        self.0.retain(|_, gate| {
            let unused = Arc::strong_count(gate) == 1 && gate.refills();
            !(gate.unused.swap(unused, Ordering::Relaxed) && unused)
        });
    }
}

/// What one peer has of what all peers share, over all its connections.
#[derive(Debug, Default)]
pub(crate) struct Share {
    in_flight: AtomicU32,
    held: AtomicUsize,
    connections: AtomicUsize,
    /// What it has not taken of its answers.
    pub(crate) unread: Arc<Unread>,
}

/// One of a peer's connections, until it is dropped.
#[derive(Debug)]
pub(crate) struct OfPeer(Arc<Share>);

impl Drop for OfPeer {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Share {
    /// One more connection of this peer, where it has fewer than [`MAX_CONNECTIONS_OF_PEER`].
    pub(crate) fn connect(self: &Arc<Self>) -> Option<OfPeer> {
        // Counted first, and taken back by the drop.
        let before = self.connections.fetch_add(1, Ordering::AcqRel);
        Some(OfPeer(self.clone())).filter(|_| before < MAX_CONNECTIONS_OF_PEER)
    }

    /// Notes that `bytes` more of this peer's bodies are held; how many that are.
    pub(crate) fn holds_more(&self, bytes: usize) -> usize {
        self.held.fetch_add(bytes, Ordering::AcqRel) + bytes
    }

    /// Notes that they no longer are.
    pub(crate) fn holds_less(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// The shares of all peers.
#[derive(Debug, Default)]
pub(crate) struct Shares(DashMap<AgentName, Arc<Share>>);

impl Shares {
    /// The peer's.
    pub(crate) fn of(&self, peer: &AgentName) -> Arc<Share> {
        self.0.entry(peer.clone()).or_default().clone()
    }

    /// Forgets the shares of peers that have no connection: whatever they still have holds theirs.
    pub(crate) fn sweep(&self) {
        self.0.retain(|_, share| Arc::strong_count(share) > 1);
    }
}

/// Requests that the agent works on.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Arc<AtomicU32>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    all: Arc<AtomicU32>,
    peer: Arc<Share>,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The peer has as many requests in flight as it may.
    Share,
    /// All peers together have.
    All,
}

impl InFlight {
    /// A permit, where fewer than the agent takes are out, and fewer than this peer may have.
    pub(crate) fn enter(&self, peer: &Arc<Share>, traffic: &Traffic) -> Result<Permit, Full> {
        let permit = Permit {
            all: self.0.clone(),
            peer: peer.clone(),
        };
        // Counted first, and taken back by the permit's drop.
        let of_peer = peer.in_flight.fetch_add(1, Ordering::AcqRel);
        let of_all = self.0.fetch_add(1, Ordering::AcqRel);
        if of_all >= traffic.max_concurrency {
            Err(Full::All)
        } else if of_peer >= traffic.peer_concurrency() {
            Err(Full::Share)
        } else {
            Ok(permit)
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::AcqRel);
        self.peer.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_may_send_its_burst_and_no_more_on_all_its_connections() {
        let traffic = Traffic {
            peer_rate_per_second: 1,
            peer_burst: 3,
            ..Traffic::defaults()
        };
        let gates = Gates::default();
        let (one, other) = ("one".parse().unwrap(), "other".parse().unwrap());
        let passed = (0..10).filter(|_| gates.of(&one, &traffic).passes()).count();
        assert_eq!(passed, 3);
        assert!(gates.of(&other, &traffic).passes(), "peers don't share a rate");
        let raised = Traffic {
            peer_burst: 5,
            ..traffic
        };
        assert!(gates.of(&one, &raised).passes(), "a changed limit holds at once");
    }

    #[test]
    fn a_peer_has_a_bounded_number_of_connections() {
        let shares = Shares::default();
        let (one, other) = (shares.of(&"one".parse().unwrap()), shares.of(&"other".parse().unwrap()));
        let mut open: Vec<_> = (0..MAX_CONNECTIONS_OF_PEER).filter_map(|_| one.connect()).collect();
        assert_eq!(open.len(), MAX_CONNECTIONS_OF_PEER);
        assert!(one.connect().is_none() && one.connect().is_none());
        assert!(other.connect().is_some(), "others have their own");
        open.pop();
        assert!(one.connect().is_some(), "a refused one was not counted");
    }

    #[test]
    fn permits_come_back_when_they_are_dropped() {
        let (flight, shares) = (InFlight::default(), Shares::default());
        let traffic = Traffic {
            max_concurrency: 3,
            peer_max_concurrency: Some(3),
            ..Traffic::defaults()
        };
        let peer = shares.of(&"one".parse().unwrap());
        let held: Vec<_> = (0..3).filter_map(|_| flight.enter(&peer, &traffic).ok()).collect();
        assert_eq!(held.len(), 3);
        assert!(flight.enter(&peer, &traffic).is_err());
        drop(held);
        assert!(flight.enter(&peer, &traffic).is_ok());
    }

    #[test]
    fn a_peer_leaves_half_for_the_others() {
        let (flight, shares) = (InFlight::default(), Shares::default());
        let (one, other) = (shares.of(&"one".parse().unwrap()), shares.of(&"other".parse().unwrap()));
        let traffic = |max_concurrency| Traffic {
            max_concurrency,
            ..Traffic::defaults()
        };
        let five = traffic(5);
        let held: Vec<_> = (0..3).map(|_| flight.enter(&one, &five).unwrap()).collect();
        assert_eq!(flight.enter(&one, &five).unwrap_err(), Full::Share);
        let rest: Vec<_> = (0..2).map(|_| flight.enter(&other, &five).unwrap()).collect();
        assert_eq!(flight.enter(&other, &five).unwrap_err(), Full::All);
        drop((held, rest));
        assert!(flight.enter(&one, &traffic(1)).is_ok(), "at least one");
    }

    #[test]
    fn peers_that_are_gone_give_their_places_back_and_get_no_second_burst_for_it() {
        let (gates, shares) = (Gates::default(), Shares::default());
        let peer: AgentName = "peer".parse().unwrap();
        let quick = Traffic {
            peer_rate_per_second: 10,
            peer_burst: 10,
            ..Traffic::defaults()
        };
        let connected = (gates.of(&peer, &quick), shares.of(&peer));
        for _ in 0..3 {
            gates.sweep();
            shares.sweep();
        }
        assert_eq!((gates.0.len(), shares.0.len()), (1, 1), "it is connected");
        drop(connected);
        gates.sweep();
        assert_eq!(gates.0.len(), 1, "it may have gone this very moment");
        drop(gates.of(&peer, &quick));
        gates.sweep();
        assert_eq!(gates.0.len(), 1, "it was there since");
        gates.sweep();
        shares.sweep();
        assert_eq!((gates.0.len(), shares.0.len()), (0, 0));
        // A burst that takes longer to come back than that is not given anew.
        let slow = Traffic {
            peer_rate_per_second: 1,
            peer_burst: 1_000,
            ..Traffic::defaults()
        };
        drop(gates.of(&peer, &slow));
        for _ in 0..3 {
            gates.sweep();
        }
        assert_eq!(gates.0.len(), 1);
    }
}

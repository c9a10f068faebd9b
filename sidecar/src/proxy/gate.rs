//! Rates and concurrency.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aip_api::AgentName;
use aip_api::resource::Traffic;
use dashmap::DashMap;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// One peer's rate.
#[derive(Debug)]
pub(crate) struct Gate {
    rate: u32,
    burst: u32,
    limiter: DefaultDirectRateLimiter,
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
        }
    }

    fn fits(&self, traffic: &Traffic) -> bool {
        (self.rate, self.burst) == (traffic.peer_rate_per_second, traffic.peer_burst)
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
}

/// Requests that the agent works on.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Arc<AtomicU32>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<AtomicU32>);

impl InFlight {
    /// A permit, where fewer than `limit` are out.
    pub(crate) fn enter(&self, limit: u32) -> Option<Permit> {
        if self.0.fetch_add(1, Ordering::AcqRel) >= limit {
            self.0.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Permit(self.0.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
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
    fn permits_come_back_when_they_are_dropped() {
        let flight = InFlight::default();
        let held: Vec<_> = (0..2).filter_map(|_| flight.enter(2)).collect();
        assert_eq!(held.len(), 2);
        assert!(flight.enter(2).is_none());
        drop(held);
        assert!(flight.enter(2).is_some());
    }
}

//! Hop ids that were seen: each is good once per source.
//!
//! A UUIDv7 carries its time. Ids are remembered in two generations; when the older one is dropped, everything up to
//! its latest time is refused from then on. So memory is bounded, and nothing is ever accepted twice.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aip_api::id::HopId;

use super::limits::{HOP_WINDOW, HOPS_PER_GENERATION};

#[derive(Debug)]
struct Generation {
    ids: HashSet<u128>,
    latest: u64,
    began: Instant,
}

impl Generation {
    fn new(now: Instant) -> Self {
        Self {
            ids: HashSet::new(),
            latest: 0,
            began: now,
        }
    }
}

#[derive(Debug)]
struct State {
    current: Generation,
    before: Generation,
    /// Milliseconds of Unix time up to which ids are refused.
    floor: u64,
}

/// How far a peer's clock may be ahead; a hop from further on would raise the floor for all others.
const MAX_AHEAD_MS: u64 = 5 * 60 * 1_000;

/// The hop ids of one source.
#[derive(Debug)]
pub(crate) struct Seen(Mutex<State>);

impl Seen {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State {
            current: Generation::new(now),
            before: Generation::new(now),
            floor: 0,
        }))
    }

    /// Whether this id is new; it is not from then on.
    pub(crate) fn admit(&self, hop: HopId, unix_ms: u64) -> bool {
        self.admit_at(bits(hop), unix_ms, Instant::now())
    }

    fn admit_at(&self, id: u128, unix_ms: u64, now: Instant) -> bool {
        let time = time_of(id);
        let too_old = time.saturating_add(millis(HOP_WINDOW)) < unix_ms;
        if time > unix_ms.saturating_add(MAX_AHEAD_MS) {
            return false;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if too_old || time <= state.floor || state.before.ids.contains(&id) {
            return false;
        }
        let full = state.current.ids.len() >= HOPS_PER_GENERATION;
        if full || now.duration_since(state.current.began) >= HOP_WINDOW {
            let fresh = std::mem::replace(&mut state.current, Generation::new(now));
            let dropped = std::mem::replace(&mut state.before, fresh);
            state.floor = state.floor.max(dropped.latest);
            if time <= state.floor || state.before.ids.contains(&id) {
                return false;
            }
        }
        state.current.latest = state.current.latest.max(time);
        state.current.ids.insert(id)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The id as a number.
fn bits(hop: HopId) -> u128 {
    let text = hop.to_string();
    text.bytes()
        .filter_map(|b| char::from(b).to_digit(16))
        .fold(0, |bits, digit| bits << 4 | u128::from(digit))
}

/// Milliseconds of Unix time: the first 48 bits (RFC 9562 section 5.7).
const fn time_of(id: u128) -> u64 {
    (id >> 80) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn id(ms: u64, n: u128) -> u128 {
        u128::from(ms) << 80 | n
    }

    #[test]
    fn an_id_is_good_once() {
        let hop = HopId::fresh();
        let seen = Seen::new();
        let now = time_of(bits(hop));
        assert!(seen.admit(hop, now));
        assert!(!seen.admit(hop, now));
        assert!(seen.admit(HopId::fresh(), now));
    }

    #[test]
    fn nothing_is_accepted_again_however_many_came_between() {
        let seen = Seen::new();
        let start = Instant::now();
        assert!(seen.admit_at(id(NOW, 1), NOW, start));
        for n in 0..3 * HOPS_PER_GENERATION as u128 {
            assert!(seen.admit_at(id(NOW + 1 + n as u64 / 100, n), NOW, start));
        }
        assert!(
            !seen.admit_at(id(NOW, 1), NOW, start),
            "forgotten, and refused by its time"
        );
    }

    #[test]
    fn ids_older_than_the_window_are_refused() {
        let seen = Seen::new();
        assert!(!seen.admit_at(id(NOW - millis(HOP_WINDOW) - 1, 1), NOW, Instant::now()));
        assert!(seen.admit_at(id(NOW - millis(HOP_WINDOW) + 1_000, 1), NOW, Instant::now()));
    }

    #[test]
    fn memory_is_given_back_after_the_window() {
        let seen = Seen::new();
        let start = Instant::now();
        for n in 0..100 {
            assert!(seen.admit_at(id(NOW + n, n.into()), NOW, start));
        }
        for round in 1..4 {
            let later = start + HOP_WINDOW * round;
            let ms = NOW + millis(HOP_WINDOW) * u64::from(round);
            assert!(seen.admit_at(id(ms, 7), ms, later));
        }
        assert!(seen.0.lock().unwrap().before.ids.len() <= 1);
    }
}

//! Hop ids that were seen: each is good once per source.
//!
//! A UUIDv7 carries its time. Ids are remembered in two generations; when the older one is dropped, everything up to
//! its latest time is refused from then on. So memory is bounded, and nothing is ever accepted twice.
//!
//! A source that is silent gives back what it was remembered by: its generations when they are over, and its place
//! among the sources once all ids that it can have used are refused by their time alone.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aip_api::AgentName;
use aip_api::id::HopId;
use dashmap::DashMap;

use super::limits::{FEW_HOPS, HOP_WINDOW, HOPS_PER_GENERATION, MANY_HOPS};

/// How far a peer's clock may be ahead; a hop from further on would raise the floor for all others.
const MAX_AHEAD: Duration = Duration::from_secs(5 * 60);

/// The hop ids of all sources.
#[derive(Debug, Default)]
pub(crate) struct Hops {
    sources: DashMap<AgentName, Arc<Seen>>,
    many: Arc<AtomicBool>,
}

impl Hops {
    /// Those of `source`.
    pub(crate) fn of(&self, source: &AgentName) -> Arc<Seen> {
        if let Some(seen) = self.sources.get(source) {
            return seen.clone();
        }
        let fresh = || Arc::new(Seen::new(self.many.clone()));
        self.sources.entry(source.clone()).or_insert_with(fresh).clone()
    }

    /// Gives back what silent sources no longer need.
    pub(crate) fn sweep(&self) {
        self.sweep_at(Instant::now());
    }

    fn sweep_at(&self, now: Instant) {
        let mut all = 0;
        self.sources.retain(|_, seen| {
            let (ids, silent) = seen.sweep(now);
            all += ids;
            // Nobody else can hold it anew while its shard is locked.
            !silent || Arc::strong_count(seen) > 1
        });
        self.many.store(all > MANY_HOPS, Ordering::Relaxed);
    }
}

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
    /// When an id was admitted last.
    last: Instant,
}

impl State {
    /// Begins a generation; the one before the last is forgotten, and refused by its time from now on.
    fn turn(&mut self, now: Instant) {
        let fresh = std::mem::replace(&mut self.current, Generation::new(now));
        let dropped = std::mem::replace(&mut self.before, fresh);
        self.floor = self.floor.max(dropped.latest);
    }
}

/// The hop ids of one source.
#[derive(Debug)]
pub(crate) struct Seen {
    state: Mutex<State>,
    /// Whether all sources together have so many that each must do with fewer.
    many: Arc<AtomicBool>,
}

impl Seen {
    fn new(many: Arc<AtomicBool>) -> Self {
        let now = Instant::now();
        let state = Mutex::new(State {
            current: Generation::new(now),
            before: Generation::new(now),
            floor: 0,
            last: now,
        });
        Self { state, many }
    }

    /// Forgets generations that are over. How many ids are left, and whether nothing of this source needs to be
    /// remembered: every id that it has used is older than [`HOP_WINDOW`] by then, however far its clock is ahead.
    fn sweep(&self, now: Instant) -> (usize, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(state.current.began) >= HOP_WINDOW {
            state.turn(now);
        }
        let ids = state.current.ids.len() + state.before.ids.len();
        (ids, now.duration_since(state.last) >= HOP_WINDOW + MAX_AHEAD)
    }

    /// Whether this id is new; it is not from then on.
    pub(crate) fn admit(&self, hop: HopId, unix_ms: u64) -> bool {
        self.admit_at(bits(hop), unix_ms, Instant::now())
    }

    fn admit_at(&self, id: u128, unix_ms: u64, now: Instant) -> bool {
        let time = time_of(id);
        let too_old = time.saturating_add(millis(HOP_WINDOW)) < unix_ms;
        if time > unix_ms.saturating_add(millis(MAX_AHEAD)) {
            return false;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if too_old || time <= state.floor || state.before.ids.contains(&id) {
            return false;
        }
        let most = match self.many.load(Ordering::Relaxed) {
            false => HOPS_PER_GENERATION,
            true => FEW_HOPS,
        };
        let full = state.current.ids.len() >= most;
        if full || now.duration_since(state.current.began) >= HOP_WINDOW {
            state.turn(now);
            if time <= state.floor || state.before.ids.contains(&id) {
                return false;
            }
        }
        state.current.latest = state.current.latest.max(time);
        state.last = now;
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

    fn seen() -> Seen {
        Seen::new(Arc::default())
    }

    fn id(ms: u64, n: u128) -> u128 {
        u128::from(ms) << 80 | n
    }

    #[test]
    fn an_id_is_good_once() {
        let hop = HopId::fresh();
        let seen = seen();
        let now = time_of(bits(hop));
        assert!(seen.admit(hop, now));
        assert!(!seen.admit(hop, now));
        assert!(seen.admit(HopId::fresh(), now));
    }

    #[test]
    fn nothing_is_accepted_again_however_many_came_between() {
        let seen = seen();
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
        let seen = seen();
        assert!(!seen.admit_at(id(NOW - millis(HOP_WINDOW) - 1, 1), NOW, Instant::now()));
        assert!(seen.admit_at(id(NOW - millis(HOP_WINDOW) + 1_000, 1), NOW, Instant::now()));
    }

    #[test]
    fn memory_is_given_back_after_the_window() {
        let seen = seen();
        let start = Instant::now();
        for n in 0..100 {
            assert!(seen.admit_at(id(NOW + n, n.into()), NOW, start));
        }
        for round in 1..4 {
            let later = start + HOP_WINDOW * round;
            let ms = NOW + millis(HOP_WINDOW) * u64::from(round);
            assert!(seen.admit_at(id(ms, 7), ms, later));
        }
        assert!(seen.state.lock().unwrap().before.ids.len() <= 1);
    }

    #[test]
    fn a_silent_source_gives_its_memory_back_and_nothing_is_accepted_twice_for_it() {
        let hops = Hops::default();
        let name: AgentName = "caller".parse().unwrap();
        let start = Instant::now();
        let ahead = NOW + millis(MAX_AHEAD);
        // Its clock is as far ahead as may be.
        assert!(hops.of(&name).admit_at(id(ahead, 1), NOW, start));
        for (seconds, held) in [(599, 1), (899, 1), (900, 0)] {
            hops.sweep_at(start + Duration::from_secs(seconds));
            assert_eq!(hops.sources.len(), held, "after {seconds} s");
        }
        let later = NOW + 900_001;
        assert!(!hops.of(&name).admit_at(id(ahead, 1), later, start), "too old by then");
        let connected = hops.of(&name);
        hops.sweep_at(start + Duration::from_secs(10_000));
        assert_eq!(hops.sources.len(), 1, "a connection holds it");
        drop(connected);
    }

    #[test]
    fn a_generation_of_a_silent_source_is_given_back_before_the_source_is() {
        let hops = Hops::default();
        let source = hops.of(&"caller".parse().unwrap());
        let start = Instant::now();
        for n in 0..100 {
            assert!(source.admit_at(id(NOW + n, n.into()), NOW, start));
        }
        hops.sweep_at(start + HOP_WINDOW);
        hops.sweep_at(start + 2 * HOP_WINDOW);
        let state = source.state.lock().unwrap();
        assert_eq!(state.current.ids.len() + state.before.ids.len(), 0);
        assert_eq!(state.floor, NOW + 99, "and is refused by its time");
    }

    #[test]
    fn while_all_sources_have_many_each_has_few() {
        let hops = Hops::default();
        let source = hops.of(&"caller".parse().unwrap());
        hops.many.store(true, Ordering::Relaxed);
        let start = Instant::now();
        for n in 0..10 * FEW_HOPS as u64 {
            assert!(source.admit_at(id(NOW + n / 100, n.into()), NOW, start));
        }
        let state = source.state.lock().unwrap();
        assert!(state.current.ids.len() + state.before.ids.len() <= 2 * FEW_HOPS);
        drop(state);
        hops.sweep_at(start);
        assert!(!hops.many.load(Ordering::Relaxed), "few again");
    }
}

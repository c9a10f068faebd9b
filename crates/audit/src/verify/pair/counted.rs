//! Refusals that sidecars only counted, by their own signed word: each that was counted excuses one hop of that time that has no
//! record.

use std::collections::{BTreeMap, HashMap};

use super::super::walk::UNSIGNED_MILLIS;

/// How long before the record a refusal may have been that it counts, in milliseconds: sidecars write one every five seconds.
const COUNTS_MILLIS: u64 = UNSIGNED_MILLIS;

/// By the agent, and by the second in which they were written: those that excused nothing yet.
#[derive(Debug, Default)]
pub(super) struct Counted(HashMap<u32, BTreeMap<u64, u64>>);

impl Counted {
    pub(super) fn add(&mut self, agent: u32, made: u64, count: u64) {
        if count > 0 {
            let of_then = self.0.entry(agent).or_default().entry(made / 1_000).or_default();
            *of_then = of_then.saturating_add(count);
        }
    }

    /// Whether the agent's sidecar counted a refusal then that excused nothing yet; `apart` is how far the clocks may differ.
    pub(super) fn excuses(&mut self, agent: u32, at: u64, apart: u64) -> bool {
        let Some(counted) = self.0.get_mut(&agent) else {
            return false;
        };
        let last = at.saturating_add(apart).saturating_add(COUNTS_MILLIS) / 1_000;
        // The one that is over first: hops come in the order of time, and a later one may need the others.
        let first = counted.range_mut(at.saturating_sub(apart) / 1_000..=last).next();
        let Some((made, left)) = first else { return false };
        let made = *made;
        *left -= 1;
        if *left == 0 {
            counted.remove(&made);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_that_was_counted_excuses_one_of_its_time() {
        let mut counted = Counted::default();
        counted.add(1, 100_000, 2);
        counted.add(1, 200_000, 0);
        for (agent, at) in [(2, 99_000), (1, 103_000), (1, 37_000), (1, 199_000)] {
            assert!(!counted.excuses(agent, at, 2_000), "{agent} at {at}");
        }
        assert!(counted.excuses(1, 101_900, 2_000) && counted.excuses(1, 38_000, 2_000));
        assert!(!counted.excuses(1, 99_000, 2_000), "both are used up");
    }

    #[test]
    fn what_is_counted_without_end_neither_overflows_nor_grows() {
        let mut counted = Counted::default();
        for made in 0..10_000 {
            counted.add(1, 50_000 + made % 1_000, u64::MAX);
        }
        assert_eq!(counted.0[&1].len(), 1);
        assert!(counted.excuses(1, u64::MAX, u64::MAX) && !counted.excuses(1, u64::MAX, 0));
    }
}

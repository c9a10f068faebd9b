//! Records that sidecars could not write, by their own signed word: a full quota, a full disk. Each excuses one hop of that time
//! that has no record.

use std::collections::HashMap;

/// Gaps of one agent that are kept: each hop that misses its other end is held against all of them. Those of further ones excuse
/// nothing.
const MAX_GAPS: usize = 4_096;

/// One gap.
#[derive(Debug, Clone, Copy)]
struct Gap {
    from: u64,
    until: u64,
    /// Of what was lost, how much has excused nothing yet.
    left: u64,
}

/// The gaps of all agents.
#[derive(Debug, Default)]
pub(super) struct Lost {
    gaps: HashMap<u32, Vec<Gap>>,
    /// When the last record of an agent's logs was made, of those that were read.
    last: HashMap<u32, u64>,
}

impl Lost {
    /// Of a gap before which nothing of the agent is here, no more is known than when it ended.
    pub(super) fn add(&mut self, agent: u32, from: Option<u64>, until: u64, lost: u64) {
        let from = from.or_else(|| self.last.get(&agent).copied()).unwrap_or(until);
        let gaps = self.gaps.entry(agent).or_default();
        if gaps.len() < MAX_GAPS {
            gaps.push(Gap {
                from,
                until,
                left: lost,
            });
        }
    }

    pub(super) fn read(&mut self, agent: u32, last: u64) {
        let known = self.last.entry(agent).or_insert(last);
        *known = last.max(*known);
    }

    /// Whether the agent's sidecar says that it lost a record then; `apart` is how far the clocks may differ.
    pub(super) fn excuses(&mut self, agent: u32, at: u64, apart: u64) -> bool {
        let gaps = self.gaps.get_mut(&agent).into_iter().flatten();
        let mut of_then = gaps.filter(|gap| {
            gap.left > 0 && gap.from <= at.saturating_add(apart) && at <= gap.until.saturating_add(apart)
        });
        of_then.next().is_some_and(|gap| {
            gap.left -= 1;
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lost_record_excuses_one_hop_of_its_time() {
        let mut lost = Lost::default();
        lost.add(1, Some(1_000), 2_000, 2);
        assert!(!lost.excuses(1, 900, 50) && !lost.excuses(1, 2_100, 50) && !lost.excuses(2, 1_500, 50));
        assert!(lost.excuses(1, 960, 50) && lost.excuses(1, 2_040, 50));
        assert!(!lost.excuses(1, 1_500, 50), "both are used up");
    }

    #[test]
    fn a_gap_that_begins_a_log_reaches_back_to_the_log_before() {
        let mut lost = Lost::default();
        lost.add(1, None, 5_000, 9);
        assert!(!lost.excuses(1, 3_000, 50) && lost.excuses(1, 4_990, 50));
        lost.read(2, 1_000);
        lost.add(2, None, 5_000, 9);
        assert!(lost.excuses(2, 3_000, 50) && !lost.excuses(2, 500, 50));
    }
}

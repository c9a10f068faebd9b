//! Up to when each agent's logs are signed, and how far clocks are apart: what is missing, and what may yet come.

use std::collections::HashMap;

use super::super::LogReport;
use super::super::walk::UNSIGNED_MILLIS;

/// Added to how far the clocks of two agents were seen to differ, in milliseconds: a record is written a moment after it
/// happened.
const MARGIN_MILLIS: u64 = 2_000;
/// How far two clocks may differ, in milliseconds: what the mesh tolerates in signatures. Further apart is no excuse.
pub(in super::super) const SKEW_MILLIS: u64 = 300_000;
/// How long the other end's record may be on its way, in milliseconds: until then it is pending, and then a fault.
pub(super) const WINDOW_MILLIS: u64 = UNSIGNED_MILLIS + SKEW_MILLIS;

/// How far the clocks of two agents were seen to differ, by the times of hops that both recorded.
#[derive(Debug, Default)]
pub(super) struct Skew(HashMap<(u32, u32), u64>);

impl Skew {
    pub(super) fn saw(&mut self, pair: (u32, u32), a: u64, b: u64) {
        let most = self.0.entry(pair).or_insert(0);
        *most = a.abs_diff(b).max(*most);
    }

    /// How far they may be apart.
    pub(super) fn between(&self, caller: u32, callee: u32) -> u64 {
        let seen = self.0.get(&(caller, callee));
        seen.map_or(SKEW_MILLIS, |seen| seen.saturating_add(MARGIN_MILLIS).min(SKEW_MILLIS))
    }
}

/// One log of an agent.
#[derive(Debug, Clone, Copy)]
struct Log {
    signed_at: u64,
    /// It ended in order: nothing more comes.
    closed: bool,
}

/// The logs of all agents.
#[derive(Debug)]
pub(super) struct Reach {
    logs: HashMap<u32, Vec<Log>>,
    /// Records were dropped, up to this time, by a signed word.
    dropped: HashMap<u32, u64>,
    newest: u64,
}

/// What the other end's logs say about a hop that is not in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Other {
    /// There are none.
    NoLog,
    /// They may have it and not be signed so far yet.
    Pending,
    /// They had it, perhaps: a quota took what they had of that time.
    Dropped,
    /// They are not signed so far (but up to this time), while others are, for longer than that may take.
    Late(u64),
    /// They are signed beyond it, up to this time.
    Passed(u64),
}

impl Reach {
    pub(super) fn of(logs: &[LogReport], newest: u64, numbers: &HashMap<String, u32>) -> Self {
        let mut reach = Self {
            logs: HashMap::new(),
            dropped: HashMap::new(),
            newest,
        };
        for log in logs {
            let Some(agent) = log.agent.as_ref().and_then(|agent| numbers.get(agent)) else {
                continue;
            };
            reach.logs.entry(*agent).or_default().push(Log {
                signed_at: log.signed_at.unwrap_or(0),
                closed: log.closed,
            });
            if let Some(until) = log.dropped_until {
                let known = reach.dropped.entry(*agent).or_insert(until);
                *known = until.max(*known);
            }
        }
        reach
    }

    pub(super) const fn newest(&self) -> u64 {
        self.newest
    }

    /// What happened then should have been signed everywhere by now.
    pub(super) const fn is_late(&self, at: u64) -> bool {
        at.saturating_add(WINDOW_MILLIS) < self.newest
    }

    pub(super) fn other(&self, agent: u32, at: u64, apart: u64) -> Other {
        let Some(logs) = self.logs.get(&agent) else {
            return Other::NoLog;
        };
        let signed = logs.iter().map(|log| log.signed_at).max().unwrap_or(0);
        // Of several replicas, each that has not ended may be the one that was called.
        let passed = logs
            .iter()
            .all(|log| log.closed || log.signed_at >= at.saturating_add(apart));
        let dropped = self.dropped.get(&agent);
        if dropped.is_some_and(|until| at <= until.saturating_add(apart)) {
            Other::Dropped
        } else if passed && (signed >= at.saturating_add(apart) || self.is_late(at)) {
            Other::Passed(signed)
        } else if self.is_late(at) {
            Other::Late(signed)
        } else {
            Other::Pending
        }
    }
}

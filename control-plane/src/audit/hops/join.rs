//! Holding both ends of a hop against each other.
//!
//! A hop is heard in four records: at each end a decision, which names the other party, and an end, which says what
//! passed. They come from two logs at their own pace, so what has come is kept until the rest does: in memory, with bounds
//! in all and for each agent, for [`WINDOW_MILLIS`]. What is not matched by then is counted, and no more than that: the
//! verifier, which has all records, tells what is missing from what is late.

use std::collections::{BTreeSet, HashMap};

use aip_api::id::{DecisionId, HopId};
use aip_api::{AgentName, SpiffeId};
use aip_audit::hop::{Difference, Ending, Said, Told, compare};
use aip_audit::record::{Decision, Direction, End, Event, Record};

use super::{HopEnd, Matched};
use crate::audit::ledger::Mismatch;

/// How long a record waits for those that belong to it, by the clock of this process: sidecars send within seconds; one
/// that was cut off sends later, and its hops are then left to the verifier.
pub const WINDOW_MILLIS: u64 = 10 * 60 * 1_000;
/// Decisions whose end has not come: streams that are open; some 150 bytes each.
const MAX_OPEN: usize = 262_144;
/// Ends whose other end has not come: some 600 bytes each, whatever their records say.
const MAX_ENDS: usize = 65_536;
/// How much of both one agent may take, so that one that records what never happened does not keep the others' out.
const SHARE: usize = 4;

/// A hop between two agents.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    hop: HopId,
    caller: AgentName,
    callee: AgentName,
}

/// A decision whose end has not come.
#[derive(Debug)]
struct Open {
    since: u64,
    key: Key,
    said: Said,
    denied: bool,
}

#[derive(Debug)]
struct Waiting {
    since: u64,
    at: u64,
    agent: AgentName,
    told: Told,
    end: HopEnd,
    denied: bool,
    replayed: bool,
}

/// What a record led to.
#[derive(Debug, PartialEq)]
pub enum Heard {
    /// Nothing yet.
    Nothing,
    /// Both ends are there.
    Both(Box<Matched>),
    /// Both ends are there, and were before this process began.
    Before,
}

/// What waits for the rest of its hop.
#[derive(Debug, Default)]
pub struct Join {
    open: HashMap<(AgentName, DecisionId), Open>,
    ends: HashMap<Key, Waiting>,
    // Oldest first: what is given up.
    open_age: BTreeSet<(u64, AgentName, DecisionId)>,
    ends_age: BTreeSet<(u64, Key)>,
    of: HashMap<AgentName, (usize, usize)>,
}

fn agent(id: &str, like: &str) -> Option<AgentName> {
    let id: SpiffeId = id.parse().ok()?;
    // Only what is of this mesh has another end that reports here.
    (id.trust_domain.as_str() == like).then_some(id.agent)
}

impl Join {
    /// Hears a record of `agent`'s sidecar, at `now` (milliseconds). `replayed`: it was heard before, by an earlier process.
    pub fn hear(&mut self, trust_domain: &str, of: &AgentName, record: &Record, now: u64, replayed: bool) -> Heard {
        self.forget(now);
        match &record.event {
            Event::Decision(decision) => {
                self.decided(trust_domain, of, decision, now);
                Heard::Nothing
            }
            Event::End(end) => self.ended(of, end, record.at, now, replayed),
            Event::Strangers(_) | Event::Gap(_) | Event::Dropped(_) => Heard::Nothing,
        }
    }

    fn decided(&mut self, trust_domain: &str, of: &AgentName, decision: &Decision, now: u64) {
        // A refused request never became a hop; a replayed one carries the id of somebody else's. What the callee's side
        // refused by policy did, and its sidecar had looked for replays before.
        let passed = decision.reason.is_empty() || decision.observed;
        let denied = !passed && decision.direction == Direction::Inbound && decision.reason == POLICY_DENIED;
        let Some(hop) = decision.hop.as_ref().filter(|_| passed || denied) else {
            return;
        };
        let (caller, callee) = match decision.direction {
            Direction::Outbound => (Some(of.clone()), agent(&decision.destination.id, trust_domain)),
            Direction::Inbound => (agent(&decision.source.id, trust_domain), Some(of.clone())),
        };
        let (Some(caller), Some(callee)) = (caller, callee) else {
            return;
        };
        let count = self.of.entry(of.clone()).or_default();
        if self.open.len() >= MAX_OPEN || count.0 >= MAX_OPEN / SHARE {
            metrics::counter!("aip_audit_hops_unmatched_total", "reason" => "full").increment(1);
            return;
        }
        count.0 += 1;
        let id = decision.id;
        let key = Key {
            hop: *hop,
            caller,
            callee,
        };
        self.open_age.insert((now, of.clone(), id));
        let open = Open {
            since: now,
            key,
            said: Said::of(decision),
            denied,
        };
        if let Some(before) = self.open.insert((of.clone(), id), open) {
            self.open_age.remove(&(before.since, of.clone(), id));
            self.less(of, (1, 0));
        }
    }

    fn ended(&mut self, of: &AgentName, end: &End, at: u64, now: u64, replayed: bool) -> Heard {
        let Some(Open {
            since,
            key,
            said,
            denied,
        }) = self.open.remove(&(of.clone(), end.id))
        else {
            return Heard::Nothing;
        };
        self.open_age.remove(&(since, of.clone(), end.id));
        self.less(of, (1, 0));
        if end.hop != Some(key.hop) {
            return Heard::Nothing;
        }
        let waiting = Waiting {
            since: now,
            at,
            agent: of.clone(),
            told: said.ended(end),
            end: HopEnd::of(end),
            denied,
            replayed,
        };
        match self.ends.remove(&key) {
            Some(first) if first.told.said.direction != said.direction => {
                self.ends_age.remove(&(first.since, key.clone()));
                self.less(&first.agent, (0, 1));
                if replayed && first.replayed {
                    return Heard::Before;
                }
                Heard::Both(Box::new(matched(key, first, waiting)))
            }
            // The same end once more: an id that was used again. The first one counts.
            Some(first) => {
                self.ends.insert(key, first);
                Heard::Nothing
            }
            None => {
                self.wait(key, waiting);
                Heard::Nothing
            }
        }
    }

    fn wait(&mut self, key: Key, waiting: Waiting) {
        let count = self.of.entry(waiting.agent.clone()).or_default();
        if self.ends.len() >= MAX_ENDS || count.1 >= MAX_ENDS / SHARE {
            metrics::counter!("aip_audit_hops_unmatched_total", "reason" => "full").increment(1);
            return;
        }
        count.1 += 1;
        self.ends_age.insert((waiting.since, key.clone()));
        self.ends.insert(key, waiting);
    }

    fn less(&mut self, of: &AgentName, (open, ends): (usize, usize)) {
        if let Some(count) = self.of.get_mut(of) {
            *count = (count.0.saturating_sub(open), count.1.saturating_sub(ends));
            if *count == (0, 0) {
                self.of.remove(of);
            }
        }
    }

    /// Gives up what has waited too long.
    fn forget(&mut self, now: u64) {
        let old = now.saturating_sub(WINDOW_MILLIS);
        while self.ends_age.first().is_some_and(|(since, _)| *since < old) {
            let Some((_, key)) = self.ends_age.pop_first() else {
                break;
            };
            if let Some(waiting) = self.ends.remove(&key) {
                self.less(&waiting.agent, (0, 1));
                metrics::counter!("aip_audit_hops_unmatched_total", "reason" => "late").increment(1);
            }
        }
        // A stream may be open for hours: its decision waits as long as there is room.
        while self.open.len() > MAX_OPEN / 2 && self.open_age.first().is_some_and(|(since, ..)| *since < old) {
            let Some((_, of, id)) = self.open_age.pop_first() else {
                break;
            };
            if self.open.remove(&(of.clone(), id)).is_some() {
                self.less(&of, (1, 0));
            }
        }
    }

    /// Ends that wait.
    pub fn waiting(&self) -> usize {
        self.ends.len()
    }
}

fn matched(key: Key, first: Waiting, second: Waiting) -> Matched {
    let (denied, at) = (first.denied || second.denied, first.at.max(second.at));
    let (caller, callee) = match first.told.said.direction {
        Direction::Outbound => (first, second),
        Direction::Inbound => (second, first),
    };
    let (from, to) = (caller.told, callee.told);
    let contradicts: Vec<_> = compare(&from, &to).into_iter().map(Difference::as_str).collect();
    let whole = from.ending == Ending::Complete && to.ending == Ending::Complete;
    Matched {
        hop: key.hop,
        caller: key.caller,
        callee: key.callee,
        agreed: whole && contradicts.is_empty(),
        denied,
        contradicts,
        caller_end: caller.end,
        callee_end: callee.end,
        at,
    }
}

/// How an end says that nothing went wrong.
pub const COMPLETE: &str = "complete";
/// The reason of what policy refused.
const POLICY_DENIED: &str = "policy_denied";

impl Matched {
    /// What is kept of a hop whose ends contradict each other; none where they do not.
    pub fn mismatch(&self) -> Option<Mismatch> {
        (!self.contradicts.is_empty()).then(|| Mismatch {
            at: self.at,
            hop: self.hop.to_string(),
            caller: self.caller.clone(),
            callee: self.callee.clone(),
            differs: self.contradicts.iter().map(|d| (*d).to_owned()).collect(),
            caller_decision: self.caller_end.id.to_string(),
            callee_decision: self.callee_end.id.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_of_a_size_that_no_sidecar_chooses() {
        /// Nothing on the heap.
        const fn fixed<T: Copy>() -> usize {
            size_of::<T>()
        }
        let names = size_of::<AgentName>();
        let waiting = fixed::<[u64; 2]>() + names + fixed::<Told>() + fixed::<HopEnd>() + fixed::<[bool; 2]>();
        let open = fixed::<u64>() + fixed::<HopId>() + 2 * names + fixed::<Said>() + fixed::<bool>();
        // What is more than its fields is there so that they are aligned.
        for (is, fields) in [(size_of::<Waiting>(), waiting), (size_of::<Open>(), open)] {
            assert!(
                is < fields + 2 * size_of::<u64>(),
                "{is} bytes, of which {fields} are known"
            );
        }
        assert!(size_of::<Waiting>() <= 512 && size_of::<Open>() <= 256);
    }
}

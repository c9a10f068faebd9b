//! Whether a history, and what is found afterwards, keeps the promises. It knows nothing of how the run came about.
//!
//! | promise | broken by |
//! |---|---|
//! | stopped | a call that a sidecar let through after it was said to have enforced an order that stops it |
//! | in force | an order that was taken, was not lifted, and is not listed |
//! | revoked | a call with an SVID that was revoked, at a sidecar that was said to hold the revocation |
//! | at least | a call that a sidecar decided by an older world than it was said to hold |
//! | recorded | a call that was answered, and is not in both logs with its end |
//! | verifiable | a log that does not verify, or has less than the control plane had a checkpoint of |
//! | converged | a sidecar that, healed, does not hold what the control plane has, or does not serve |

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::history::{At, Call, CallId, Fact, History, Member, Outcome, Scope};

/// A record of a call at one of its ends.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) at: Member,
    pub(crate) call: CallId,
    pub(crate) allowed: bool,
    /// Serials of both ends, as far as that end knew them.
    pub(crate) serials: [String; 2],
    /// The world that it was decided by.
    pub(crate) revision: u64,
    pub(crate) completed: bool,
}

/// What a sidecar has once all is healed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) ready: bool,
    /// It is among those that acknowledged the last revision and the last kill set.
    pub(crate) acknowledged: bool,
    pub(crate) policy: Option<u64>,
    /// Term and epoch that it enforces, and how many orders.
    pub(crate) kill: (u64, u64),
    pub(crate) orders: usize,
    /// Whether its calls get through.
    pub(crate) reaches: bool,
}

/// What is found afterwards.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// Calls that reached an agent.
    pub(crate) heard: HashSet<CallId>,
    pub(crate) recorded: Vec<Recorded>,
    /// Serial → whose, and of which generation.
    pub(crate) svids: HashMap<String, (Member, u64)>,
    /// Log → records that a checkpoint covers, where it verifies.
    pub(crate) logs: BTreeMap<String, u64>,
    /// What the verifier found.
    pub(crate) faults: Vec<String>,
    /// What every sidecar should have, and what each has.
    pub(crate) expected: Standing,
    pub(crate) standing: Vec<Standing>,
}

/// A promise that was not kept, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) promise: &'static str,
    pub(crate) how: String,
}

pub(crate) const STOPPED: &str = "stopped";
pub(crate) const IN_FORCE: &str = "in force";
pub(crate) const REVOKED: &str = "revoked";
pub(crate) const AT_LEAST: &str = "at least";
pub(crate) const RECORDED: &str = "recorded";
pub(crate) const VERIFIABLE: &str = "verifiable";
pub(crate) const CONVERGED: &str = "converged";

/// What was broken.
pub(crate) fn judge(history: &History, evidence: &Evidence) -> Vec<Broken> {
    let judged = Judged::of(history, evidence);
    [
        judged.stopped(),
        judged.in_force(),
        judged.revoked(),
        judged.at_least(),
        judged.recorded(),
        judged.verifiable(),
        judged.converged(),
    ]
    .concat()
}

/// An order's life.
struct Order {
    scope: Scope,
    taken: At,
    lifting: Option<At>,
    enforced: Vec<(At, Member)>,
}

struct Judged<'a> {
    history: &'a History,
    evidence: &'a Evidence,
    orders: BTreeMap<&'a str, Order>,
    /// Revision → who holds it, since when at the latest.
    holds: BTreeMap<u64, Vec<(At, Member)>>,
    records: HashMap<CallId, Vec<&'a Recorded>>,
}

impl<'a> Judged<'a> {
    fn of(history: &'a History, evidence: &'a Evidence) -> Self {
        let mut orders: BTreeMap<&str, Order> = BTreeMap::new();
        let mut holds: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        for (at, fact) in &history.facts {
            match fact {
                Fact::Ordered { order, scope } => {
                    let life = Order {
                        scope: *scope,
                        taken: *at,
                        lifting: None,
                        enforced: Vec::new(),
                    };
                    orders.insert(order, life);
                }
                Fact::Enforced { order, by } => {
                    if let Some(order) = orders.get_mut(order.as_str()) {
                        order.enforced.push((*at, *by));
                    }
                }
                Fact::Lifting { order } => {
                    if let Some(order) = orders.get_mut(order.as_str()) {
                        order.lifting = Some(*at);
                    }
                }
                Fact::Holds { revision, by } => holds.entry(*revision).or_default().push((*at, *by)),
                _ => {}
            }
        }
        let mut records: HashMap<CallId, Vec<_>> = HashMap::new();
        for record in &evidence.recorded {
            records.entry(record.call).or_default().push(record);
        }
        Self {
            history,
            evidence,
            orders,
            holds,
            records,
        }
    }

    /// Whether the call came through, as somebody saw it.
    fn came_through(&self, call: &Call) -> bool {
        call.outcome == Outcome::Answered || self.evidence.heard.contains(&call.id)
    }

    /// A call without an answer may be decided later, so only what never changed again can be held against it.
    fn over_before(call: &Call, change: Option<At>) -> bool {
        change.is_none_or(|change| call.outcome != Outcome::Broken && call.ended < change)
    }

    fn stopped(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (id, order) in &self.orders {
            let stops = |call: &&Call| order.scope.covers(call.from, call.to) && Self::over_before(call, order.lifting);
            let through = self.history.calls.iter().filter(|call| self.came_through(call));
            for call in through.filter(stops) {
                let before = |(at, by): &&(At, Member)| *at < call.asked && [call.from, call.to].contains(by);
                if let Some((at, by)) = order.enforced.iter().find(before) {
                    let how = format!("{call:?}, and {by} had enforced {id} ({:?}) by {at:?}", order.scope);
                    broken.push(Broken { promise: STOPPED, how });
                }
            }
        }
        broken
    }

    fn in_force(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (at, fact) in &self.history.facts {
            let Fact::Listed { orders, asked } = fact else { continue };
            let stands = |order: &Order| order.taken < *asked && order.lifting.is_none_or(|lifting| lifting > *at);
            let standing = self.orders.iter().filter(|(_, order)| stands(order));
            for (id, _) in standing.filter(|(id, _)| !orders.iter().any(|listed| listed == *id)) {
                let how = format!("{id} is not among {orders:?}, at {at:?}");
                broken.push(Broken { promise: IN_FORCE, how });
            }
        }
        broken
    }

    fn revoked(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (at, fact) in &self.history.facts {
            let Fact::Revoked {
                member,
                generation,
                revision,
            } = fact
            else {
                continue;
            };
            let back = self.history.facts.iter().find_map(|(back, fact)| {
                let is_back = *fact == Fact::Rejoining { member: *member };
                (is_back && back > at).then_some(*back)
            });
            let of_it = |call: &&Call| [call.from, call.to].contains(member);
            for call in self.history.calls.iter().filter(of_it) {
                let other = if call.from == *member { call.to } else { call.from };
                if !self.held(*revision, other, call.asked) {
                    continue;
                }
                let away = Self::over_before(call, back) && self.came_through(call);
                if away || self.shown(call, other, *member, *generation) {
                    let how = format!("{call:?} with an SVID of {member} up to {generation}, revoked at {revision}");
                    broken.push(Broken { promise: REVOKED, how });
                }
            }
        }
        broken
    }

    /// Whether this sidecar was said, before `asked`, to hold this revision.
    fn held(&self, revision: u64, by: Member, asked: At) -> bool {
        let who = self.holds.get(&revision).into_iter().flatten();
        who.into_iter().any(|(at, holder)| *holder == by && *at < asked)
    }

    /// Whether the record at one end has an SVID of the member that is too old.
    fn shown(&self, call: &Call, at: Member, member: Member, generation: u64) -> bool {
        let records = self.records.get(&call.id).into_iter().flatten();
        let is_old = |serial: &String| {
            let svid = self.evidence.svids.get(serial);
            svid.is_some_and(|(whose, of)| *whose == member && *of <= generation)
        };
        let mut here = records.filter(|record| record.at == at && record.allowed);
        here.any(|record| record.serials.iter().any(is_old))
    }

    fn at_least(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        let asked: HashMap<CallId, At> = self.history.calls.iter().map(|call| (call.id, call.asked)).collect();
        for record in &self.evidence.recorded {
            let Some(asked) = asked.get(&record.call) else { continue };
            let newer = self
                .holds
                .keys()
                .rev()
                .take_while(|revision| **revision > record.revision);
            for revision in newer.filter(|revision| self.held(**revision, record.at, *asked)) {
                let how = format!("{record:?}, asked at {asked:?}, and {} held {revision}", record.at);
                broken.push(Broken { promise: AT_LEAST, how });
            }
        }
        broken
    }

    fn recorded(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        for call in self
            .history
            .calls
            .iter()
            .filter(|call| call.outcome == Outcome::Answered)
        {
            for end in [call.from, call.to] {
                let mut all = self.records.get(&call.id).into_iter().flatten();
                if !all.any(|record| record.at == end && record.allowed && record.completed) {
                    let how = format!("{call:?} at {end}: {:?}", self.records.get(&call.id));
                    broken.push(Broken { promise: RECORDED, how });
                }
            }
        }
        broken
    }

    fn verifiable(&self) -> Vec<Broken> {
        let found = self.evidence.faults.iter().cloned();
        let signed = self.history.facts.iter().filter_map(|(_, fact)| match fact {
            Fact::Signed { log, records } => Some((log, records)),
            _ => None,
        });
        let less = signed.filter_map(|(log, records)| {
            let has = self.evidence.logs.get(log);
            let is_less = has.is_none_or(|has| has < records);
            is_less.then(|| format!("{log} had {records} signed records, and has {has:?}"))
        });
        let all = found.chain(less);
        all.map(|how| Broken {
            promise: VERIFIABLE,
            how,
        })
        .collect()
    }

    fn converged(&self) -> Vec<Broken> {
        let expected = &self.evidence.expected;
        let all = self.evidence.standing.iter().enumerate();
        let others = all.filter(|(_, standing)| *standing != expected);
        let how = |(member, standing)| format!("{member} has {standing:?}, and not {expected:?}");
        let none = self
            .evidence
            .standing
            .is_empty()
            .then(|| "nobody was looked at".to_owned());
        let all = others.map(how).chain(none);
        all.map(|how| Broken {
            promise: CONVERGED,
            how,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests;

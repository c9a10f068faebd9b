//! Both ends of each hop: the caller's sidecar and the callee's.
//!
//! Logs are read one after the other, so what one end said waits until the other end's log was read: some 450 bytes a hop
//! without anything on the heap beside, whatever a caller wrote. A hop that was held against its other end leaves 48 bytes,
//! by which a second use of its id is found.

mod calls;
mod lost;
mod reach;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use aip_api::id::{DecisionId, HopId};
use serde::{Deserialize, Serialize};

use super::LogReport;
use super::fault::{At, Found, Kind, moment, named};
use super::walk::UNSIGNED_MILLIS;
use crate::hop::{self, Difference, Ending, Said, Told, Verdict};
use crate::log::segment_path;
use crate::record::{Decision, Direction, End};
use calls::{Call, Calls, Key};
use lost::Lost;
pub(super) use reach::SKEW_MILLIS;
use reach::{Other, Reach, Skew};

/// Of a replayed hop, which the callee's sidecar refuses, this is the reason.
const REPLAYED: &str = "hop_replayed";
/// The status of a refusal that sidecars only count: too many requests.
const TOO_MANY: u16 = 429;
/// Statuses that a connection's own code gives before the sidecar hears of a request: what is no HTTP, and headers that
/// are too large.
const BEFORE: [u16; 2] = [400, 431];

/// How the hops came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hops {
    /// Hops of which both ends are here.
    pub both: u64,
    /// Of them, those where both say the same.
    pub agreed: u64,
    /// Of those that agree, those where a body passed that one end did not see to its end: nothing vouches for it.
    pub unproven: u64,
    /// Hops without an end at one side: its sidecar crashed, or says itself that records are lost.
    pub cut: u64,
    /// Hops whose other end may not be recorded and signed yet.
    pub pending: u64,
    /// Hops whose other end's log is not here.
    pub no_log: u64,
    /// Hops whose other end a quota took.
    pub dropped: u64,
    /// Hops whose other end could not be written, by the signed word of its sidecar.
    pub lost: u64,
    /// Hops that ended at the caller's sidecar, or were refused before they were one: nobody answered, or the callee's
    /// sidecar refused and recorded or counted that.
    pub one_end: u64,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// What [`Pairing::log`] gave.
    pub(super) log: u32,
    pub(super) segment: u64,
    pub(super) line: u64,
    pub(super) seq: u64,
}

/// What one end said.
#[derive(Debug, Clone, Copy)]
struct Side {
    id: DecisionId,
    /// When its last record was made.
    at: u64,
    agent: u32,
    peer: u32,
    place: Place,
    said: Said,
    end: Option<Told>,
    /// The other end's decision, where it was told of one.
    other: Option<DecisionId>,
    /// The verdict that it was told of, where it was.
    told: Option<Verdict>,
}

/// A hop at one or both ends.
#[derive(Debug, Default)]
struct Ends {
    caller: Option<Box<Side>>,
    callee: Option<Box<Side>>,
}

/// A refusal of a callee's sidecar that belongs to no hop of its log.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    caller: u32,
    status: Option<u16>,
}

/// The hops of all logs.
#[derive(Debug, Default)]
pub(super) struct Pairing {
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    logs: Vec<(String, PathBuf)>,
    hops: HashMap<Key, Ends>,
    /// What callers' logs say whom they called.
    calls: Calls,
    /// Whose log it is that is being read.
    own: Option<u32>,
    /// Hops under way in the log that is being read.
    under_way: HashMap<DecisionId, (Key, Direction)>,
    /// By the callee's agent: an id is of one log.
    refusals: HashMap<(u32, DecisionId), Refusal>,
    /// Of callees: refusals that they only counted.
    counted: HashMap<u32, u64>,
    gaps: Lost,
    skew: Skew,
    out: Hops,
}

impl Pairing {
    /// A log that is read from now on.
    pub(super) fn log(&mut self, log: &str, dir: &Path) -> u32 {
        self.under_way.clear();
        self.own = None;
        self.logs.push((log.to_owned(), dir.to_owned()));
        self.logs.len() as u32 - 1
    }

    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// Refusals that a sidecar counted without a record each.
    pub(super) fn counted(&mut self, agent: &str, count: u64) {
        let agent = self.number(agent);
        let counted = self.counted.entry(agent).or_default();
        *counted = counted.saturating_add(count);
    }

    /// Records that a sidecar could not write, after what it wrote at `from` and before `until`; where it wrote nothing before in
    /// this log, after what it wrote last in an earlier one.
    pub(super) fn gap(&mut self, agent: &str, from: Option<u64>, until: u64, lost: u64) {
        let agent = self.number(agent);
        self.gaps.add(agent, from, until, lost);
    }

    /// A log of this agent was read; its last record was made then.
    pub(super) fn read(&mut self, agent: &str, last: u64) {
        let agent = self.number(agent);
        self.gaps.read(agent, last);
    }

    pub(super) fn decision(&mut self, at: u64, decision: &Decision, place: Place, found: &mut Found) {
        let (own, peer) = match decision.direction {
            Direction::Outbound => (&decision.source.id, &decision.destination.id),
            Direction::Inbound => (&decision.destination.id, &decision.source.id),
        };
        let (agent, peer) = (self.number(own), self.number(peer));
        self.own = Some(agent);
        let Some(hop) = decision.hop.filter(|_| decision.reason != REPLAYED) else {
            if decision.direction == Direction::Inbound {
                let refusal = Refusal {
                    caller: peer,
                    status: None,
                };
                self.refusals.insert((agent, decision.id), refusal);
            }
            return;
        };
        let side = Side {
            id: decision.id,
            at,
            peer,
            agent,
            place,
            said: Said::of(decision),
            end: None,
            other: None,
            told: None,
        };
        let (caller, callee) = match decision.direction {
            Direction::Outbound => (agent, peer),
            Direction::Inbound => (peer, agent),
        };
        let key = Key { hop, caller, callee };
        if let Some(before) = self.used(key, &side) {
            return self.add(found, Kind::HopReused, &side, before);
        }
        let ends = self.hops.entry(key).or_default();
        let end = match decision.direction {
            Direction::Outbound => &mut ends.caller,
            Direction::Inbound => &mut ends.callee,
        };
        *end = Some(Box::new(side));
        self.under_way.insert(decision.id, (key, decision.direction));
    }

    /// How a hop was used before at the end that records it here, if it was; a caller's call is noted.
    fn used(&mut self, key: Key, side: &Side) -> Option<String> {
        let (hop, place, is_call) = (key.hop, side.place, side.said.direction == Direction::Outbound);
        let first = is_call.then(|| self.calls.add(key, place.log, place.seq)).flatten();
        if let Some(first) = first {
            let (log, seq) = (&self.logs[first.log as usize].0, first.seq);
            return Some(format!("hop {hop} was decided in record {seq} of {log} before"));
        }
        let source = || named(&self.names[key.caller as usize]);
        if self.calls.is_done(key) {
            return Some(format!(
                "hop {hop} of {} was decided and ended at both ends before",
                source()
            ));
        }
        let ends = self.hops.get(&key)?;
        let end = if is_call { &ends.caller } else { &ends.callee };
        let (id, seq) = end.as_ref().map(|first| (first.id, first.place.seq))?;
        Some(format!(
            "hop {hop} of {} was decided as {id} in record {seq} before",
            source()
        ))
    }

    pub(super) fn end(&mut self, at: u64, end: &End, found: &mut Found) {
        let Some((key, direction)) = self.under_way.remove(&end.id) else {
            let refusal = self.own.and_then(|own| self.refusals.get_mut(&(own, end.id)));
            if let Some(refusal) = refusal {
                refusal.status = Some(end.status);
            }
            return;
        };
        let Some(ends) = self.hops.get_mut(&key) else { return };
        let side = match direction {
            Direction::Outbound => ends.caller.as_deref_mut(),
            Direction::Inbound => ends.callee.as_deref_mut(),
        };
        let mut contradicts = None;
        if let Some(side) = side {
            side.at = at;
            side.end = Some(side.said.ended(end));
            let (other, verdict) = end.told();
            side.other = other;
            side.told = Some(verdict).filter(|v| !v.is_empty()).map(Verdict::of);
            contradicts = side.said.contradicts(end).then_some(*side);
        }
        if let Some(side) = contradicts {
            let detail = format!(
                "hop {}: it was refused; its end has status {}, {} bytes that went on and {} that came from the agent",
                key.hop, end.status, end.request_out.bytes, end.response_in.bytes
            );
            self.add(found, Kind::ContradictsItself, &side, detail);
        }
        self.settle(key, found);
    }

    /// Holds the two ends against each other, where both are there.
    fn settle(&mut self, key: Key, found: &mut Found) {
        let complete = self.hops.get(&key).and_then(|ends| {
            let (caller, callee) = (ends.caller.as_deref()?, ends.callee.as_deref()?);
            Some(((*caller, caller.end?), (*callee, callee.end?)))
        });
        if let Some((caller, callee)) = complete {
            self.hops.remove(&key);
            self.calls.done(key);
            self.skew
                .saw((caller.0.agent, callee.0.agent), caller.0.at, callee.0.at);
            self.both(key.hop, caller, callee, found);
        }
    }

    fn both(&mut self, hop: HopId, caller: (Side, Told), callee: (Side, Told), found: &mut Found) {
        let before = found.count();
        self.out.both += 1;
        let ((caller, from), (callee, to)) = (caller, callee);
        let theirs = format!(
            "the callee's is record {} (line {}) of {}",
            callee.place.seq, callee.place.line, self.logs[callee.place.log as usize].0
        );
        if caller.said.refused {
            let detail = format!("hop {hop}: decided as {}; {theirs}", callee.id);
            self.add(found, Kind::WentOnAfterRefusal, &caller, detail);
        }
        if let Some(other) = caller.other.filter(|other| *other != callee.id) {
            let detail = format!(
                "hop {hop}: the caller heard of {other}; the callee recorded {}",
                callee.id
            );
            self.add(found, Kind::OtherDecision, &caller, detail);
        }
        if let Some(told) = caller.told.filter(|told| *told != callee.said.verdict) {
            let (told, recorded) = (told.means(), callee.said.verdict.means());
            let detail = format!("hop {hop}: the caller heard {told}; the callee recorded {recorded}; {theirs}");
            self.add(found, Kind::OtherDecision, &caller, detail);
        }
        for difference in hop::compare(&from, &to) {
            let detail = format!(
                "hop {hop}: {} ({}); status {} and {}, request {} and {} bytes, response {} and {} bytes; {theirs}",
                difference.means(),
                difference.as_str(),
                from.status,
                to.status,
                from.request.bytes,
                to.request.bytes,
                to.response.bytes,
                from.response.bytes,
            );
            self.add(found, Kind::EndsDiffer, &caller, detail);
        }
        if found.count() == before {
            self.out.agreed += 1;
            self.out.unproven += u64::from(hop::unproven(&from, &to));
        }
    }

    /// Says what became of the hops of which not everything was there. `newest`: when the last thing happened that
    /// somebody signed.
    pub(super) fn close(mut self, logs: &[LogReport], newest: u64, found: &mut Found) -> Hops {
        let mut hops: Vec<_> = std::mem::take(&mut self.hops).into_iter().collect();
        // Faults come in the order of hops, which is that of time.
        hops.sort_unstable_by_key(|(key, _)| *key);
        let reach = Reach::of(logs, newest, &self.numbers);
        for (key, ends) in hops {
            let hop = key.hop;
            match (ends.caller, ends.callee) {
                (Some(caller), Some(callee)) => self.half(hop, &caller, &callee, &reach, logs, found),
                (Some(caller), None) => self.only_caller(hop, &caller, &reach, found),
                (None, Some(callee)) => match self.calls.elsewhere(key) {
                    Some(call) => self.elsewhere(hop, &callee, call, found),
                    None => self.alone(hop, &callee, Kind::MissingAtCaller, &reach, found),
                },
                (None, None) => {}
            }
        }
        self.out
    }

    /// A callee recorded a hop that its caller's log says was a call of another agent.
    fn elsewhere(&self, hop: HopId, callee: &Side, call: Call, found: &mut Found) {
        let [caller, other] = [callee.peer, call.callee].map(|agent| named(&self.names[agent as usize]));
        let detail = format!(
            "hop {hop}: record {} of {} says that {caller} called {other} with it",
            call.seq, self.logs[call.log as usize].0
        );
        self.add(found, Kind::OtherCallee, callee, detail);
    }

    /// Both ends decided, and not both ended.
    fn half(&mut self, hop: HopId, caller: &Side, callee: &Side, reach: &Reach, logs: &[LogReport], found: &mut Found) {
        let (without, with) = match (caller.end, callee.end) {
            (None, Some(_)) => (caller, Some(callee)),
            (Some(_), None) => (callee, Some(caller)),
            _ => (callee, None),
        };
        if caller.said.refused {
            let detail = format!("hop {hop}: decided at the callee as {}", callee.id);
            self.add(found, Kind::WentOnAfterRefusal, caller, detail);
        }
        let ended = with.filter(|with| with.said.direction == Direction::Outbound);
        let whole = ended.is_some_and(|with| with.end.is_some_and(|end| end.is_whole()));
        // Before the caller's sidecar sees the last byte of an answer, the callee's has written down its end; of one that was
        // cut off, it hears soon.
        let soon = if whole { 0 } else { UNSIGNED_MILLIS };
        let apart = self.skew.between(caller.agent, callee.agent);
        let log = &logs[without.place.log as usize];
        let over = without.place.seq < log.recovered;
        let signed = log.signed_at.unwrap_or(0);
        let missed = |with: &&Side| match over {
            true => whole,
            false => with.at.saturating_add(apart).saturating_add(soon) <= signed,
        };
        if log.closed {
            // What a log that was closed lacks is said once, for the log.
            self.out.cut += 1;
        } else if let Some(with) = ended.filter(missed) {
            let detail = format!("hop {hop}: it ended at the caller's sidecar, by its record {}", with.id);
            self.add(found, Kind::EndMissing, without, detail);
        } else if over {
            self.out.cut += 1;
        } else if whole && with.is_some_and(|with| reach.is_late(with.at)) {
            let detail = format!(
                "hop {hop}: its end is not in a log that is signed up to {}",
                moment(signed)
            );
            self.add(found, Kind::Late, without, detail);
        } else {
            self.out.pending += 1;
        }
    }

    /// The callee's sidecar has no record of the hop: it refused it before it was one, or nobody answered.
    fn only_caller(&mut self, hop: HopId, caller: &Side, reach: &Reach, found: &mut Found) {
        let Some(end) = caller.end.filter(|end| answered(caller, end)) else {
            self.out.one_end += 1;
            return;
        };
        let refusal = caller
            .other
            .and_then(|id| self.refusals.get(&(caller.peer, id)))
            .copied();
        if let Some(refusal) = refusal.filter(|refusal| refusal.caller == caller.agent) {
            let passed_on = end.ending != Ending::Cut && end.status != 0;
            match refusal.status.filter(|status| passed_on && *status != end.status) {
                Some(status) => {
                    let means = Difference::Status.means();
                    let detail = format!("hop {hop}: {means} (status); status {} and {status}", end.status);
                    self.add(found, Kind::EndsDiffer, caller, detail);
                }
                None => self.out.one_end += 1,
            }
            return;
        }
        self.alone(hop, caller, Kind::MissingAtCallee, reach, found);
    }

    fn alone(&mut self, hop: HopId, only: &Side, kind: Kind, reach: &Reach, found: &mut Found) {
        let pair = match kind {
            Kind::MissingAtCallee => (only.agent, only.peer),
            _ => (only.peer, only.agent),
        };
        let apart = self.skew.between(pair.0, pair.1);
        let peer = named(&self.names[only.peer as usize]);
        match reach.other(only.peer, only.at, apart) {
            Other::NoLog => self.out.no_log += 1,
            Other::Pending => self.out.pending += 1,
            Other::Dropped => self.out.dropped += 1,
            Other::Late(signed) => {
                let detail = format!(
                    "hop {hop}: the logs of {peer} are signed up to {}, and others' up to {}",
                    moment(signed),
                    moment(reach.newest())
                );
                self.add(found, Kind::Late, only, detail);
            }
            Other::Passed(signed) => {
                if kind == Kind::MissingAtCallee && self.was_counted(only) {
                    self.out.one_end += 1;
                    return;
                }
                if self.gaps.excuses(only.peer, only.at, apart) {
                    self.out.lost += 1;
                    return;
                }
                let signed = moment(signed);
                let detail =
                    format!("hop {hop}: no record of it in the logs of {peer}, which are signed up to {signed}");
                self.add(found, kind, only, detail);
            }
        }
    }

    /// The callee's sidecar refused so many that it only counted them, by its own signed word: each count excuses one.
    fn was_counted(&mut self, caller: &Side) -> bool {
        let refused = caller
            .end
            .is_some_and(|end| end.status == TOO_MANY || end.response.bytes == 0);
        let left = self.counted.get_mut(&caller.peer).filter(|left| refused && **left > 0);
        left.is_some_and(|left| {
            *left -= 1;
            true
        })
    }

    fn add(&self, found: &mut Found, kind: Kind, side: &Side, detail: String) {
        let (id, (log, dir)) = (side.id.to_string(), &self.logs[side.place.log as usize]);
        let path = segment_path(dir, side.place.segment);
        let at = At::file(log, &path)
            .line(side.place.line)
            .seq(side.place.seq)
            .decision(Some(&id));
        found.add(kind, at, detail);
    }
}

/// The callee's sidecar answered, by what the caller's recorded: it named its decision, or something came that only it can
/// have sent.
fn answered(caller: &Side, end: &Told) -> bool {
    let came = end.response.bytes > 0 && !(end.ending == Ending::Complete && BEFORE.contains(&end.status));
    let own = end.status >= 400 && (end.blamed || end.ending == Ending::Cut);
    !caller.said.refused && (caller.other.is_some() || (came && !own))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A verifier holds one of these for each hop whose other end it has not read: a million of them are 450 MB.
    #[test]
    fn what_waits_for_its_other_end_is_small() {
        let (side, slot) = (size_of::<Side>(), size_of::<(Key, Ends)>());
        assert!(side <= 400 && slot <= 40, "{side} and {slot} bytes");
        assert!(size_of::<Key>() <= 24 && size_of::<(DecisionId, (Key, Direction))>() <= 48);
    }
}

//! Both ends of each hop: the caller's sidecar and the callee's.
//!
//! Logs are read one after the other, so what one end said waits until the other end's log was read: some 450 bytes a hop
//! without anything on the heap beside, whatever a caller wrote. A hop that was held against its other end leaves 48 bytes,
//! by which a second use of its id is found.

mod calls;
mod counted;
mod left;
mod lost;
mod reach;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use aip_api::id::{DecisionId, HopId};
use serde::{Deserialize, Serialize};

use super::fault::{At, Found, Kind, named};
use crate::hop::{self, Said, Told, Verdict};
use crate::log::segment_path;
use crate::record::{Decision, Direction, End};
use calls::{Calls, Key};
use counted::Counted;
use lost::Lost;
pub(super) use reach::SKEW_MILLIS;
use reach::Skew;

/// Of a replayed hop, which the callee's sidecar refuses, this is the reason.
const REPLAYED: &str = "hop_replayed";

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
    /// That its log lacks its end is said already, for the log.
    named: bool,
}

/// A hop at one or both ends.
#[derive(Debug, Default)]
struct Ends {
    caller: Option<Box<Side>>,
    callee: Option<Box<Side>>,
}

impl Ends {
    /// The end at which a request goes that way.
    const fn of(&mut self, direction: Direction) -> &mut Option<Box<Side>> {
        match direction {
            Direction::Outbound => &mut self.caller,
            Direction::Inbound => &mut self.callee,
        }
    }
}

/// A refusal of a callee's sidecar that belongs to no hop of its log.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    caller: u32,
    place: Place,
    said: Said,
    /// The status and the bytes of its answer.
    end: Option<(u16, u64)>,
    /// As of a hop's end.
    named: bool,
    /// It is what one hop came to: one request is decided once.
    used: bool,
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
    counted: Counted,
    gaps: Lost,
    /// Of logs that went on after crashes: up to which record each crash may have cut something, and up to when what it cut
    /// was certainly still alive.
    crashes: HashMap<u32, Vec<(u64, u64)>>,
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

    /// Refusals that a sidecar counted without a record each, in what it wrote at `made`.
    pub(super) fn counted(&mut self, agent: &str, made: u64, count: u64) {
        let agent = self.number(agent);
        self.counted.add(agent, made, count);
    }

    /// What the checkpoints of the log that is being read say of crashes.
    pub(super) fn crashes(&mut self, crashes: Vec<(u64, u64)>) {
        let log = self.logs.len() as u32 - 1;
        self.crashes.insert(log, crashes);
    }

    /// It is said of the log that is being read that it lacks this end.
    pub(super) fn unended(&mut self, id: DecisionId) {
        if let Some((key, direction)) = self.under_way.get(&id) {
            let side = self
                .hops
                .get_mut(key)
                .and_then(|ends| ends.of(*direction).as_deref_mut());
            if let Some(side) = side {
                side.named = true;
            }
        } else if let Some(refusal) = self.own.and_then(|own| self.refusals.get_mut(&(own, id))) {
            refusal.named = true;
        }
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
        let said = Said::of(decision);
        let replayed = said.refused && decision.reason == REPLAYED;
        let Some(hop) = decision.hop.filter(|_| !replayed) else {
            // Whoever lets something through knows its hop: such a record stands for no refusal.
            if decision.direction == Direction::Inbound && said.refused {
                let refusal = Refusal {
                    caller: peer,
                    place,
                    said,
                    end: None,
                    named: false,
                    used: false,
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
            said,
            end: None,
            other: None,
            told: None,
            named: false,
        };
        let (caller, callee) = match decision.direction {
            Direction::Outbound => (agent, peer),
            Direction::Inbound => (peer, agent),
        };
        let key = Key { hop, caller, callee };
        if let Some(before) = self.used(key, &side) {
            return self.add(found, Kind::HopReused, &side, before);
        }
        *self.hops.entry(key).or_default().of(decision.direction) = Some(Box::new(side));
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
            return self.refusal_ended(end, found);
        };
        let Some(ends) = self.hops.get_mut(&key) else { return };
        let mut contradicts = None;
        if let Some(side) = ends.of(direction).as_deref_mut() {
            side.at = at;
            side.end = Some(side.said.ended(end));
            let (other, verdict) = end.told();
            side.other = other;
            // A decision without its verdict is none that a sidecar tells of.
            side.told = (!end.other.is_empty()).then(|| Verdict::of(verdict));
            contradicts = side.said.contradicts(end).then_some(side.place);
        }
        if let Some(place) = contradicts {
            self.contradicts(place, end, found);
        }
        self.settle(key, found);
    }

    /// How a refusal ended that belongs to no hop.
    fn refusal_ended(&mut self, end: &End, found: &mut Found) {
        let refusal = self.own.and_then(|own| self.refusals.get_mut(&(own, end.id)));
        let Some(refusal) = refusal.filter(|refusal| refusal.end.is_none()) else {
            return;
        };
        refusal.end = Some((end.status, end.response_out.bytes));
        let place = refusal.place;
        if refusal.said.contradicts(end) {
            self.contradicts(place, end, found);
        }
    }

    fn contradicts(&self, place: Place, end: &End, found: &mut Found) {
        let hop = end.hop.map_or_else(|| "no hop".to_owned(), |hop| format!("hop {hop}"));
        let detail = format!(
            "{hop}: it was refused; its end has status {}, {} bytes that went on and {} that came from the agent",
            end.status, end.request_out.bytes, end.response_in.bytes
        );
        self.add_at(found, Kind::ContradictsItself, (end.id, place), detail);
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
        let theirs = self.decisions(hop, &caller, &callee, found);
        if callee.said.refused && caller.told.is_none() && from.is_whole() && from.status < 400 {
            let detail = format!(
                "hop {hop}: the caller was answered and heard of no decision; the callee recorded a denial; {theirs}"
            );
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

    /// Holds what both decided against each other, however it ended; where the callee's record is.
    fn decisions(&self, hop: HopId, caller: &Side, callee: &Side, found: &mut Found) -> String {
        let theirs = format!(
            "the callee's is record {} (line {}) of {}",
            callee.place.seq, callee.place.line, self.logs[callee.place.log as usize].0
        );
        if caller.said.refused {
            let detail = format!("hop {hop}: decided as {}; {theirs}", callee.id);
            self.add(found, Kind::WentOnAfterRefusal, caller, detail);
        }
        if let Some(other) = caller.other.filter(|other| *other != callee.id) {
            let detail = format!(
                "hop {hop}: the caller heard of {other}; the callee recorded {}",
                callee.id
            );
            self.add(found, Kind::OtherDecision, caller, detail);
        }
        if let Some(told) = caller.told.filter(|told| *told != callee.said.verdict) {
            let (told, recorded) = (told.means(), callee.said.verdict.means());
            let detail = format!("hop {hop}: the caller heard {told}; the callee recorded {recorded}; {theirs}");
            self.add(found, Kind::OtherDecision, caller, detail);
        }
        theirs
    }

    fn add(&self, found: &mut Found, kind: Kind, side: &Side, detail: String) {
        self.add_at(found, kind, (side.id, side.place), detail);
    }

    fn add_at(&self, found: &mut Found, kind: Kind, (id, place): (DecisionId, Place), detail: String) {
        let (id, (log, dir)) = (id.to_string(), &self.logs[place.log as usize]);
        let path = segment_path(dir, place.segment);
        let at = At::file(log, &path).line(place.line).seq(place.seq).decision(Some(&id));
        found.add(kind, at, detail);
    }
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

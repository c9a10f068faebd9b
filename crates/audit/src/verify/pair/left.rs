//! What became of the hops of which not everything was there: an end, one side's records, or both ends' word of how it ended.

use aip_api::id::{DecisionId, HopId};

use super::super::LogReport;
use super::super::fault::{Found, Kind, moment, named};
use super::super::walk::UNSIGNED_MILLIS;
use super::calls::Call;
use super::reach::{Other, Reach, WINDOW_MILLIS};
use super::{Hops, Pairing, Place, Refusal, Side};
use crate::hop::{self, Ending, Told, Verdict};
use crate::record::Direction;

/// The status of a refusal that sidecars only count: too many requests.
const TOO_MANY: u16 = 429;
/// Statuses that a connection's own code gives, with nothing else, before the sidecar hears of a request: what is no HTTP, and
/// headers that are too large.
const BEFORE: [u16; 2] = [400, 431];

/// What all logs came to.
struct Seen<'a> {
    reach: Reach,
    logs: &'a [LogReport],
}

/// A decision whose log does not say how its request ended.
#[derive(Clone, Copy)]
struct Open {
    agent: u32,
    id: DecisionId,
    place: Place,
    named: bool,
}

impl Open {
    const fn of(side: &Side) -> Self {
        Self {
            agent: side.agent,
            id: side.id,
            place: side.place,
            named: side.named,
        }
    }
}

impl Pairing {
    /// Says what became of the hops of which not everything was there. `newest`: when the last thing happened that
    /// somebody signed.
    pub(in super::super) fn close(mut self, logs: &[LogReport], newest: u64, found: &mut Found) -> Hops {
        let mut hops: Vec<_> = std::mem::take(&mut self.hops).into_iter().collect();
        // Faults come in the order of hops, which is that of time.
        hops.sort_unstable_by_key(|(key, _)| *key);
        let reach = Reach::of(logs, newest, &self.numbers);
        let seen = Seen { reach, logs };
        for (key, ends) in hops {
            let hop = key.hop;
            match (ends.caller, ends.callee) {
                (Some(caller), Some(callee)) => self.half(hop, &caller, &callee, &seen, found),
                (Some(caller), None) => self.only_caller(hop, &caller, &seen, found),
                (None, Some(callee)) => match self.calls.elsewhere(key) {
                    Some(call) => self.elsewhere(hop, &callee, call, found),
                    None => self.alone(hop, &callee, Kind::MissingAtCaller, &seen, found),
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
    fn half(&mut self, hop: HopId, caller: &Side, callee: &Side, seen: &Seen<'_>, found: &mut Found) {
        let theirs = self.decisions(hop, caller, callee, found);
        for difference in hop::same_call(&caller.said, &callee.said) {
            let detail = format!("hop {hop}: {} ({}); {theirs}", difference.means(), difference.as_str());
            self.add(found, Kind::EndsDiffer, caller, detail);
        }
        match (caller.end, callee.end) {
            (None, Some(end)) => self.lacks(hop, Open::of(caller), Some((callee, &end)), seen, found),
            (Some(end), None) => self.lacks(hop, Open::of(callee), Some((caller, &end)), seen, found),
            _ => self.lacks(hop, Open::of(callee), None, seen, found),
        }
    }

    /// A log lacks how a hop ended; `with` is what the other end says of that.
    fn lacks(&mut self, hop: HopId, open: Open, with: Option<(&Side, &Told)>, seen: &Seen<'_>, found: &mut Found) {
        let log = &seen.logs[open.place.log as usize];
        let over = open.place.seq < log.recovered;
        if open.named {
            self.out.cut += 1;
            return;
        }
        let Some((with, end)) = with else {
            match over || log.closed {
                true => self.out.cut += 1,
                false => self.out.pending += 1,
            }
            return;
        };
        let (by_caller, whole) = (with.said.direction == Direction::Outbound, end.is_whole());
        // Before the caller's sidecar sees the last byte of an answer, the callee's has written down its end; of one that was
        // cut off, it hears soon. The caller's agent may take its time to read what its sidecar has.
        let soon = match (by_caller, whole) {
            (true, true) => 0,
            (true, false) => UNSIGNED_MILLIS,
            (false, _) => WINDOW_MILLIS,
        };
        let apart = match by_caller {
            true => self.skew.between(with.agent, with.peer),
            false => self.skew.between(with.peer, with.agent),
        };
        let (signed, due) = (
            log.signed_at.unwrap_or(0),
            with.at.saturating_add(apart).saturating_add(soon),
        );
        // A crash cuts what was under way then, and not what was over before.
        let missed = match over {
            true => (by_caller && whole) || due <= self.alive(open.place),
            false => due <= signed,
        };
        if missed && self.gaps.excuses(open.agent, with.at, apart) {
            self.out.lost += 1;
        } else if missed {
            let end = if by_caller { "caller" } else { "callee" };
            let detail = format!("hop {hop}: it ended at the {end}'s sidecar, by its record {}", with.id);
            self.add_at(found, Kind::EndMissing, (open.id, open.place), detail);
        } else if log.closed && !over && log.gaps > 0 {
            self.out.lost += 1;
        } else if log.closed || over {
            self.out.cut += 1;
        } else if whole && seen.reach.is_late(with.at) {
            let detail = format!(
                "hop {hop}: its end is not in a log that is signed up to {}",
                moment(signed)
            );
            self.add_at(found, Kind::Late, (open.id, open.place), detail);
        } else {
            self.out.pending += 1;
        }
    }

    /// Up to when the sidecar that made a record had certainly not crashed yet, where it did later.
    fn alive(&self, place: Place) -> u64 {
        let crashes = self.crashes.get(&place.log).map_or(&[][..], Vec::as_slice);
        let first = crashes.partition_point(|(records, _)| *records <= place.seq);
        crashes.get(first).map_or(0, |(_, alive)| *alive)
    }

    /// The callee's sidecar has no record of the hop: it refused it before it was one, or nobody answered.
    fn only_caller(&mut self, hop: HopId, caller: &Side, seen: &Seen<'_>, found: &mut Found) {
        let Some(end) = caller.end.filter(|end| answered(caller, end)) else {
            self.out.one_end += 1;
            return;
        };
        let refusal = caller.other.and_then(|id| {
            let refusal = self.refusals.get_mut(&(caller.peer, id))?;
            let own = refusal.caller == caller.agent && !refusal.used;
            refusal.used |= own;
            own.then_some((id, *refusal))
        });
        match refusal {
            Some((id, refusal)) => self.refused(hop, (caller, &end), (id, &refusal), seen, found),
            None => self.alone(hop, caller, Kind::MissingAtCallee, seen, found),
        }
    }

    /// The callee's sidecar recorded that it refused it before it was a hop: the caller's must have heard just that.
    fn refused(
        &mut self,
        hop: HopId,
        (caller, end): (&Side, &Told),
        (id, refusal): (DecisionId, &Refusal),
        seen: &Seen<'_>,
        found: &mut Found,
    ) {
        let before = found.count();
        let theirs = format!(
            "the callee's is record {} (line {}) of {}",
            refusal.place.seq, refusal.place.line, self.logs[refusal.place.log as usize].0
        );
        if let Some(told) = caller.told.filter(|told| *told != refusal.said.verdict) {
            let (told, recorded) = (told.means(), refusal.said.verdict.means());
            let detail = format!("hop {hop}: the caller heard {told}; the callee recorded {recorded}; {theirs}");
            self.add(found, Kind::OtherDecision, caller, detail);
        }
        for difference in hop::compare_refused(end, &refusal.said, refusal.end) {
            let (status, bytes) = refusal.end.unwrap_or_default();
            let detail = format!(
                "hop {hop}: {} ({}); status {} and {status}, response {bytes} and {} bytes; {theirs}",
                difference.means(),
                difference.as_str(),
                end.status,
                end.response.bytes,
            );
            self.add(found, Kind::EndsDiffer, caller, detail);
        }
        if found.count() > before {
            return;
        }
        if refusal.end.is_some() || !end.is_whole() {
            self.out.one_end += 1;
            return;
        }
        let open = Open {
            agent: caller.peer,
            id,
            place: refusal.place,
            named: refusal.named,
        };
        self.lacks(hop, open, Some((caller, end)), seen, found);
    }

    fn alone(&mut self, hop: HopId, only: &Side, kind: Kind, seen: &Seen<'_>, found: &mut Found) {
        let pair = match kind {
            Kind::MissingAtCallee => (only.agent, only.peer),
            _ => (only.peer, only.agent),
        };
        let apart = self.skew.between(pair.0, pair.1);
        let peer = named(&self.names[only.peer as usize]);
        match seen.reach.other(only.peer, only.at, apart) {
            Other::NoLog => self.out.no_log += 1,
            Other::Pending => self.out.pending += 1,
            Other::Dropped => self.out.dropped += 1,
            Other::Late(signed) => {
                let detail = format!(
                    "hop {hop}: the logs of {peer} are signed up to {}, and others' up to {}",
                    moment(signed),
                    moment(seen.reach.newest())
                );
                self.add(found, Kind::Late, only, detail);
            }
            Other::Passed(signed) => {
                let counted = kind == Kind::MissingAtCallee && may_be_counted(only);
                if counted && self.counted.excuses(only.peer, only.at, apart) {
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
}

/// Whether the callee's sidecar may have refused it by rate: by the status, which gRPC has not, or where the answer was not
/// passed on to its end. Of what was allowed the caller heard so.
fn may_be_counted(caller: &Side) -> bool {
    let Some(end) = caller.end.filter(|_| caller.told != Some(Verdict::Allow)) else {
        return false;
    };
    let passed_on = end.ending != Ending::Cut && end.status != 0;
    let of_grpc = caller.said.is_grpc() && end.status == 200 && end.response.bytes == 0;
    !passed_on || end.status == TOO_MANY || (of_grpc && caller.told == Some(Verdict::Deny))
}

/// The callee's sidecar answered, by what the caller's recorded: it told of a decision, or an answer came that only it can have
/// given. What the caller's sidecar gave itself has somebody to blame.
fn answered(caller: &Side, end: &Told) -> bool {
    let whole = end.is_whole() && end.status != 0;
    let before = end.ending == Ending::Complete && BEFORE.contains(&end.status) && end.response.bytes == 0;
    let own = end.status >= 400 && (end.blamed || end.ending == Ending::Cut);
    let came = (whole || end.response.bytes > 0) && !before && !own;
    !caller.said.refused && (caller.other.is_some() || caller.told.is_some() || came)
}

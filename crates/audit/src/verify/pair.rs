//! Both ends of each hop: the caller's sidecar and the callee's.

use std::collections::HashMap;
use std::path::Path;

use aip_api::id::{DecisionId, HopId};
use serde::{Deserialize, Serialize};

use super::LogReport;
use super::fault::{At, Found, Kind};
use crate::hop;
use crate::record::{Decision, Direction, End};

/// Added to how far the clocks of two agents were seen to differ, in milliseconds: a record is written a moment after it
/// happened.
const MARGIN_MILLIS: u64 = 2_000;
/// How far two clocks may differ of which nothing was seen, in milliseconds: what the mesh tolerates in signatures.
const SKEW_MILLIS: u64 = 300_000;
/// Of a replayed hop, which the callee's sidecar refuses, this is the reason.
const REPLAYED: &str = "hop_replayed";

/// How the hops came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hops {
    /// Hops of which both ends are here.
    pub both: u64,
    /// Of them, those where both say the same.
    pub agreed: u64,
    /// Hops whose other end may not be recorded and signed yet.
    pub pending: u64,
    /// Hops whose other end's log is not here.
    pub no_log: u64,
    /// Hops whose other end a quota took.
    pub dropped: u64,
    /// Hops that ended at the caller's sidecar: refused there, or nobody answered.
    pub one_end: u64,
}

/// Where a record stands.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) log: String,
    pub(super) file: String,
    pub(super) line: u64,
    pub(super) seq: u64,
}

#[derive(Debug)]
struct Side {
    id: DecisionId,
    at: u64,
    peer: String,
    agent: String,
    refused: bool,
    place: Place,
    end: Option<Box<End>>,
}

#[derive(Debug, Default)]
struct Ends {
    caller: Option<Side>,
    callee: Option<Side>,
}

/// What a log says about the hops of an agent.
#[derive(Debug, Clone, Copy)]
struct Reach {
    /// When the last checkpoint was made.
    signed_at: u64,
    /// Records of it were dropped, up to this time.
    dropped: Option<u64>,
}

/// The hops of all logs.
#[derive(Debug, Default)]
pub(super) struct Pairing {
    /// By who called and the hop's id: an id is one caller's.
    hops: HashMap<(String, HopId), Ends>,
    /// Hops under way in the log that is being read.
    under_way: HashMap<DecisionId, (String, HopId, Direction)>,
}

impl Pairing {
    pub(super) fn decision(&mut self, at: u64, decision: Decision, place: Place, found: &mut Found) {
        let Some(hop) = decision.hop.filter(|_| decision.reason != REPLAYED) else {
            return;
        };
        let (own, peer) = match decision.direction {
            Direction::Outbound => (&decision.source.id, &decision.destination.id),
            Direction::Inbound => (&decision.destination.id, &decision.source.id),
        };
        let side = Side {
            id: decision.id,
            at,
            peer: peer.clone(),
            agent: own.clone(),
            refused: !decision.reason.is_empty() && !decision.observed,
            place,
            end: None,
        };
        let key = (decision.source.id.clone(), hop);
        let ends = self.hops.entry(key).or_default();
        let end = match decision.direction {
            Direction::Outbound => &mut ends.caller,
            Direction::Inbound => &mut ends.callee,
        };
        if let Some(first) = end {
            let detail = format!(
                "hop {hop} of {} was decided as {} in record {} before",
                decision.source.id, first.id, first.place.seq
            );
            add(found, Kind::HopReused, &side, detail);
            return;
        }
        *end = Some(side);
        self.under_way
            .insert(decision.id, (decision.source.id, hop, decision.direction));
    }

    pub(super) fn end(&mut self, at: u64, end: End) {
        let Some((source, hop, direction)) = self.under_way.remove(&end.id) else {
            return;
        };
        let Some(ends) = self.hops.get_mut(&(source, hop)) else {
            return;
        };
        let side = match direction {
            Direction::Outbound => ends.caller.as_mut(),
            Direction::Inbound => ends.callee.as_mut(),
        };
        if let Some(side) = side {
            side.at = at;
            side.end = Some(Box::new(end));
        }
    }

    pub(super) fn close(self, logs: &[LogReport], found: &mut Found) -> Hops {
        let mut reach: HashMap<&str, Reach> = HashMap::new();
        for log in logs {
            let Some(agent) = log.agent.as_deref() else { continue };
            let known = reach.entry(agent).or_insert(Reach {
                signed_at: 0,
                dropped: None,
            });
            known.signed_at = known.signed_at.max(log.signed_at.unwrap_or(0));
            known.dropped = known.dropped.max(log.dropped_until);
        }
        let skew = self.skew();
        let mut hops = Hops::default();
        let mut all: Vec<_> = self.hops.into_iter().collect();
        // Faults come in the order of hops, which is that of time.
        all.sort_by_key(|((_, hop), _)| *hop);
        for ((_, hop), ends) in &all {
            match ends {
                Ends {
                    caller: Some(caller),
                    callee: Some(callee),
                } => both(*hop, caller, callee, &mut hops, found),
                Ends {
                    caller: Some(caller),
                    callee: None,
                } if !answered(caller) => hops.one_end += 1,
                Ends {
                    caller: Some(only),
                    callee: None,
                } => {
                    alone(*hop, only, Kind::MissingAtCallee, &reach, &skew, &mut hops, found);
                }
                Ends {
                    caller: None,
                    callee: Some(only),
                } => {
                    alone(*hop, only, Kind::MissingAtCaller, &reach, &skew, &mut hops, found);
                }
                Ends {
                    caller: None,
                    callee: None,
                } => {}
            }
        }
        hops
    }

    /// How far the clocks of two agents were seen to differ, by the times of hops that both recorded.
    fn skew(&self) -> HashMap<(String, String), u64> {
        let mut skew = HashMap::new();
        for ends in self.hops.values() {
            if let Ends {
                caller: Some(caller),
                callee: Some(callee),
            } = ends
            {
                let apart = caller.at.abs_diff(callee.at);
                let most = skew.entry((caller.agent.clone(), callee.agent.clone())).or_insert(0);
                *most = apart.max(*most);
            }
        }
        skew
    }
}

fn add(found: &mut Found, kind: Kind, side: &Side, detail: String) {
    let id = side.id.to_string();
    let at = At::file(&side.place.log, Path::new(&side.place.file))
        .line(side.place.line)
        .seq(side.place.seq)
        .decision(Some(&id));
    found.add(kind, at, detail);
}

/// The callee's sidecar let it through, by what the caller's recorded. Of a refusal it need not have a record of this hop:
/// before it knows who asks, it only counts.
fn answered(caller: &Side) -> bool {
    let end = caller.end.as_ref();
    !caller.refused && end.is_some_and(|end| end.status < 400 && (!end.other.is_empty() || end.response_in.bytes > 0))
}

fn both(hop: HopId, caller: &Side, callee: &Side, hops: &mut Hops, found: &mut Found) {
    let before = found.count();
    hops.both += 1;
    if caller.refused {
        let detail = format!(
            "hop {hop}: record {} of {} decided on it as {}",
            callee.place.seq, callee.place.log, callee.id
        );
        add(found, Kind::WentOnAfterRefusal, caller, detail);
    }
    let (Some(from), Some(to)) = (&caller.end, &callee.end) else {
        hops.both -= 1;
        hops.pending += 1;
        return;
    };
    let other = from.other.split(';').next().unwrap_or_default();
    if !other.is_empty() && other != callee.id.to_string() {
        let detail = format!(
            "hop {hop}: the caller heard of {other}; the callee recorded {}",
            callee.id
        );
        add(found, Kind::OtherDecision, caller, detail);
    }
    for difference in hop::compare(from, to) {
        let detail = format!(
            "hop {hop}: {}; request {} and {} bytes, response {} and {} bytes; the callee's is record {} (line {}) of {}",
            difference.means(),
            from.request_out.bytes,
            to.request_in.bytes,
            to.response_out.bytes,
            from.response_in.bytes,
            callee.place.seq,
            callee.place.line,
            callee.place.log,
        );
        add(found, Kind::EndsDiffer, caller, detail);
    }
    hops.agreed += u64::from(found.count() == before);
}

fn alone(
    hop: HopId,
    only: &Side,
    kind: Kind,
    reach: &HashMap<&str, Reach>,
    skew: &HashMap<(String, String), u64>,
    hops: &mut Hops,
    found: &mut Found,
) {
    let Some(other) = reach.get(only.peer.as_str()) else {
        hops.no_log += 1;
        return;
    };
    let pair = match kind {
        Kind::MissingAtCallee => (only.agent.clone(), only.peer.clone()),
        _ => (only.peer.clone(), only.agent.clone()),
    };
    let apart = skew
        .get(&pair)
        // Further apart than the mesh tolerates, a difference is no excuse.
        .map_or(SKEW_MILLIS, |seen| seen.saturating_add(MARGIN_MILLIS).min(SKEW_MILLIS));
    if only.at.saturating_add(apart) > other.signed_at {
        hops.pending += 1;
    } else if other
        .dropped
        .is_some_and(|until| only.at <= until.saturating_add(apart))
    {
        hops.dropped += 1;
    } else {
        let detail = format!(
            "hop {hop}: no record of it in the logs of {}, which are signed up to {}",
            only.peer, other.signed_at
        );
        add(found, kind, only, detail);
    }
}

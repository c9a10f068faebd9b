//! Records of logs that lie on this machine, found by reading them.

use std::collections::VecDeque;
use std::path::Path;

use aip_audit::log::{LogError, Reader};
use aip_audit::record::{Decision, Event, Record};
use aip_audit::verify::Sources;
use serde_json::{Value, json};

use super::Wanted;
use crate::exit::{Exit, Failure};

/// Up to `limit` records in the logs at or below `dir`, newest first, in the form in which the control plane answers.
pub(super) fn found(dir: &Path, wanted: &Wanted, limit: usize) -> Result<Vec<Value>, Failure> {
    let failed =
        |e: LogError| Failure::new(Exit::Failed, format!("{} can't be searched", dir.display())).why(e.to_string());
    let mut newest = Vec::new();
    for source in Sources::find(dir).map_err(failed)?.logs {
        // The last `limit` of each log: one of them is among the newest of all, or it is not wanted.
        let mut last = VecDeque::new();
        let (mut agent, mut under_way) = (None, None);
        for entry in Reader::open(&source.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Event::Decision(decision) = &entry.record.event {
                agent.get_or_insert_with(|| own(decision).to_owned());
            }
            if fits(wanted, &entry.record, agent.as_deref(), &mut under_way) {
                last.push_back((entry.record, entry.segment, entry.line));
                if last.len() > limit {
                    last.pop_front();
                }
            }
        }
        newest.extend(last.into_iter().map(|(record, segment, line)| {
            let item = json!({
                "agent": agent, "log": source.log, "segment": segment, "line": line, "record": record,
            });
            (record.at, item)
        }));
    }
    newest.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    newest.truncate(limit);
    Ok(newest.into_iter().map(|(_, item)| item).collect())
}

/// The agent beside the sidecar that recorded it.
fn own(decision: &Decision) -> &str {
    use aip_audit::record::Direction;
    match decision.direction {
        Direction::Inbound => &decision.destination.id,
        Direction::Outbound => &decision.source.id,
    }
}

/// Whether a record is wanted. What an end does not say itself, its decision has said: `under_way` is the last one that was
/// wanted.
fn fits(
    wanted: &Wanted,
    record: &Record,
    agent: Option<&str>,
    under_way: &mut Option<aip_api::id::DecisionId>,
) -> bool {
    let at = record.at;
    let name = |agent: &str| agent.rsplit('/').next().unwrap_or_default().to_owned();
    let is_agent = wanted
        .agent
        .as_ref()
        .is_none_or(|w| agent.map(name) == Some(w.to_string()));
    if !is_agent || wanted.since.is_some_and(|s| at < s) || wanted.until.is_some_and(|u| at >= u) {
        return false;
    }
    let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|w| w == found);
    match &record.event {
        Event::Decision(d) => {
            let hop = d.hop.map(|h| h.to_string()).unwrap_or_default();
            let fits = is(&wanted.verdict, &d.verdict)
                && is(&wanted.tool, &d.tool)
                && is(&wanted.trace, &d.trace)
                && is(&wanted.hop, &hop)
                && is(&wanted.decision, &d.id.to_string());
            if fits {
                *under_way = Some(d.id);
            }
            fits
        }
        Event::End(end) => {
            let hop = end.hop.map(|h| h.to_string()).unwrap_or_default();
            let own = wanted.verdict.is_none() && wanted.tool.is_none() && wanted.trace.is_none();
            *under_way == Some(end.id) || (own && is(&wanted.hop, &hop) && is(&wanted.decision, &end.id.to_string()))
        }
        Event::Strangers(_) | Event::Gap(_) | Event::Dropped(_) => [
            &wanted.verdict,
            &wanted.tool,
            &wanted.trace,
            &wanted.hop,
            &wanted.decision,
        ]
        .iter()
        .all(|w| w.is_none()),
    }
}

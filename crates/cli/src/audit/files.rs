//! Records of logs that lie on this machine, found by reading them.

use std::collections::{BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::path::Path;

use aip_api::id::DecisionId;
use aip_audit::log::{LogError, Reader};
use aip_audit::record::{Decision, Event, Record};
use aip_audit::verify::Sources;
use serde_json::{Value, json};

use super::Wanted;
use crate::exit::{Exit, Failure};

/// Decisions under way whose ends are looked for: a sidecar has at most some thousands at once, and of those that a crash cut
/// the oldest are let go.
const MAX_UNDER_WAY: usize = 65_536;

/// The logs at or below `dir`.
///
/// # Errors
/// There is none, or no such folder.
pub(super) fn logs(dir: &Path) -> Result<Sources, Failure> {
    let none = || {
        Failure::new(Exit::NotFound, format!("there is no audit log in {}", dir.display()))
            .next("name a sidecar's data directory or a folder that `aip audit export --dir` wrote")
    };
    let sources = Sources::find(dir).map_err(|error| match &error {
        LogError::Io { source, .. } if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            none().why(source.to_string())
        }
        _ => Failure::new(Exit::Failed, format!("{} can't be read", dir.display())).why(error.to_string()),
    })?;
    match sources.logs.is_empty() {
        true => Err(none().why("a log is a folder named by a UUID with segment files in it")),
        false => Ok(sources),
    }
}

/// Up to `limit` records in the logs at or below `dir`, newest first, in the form in which the control plane answers.
pub(super) fn found(dir: &Path, wanted: &Wanted, limit: usize) -> Result<Vec<Value>, Failure> {
    let failed =
        |e: LogError| Failure::new(Exit::Failed, format!("{} can't be searched", dir.display())).why(e.to_string());
    let mut newest = Vec::new();
    for source in logs(dir)?.logs {
        // The last `limit` of each log: one of them is among the newest of all, or it is not wanted.
        let mut last = VecDeque::new();
        let (mut agent, mut under_way) = (None, BTreeSet::new());
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

/// Whether a record is wanted. What an end does not say itself, its decision has said: `under_way` are those that were wanted
/// and have not ended, of which the first is the oldest.
fn fits(wanted: &Wanted, record: &Record, agent: Option<&str>, under_way: &mut BTreeSet<DecisionId>) -> bool {
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
                under_way.insert(d.id);
            }
            if under_way.len() > MAX_UNDER_WAY {
                under_way.pop_first();
            }
            fits
        }
        Event::End(end) => {
            let hop = end.hop.map(|h| h.to_string()).unwrap_or_default();
            let own = wanted.verdict.is_none() && wanted.tool.is_none() && wanted.trace.is_none();
            under_way.remove(&end.id) || (own && is(&wanted.hop, &hop) && is(&wanted.decision, &end.id.to_string()))
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

#[cfg(test)]
mod tests {
    use aip_audit::log::{Options, Writer, fresh_name};
    use aip_audit::record::End;

    use super::*;

    fn decision(tool: &str) -> Decision {
        let party = |name: &str| json!({ "id": format!("spiffe://aip.internal/agent/{name}") });
        let decision = json!({
            "id": DecisionId::fresh(), "direction": "inbound", "source": party("caller"), "destination": party("callee"),
            "method": "POST", "path": "/", "protocol": "mcp", "tool": tool, "verdict": "allow", "mesh_revision": 1, "revision": 1,
        });
        serde_json::from_value(decision).unwrap()
    }

    fn end(of: &Decision) -> End {
        let nothing = || aip_audit::record::Passed { bytes: 0, digest: None };
        End {
            id: of.id,
            hop: of.hop,
            direction: of.direction,
            status: 200,
            end: "complete".into(),
            blame: String::new(),
            other: String::new(),
            ms: 1,
            salt: "00".repeat(16),
            request_in: nothing(),
            request_out: nothing(),
            response_in: nothing(),
            response_out: nothing(),
        }
    }

    #[test]
    fn calls_at_the_same_time_keep_their_ends() {
        let home = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::open(&home.path().join(fresh_name()), Options::default()).unwrap();
        // All begin before the first ends, and every other one is of another tool.
        let all: Vec<Decision> = (0..20).map(|n| decision(["pay", "look"][n % 2])).collect();
        for (n, one) in all.iter().enumerate() {
            writer.append(Event::Decision(Box::new(one.clone())), n as u64).unwrap();
        }
        for (n, one) in all.iter().enumerate() {
            writer.append(Event::End(Box::new(end(one))), 100 + n as u64).unwrap();
        }
        drop(writer);
        let wanted = Wanted {
            tool: Some("pay".into()),
            ..Wanted::default()
        };
        let items = found(home.path(), &wanted, 1_000).unwrap();
        let of = |kind: &str| items.iter().filter(|item| item["record"]["kind"] == kind).count();
        assert_eq!((of("decision"), of("end")), (10, 10));
    }

    #[test]
    fn a_folder_without_a_log_is_an_error_and_not_an_empty_answer() {
        let home = tempfile::tempdir().unwrap();
        for dir in [home.path().to_owned(), home.path().join("nothere")] {
            let failure = found(&dir, &Wanted::default(), 5).unwrap_err();
            assert_eq!(failure.exit, Exit::NotFound, "{failure}");
        }
    }
}

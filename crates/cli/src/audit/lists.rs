//! What the control plane knows beside records: who changed what, which logs there are, what was found in them, and hops that
//! contradict.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::Globals;
use crate::client::Admin;
use crate::output::{self, Table, brief, cell, timestamp};

/// Entries of a page of changes.
const PAGE: usize = 500;

#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// Only actions that begin so, such as `kill`, `reputation.reset` or `agent`
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only those by this actor: admin:PERSON, sidecar:AGENT or control-plane
    #[arg(long, value_name = "ACTOR")]
    by: Option<String>,
    /// At most so many, the newest
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Newest {
    /// At most so many, the newest
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

impl Changes {
    fn wants(&self, entry: &Value) -> bool {
        let action = entry["action"].as_str().unwrap_or_default();
        let begins = |wanted: &String| {
            let rest = action.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || wanted.ends_with('.'))
        };
        self.action.as_ref().is_none_or(begins) && self.by.as_ref().is_none_or(|by| entry["actor"] == by.as_str())
    }
}

/// Who changed what, newest first.
pub(super) async fn changes(globals: &Globals, verb: &Changes) -> anyhow::Result<ExitCode> {
    let admin = Admin::open(globals)?;
    let (mut found, mut before) = (Vec::new(), None::<u64>);
    while found.len() < verb.limit as usize {
        let from = before.map(|revision| format!("&before={revision}")).unwrap_or_default();
        let page = admin.get(&format!("/v1/audit?limit={PAGE}{from}")).await?;
        let items = page["items"].as_array().into_iter().flatten();
        found.extend(items.filter(|entry| verb.wants(entry)).cloned());
        match page["next"].as_u64() {
            Some(next) => before = Some(next),
            None => break,
        }
    }
    found.truncate(verb.limit as usize);
    if globals.json() {
        output::json(&found);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TIME", "REVISION", "BY", "ACTION", "OF", "DETAIL"]);
    for entry in &found {
        table.row([
            entry["at"].as_u64().map_or("-".into(), timestamp),
            cell(&entry["revision"]),
            cell(&entry["actor"]),
            cell(&entry["action"]),
            cell(&entry["subject"]),
            cell(&entry["detail"]),
        ]);
    }
    table.print("no such changes");
    Ok(ExitCode::SUCCESS)
}

/// What sidecars said, in a line of bounded length.
fn said(value: &Value) -> String {
    brief(&cell(value))
}

/// The newest of a list that comes oldest first, newest first.
async fn newest(globals: &Globals, path: &str, verb: &Newest) -> anyhow::Result<Vec<Value>> {
    let mut all = Admin::open(globals)?.list(path).await?;
    all.reverse();
    all.truncate(verb.limit as usize);
    Ok(all)
}

/// The logs of sidecars, as far as the control plane has them: those that are furthest behind first.
pub(super) async fn logs(globals: &Globals) -> anyhow::Result<ExitCode> {
    let mut all = Admin::open(globals)?.list("/v1/audit/logs").await?;
    all.sort_by_key(|log| (is_over(log), log["checkpoint"]["at"].as_u64()));
    if globals.json() {
        output::json(&all);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["AGENT", "LOG", "SIGNED", "UP TO", "SEGMENTS", "BYTES", "STATE"]);
    for log in &all {
        let (first, last) = (log["segments"]["first"].as_u64(), log["segments"]["last"].as_u64());
        table.row([
            cell(&log["agent"]),
            cell(&log["log"]),
            cell(&log["checkpoint"]["size"]),
            log["checkpoint"]["at"]
                .as_u64()
                .map_or("-".into(), |at| timestamp(at / 1000)),
            first
                .zip(last)
                .map_or("-".into(), |(first, last)| format!("{first} to {last}")),
            cell(&log["bytes"]),
            state(log),
        ]);
    }
    table.print("no logs; sidecars send theirs when they connect");
    Ok(ExitCode::SUCCESS)
}

/// Whether nothing more comes of a log: it ended in order, or can't be continued.
fn is_over(log: &Value) -> bool {
    log["broken"].is_object() || log["checkpoint"]["closing"] == "close"
}

/// Whether a log goes on.
fn state(log: &Value) -> String {
    match (log["broken"]["reason"].as_str(), log["checkpoint"]["closing"].as_str()) {
        (Some(reason), _) => format!("broken: {reason}"),
        (None, Some("close")) => "closed".into(),
        (None, Some(_)) => "goes on".into(),
        (None, None) => "nothing signed yet".into(),
    }
}

/// What was found in logs and can't be.
pub(super) async fn findings(globals: &Globals, verb: &Newest) -> anyhow::Result<ExitCode> {
    let found = newest(globals, "/v1/audit/findings", verb).await?;
    if globals.json() {
        output::json(&found);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TIME", "AGENT", "LOG", "FOUND", "DETAIL"]);
    for finding in &found {
        table.row([
            finding["at"].as_u64().map_or("-".into(), timestamp),
            cell(&finding["agent"]),
            cell(&finding["log"]),
            cell(&finding["reason"]),
            said(&finding["detail"]),
        ]);
    }
    table.print("nothing was found");
    if !found.is_empty() {
        output::note("--output json has the statements that show each");
    }
    Ok(ExitCode::SUCCESS)
}

/// Hops whose two ends contradict each other.
pub(super) async fn mismatches(globals: &Globals, verb: &Newest) -> anyhow::Result<ExitCode> {
    let found = newest(globals, "/v1/audit/mismatches", verb).await?;
    if globals.json() {
        output::json(&found);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new([
        "TIME",
        "FROM",
        "TO",
        "HOP",
        "DIFFERS",
        "DECISION OF FROM",
        "DECISION OF TO",
    ]);
    for hop in &found {
        table.row([
            hop["at"].as_u64().map_or("-".into(), |at| timestamp(at / 1000)),
            said(&hop["caller"]),
            said(&hop["callee"]),
            said(&hop["hop"]),
            said(&hop["differs"]),
            said(&hop["caller_decision"]),
            said(&hop["callee_decision"]),
        ]);
    }
    table.print("no hop's two ends contradict each other");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_log_that_goes_on_comes_before_one_that_is_over() {
        let open = json!({"checkpoint": {"closing": "periodic"}});
        let closed = json!({"checkpoint": {"closing": "close"}});
        let broken = json!({"checkpoint": {"closing": "periodic"}, "broken": {"reason": "chain_broken"}});
        assert!(!is_over(&open) && is_over(&closed) && is_over(&broken));
        let states = [&open, &closed, &broken, &json!({})].map(state);
        assert_eq!(
            states,
            ["goes on", "closed", "broken: chain_broken", "nothing signed yet"]
        );
    }

    #[test]
    fn what_sidecars_said_takes_a_line_and_no_more() {
        assert_eq!(said(&json!("a\nb")), "a\\u{a}b");
        assert!(said(&json!("x".repeat(500_000))).chars().count() < 1_000);
    }

    #[test]
    fn changes_are_found_by_action_and_by_who_made_them() {
        let entry = json!({"actor": "admin:bob", "action": "kill.resume"});
        let wants = |action: Option<&str>, by: Option<&str>| {
            let verb = Changes {
                action: action.map(str::to_owned),
                by: by.map(str::to_owned),
                limit: 1,
            };
            verb.wants(&entry)
        };
        assert!(wants(None, None) && wants(Some("kill"), None) && wants(Some("kill.resume"), Some("admin:bob")));
        assert!(!wants(Some("kil"), None) && !wants(Some("agent"), None) && !wants(None, Some("admin:b")));
    }
}

//! `aip audit query`, and how records are asked for and shown.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use super::{Wanted, files};
use crate::Globals;
use crate::client::{Admin, encoded};
use crate::exit::Failure;
use crate::output::{self, Table, brief, cell, timestamp};

/// Rows of a page.
pub(super) const PAGE: usize = 500;
/// Agents that are named of those left out.
const SHOWN: usize = 20;

/// A moment in Unix milliseconds: `15m` ago, or a time as RFC 3339 writes it.
pub(super) fn time(text: &str) -> Result<u64, String> {
    let now = aip_runtime::unix_now().saturating_mul(1000);
    let ago = |number: &str, unit: u64| {
        let number: u64 = number.parse().ok()?;
        Some(now.saturating_sub(number.checked_mul(unit)?))
    };
    let (number, unit) = text.split_at(text.char_indices().next_back().map_or(0, |(at, _)| at));
    let relative = match unit {
        "s" => ago(number, 1_000),
        "m" => ago(number, 60_000),
        "h" => ago(number, 3_600_000),
        "d" => ago(number, 86_400_000),
        _ => None,
    };
    let absolute = || {
        let format = &time::format_description::well_known::Rfc3339;
        let moment = time::OffsetDateTime::parse(text, format).ok()?;
        u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok()
    };
    relative
        .or_else(absolute)
        .ok_or_else(|| "expected 30s, 15m, 2h, 3d, or a time as 2026-01-31T12:00:00Z".to_owned())
}

/// The path of a page of records.
pub(super) fn path(wanted: &Wanted, limit: usize, cursor: Option<&str>) -> String {
    asked(format!("/v1/audit/records?limit={limit}"), wanted, cursor)
}

/// A path that ends in a query, with what is wanted in it.
pub(super) fn asked(mut path: String, wanted: &Wanted, cursor: Option<&str>) -> String {
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", encoded(&value)));
        }
    };
    add("agent", wanted.agent.as_ref().map(ToString::to_string));
    add("verdict", wanted.verdict.clone());
    add("tool", wanted.tool.clone());
    add("since", wanted.since.map(|n| n.to_string()));
    add("until", wanted.until.map(|n| n.to_string()));
    add("hop", wanted.hop.clone());
    add("trace", wanted.trace.clone());
    add("decision", wanted.decision.clone());
    add("cursor", cursor.map(str::to_owned));
    path
}

/// What came of a search.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Records that were told of.
    pub(super) seen: usize,
    /// Agents with so many records that older ones were not looked through.
    pub(super) left_out: BTreeSet<String>,
}

impl Found {
    /// What this and another search left out.
    pub(super) fn and(&mut self, other: Self) {
        self.left_out.extend(other.left_out);
    }

    /// Says what was left out, where anything was.
    pub(super) fn note(&self) {
        if let Some(words) = self.words() {
            output::note(words);
        }
    }

    fn words(&self) -> Option<String> {
        let names: Vec<_> = self.left_out.iter().take(SHOWN).map(|name| brief(name)).collect();
        let more = self.left_out.len().saturating_sub(SHOWN);
        let more = if more > 0 {
            format!(", and {more} more")
        } else {
            String::new()
        };
        (!names.is_empty()).then(|| {
            format!(
                "aip: older records of {}{more} were not looked through: there are too many; ask for each with --agent, or with --since",
                names.join(", ")
            )
        })
    }
}

/// Up to `limit` records, newest first; `each` is told of each as it comes.
pub(super) async fn found(
    admin: &Admin,
    wanted: &Wanted,
    limit: usize,
    mut each: impl FnMut(&Value),
) -> Result<Found, Failure> {
    let (mut found, mut cursor) = (Found::default(), None::<String>);
    while found.seen < limit && !output::is_unread() {
        let page = admin
            .get(&path(wanted, PAGE.min(limit - found.seen), cursor.as_deref()))
            .await?;
        let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().take(limit - found.seen).for_each(&mut each);
        found.seen += items.len();
        let left_out = page["left_out"].as_array().into_iter().flatten();
        found
            .left_out
            .extend(left_out.filter_map(|name| name.as_str().map(str::to_owned)));
        match page["next"].as_str() {
            // A page may be empty, and there are more all the same.
            Some(next) if cursor.as_deref() != Some(next) => cursor = Some(next.to_owned()),
            _ => break,
        }
    }
    Ok(found)
}

pub(super) const HEADINGS: [&str; 9] = [
    "TIME", "AGENT", "WHAT", "FROM", "TO", "CALL", "OUTCOME", "WHY", "DECISION",
];

/// What a record says, for a table.
pub(super) fn cells(item: &Value) -> [String; 9] {
    cells_as(item, &|value| brief(&cell(value)))
}

/// What a record says, each text as `cell` writes it.
pub(super) fn cells_as(item: &Value, cell: &dyn Fn(&Value) -> String) -> [String; 9] {
    let record = &item["record"];
    let short = |value: &Value| cell(value).rsplit('/').next().unwrap_or_default().to_owned();
    let time = timestamp(record["at"].as_u64().unwrap_or_default() / 1000);
    let agent = short(&item["agent"]);
    let what = cell(&record["kind"]);
    let dash = || "-".to_owned();
    match record["kind"].as_str() {
        Some("decision") => {
            let call = [&record["tool"], &record["call"]].into_iter().find(|v| v.is_string());
            let call = call.map_or_else(
                || format!("{} {}", cell(&record["method"]), cell(&record["path"])),
                cell,
            );
            let rule = [&record["rule"], &record["reason"]].into_iter().find(|v| v.is_string());
            [
                time,
                agent,
                cell(&record["direction"]),
                short(&record["source"]["id"]),
                short(&record["destination"]["id"]),
                call,
                cell(&record["verdict"]),
                rule.map_or_else(dash, cell),
                cell(&record["id"]),
            ]
        }
        Some("end") => [
            time,
            agent,
            what,
            dash(),
            dash(),
            format!("{} ms", cell(&record["ms"])),
            format!("{} {}", cell(&record["status"]), cell(&record["end"])),
            cell(&record["blame"]),
            cell(&record["id"]),
        ],
        _ => [
            time,
            agent,
            what,
            dash(),
            dash(),
            cell(&record["count"]),
            cell(&record["lost"]),
            cell(&record["reason"]),
            dash(),
        ],
    }
}

pub(super) async fn query(
    globals: &Globals,
    wanted: &Wanted,
    limit: usize,
    dir: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let items = match dir {
        Some(dir) => files::found(dir, wanted, limit)?,
        None => {
            let admin = Admin::open(globals)?;
            let mut items = Vec::new();
            let work = found(&admin, wanted, limit, |item| items.push(item.clone()));
            output::waiting("searching", work).await?.note();
            items
        }
    };
    if globals.json() {
        output::json(&items);
    } else {
        let mut table = Table::new(HEADINGS);
        items.iter().for_each(|item| table.row(cells(item)));
        table.print(match dir {
            Some(_) => "no such records",
            None => "no such records; sidecars' newest records are a few seconds behind",
        });
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = aip_runtime::unix_now() * 1000;
        let ago = time("2h").unwrap();
        assert!(now - ago >= 7_200_000 && now - ago < 7_210_000);
        assert_eq!(time("1970-01-01T00:00:01.5Z").unwrap(), 1_500);
        for bad in ["", "m", "yesterday", "-3m", "1970-01-01", "99999999999999999999d", "5µ"] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn whose_records_were_left_out_is_said() {
        let mut found = Found::default();
        assert_eq!(found.words(), None);
        found.left_out = (0..25).map(|n| format!("a{n:02}")).collect();
        let words = found.words().unwrap();
        assert!(
            words.contains("a00, a01, ") && words.contains("a19, and 5 more"),
            "{words}"
        );
    }

    #[test]
    fn a_query_carries_what_was_asked_encoded() {
        let wanted = Wanted {
            tool: Some("a b&c".into()),
            since: Some(5),
            ..Wanted::default()
        };
        assert_eq!(
            path(&wanted, 7, Some("x/y")),
            "/v1/audit/records?limit=7&tool=a%20b%26c&since=5&cursor=x%2Fy"
        );
    }

    #[test]
    fn each_kind_of_record_has_a_row() {
        let decision = json!({"agent": "spiffe://x/agent/planner", "record": {"kind": "decision", "at": 0, "direction": "outbound",
            "source": {"id": "spiffe://x/agent/planner"}, "destination": {"id": "spiffe://x/agent/ledger"}, "method": "POST",
            "path": "/mcp", "tool": "close_books", "verdict": "deny", "rule": "p/r", "id": "d"}});
        let row = cells(&decision);
        assert_eq!(row[3..8], ["planner", "ledger", "close_books", "deny", "p/r"]);
        let long = json!({"agent": "a", "record": {"kind": "decision", "at": 0, "direction": "inbound", "method": "GET",
            "path": "/".repeat(400_000), "verdict": "deny", "rule": "r\n".repeat(100_000)}});
        assert!(cells(&long).concat().chars().count() < 2_000);
        let gap = json!({"agent": "a", "record": {"kind": "gap", "at": 0, "lost": 3, "reason": "disk_full"}});
        assert_eq!(cells(&gap)[6..8], ["3", "disk_full"]);
    }
}

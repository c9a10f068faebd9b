//! `aip audit export` of records: JSON Lines or CSV, without the facts that policy read unless they are asked for.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::records::{HEADINGS, cells_as, found};
use super::{As, Export, Wanted};
use crate::Globals;
use crate::client::Admin;
use crate::exit::Failure;
use crate::output::{self, cell};

/// Most records of one export: at a kilobyte each, some gigabytes.
const MAX_EXPORT: usize = 5_000_000;
/// Most decisions of one trace: a chain of agents that calls more is not followed by reading.
const MAX_TRACE: usize = 10_000;

pub(super) async fn perform(globals: &Globals, verb: &Export) -> anyhow::Result<ExitCode> {
    let admin = Admin::open(globals)?;
    if verb.form == As::Csv {
        output::line(HEADINGS.map(str::to_lowercase).join(","));
    }
    let each = |item: &Value| match verb.form {
        As::Jsonl if verb.facts => output::json_line(item),
        As::Jsonl => output::json_line(&redacted(item.clone())),
        As::Csv => output::line(cells_as(item, &cell).map(|cell| csv(&cell)).join(",")),
    };
    if verb.wanted.trace.is_some() {
        let (items, whole) = trace(&admin, &verb.wanted).await?;
        items.iter().for_each(each);
        if !whole {
            output::note(format!(
                "ended after {MAX_TRACE} decisions; narrow it with --since and --until"
            ));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let written = found(&admin, &verb.wanted, MAX_EXPORT, each).await?;
    written.note();
    if written.seen >= MAX_EXPORT {
        output::note(format!(
            "ended after {MAX_EXPORT} records; narrow it with --since and --until"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// All records of a trace from all ends, oldest first, and whether that is all: an end names its decision, not the trace.
async fn trace(admin: &Admin, wanted: &Wanted) -> Result<(Vec<Value>, bool), Failure> {
    let mut items = Vec::new();
    let mut searched = found(admin, wanted, MAX_TRACE, |item| items.push(item.clone())).await?;
    let whole = items.len() < MAX_TRACE;
    let decisions: Vec<_> = items
        .iter()
        .filter_map(|item| item["record"]["id"].as_str().map(str::to_owned))
        .collect();
    for decision in decisions {
        let of_it = Wanted {
            decision: Some(decision),
            ..Wanted::default()
        };
        let is_end = |item: &&Value| item["record"]["kind"] == "end";
        let ends = found(admin, &of_it, MAX_TRACE, |item| {
            items.extend(Some(item).filter(is_end).cloned())
        });
        searched.and(ends.await?);
    }
    searched.note();
    items.sort_by_key(|item| item["record"]["at"].as_u64());
    Ok((items, whole))
}

/// Without what policy read: who exports for others does not hand on what agents said. What is left out is named.
fn redacted(mut item: Value) -> Value {
    let facts = item["record"].as_object_mut().and_then(|record| record.remove("facts"));
    if facts.is_some() {
        item["redacted"] = json!(["facts"]);
    }
    item
}

/// A cell of CSV (RFC 4180). What a spreadsheet would take for a formula is marked as text: callers choose paths.
fn csv(cell: &str) -> String {
    let guard = if cell.starts_with(['=', '+', '@', '\t', '\r']) || (cell.starts_with('-') && cell.len() > 1) {
        "'"
    } else {
        ""
    };
    format!("\"{guard}{}\"", cell.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spreadsheet_runs_nothing_that_a_caller_chose() {
        assert_eq!(csv("=cmd|' /C calc'!A0"), "\"'=cmd|' /C calc'!A0\"");
        for formula in ["+1", "-1", "@sum(A1)", "\t=1", "\r=1"] {
            assert!(csv(formula).starts_with("\"'"), "{formula:?}");
        }
        assert_eq!(csv("say \"hi\", twice"), "\"say \"\"hi\"\", twice\"");
        assert_eq!(csv("-"), "\"-\"");
    }

    #[test]
    fn facts_are_left_out_and_named() {
        let item = json!({"log": "l", "record": {"kind": "decision", "tool": "t", "facts": {"kept": {"secret": 1}}}});
        let shown = redacted(item);
        assert_eq!(
            shown,
            json!({"log": "l", "record": {"kind": "decision", "tool": "t"}, "redacted": ["facts"]})
        );
        let end = json!({"record": {"kind": "end"}});
        assert_eq!(redacted(end.clone()), end, "there was nothing to leave out");
    }
}

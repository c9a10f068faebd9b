//! From an order to the last sidecar that enforced it; and of those that can't be reached, by when they have stopped.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::output::{self, Table, cell, counted, timestamp};

/// Beyond the wait that was asked for: the answer's way back.
const MARGIN: Duration = Duration::from_secs(5);
/// Longest wait that the control plane grants at once.
const LONGEST_POLL: Duration = Duration::from_secs(50);

/// Waits for a set (that of `answer`, or the one in force) and says where it stands; ends with 7 where somebody who may run has
/// not enforced it, or where a restored control plane can't know. Who vanished is not waited for, and may run until its certain end all the same; of who drifted and is out of
/// reach, the agent's process may.
pub(super) async fn show(
    globals: &Globals,
    admin: &Admin,
    answer: Value,
    wait: Duration,
) -> Result<Option<Exit>, Failure> {
    let progress = output::waiting("every sidecar enforces it", read(admin, &answer, wait)).await?;
    let is_certain = is_certain(&progress);
    if globals.json() {
        let mut all = answer;
        all["progress"] = progress;
        output::json(&all);
    } else {
        print(&progress);
    }
    Ok((!is_certain).then_some(Exit::TimedOut))
}

/// Whether all that may run has enforced it, as far as the control plane can know who runs.
fn is_certain(progress: &Value) -> bool {
    still_may_run(progress) == 0 && !progress["unknown_until"].is_u64()
}

/// Sidecars that have not enforced the set and may run, whether they are waited for or not.
fn still_may_run(progress: &Value) -> usize {
    let count = |key: &str| progress[key].as_array().map_or(0, Vec::len);
    count("missing") + count("vanished") + count("drifted")
}

async fn read(admin: &Admin, answer: &Value, wait: Duration) -> Result<Value, Failure> {
    let started = Instant::now();
    let which = match (answer["term"].as_u64(), answer["epoch"].as_u64()) {
        (Some(term), Some(epoch)) => format!("term={term}&epoch={epoch}&"),
        _ => String::new(),
    };
    loop {
        let left = wait.saturating_sub(started.elapsed()).min(LONGEST_POLL);
        let path = format!("/v1/kills/progress?{which}wait_ms={}", left.as_millis());
        let what = "who has enforced it can't be read; it is in force all the same";
        let progress = admin.send_within(left + MARGIN, Method::GET, &path, None, what).await?;
        if progress["missing"] == json!([]) || started.elapsed() >= wait {
            return Ok(progress);
        }
    }
}

fn print(progress: &Value) {
    let list = |key: &str| progress[key].as_array().cloned().unwrap_or_default();
    let (enforced, missing) = (list("enforced"), list("missing"));
    let sum = |key: &str| enforced.iter().filter_map(|e| e[key].as_u64()).sum::<u64>();
    let time = |key: &str| progress[key].as_f64().map_or("-".into(), |ms| format!("{ms:.1} ms"));
    output::line(format!(
        "enforced by {} of {}: p50 {}, p99 {}, last {}; {} and {} cut",
        enforced.len(),
        counted((enforced.len() + still_may_run(progress)) as u64, "sidecar"),
        time("p50_ms"),
        time("p99_ms"),
        time("last_ms"),
        counted(sum("streams_cut"), "stream"),
        counted(sum("connections_cut"), "connection"),
    ));
    if let Some(until) = progress["unknown_until"].as_u64() {
        output::line(unknown(until));
    }
    for agent in list("away") {
        output::line(format!(
            "no sidecar of {} is known to run; one started out of reach serves until {} at the latest",
            cell(&agent["agent"]),
            agent["stopped_by"].as_u64().map_or("-".into(), timestamp),
        ));
    }
    for sidecar in list("vanished") {
        output::line(format!("not waited for: {}", apart(&sidecar, "out of reach")));
    }
    for sidecar in list("drifted") {
        output::line(format!("not waited for: {}", drifted(&sidecar)));
    }
    if missing.is_empty() {
        return;
    }
    let mut table = Table::new(["MISSING", "STREAM", "CERTAINLY STOPPED BY", "SINCE THEN ITS"]);
    for sidecar in &missing {
        let stream = match (sidecar["connected"] == true, sidecar["rejected"].as_str()) {
            (_, Some(reason)) => format!("rejected it: {reason}"),
            (true, None) => "open".into(),
            (false, None) => "gone".into(),
        };
        table.row([
            cell(&sidecar["sidecar"]),
            stream,
            sidecar["stopped_by"].as_u64().map_or("-".into(), timestamp),
            how(sidecar).to_owned(),
        ]);
    }
    output::line(table.render());
}

/// What stops a sidecar at its certain end.
fn how(sidecar: &Value) -> &'static str {
    match sidecar["stopped_how"].as_str() {
        Some("lease") => "lease has ended",
        _ => "SVID has ended",
    }
}

/// One of whom no answer is expected, with its certain end.
fn apart(sidecar: &Value, why: &str) -> String {
    let by = sidecar["stopped_by"].as_u64().map_or("-".into(), timestamp);
    let (name, how) = (cell(&sidecar["sidecar"]), how(sidecar));
    format!("{name}, {why}: certainly stopped by {by}, when its {how}")
}

/// One that drifted and is out of reach: what it stopped by itself, and what it may not have.
fn drifted(sidecar: &Value) -> String {
    let name = cell(&sidecar["sidecar"]);
    format!("{name}, drifted and out of reach: it serves nothing; its agent's process may run on")
}

/// Those that a restored store has forgotten.
fn unknown(until: u64) -> String {
    let until = timestamp(until);
    format!(
        "the control plane was restored from a copy: sidecars that it does not know may serve until {until}, and are not waited for"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_vanished_may_run_and_so_may_the_process_of_who_drifted() {
        let progress = json!({ "missing": [], "vanished": [{ "sidecar": "a/1" }], "drifted": [{ "sidecar": "b/1" }] });
        assert_eq!(still_may_run(&progress), 2);
        assert_eq!(still_may_run(&json!({ "missing": [], "vanished": [] })), 0);
        let empty = json!({ "missing": [], "vanished": [], "unknown_until": null });
        assert!(is_certain(&empty) && !is_certain(&progress));
        // Nobody is named, and nobody knows.
        let restored = json!({ "missing": [], "vanished": [], "unknown_until": 60 });
        assert!(!is_certain(&restored));
        assert!(
            unknown(60).contains("may serve until 1970-01-01T00:01:00Z"),
            "{}",
            unknown(60)
        );
        assert!(drifted(&progress["drifted"][0]).starts_with("b/1, drifted and out of reach: it serves nothing;"));
    }

    #[test]
    fn who_is_not_waited_for_is_named_with_its_end() {
        let gone = json!({ "sidecar": "a/1", "stopped_by": 60, "stopped_how": "lease" });
        assert_eq!(
            apart(&gone, "out of reach"),
            "a/1, out of reach: certainly stopped by 1970-01-01T00:01:00Z, when its lease has ended"
        );
    }
}

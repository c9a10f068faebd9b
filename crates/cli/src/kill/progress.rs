//! From an order to the last sidecar that enforced it; and of those that can't be reached, by when they have stopped.

use std::process::ExitCode;
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

/// Waits for a set (that of `answer`, or the one in force) and says where it stands; ends with 7 where somebody has not
/// enforced it.
pub(super) async fn show(globals: &Globals, admin: &Admin, answer: Value, wait: Duration) -> Result<ExitCode, Failure> {
    let progress = output::waiting("every sidecar enforces it", read(admin, &answer, wait)).await?;
    let missing = progress["missing"].as_array().map_or(0, Vec::len);
    if globals.json() {
        let mut all = answer;
        all["progress"] = progress;
        output::json(&all);
    } else {
        print(&progress);
    }
    Ok(match missing {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(Exit::TimedOut as u8),
    })
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
        counted((enforced.len() + missing.len()) as u64, "sidecar"),
        time("p50_ms"),
        time("p99_ms"),
        time("last_ms"),
        counted(sum("streams_cut"), "stream"),
        counted(sum("connections_cut"), "connection"),
    ));
    for agent in list("away") {
        output::line(format!(
            "no sidecar of {} is known to run; one started out of reach serves until {} at the latest",
            cell(&agent["agent"]),
            agent["stopped_by"].as_u64().map_or("-".into(), timestamp),
        ));
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
            match sidecar["stopped_how"].as_str() {
                Some("lease") => "lease has ended".into(),
                _ => "SVID has ended".to_owned(),
            },
        ]);
    }
    output::line(table.render());
}

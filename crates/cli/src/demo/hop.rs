//! Step 2: planner calls researcher through both sidecars.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::board::{Board, Promise, Target, against, in_time};
use super::calls;
use super::mesh::Mesh;
use super::text::millis;
use crate::output::cell;

pub(super) const PROMISES: [Promise; 4] = [
    Promise {
        id: "allowed",
        text: "an unmodified agent's call passes both ends",
    },
    Promise {
        id: "recorded",
        text: "both sidecars recorded the same hop",
    },
    Promise {
        id: "time",
        text: "the hop costs little",
    },
    Promise {
        id: "stream",
        text: "an SSE stream arrives event by event",
    },
];

/// A hop through two sidecars on one machine, the agent's own work included.
const HOP_TARGET: Target = Target::quick(Duration::from_millis(10));
/// Calls of which the median counts; odd, so that it is one of them.
const CALLS: usize = 11;
/// Events that are watched.
const EVENTS: u32 = 8;
/// The researcher waits 150 ms between events; a proxy that gathers them delivers several at once.
const LEAST_GAP_MS: f64 = 60.0;

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let before = mesh.counted("researcher", "POST /mcp").await?;
    let (planner, researcher) = (mesh.state("planner")?, mesh.state("researcher")?);
    let made = calls::mcp(mesh, "researcher", "search", json!({ "query": "shore" })).await?;
    board.fact(
        "planner",
        format!("POST {} -> {} in {} ms", made.url, made.status, made.ms),
    );
    board.fact("answer", made.answer["result"]["structuredContent"].to_string());
    for end in ["caller", "callee"] {
        let decision = made.at(end);
        let text = decision.map_or("none".to_owned(), |d| format!("{} {}", d.verdict, d.id));
        board.fact(&format!("at the {end}"), text);
    }
    let after = mesh.counted("researcher", "POST /mcp").await?;
    board.fact(
        "researcher",
        format!("its own access count of POST /mcp: {before} before, {after} after"),
    );
    let allowed = made.went_through() && after == before + 1;
    board.decide(
        "allowed",
        allowed,
        format!("status {}, counted {} more", made.status, after - before),
    );

    let (ours, theirs) = calls::recorded(&made, &planner.sidecar_log, &researcher.sidecar_log).await?;
    for (end, line) in [("caller's log", &ours), ("callee's log", &theirs)] {
        let who = format!("{} -> {}", cell(&line["source"]), cell(&line["destination"]));
        board.fact(
            end,
            format!("hop {}, {who}, {} ms", cell(&line["hop"]), cell(&line["ms"])),
        );
    }
    let same = ours["hop"] == theirs["hop"] && ours["hop"].is_string() && ours["trace"] == theirs["trace"];
    board.decide("recorded", same, "one hop id and one trace id in both logs");
    timed(mesh, board).await?;
    stream(mesh, board).await
}

/// How long hops take at the caller's sidecar.
async fn timed(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let (planner, researcher) = (mesh.state("planner")?, mesh.state("researcher")?);
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let made = calls::mcp(mesh, "researcher", "search", json!({ "query": "shore" })).await?;
        anyhow::ensure!(made.went_through(), "a repeated call was not allowed: {made:?}");
        let (ours, _) = calls::recorded(&made, &planner.sidecar_log, &researcher.sidecar_log).await?;
        times.push(ours["ms"].as_f64().context("the access log names no time")?);
    }
    let (hop, worst) = middle_and_worst(times).context("nothing was timed")?;
    board.fact(
        "hop time",
        format!(
            "{} at the caller's sidecar, the median of {CALLS}; the worst {}",
            millis(hop),
            millis(worst)
        ),
    );
    let text = format!("median {}, worst {}", against(hop, HOP_TARGET), millis(worst),);
    board.decide("time", in_time(hop, HOP_TARGET), text);
    Ok(())
}

/// The median and the longest of some times in milliseconds.
fn middle_and_worst(mut times: Vec<f64>) -> Option<(Duration, Duration)> {
    times.sort_by(f64::total_cmp);
    let of = |ms: &f64| Duration::from_secs_f64(ms.max(0.0) / 1_000.0);
    Some((of(times.get(times.len() / 2)?), of(times.last()?)))
}

#[test]
fn the_hop_is_judged_by_its_median_and_its_worst_is_shown() {
    let times = vec![9.0, 1.0, 3.0, 2.0, 40.0];
    let (middle, worst) = middle_and_worst(times).unwrap_or_default();
    assert_eq!((middle, worst), (Duration::from_millis(3), Duration::from_millis(40)));
    assert_eq!(middle_and_worst(vec![]), None);
}

async fn stream(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let (made, times) = calls::watch(mesh, EVENTS).await?;
    let list: Vec<String> = times.iter().map(|t| format!("{t:.0}")).collect();
    board.fact(
        "SSE",
        format!("GET {} -> {}, {} events", made.url, made.status, times.len()),
    );
    board.fact("arrived after", format!("{} ms", list.join(", ")));
    let least = times.windows(2).map(|w| w[1] - w[0]).fold(f64::MAX, f64::min);
    let one_by_one = made.went_through() && times.len() == EVENTS as usize && least >= LEAST_GAP_MS;
    board.decide(
        "stream",
        one_by_one,
        format!("{} events, at least {least:.0} ms apart", times.len()),
    );
    Ok(())
}

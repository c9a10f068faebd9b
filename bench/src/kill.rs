//! How fast an order to stop is everywhere: a control plane, and a fleet of kill streams that verify and acknowledge as
//! sidecars do, but have no disk to write to and nothing to cut. The time is the control plane's own: from the commit of
//! the order to each acknowledgement.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::report::median;
use crate::rig::Fleet;

/// How long a fleet may take to acknowledge.
const ACKED_MS: u64 = 30_000;

/// What one order took, milliseconds.
struct Took {
    p50: f64,
    p99: f64,
    last: f64,
}

/// Measures each size; the table.
pub(crate) async fn run(sizes: &[usize], rounds: u32, bin_dir: &Path) -> anyhow::Result<String> {
    let machine = Machine::here(&[(&bin_dir.join("aip-control-plane"), "--version")]);
    let mut out = format!(
        "{rounds} orders to each fleet. {} cores of {}, Linux {}; control plane and fleet on the same ones.\n{}.\n\n",
        machine.cores,
        machine.cpu,
        machine.kernel,
        machine.versions.join(" · "),
    );
    let _ = writeln!(
        out,
        "| simulated sidecars | p50 ms | p99 ms | last ms | lowest and highest last |"
    );
    let _ = writeln!(out, "|---:|---:|---:|---:|---:|");
    let mut lasts: Vec<f64> = Vec::new();
    for size in sizes {
        let took = fleet(*size, rounds, bin_dir)
            .await
            .with_context(|| format!("{size} sidecars"))?;
        let middle = |figure: fn(&Took) -> f64| {
            let mut values: Vec<f64> = took.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            (median(&values).unwrap_or_default(), values)
        };
        let (last, all) = middle(|took| took.last);
        let _ = writeln!(
            out,
            "| {size} | {:.1} | {:.1} | {last:.1} | {:.1} to {:.1} |",
            middle(|took| took.p50).0,
            middle(|took| took.p99).0,
            all.first().copied().unwrap_or_default(),
            all.last().copied().unwrap_or_default(),
        );
        lasts.push(last);
    }
    if let ([.., before, last], [.., small, large]) = (&lasts[..], sizes) {
        let _ = writeln!(
            out,
            "\nTo the last of {large}, it takes {:.1} times as long as to the last of {small}, in the same run.",
            last / before
        );
    }
    println!("{out}");
    Ok(out)
}

/// Starts a fleet, and stops it over and over.
async fn fleet(size: usize, rounds: u32, bin_dir: &Path) -> anyhow::Result<Vec<Took>> {
    let fleet = Fleet::start(size, bin_dir).await?;
    let mut took = Vec::new();
    // One more, first: nothing is warm yet.
    for round in 0..=rounds {
        let order = json!({"scope": {"kind": "mesh"}, "mode": "kill", "reason": "the bench stops its fleet"});
        let given = fleet.admin.post("/v1/kills", &order).await?;
        let stopped = acknowledged(&fleet, &given).await?;
        let lifted = json!({"orders": [given["order"]]});
        let lifted = fleet.admin.post("/v1/kills/resume", &lifted).await?;
        acknowledged(&fleet, &lifted).await?;
        eprintln!("{size} sidecars, round {round}: the last after {:.1} ms", stopped.last);
        if round > 0 {
            took.push(stopped);
        }
    }
    Ok(took)
}

/// Waits until the whole fleet has acknowledged.
async fn acknowledged(fleet: &Fleet, given: &Value) -> anyhow::Result<Took> {
    let (term, epoch) = (&given["term"], &given["epoch"]);
    let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms={ACKED_MS}");
    let progress = fleet.admin.get(&path).await?;
    let enforced = progress["enforced"].as_array().map_or(0, Vec::len);
    ensure!(enforced == fleet.size, "{enforced} of {} acknowledged", fleet.size);
    let ms = |field: &str| progress[field].as_f64().with_context(|| field.to_owned());
    Ok(Took {
        p50: ms("p50_ms")?,
        p99: ms("p99_ms")?,
        last: ms("last_ms")?,
    })
}

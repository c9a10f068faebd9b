//! What durability, attestation and reputation cost: one pair of sidecars, whose mesh is put into one mode after the other
//! by what an operator would change. Every mode is held against the same pair as it is shipped, and against the nginx pair,
//! in the same round.

use std::fmt::Write as _;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::report::{Load, Measured, Settings, measure, median};
use crate::rig::admin::Admin;
use crate::rig::{Rig, Running, Subject};

/// Loads under which the price shows: what one request waits, and what the machine can do.
const LOADS: [(Load, &str); 2] = [(Load::One, "1 connection"), (Load::Many, "32 connections")];

/// A mode, and what it changes of the mesh.
struct Mode {
    name: &'static str,
    durability: &'static str,
    floor: f64,
    /// Another baseline than the one that is shipped.
    baseline: Option<&'static str>,
}

/// A baseline that asks who calls, and not for an attestation.
const UNATTESTED: &str = r#"package aip.policy.baseline

rules contains {"rule": "baseline/agent", "verdict": "allow", "reason": "an agent of this mesh"} if {
	input.source.kind == "agent"
	input.source.trust_domain == input.destination.trust_domain
}
"#;

const SHIPPED: Mode = Mode {
    name: "as shipped: `buffered`, a baseline that reads attestation, floor 4",
    durability: "buffered",
    floor: 4.0,
    baseline: None,
};

/// The first is how a mesh begins.
const MODES: [Mode; 5] = [
    SHIPPED,
    Mode {
        name: "`grouped`",
        durability: "grouped",
        ..SHIPPED
    },
    Mode {
        name: "`required`",
        durability: "required",
        ..SHIPPED
    },
    Mode {
        name: "a baseline that reads no attestation",
        baseline: Some(UNATTESTED),
        ..SHIPPED
    },
    Mode {
        name: "no reputation floor",
        floor: 0.0,
        ..SHIPPED
    },
];

/// One measurement: of a mode, or of the peer.
struct Taken {
    round: u32,
    load: Load,
    /// Index into [`MODES`]; none is the nginx pair.
    mode: Option<usize>,
    measured: Measured,
}

/// Measures; the table.
pub(crate) async fn run(settings: &Settings) -> anyhow::Result<String> {
    let rig = Rig::start(&settings.subjects, &settings.programs).await?;
    let of = |subject| rig.running.iter().find(|running| running.subject == subject);
    let (peer, ours) = of(Subject::Nginx).zip(of(Subject::Aip)).context("both pairs")?;
    let admin = ours.admin.as_ref().context("our pair has an admin API")?;
    let shipped = admin.get("/v1/policies/baseline").await?["resource"]["rego"].take();
    let mut taken = Vec::new();
    for round in 0..settings.rounds {
        let mut turns: Vec<_> = [None].into_iter().chain((0..MODES.len()).map(Some)).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for mode in turns {
            let running = match mode {
                Some(mode) => {
                    put(admin, &MODES[mode], &shipped).await?;
                    ours
                }
                None => peer,
            };
            for (load, _) in LOADS {
                let measured = one(running, load, settings).await?;
                let name = mode.map_or("nginx pair", |mode| MODES[mode].name);
                eprintln!("round {}: {name}: p50 {:.0} µs", round + 1, measured.latency.p50);
                taken.push(Taken {
                    round,
                    load,
                    mode,
                    measured,
                });
            }
        }
    }
    let machine = settings.programs.machine(&settings.subjects);
    let mut out = format!(
        "{} rounds of {:.0} s each, in turns, in one run. {} cores of {}, Linux {}.\n{}.\n\n",
        settings.rounds,
        settings.length.as_secs_f64(),
        machine.cores,
        machine.cpu,
        machine.kernel,
        machine.versions.join(" · "),
    );
    for (load, title) in LOADS {
        table(&mut out, &taken, load, title);
    }
    println!("{out}");
    Ok(out)
}

async fn one(running: &Running, load: Load, settings: &Settings) -> anyhow::Result<Measured> {
    let measured = measure(&load.plan(running.target.clone(), settings), &running.groups).await?;
    let first = measured.first_error.as_deref().unwrap_or_default();
    ensure!(measured.errors == 0, "{} requests failed: {first}", measured.errors);
    Ok(measured)
}

/// Changes the mesh, and waits until both sidecars hold it.
async fn put(admin: &Admin, mode: &Mode, shipped: &Value) -> anyhow::Result<()> {
    let rego = mode.baseline.map_or_else(|| shipped.clone(), Value::from);
    let baseline = json!({"name": "baseline", "rego": rego});
    let policy = admin
        .put("/v1/policies/baseline?replace_baseline=true", &baseline)
        .await?;
    let mut config = admin.get("/v1/mesh-config").await?["resource"].take();
    config["audit"]["durability"] = mode.durability.into();
    config["reputation"]["floor"] = json!(mode.floor);
    let settings = admin.put("/v1/mesh-config", &config).await?;
    let last = [policy, settings]
        .iter()
        .filter_map(|put| put["revision"].as_u64())
        .max();
    admin.held(last.context("a revision")?).await
}

fn table(out: &mut String, taken: &[Taken], load: Load, title: &str) {
    let _ = writeln!(out, "**{title}, closed loop**\n");
    let _ = writeln!(
        out,
        "| mode | p50 µs | p99 µs | requests/s | CPU µs per request | p50, of the mesh as shipped | CPU, of the mesh as shipped | CPU, of the nginx pair |"
    );
    let _ = writeln!(out, "|---|---:|---:|---:|---:|---:|---:|---:|");
    for (index, mode) in MODES.iter().enumerate() {
        let figure = |figure: fn(&Measured) -> f64| {
            let mut values: Vec<f64> = of(taken, load, Some(index)).map(|t| figure(&t.measured)).collect();
            values.sort_by(f64::total_cmp);
            median(&values).unwrap_or_default()
        };
        let share = |of: Option<usize>, figure: fn(&Measured) -> f64| {
            share(taken, load, index, of, figure).unwrap_or_else(|| "–".to_owned())
        };
        let _ = writeln!(
            out,
            "| {} | {:.0} | {:.0} | {:.0} | {:.1} | {} | {} | {} |",
            mode.name,
            figure(|m| m.latency.p50),
            figure(|m| m.latency.p99),
            figure(|m| m.per_second),
            figure(Measured::cpu),
            share(Some(0), |m| m.latency.p50),
            share(Some(0), Measured::cpu),
            share(None, Measured::cpu),
        );
    }
    out.push('\n');
}

fn of(taken: &[Taken], load: Load, mode: Option<usize>) -> impl Iterator<Item = &Taken> {
    taken.iter().filter(move |t| t.load == load && t.mode == mode)
}

/// A mode's figure as a share of another's in the same round: the median, lowest to highest.
fn share(
    taken: &[Taken],
    load: Load,
    mode: usize,
    other: Option<usize>,
    figure: fn(&Measured) -> f64,
) -> Option<String> {
    let pairs = of(taken, load, Some(mode)).filter_map(|ours| {
        let theirs = of(taken, load, other).find(|theirs| theirs.round == ours.round)?;
        Some(figure(&ours.measured) / figure(&theirs.measured))
    });
    let mut shares: Vec<f64> = pairs.filter(|share| share.is_finite()).collect();
    shares.sort_by(f64::total_cmp);
    let (median, low, high) = (median(&shares)?, shares.first()?, shares.last()?);
    Some(format!("{median:.2} ({low:.2} to {high:.2})"))
}

//! Step 10: the audit trail is whole at both ends; on copies, each way to tamper with it is found and named.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aip_api::Digest;
use aip_audit::Record;
use aip_audit::log::{segment_path, segments};
use aip_audit::verify::Sources;
use anyhow::Context as _;
use serde_json::{Value, json};

use super::board::{Board, Promise};
use super::calls;
use super::look::until;
use super::mesh::Mesh;
use crate::output::cell;

/// How long signatures may take to reach what was just recorded: two checkpoints, and a moment.
const SIGNED: Duration = Duration::from_secs(15);
/// Records from the end of what was signed at which the demo tampers: inside of it, with records after it.
const FROM_END: u64 = 4;

pub(super) const PROMISES: [Promise; 6] = [
    Promise {
        id: "whole",
        text: "both ends of every hop agree; nothing was changed or left out",
    },
    Promise {
        id: "offline",
        text: "an export is verified from its files and the root's digest alone",
    },
    Promise {
        id: "flipped",
        text: "a byte flipped in a record is found and named",
    },
    Promise {
        id: "removed",
        text: "a record that was taken out is found and named",
    },
    Promise {
        id: "cut",
        text: "a tail that was cut off is found and named",
    },
    Promise {
        id: "rewritten",
        text: "a history rewritten with a valid chain is found and named",
    },
];

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    calls::mcp(mesh, "ledger", "balance", json!({ "account": "operations" })).await?;
    let home = mesh.home.path().to_owned();
    let first = verify(mesh, &home).await?;
    let recorded = signed(&first);
    // Both ends sign what they had recorded up to here.
    let report = until("a checkpoint over the last call", SIGNED, async || {
        let report = verify(mesh, &home).await.ok()?;
        (signed(&report) > recorded || hops(&report, "agreed") > hops(&first, "agreed")).then_some(report)
    });
    let report = match report.await {
        Ok(report) => report,
        Err(_) => verify(mesh, &home).await?,
    };
    let (both, agreed, pending) = (hops(&report, "both"), hops(&report, "agreed"), hops(&report, "pending"));
    let faults = report["faults"].as_array().map_or(0, Vec::len);
    for fault in report["faults"].as_array().into_iter().flatten().take(3) {
        board.fact(
            "fault",
            format!(
                "{}: {} {}",
                cell(&fault["kind"]),
                cell(&fault["file"]),
                cell(&fault["detail"])
            ),
        );
    }
    let logs = report["logs"].as_array().map_or(0, Vec::len);
    let text = format!(
        "{logs} logs, {} records signed; {agreed} of {both} hops agree, {pending} pending",
        signed(&report)
    );
    board.fact("aip audit verify", &text);
    board.decide("whole", faults == 0 && both > 0 && agreed == both, text);

    offline(mesh, board).await?;
    let log = longest(&home)?;
    for (id, attack, kinds, behind) in ATTACKS {
        let copy = copied(mesh, id, &log)?;
        let size = signed_of(&report, &log.log)?;
        let seq = size.saturating_sub(FROM_END);
        attack(&copy, seq)?;
        let report = verify(mesh, &copy).await?;
        let found = named(&report, kinds, &copy, seq..=seq + behind);
        let text = found
            .clone()
            .unwrap_or_else(|| format!("not found: {}", report["faults"]));
        board.fact(id, &text);
        board.decide(id, found.is_some(), text);
    }
    Ok(())
}

/// An export, verified by somebody who reaches nobody.
async fn offline(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let to = mesh.dir.path().join("export");
    let dir = to.to_str().context("the directory's name is not text")?;
    let printed = mesh.aip(&["audit", "export", "--dir", dir]).await?;
    anyhow::ensure!(printed.code == Some(0), "not exported: {}", printed.stderr);
    let root = mesh.admin()?.get("/v1/mesh").await?["root"]
        .as_str()
        .context("the mesh has no root")?
        .to_owned();
    let nobody = ["--admin", "unix:/nonexistent", "--mesh-root", &root];
    let verify = ["audit", "verify", "--dir", dir, "--output", "json"];
    let printed = mesh.aip(&[nobody.as_slice(), &verify].concat()).await?;
    let report: Value = serde_json::from_str(&printed.stdout).with_context(|| printed.stderr.clone())?;
    let faults = report["faults"].as_array().map_or(0, Vec::len);
    let (both, agreed) = (hops(&report, "both"), hops(&report, "agreed"));
    let text = format!(
        "{} records signed; {agreed} of {both} hops agree, {faults} faults",
        signed(&report)
    );
    board.fact("aip audit export", &text);
    board.decide("offline", printed.code == Some(0) && faults == 0 && agreed > 0, text);
    Ok(())
}

/// How a copy of a log is tampered with at a record.
type Attack = fn(&Path, u64) -> anyhow::Result<()>;

/// What is done, how, which kinds of faults name it, and how far behind the record that was touched they may lie.
const ATTACKS: [(&str, Attack, &[&str], u64); 4] = [
    (
        "flipped",
        flip,
        &["not_a_record", "chain_broken", "out_of_order", "records_missing"],
        // The record after it no longer follows it.
        1,
    ),
    ("removed", remove, &["records_missing"], 0),
    ("cut", cut, &["truncated"], 0),
    // Between two checkpoints, it can't be told which.
    ("rewritten", rewrite, &["rewritten"], 0),
];

/// What `aip audit verify` says, run as anyone would.
async fn verify(mesh: &Mesh, dir: &Path) -> anyhow::Result<Value> {
    let dir = dir.to_str().context("the directory's name is not text")?;
    let printed = mesh.aip(&["audit", "verify", "--dir", dir, "--output", "json"]).await?;
    serde_json::from_str(&printed.stdout).with_context(|| format!("aip audit verify: {}", printed.stderr))
}

fn signed(report: &Value) -> u64 {
    let logs = report["logs"].as_array().into_iter().flatten();
    logs.filter_map(|log| log["signed"].as_u64()).sum()
}

fn hops(report: &Value, key: &str) -> u64 {
    report["hops"][key].as_u64().unwrap_or_default()
}

fn signed_of(report: &Value, log: &str) -> anyhow::Result<u64> {
    let mut logs = report["logs"].as_array().into_iter().flatten();
    let found = logs
        .find(|held| held["log"] == log)
        .and_then(|held| held["signed"].as_u64());
    found
        .filter(|size| *size > FROM_END)
        .context("the log holds too few signed records")
}

/// The log with the most bytes.
fn longest(home: &Path) -> anyhow::Result<aip_audit::verify::Source> {
    let logs = Sources::find(home)?.logs;
    let bytes = |dir: &Path| -> u64 {
        let files = segments(dir).unwrap_or_default();
        files
            .iter()
            .filter_map(|n| Some(std::fs::metadata(segment_path(dir, *n)).ok()?.len()))
            .sum()
    };
    logs.into_iter()
        .max_by_key(|log| bytes(&log.dir))
        .context("there is no log")
}

/// A copy of the log, under its own name.
fn copied(mesh: &Mesh, what: &str, log: &aip_audit::verify::Source) -> anyhow::Result<PathBuf> {
    let to = mesh.dir.path().join("copies").join(what).join(&log.log);
    std::fs::create_dir_all(&to)?;
    for entry in std::fs::read_dir(&log.dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(to)
}

/// Changes the lines of the segment that holds record `seq`.
fn edit(dir: &Path, seq: u64, change: impl Fn(&mut Vec<Vec<u8>>, usize)) -> anyhow::Result<()> {
    for number in segments(dir)? {
        let path = segment_path(dir, number);
        let text = std::fs::read(&path)?;
        let mut lines: Vec<Vec<u8>> = text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        let at = lines
            .iter()
            .position(|line| Record::from_bytes(line).is_ok_and(|r| r.seq == seq));
        if let Some(at) = at {
            change(&mut lines, at);
            std::fs::write(&path, lines.join(&b'\n'))?;
            return Ok(());
        }
    }
    anyhow::bail!("record {seq} is in no segment")
}

fn flip(dir: &Path, seq: u64) -> anyhow::Result<()> {
    edit(dir, seq, |lines, at| {
        let middle = lines[at].len() / 2;
        lines[at][middle] ^= 1;
    })
}

fn remove(dir: &Path, seq: u64) -> anyhow::Result<()> {
    edit(dir, seq, |lines, at| {
        lines.remove(at);
    })
}

fn cut(dir: &Path, seq: u64) -> anyhow::Result<()> {
    edit(dir, seq, |lines, at| {
        lines.truncate(at);
        lines.push(Vec::new());
    })?;
    for number in segments(dir)? {
        let path = segment_path(dir, number);
        let first = std::fs::read(&path)?;
        let first = first
            .split(|b| *b == b'\n')
            .next()
            .and_then(|line| Record::from_bytes(line).ok());
        if first.is_some_and(|record| record.seq > seq) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Changes a record and writes every `prev` after it anew, as one would who knows how the chain is made.
fn rewrite(dir: &Path, seq: u64) -> anyhow::Result<()> {
    let mut prev: Option<Digest> = None;
    for number in segments(dir)? {
        let path = segment_path(dir, number);
        let mut text = Vec::new();
        for line in std::fs::read(&path)?
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
        {
            let Ok(mut record) = Record::from_bytes(line) else {
                continue;
            };
            if record.seq == seq {
                record.at += 1;
            }
            record.prev = prev.unwrap_or(record.prev);
            let bytes = record.to_bytes()?;
            prev = Some(aip_audit::merkle::leaf(&bytes));
            text.extend_from_slice(&bytes);
            text.push(b'\n');
        }
        std::fs::write(&path, text)?;
    }
    Ok(())
}

/// The fault that names the attack, as evidence: of one of these kinds, in the log that was touched, at the record.
fn named(report: &Value, kinds: &[&str], copy: &Path, at: RangeInclusive<u64>) -> Option<String> {
    let copy = copy.canonicalize().ok()?;
    let faults = report["faults"].as_array()?;
    let fault = faults.iter().find(|fault| {
        let here = fault["file"]
            .as_str()
            .is_some_and(|file| Path::new(file).starts_with(&copy));
        let there = fault["seq"].as_u64().is_some_and(|first| {
            let last = fault["through"].as_u64().unwrap_or(first);
            first <= *at.end() && last >= *at.start()
        });
        kinds.iter().any(|kind| fault["kind"] == *kind) && here && there
    })?;
    let file = Path::new(fault["file"].as_str()?)
        .file_name()?
        .to_string_lossy()
        .into_owned();
    Some(format!(
        "{} in {file}, record {}",
        cell(&fault["kind"]),
        cell(&fault["seq"])
    ))
}

//! Everything that a verifier needs, from the control plane, as files.

mod ledger;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use aip_audit::log;
use serde_json::{Value, json};

use super::trust;
use crate::Globals;
use crate::client::{Admin, encoded};
use crate::exit::{Exit, Failure};
use crate::output::{self, cell, counted};

/// Beside a log's segments: its checkpoints.
const CHECKPOINTS: &str = "checkpoints.jsonl";

/// Why nothing more comes of a log that is older than records are kept: nothing of it is left, and nothing is wrong.
const EXPIRED: &str = "expired";

/// What was fetched.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    logs: u64,
    segments: u64,
    checkpoints: u64,
}

pub(super) async fn perform(globals: &Globals, dir: &Path) -> anyhow::Result<ExitCode> {
    if dir.exists() {
        let what = format!("{} exists", dir.display());
        let next = "name a folder that does not exist: an export is never mixed with an older one";
        return Err(Failure::new(Exit::Usage, what).next(next).into());
    }
    let fetched = Box::pin(output::waiting("exporting", fetch(globals, dir))).await?;
    if globals.json() {
        let document = json!({
            "dir": dir, "logs": fetched.logs, "segments": fetched.segments, "checkpoints": fetched.checkpoints,
        });
        output::json(&document);
    } else {
        output::line(format!(
            "{}: {}, {}, {}",
            dir.display(),
            counted(fetched.logs, "log"),
            counted(fetched.segments, "segment"),
            counted(fetched.checkpoints, "checkpoint")
        ));
        output::line(format!(
            "check it anywhere with `aip audit verify --dir {}`",
            dir.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes logs, checkpoints, the control plane's log of checkpoints with its head, and the keys, into `dir`.
pub(super) async fn fetch(globals: &Globals, dir: &Path) -> Result<Fetched, Failure> {
    let admin = Admin::open(globals)?;
    // The head first: what it covers is then surely among what follows.
    let head = admin.find("/v1/audit/tree-head").await?;
    let mut fetched = Fetched::default();
    let mut folders = HashMap::new();
    for held in admin.list("/v1/audit/logs").await? {
        if held["broken"]["reason"] == EXPIRED {
            continue;
        }
        let name = held["log"].as_str().unwrap_or_default().to_owned();
        let folder = dir.join(agent_folder(&held)).join(&name);
        log::name_of(&folder).map_err(|e| failed(&folder, &e))?;
        make(&folder)?;
        write(&folder.join(CHECKPOINTS), b"")?;
        if let Some(retired) = held["retired"].as_str() {
            write(&folder.join(log::RETIRED_FILE), retired.as_bytes())?;
        }
        folders.insert(name, folder);
    }
    let signed = match &head {
        Some(head) => ledger::fetch(&admin, dir, head, &folders, &mut fetched.checkpoints).await?,
        None => HashMap::new(),
    };
    for (name, folder) in &folders {
        let signed = signed.get(name).copied().unwrap_or_default();
        segments(&admin, name, folder, signed, &mut fetched).await?;
        fetched.logs += 1;
    }
    make(dir)?;
    write(
        &dir.join(trust::FILE),
        admin.get("/v1/trust").await?.to_string().as_bytes(),
    )?;
    Ok(fetched)
}

/// The agent's name as a folder; nothing that the other side says becomes a path as it is.
fn agent_folder(held: &Value) -> String {
    let agent = cell(&held["agent"]);
    let last = agent.rsplit('/').next().unwrap_or_default();
    last.parse::<aip_api::AgentName>()
        .map_or_else(|_| "unknown".to_owned(), |name| name.to_string())
}

/// Fetches segments until they reach what is `signed`: checkpoints come up at once, and records after them.
async fn segments(admin: &Admin, name: &str, folder: &Path, signed: u64, fetched: &mut Fetched) -> Result<(), Failure> {
    let path = format!("/v1/audit/logs/{}/segments", encoded(name));
    let (mut from, mut held) = (None::<u64>, 0);
    for wait in [0, 1, 2, 4, 8] {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        if let Some(manifest) = admin.bytes(&path).await? {
            write(&folder.join("segments.jsonl"), &manifest)?;
        }
        let all = admin.list("/v1/audit/logs").await?;
        let Some(row) = all.iter().find(|row| row["log"] == name) else {
            break;
        };
        let (Some(first), Some(last)) = (row["segments"]["first"].as_u64(), row["segments"]["last"].as_u64()) else {
            if row["broken"].is_object() {
                // Nothing more comes of it.
                break;
            }
            continue;
        };
        for segment in from.unwrap_or(first)..=last {
            // One that a quota took meanwhile; the manifest then says so, or verification does.
            if let Some(bytes) = admin.bytes(&format!("{path}/{segment}")).await? {
                held = end_of(&bytes).unwrap_or(held);
                write(&log::segment_path(folder, segment), &bytes)?;
            }
        }
        let before = from.map_or(first, |from| from.saturating_add(1));
        fetched.segments = fetched
            .segments
            .saturating_add(last.saturating_add(1).saturating_sub(before));
        from = Some(last);
        if held >= signed {
            break;
        }
    }
    Ok(())
}

/// Records of the log up to the end of these lines.
fn end_of(lines: &[u8]) -> Option<u64> {
    let whole = lines.iter().rposition(|b| *b == b'\n')?;
    let last = lines[..whole].rsplit(|b| *b == b'\n').next()?;
    aip_audit::Record::from_bytes(last)
        .ok()
        .map(|record| record.seq.saturating_add(1))
}

fn failed(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{} was not written", path.display())).why(why.to_string())
}

fn make(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|e| failed(folder, &e))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|e| failed(path, &e))
}

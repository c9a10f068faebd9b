//! Everything that a verifier needs, from the control plane, as files.

mod ledger;
mod segments;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use aip_audit::log;
use serde_json::{Value, json};

use super::trust;
use crate::Globals;
use crate::client::Admin;
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
    fetched.logs = folders.len() as u64;
    let logs = folders.into_iter().map(|(name, folder)| {
        let signed = signed.get(&name).copied().unwrap_or_default();
        segments::Fetching::new(name, folder, signed)
    });
    fetched.segments = segments::fetch(&admin, logs.collect(), &segments::WAITS).await?;
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

fn failed(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{} was not written", path.display())).why(why.to_string())
}

fn make(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|e| failed(folder, &e))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|e| failed(path, &e))
}

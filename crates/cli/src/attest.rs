//! `aip attest`: what an agent may run.

use std::path::PathBuf;
use std::process::ExitCode;

use aip_api::AgentName;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::agent::report;
use crate::client::{Admin, encoded};
use crate::drift;
use crate::exit::{Exit, Failure};
use crate::output::{self, Table, cell, short, timestamp};
use crate::process;

#[derive(Debug, Subcommand)]
pub(crate) enum AttestVerb {
    /// Measure files here, as a sidecar would
    Measure(Measure),
    /// List the measurements that wait for approval and those that are approved
    List(List),
    /// Approve a measurement that waits; of an agent that drifted, also what it ran before
    Approve(Which),
    /// Take an approval back, and revoke all SVIDs of the agent
    Revoke(Which),
}

#[derive(Debug, Args)]
pub(crate) struct Measure {
    /// The directory that paths are relative to
    #[arg(long, default_value = ".", value_name = "DIR")]
    root: PathBuf,
    /// Files or globs below it; * stays within a directory, ** goes below
    #[arg(required = true, value_name = "GLOB")]
    globs: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only this agent's
    #[arg(long)]
    agent: Option<AgentName>,
    /// Only those that wait
    #[arg(long)]
    pending: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The agent
    agent: AgentName,
    /// The measurement's fingerprint, or its first digits: 8 or more, and as many as are unique
    #[arg(value_parser = fingerprint)]
    fingerprint: String,
}

/// Digits that name a measurement: fewer are typed by accident, and fit what somebody made to fit them.
const LEAST_DIGITS: usize = 8;

/// A fingerprint, or the first digits of one.
fn fingerprint(text: &str) -> Result<String, String> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match (LEAST_DIGITS..=64).contains(&text.len()) && text.bytes().all(hex) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "expected {LEAST_DIGITS} to 64 lower-case hex digits, as `aip attest list` shows them"
        )),
    }
}

impl AttestVerb {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        match self {
            Self::Measure(verb) => verb.perform(globals).await?,
            Self::List(verb) => verb.perform(globals, &Admin::open(globals)?).await?,
            Self::Approve(which) => {
                let admin = Admin::open(globals)?;
                let path = which.resolve(&admin, &["pending", "approved"]).await?;
                return which.approve(globals, &admin, &path).await;
            }
            Self::Revoke(which) => {
                let admin = Admin::open(globals)?;
                let path = which.resolve(&admin, &["approved"]).await?;
                let what = format!("the measurement of {} was not taken back", which.agent);
                admin.send(Method::DELETE, &path, None, &what).await?;
                // What was issued for it must not outlive it: the next generation begins.
                let revoke = format!("/v1/agents/{}/revoke", which.agent);
                let why = json!({ "reason": "its measurement was taken back" });
                let what = format!(
                    "the measurement is taken back, but the SVIDs of {} were not revoked",
                    which.agent
                );
                let answer = admin.send(Method::POST, &revoke, Some(&why), &what).await?;
                let sentence = format!(
                    "{} may no longer run this measurement; its SVIDs are revoked, generation {} begins",
                    which.agent,
                    cell(&answer["generation"])
                );
                report(globals, &answer, &sentence);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Which {
    async fn approve(&self, globals: &Globals, admin: &Admin, path: &str) -> anyhow::Result<ExitCode> {
        let what = format!("the measurement of {} was not approved", self.agent);
        let path = format!("{path}/approve");
        let answer = admin.send(Method::POST, &path, Some(&json!({})), &what).await?;
        let sentence = match answer["unchanged"] == true {
            true => format!("{} may run this measurement already; nothing changed", self.agent),
            false => format!("{} may run this measurement", self.agent),
        };
        let code = report(globals, &answer, &sentence);
        // Approved is not back: what runs is what drifted. Not known is not said.
        let blocked = drift::blocked(admin).await.unwrap_or_default();
        let is_blocked = blocked.iter().any(|drift| drift["agent"] == self.agent.as_str());
        if is_blocked && answer["proposal"].is_null() {
            output::note(format!(
                "{0} drifted, and is let back in when it is started again: end its `aip run`, and start it anew",
                self.agent
            ));
        }
        Ok(code)
    }

    /// The path of the one measurement that the digits name, in the first of these states in which they name any.
    async fn resolve(&self, admin: &Admin, states: &[&str]) -> anyhow::Result<String> {
        for state in states {
            let known = measurements(admin, state, Some(&self.agent)).await?;
            let all = known.iter().filter_map(|m| m["fingerprint"].as_str());
            let named: Vec<&str> = all.filter(|f| f.starts_with(&self.fingerprint)).collect();
            match named.as_slice() {
                [] => {}
                [one] => return Ok(format!("/v1/measurements/{}/{}", self.agent, encoded(one))),
                _ => {
                    let what = format!("{} names no {state} measurement of {}", self.fingerprint, self.agent);
                    return Err(Failure::new(Exit::Usage, what)
                        .why("several begin with these digits")
                        .next("give more of them")
                        .into());
                }
            }
        }
        let (digits, states) = (&self.fingerprint, states.join(" or "));
        let what = format!("{digits} names no {states} measurement of {}", self.agent);
        Err(Failure::new(Exit::NotFound, what)
            .next("`aip attest list` shows what there is")
            .into())
    }
}

/// Measurements in `state` (`pending` or `approved`).
pub(crate) async fn measurements(admin: &Admin, state: &str, agent: Option<&AgentName>) -> Result<Vec<Value>, Failure> {
    let only = agent.map(|a| format!("&agent={a}")).unwrap_or_default();
    admin.list(&format!("/v1/measurements?state={state}{only}")).await
}

impl Measure {
    /// The sidecar's own code measures, so that what is shown here is what it will say.
    async fn perform(self, globals: &Globals) -> anyhow::Result<()> {
        let mut command = process::sibling("aip-sidecar")?;
        command
            .arg("--measure")
            .arg("--root")
            .arg(&self.root)
            .kill_on_drop(true);
        for glob in &self.globs {
            command.args(["--code", glob]);
        }
        let ended = output::waiting("measuring", command.stdin(std::process::Stdio::null()).output()).await?;
        if !ended.status.success() {
            let why = String::from_utf8_lossy(&ended.stderr).replace("aip-sidecar: ", "");
            return Err(Failure::new(Exit::Failed, "nothing was measured")
                .why(why.trim())
                .into());
        }
        let document: Value = serde_json::from_slice(&ended.stdout)?;
        if globals.json() {
            output::json(&json!({ "code": document["code"], "files": document["files"] }));
            return Ok(());
        }
        let mut table = Table::new(["SHA-256", "EXEC", "PATH"]);
        for file in document["files"].as_array().into_iter().flatten() {
            let exec = if file["exec"] == true { "x" } else { "-" };
            table.row([
                short(&cell(&file["sha256"])).to_owned(),
                exec.into(),
                cell(&file["path"]),
            ]);
        }
        output::line(table.render());
        output::line(format!("\ncode {}", cell(&document["code"])));
        Ok(())
    }
}

/// The digest of declared code, and in words where no file is declared: approving that approves no code.
fn code(digest: &str) -> String {
    let of_nothing = aip_api::evidence::code_digest(&[]).is_ok_and(|nothing| nothing.to_string() == digest);
    if of_nothing {
        "none".into()
    } else {
        short(digest).to_owned()
    }
}

impl List {
    async fn perform(self, globals: &Globals, admin: &Admin) -> anyhow::Result<()> {
        let pending = measurements(admin, "pending", self.agent.as_ref()).await?;
        let approved = match self.pending {
            true => Vec::new(),
            false => measurements(admin, "approved", self.agent.as_ref()).await?,
        };
        if let (Some(agent), true, true) = (&self.agent, pending.is_empty(), approved.is_empty()) {
            // An agent that is not there has none either; that is another answer.
            admin.get(&format!("/v1/agents/{agent}")).await?;
        }
        let mut drifted = drift::blocked(admin).await?;
        drifted.retain(|drift| self.agent.as_ref().is_none_or(|agent| drift["agent"] == agent.as_str()));
        if globals.json() {
            output::json(&json!({ "pending": pending, "approved": approved, "drifted": drifted }));
            return Ok(());
        }
        let mut table = Table::new([
            "AGENT",
            "FINGERPRINT",
            "STATE",
            "ATTESTOR",
            "CODE",
            "EXECUTABLE",
            "WHEN",
            "BY",
        ]);
        for (state, list) in [("pending", &pending), ("approved", &approved)] {
            for entry in list {
                let m = &entry["measurement"];
                let when = entry["seen"]["last_seen"]
                    .as_u64()
                    .or_else(|| m["approved_at"].as_u64());
                table.row([
                    cell(&m["agent"]),
                    short(&cell(&entry["fingerprint"])).to_owned(),
                    state.to_owned(),
                    cell(&m["attestor"]),
                    code(&cell(&m["code"])),
                    short(&cell(&m["executable"])).to_owned(),
                    when.map_or("-".into(), timestamp),
                    cell(&m["approved_by"]),
                ]);
            }
        }
        table.print(match self.pending {
            true => "no measurement waits for approval",
            false => "no measurements; sidecars bring them when they join",
        });
        for drift in drifted {
            output::line(drift::line(&drift));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_digits_approve_nothing() {
        for wrong in ["", "4", "1234567", "1234567g", "ABCDEF12"] {
            assert!(fingerprint(wrong).is_err(), "{wrong}");
        }
        assert_eq!(fingerprint("12345678"), Ok("12345678".to_owned()));
        assert!(fingerprint(&"0".repeat(64)).is_ok() && fingerprint(&"0".repeat(65)).is_err());
    }

    #[test]
    fn that_no_code_is_declared_is_said_in_words() {
        let nothing = aip_api::evidence::code_digest(&[]).unwrap().to_string();
        assert_eq!(code(&nothing), "none");
        let some = aip_api::Digest::sha256(b"something").to_string();
        assert_eq!(code(&some), some[..code(&some).len()]);
    }
}

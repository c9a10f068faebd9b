//! `aip reputation`: how agents behaved so far, verifiers' reports, imports, resets.

mod key;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use aip_api::AgentName;
use aip_api::resource::reputation::MAX_STATEMENT_BYTES;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::bounded;
use crate::client::{Admin, encoded};
use crate::exit::{Exit, Failure};
use crate::output::{self, Table, cell, timestamp};
use crate::policy::rollout::{self, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum ReputationVerb {
    /// Show the agents' scores; of one agent, also what it rests on
    Show(Show),
    /// Report what was found in what an agent said or did; takes the role verifier
    Report(Box<report::Report>),
    /// Make a key by which a verifier signs its reports; its public half is enrolled with `aip admin issue --key`
    Keygen(key::Keygen),
    /// Take a signed statement that the control plane may have forgotten: the lower score holds
    Import(Import),
    /// Forget what counts for and against an agent; in a prod mesh a second person approves it
    Reset(Reset),
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The agent; absent: all
    agent: Option<AgentName>,
    /// Print the signed statement alone, for whoever checks it elsewhere
    #[arg(long, requires = "agent")]
    statement: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The agent
    agent: AgentName,
    /// The file with the statement, as `aip reputation show AGENT --statement` prints it
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// The agent
    agent: AgentName,
    /// Why, for the audit
    #[arg(long, value_parser = crate::kill::why, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    wait: rollout::Wait,
}

fn path_of(agent: &AgentName) -> String {
    format!("/v1/reputation/{}", encoded(agent.as_str()))
}

impl ReputationVerb {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        if let Self::Keygen(verb) = self {
            return verb.perform(globals);
        }
        let admin = Admin::open(globals)?;
        match self {
            Self::Show(Show { agent: None, .. }) => list(globals, &admin).await?,
            Self::Show(Show {
                agent: Some(agent),
                statement,
            }) => show(globals, &admin, &agent, statement).await?,
            Self::Report(verb) => return verb.perform(globals, &admin).await,
            Self::Keygen(_) => {}
            Self::Import(verb) => verb.perform(globals, &admin).await?,
            Self::Reset(verb) => return verb.perform(globals, &admin).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Import {
    async fn perform(&self, globals: &Globals, admin: &Admin) -> anyhow::Result<()> {
        let statement = read(&self.file)?;
        let what = format!("the statement of {} was not taken", self.agent);
        let path = format!("{}/import", path_of(&self.agent));
        let body = json!({ "statement": statement });
        let answer = admin.send(Method::POST, &path, Some(&body), &what).await?;
        let sentence = match answer["adopted"].as_bool() {
            Some(true) => "its score is lower and holds from now on",
            _ => "nothing changed: its score is not lower, or it is history",
        };
        crate::agent::report(globals, &answer, sentence);
        Ok(())
    }
}

impl Reset {
    async fn perform(&self, globals: &Globals, admin: &Admin) -> anyhow::Result<ExitCode> {
        let started = Instant::now();
        let what = format!("the reputation of {} was not reset", self.agent);
        let path = format!("{}/reset", path_of(&self.agent));
        let body = json!({ "reason": self.reason });
        let answer = admin.send(Method::POST, &path, Some(&body), &what).await?;
        let outcome = Outcome::of(&answer, &what)?;
        let sentence = format!("the reputation of {} begins anew", self.agent);
        rollout::report(globals, admin, &outcome, &sentence, started, &self.wait).await
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let fail = |why: String| Failure::new(Exit::Usage, format!("{} can't be read", file.display())).why(why);
    let text = bounded::text(file, MAX_STATEMENT_BYTES as u64).map_err(|e| fail(e.to_string()))?;
    Ok(text.trim().to_owned())
}

async fn list(globals: &Globals, admin: &Admin) -> anyhow::Result<()> {
    let all = admin.list("/v1/reputation").await?;
    if globals.json() {
        output::json(&all);
        return Ok(());
    }
    let mut table = Table::new(["AGENT", "SCORE", "LEVEL", "CONFIDENCE", "TOLD", "SLASHES", "FLOOR"]);
    for row in &all {
        let slashes = row["reputation"]["slashes"].as_array().map_or(0, Vec::len);
        table.row([
            cell(&row["agent"]),
            points(&row["score"]),
            cell(&row["level"]),
            format!("{}%", cell(&row["confidence"])),
            points(&row["told"]),
            slashes.to_string(),
            floor(row).into(),
        ]);
    }
    table.print("no agents");
    Ok(())
}

fn points(score: &Value) -> String {
    score.as_f64().map_or("-".into(), |score| format!("{score:.2}"))
}

/// What sidecars do by the score that they were told, and whether they will do otherwise by the one of now.
fn floor(row: &Value) -> &'static str {
    match (row["refused"] == true, row["below_floor"] == true) {
        (true, true) => "refused",
        (true, false) => "refused until it is told",
        (false, true) => "ok until it is told",
        (false, false) => "ok",
    }
}

async fn show(globals: &Globals, admin: &Admin, agent: &AgentName, statement: bool) -> anyhow::Result<()> {
    let shown = admin.find(&path_of(agent)).await?;
    let shown = shown.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("no agent is called {agent}")).next("`aip reputation show` lists them all")
    })?;
    if statement {
        output::line(cell(&shown["statement"]));
        return Ok(());
    }
    if globals.json() {
        output::json(&shown);
        return Ok(());
    }
    let score = format!("{} of 10, {}", points(&shown["score"]), cell(&shown["level"]));
    let told = format!("{} (revision {})", points(&shown["told"]), cell(&shown["revision"]));
    for (key, value) in [
        ("agent", cell(&shown["agent"])),
        ("score", score),
        ("told", told),
        ("confidence", format!("{}%", cell(&shown["confidence"]))),
        ("floor", floor(&shown).to_owned()),
    ] {
        output::line(format!("{key:<18}{value}"));
    }
    let factors = shown["reputation"]["factors"].as_object().into_iter().flatten();
    for (factor, value) in factors {
        output::line(format!("{factor:<18}{}", points(value)));
    }
    output::line("");
    let mut table = Table::new(["EVENT", "AT", "WHAT", "DETAIL"]);
    for event in shown["history"].as_array().into_iter().flatten() {
        table.row([
            cell(&event["seq"]),
            event["at"].as_u64().map_or("-".into(), timestamp),
            cell(&event["kind"]),
            detail(event),
        ]);
    }
    table.print("nothing happened yet");
    Ok(())
}

/// An event in one line.
fn detail(event: &Value) -> String {
    match event["kind"].as_str() {
        Some("report") => {
            let (finding, severity) = (cell(&event["finding"]), cell(&event["severity"]));
            let (off, by) = (points(&event["points"]), cell(&event["reporter"]));
            let seen = event["seen_by"].as_array().into_iter().flatten().map(cell);
            let seen: Vec<String> = seen.collect();
            let evidence = cell(&event["evidence"]);
            format!(
                "{finding}, {severity}: {off} off, by {by}, {evidence}, recorded by {}",
                seen.join(" and ")
            )
        }
        Some("observed") => {
            let peers = event["by"].as_array().into_iter().flatten();
            let all: Vec<String> = peers
                .map(|o| format!("{}: {} good, {} bad", cell(&o["peer"]), sum(&o["good"]), sum(&o["bad"])))
                .collect();
            all.join("; ")
        }
        Some("imported") => format!("at most {} until a reset", points(&event["score"])),
        Some("reset") => format!("{}, by {}", cell(&event["reason"]), cell(&event["by"])),
        _ => "-".into(),
    }
}

fn sum(counts: &Value) -> u64 {
    let counts = counts.as_object().into_iter().flatten();
    counts.filter_map(|(_, n)| n.as_u64()).sum()
}

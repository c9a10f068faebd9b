//! `aip policy`: check and test here, apply, list, show and roll back there.

mod apply;
mod check;
pub(crate) mod diagnostics;
mod file;
pub(crate) mod rollout;

use std::path::PathBuf;
use std::process::ExitCode;

use aip_api::resource::PolicyName;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::agent::inner;
use crate::client::Admin;
use crate::output::{self, Table, cell, timestamp};

pub(crate) use check::{ADMIT, admit};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Admit policies as the control plane would: syntax, recursion, builtins, compilation, and the tests beside them
    Check(Check),
    /// The same, and a policy without tests is a mistake
    Test(Check),
    /// Roll a policy out to the mesh
    Apply(apply::Apply),
    /// List the mesh's policies
    List,
    /// Show one policy
    Show(Show),
    /// Go back to an earlier version of a policy
    Rollback(Rollback),
    /// Remove a policy
    Delete(Named),
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Rego modules, each `package aip.policy.<name>`, or directories of them; tests lie beside them as STEM_test.rego
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The policy's data, JSON or YAML [default: STEM.data.json or .data.yaml beside it]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The policy's tests [default: STEM_test.rego beside it]
    #[arg(long, value_name = "FILE")]
    tests: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The policy
    #[arg(value_parser = name)]
    name: PolicyName,
    /// Its versions instead of its text
    #[arg(long)]
    versions: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The policy
    #[arg(value_parser = name)]
    name: PolicyName,
    /// The revision of the version to go back to [default: the version before the current one]
    #[arg(long, value_name = "REVISION")]
    to: Option<u64>,
    /// Wait until every sidecar has acknowledged it, at most this long
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30")]
    wait: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The policy
    #[arg(value_parser = name)]
    name: PolicyName,
}

fn name(text: &str) -> Result<PolicyName, String> {
    PolicyName::try_from(text.to_owned()).map_err(|e| e.message)
}

impl PolicyVerb {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(verb) => check::perform(&verb, globals, false).await,
            Self::Test(verb) => check::perform(&verb, globals, true).await,
            Self::Apply(verb) => verb.perform(globals).await,
            Self::List => list(globals).await,
            Self::Show(verb) => verb.perform(globals).await,
            Self::Rollback(verb) => verb.perform(globals).await,
            Self::Delete(Named { name }) => {
                let what = format!("policy {name} was not deleted");
                let admin = Admin::open(globals)?;
                let answer = admin
                    .send(Method::DELETE, &format!("/v1/policies/{name}"), None, &what)
                    .await?;
                let outcome = rollout::Outcome::of(&answer, &what)?;
                crate::agent::report(
                    globals,
                    &answer,
                    &outcome.sentence(&format!("policy {name} is deleted")),
                );
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

async fn list(globals: &Globals) -> anyhow::Result<ExitCode> {
    let policies = Admin::open(globals)?.list("/v1/policies").await?;
    if globals.json() {
        output::json(&policies);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["NAME", "ATTACHED TO", "REVISION", "LINES", "TESTS"]);
    for entry in &policies {
        let policy = inner(entry);
        table.row([
            cell(&policy["name"]),
            attached(&policy["attach"]),
            cell(&entry["revision"]),
            policy["rego"]
                .as_str()
                .map_or("-".into(), |r| r.lines().count().to_string()),
            if policy["tests"].is_string() { "yes" } else { "-" }.into(),
        ]);
    }
    table.print("no policies: everything is denied");
    Ok(ExitCode::SUCCESS)
}

fn attached(attach: &Value) -> String {
    match attach {
        Value::Object(by) if by.contains_key("agents") => format!("agents {}", cell(&by["agents"])),
        Value::Object(by) if by.contains_key("labels") => format!("labels {}", cell(&by["labels"])),
        Value::Null => "mesh".into(),
        other => cell(other),
    }
}

async fn versions(admin: &Admin, name: &PolicyName) -> Result<Vec<Value>, crate::exit::Failure> {
    admin.list(&format!("/v1/policies/{name}/revisions")).await
}

impl Show {
    async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let admin = Admin::open(globals)?;
        if self.versions {
            let versions = versions(&admin, &self.name).await?;
            if globals.json() {
                output::json(&versions);
                return Ok(ExitCode::SUCCESS);
            }
            let mut table = Table::new(["VERSION", "REVISION", "WHEN", "BY", ""]);
            for entry in &versions {
                table.row([
                    cell(&entry["version"]),
                    cell(&entry["revision"]),
                    entry["at"].as_u64().map_or("-".into(), timestamp),
                    cell(&entry["by"]),
                    if entry["policy"].is_null() { "deleted" } else { "" }.into(),
                ]);
            }
            table.print("no versions are kept");
            return Ok(ExitCode::SUCCESS);
        }
        let answer = admin.get(&format!("/v1/policies/{}", self.name)).await?;
        if globals.json() {
            output::json(&answer);
        } else {
            let policy = inner(&answer);
            output::note(format!(
                "attached to {}, revision {}",
                attached(&policy["attach"]),
                cell(&answer["revision"])
            ));
            output::line(policy["rego"].as_str().unwrap_or_default().trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Rollback {
    async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        use crate::exit::{Exit, Failure};
        let admin = Admin::open(globals)?;
        let what = format!("policy {} was not rolled back", self.name);
        let to = match self.to {
            Some(revision) => revision,
            None => {
                let versions = versions(&admin, &self.name).await?;
                let earlier = versions.iter().skip(1).find(|v| v["policy"].is_object());
                earlier
                    .and_then(|v| v["revision"].as_u64())
                    .ok_or_else(|| Failure::new(Exit::NotFound, what.clone()).why("there is no earlier version"))?
            }
        };
        let started = std::time::Instant::now();
        let path = format!("/v1/policies/{}/rollback", self.name);
        let answer = admin
            .send(Method::POST, &path, Some(&json!({ "revision": to })), &what)
            .await?;
        let outcome = rollout::Outcome::of(&answer, &what)?;
        let sentence = format!("policy {} is as revision {to} wrote it", self.name);
        rollout::report(globals, &admin, &outcome, &sentence, started, self.wait).await
    }
}

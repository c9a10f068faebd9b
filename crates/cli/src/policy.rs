//! `aip policy`: check and test here, apply, list, show and roll back there.

mod apply;
mod check;
pub(crate) mod diagnostics;
mod file;
pub(crate) mod rollout;
mod told;

use std::path::PathBuf;
use std::process::ExitCode;

use aip_api::resource::PolicyName;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::agent::inner;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
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
    Delete(Delete),
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
    #[command(flatten)]
    wait: rollout::Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The policy
    #[arg(value_parser = name)]
    name: PolicyName,
    #[command(flatten)]
    wait: rollout::Wait,
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
            Self::Delete(verb) => verb.perform(globals).await,
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
        let admin = Admin::open(globals)?;
        let what = format!("policy {} was not rolled back", self.name);
        let to = match self.to {
            Some(revision) => revision,
            None => before(&versions(&admin, &self.name).await?, &what)?,
        };
        let started = std::time::Instant::now();
        let path = format!("/v1/policies/{}/rollback", self.name);
        let answer = admin
            .send(Method::POST, &path, Some(&json!({ "revision": to })), &what)
            .await?;
        let outcome = rollout::Outcome::of(&answer, &what)?;
        let sentence = format!("policy {}, as revision {to} wrote it, is stored", self.name);
        rollout::report(globals, &admin, &outcome, &sentence, started, &self.wait).await
    }
}

/// The version to go back to where none is named: the one before the current one. Where the current one is itself a
/// return, the one before it is what was left then, and people say what they mean.
fn before(versions: &[Value], what: &str) -> Result<u64, Failure> {
    let missing = |why: &str| Failure::new(Exit::NotFound, what).why(why);
    let (current, earlier) = versions
        .split_first()
        .ok_or_else(|| missing("no versions of it are kept"))?;
    let returned = |v: &&Value| v["policy"].is_object() && v["policy"] == current["policy"];
    if let Some(same) = earlier.iter().find(returned) {
        let list: Vec<String> = earlier
            .iter()
            .filter(|v| !v["policy"].is_null())
            .map(|v| {
                format!(
                    "{} ({})",
                    cell(&v["revision"]),
                    v["at"].as_u64().map_or("-".into(), timestamp)
                )
            })
            .collect();
        let same = cell(&same["revision"]);
        return Err(Failure::new(Exit::Usage, what)
            .why(format!(
                "it is as revision {same} wrote it already: the version before is the one that was left"
            ))
            .next(format!("name the version with --to REVISION: {}", list.join(", "))));
    }
    let earlier = earlier.iter().find(|v| v["policy"].is_object());
    let revision = earlier.and_then(|v| v["revision"].as_u64());
    revision.ok_or_else(|| missing("there is no earlier version"))
}

impl Delete {
    async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let name = &self.name;
        let what = format!("policy {name} was not deleted");
        let admin = Admin::open(globals)?;
        let started = std::time::Instant::now();
        let path = format!("/v1/policies/{name}");
        let answer = admin.send(Method::DELETE, &path, None, &what).await?;
        let outcome = rollout::Outcome::of(&answer, &what)?;
        let sentence = format!("the end of policy {name} is stored");
        rollout::report(globals, &admin, &outcome, &sentence, started, &self.wait).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_after_a_rollback_does_not_return_to_what_was_left() {
        let version = |revision: u64, text: &str| json!({"revision": revision, "at": 0, "policy": {"rego": text}});
        let (good, bad) = (version(3, "good"), version(5, "bad"));
        assert_eq!(before(&[bad.clone(), good.clone()], "x").unwrap(), 3);
        let again = before(&[version(8, "good"), bad, good.clone()], "x").unwrap_err();
        assert_eq!(again.exit, Exit::Usage);
        let said = again.to_string();
        assert!(
            said.contains("as revision 3 wrote it") && said.contains("--to REVISION: 5 ("),
            "{said}"
        );
        assert_eq!(before(&[good], "x").unwrap_err().exit, Exit::NotFound);
        let deleted = json!({"revision": 9, "at": 0});
        assert_eq!(before(&[deleted, version(8, "good")], "x").unwrap(), 8);
    }
}

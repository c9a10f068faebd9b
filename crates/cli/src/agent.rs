//! `aip agent`: the registry.

use std::process::ExitCode;

use aip_api::{AgentName, kill};
use aip_runtime::unix_now;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::output::{self, Table, cell, timestamp};

/// The control plane's bound: a week.
const LONGEST_OBSERVE: u64 = 7 * 86_400;

#[derive(Debug, Subcommand)]
pub(crate) enum AgentVerb {
    /// Register an agent
    Create(Create),
    /// List the registered agents
    List(List),
    /// Show one agent
    Show(Name),
    /// Only record what policy refuses an agent, for a while; identity and revocation are enforced all the same
    Observe(Observe),
    /// Enforce policy on an agent again
    Enforce(Name),
    /// Set for how long an agent's sidecars may go on without hearing from the control plane
    Lease(Lease),
    /// Remove an agent with its measurements and endpoints, and revoke its SVIDs
    Delete(Name),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name: 1 to 63 of a-z, 0-9 and '-'
    #[arg(value_name = "NAME", required_unless_present = "named")]
    name: Option<AgentName>,
    /// The same as NAME
    #[arg(long = "name", value_name = "NAME", conflicts_with = "name")]
    named: Option<AgentName>,
    /// Who answers for it
    #[arg(long, default_value = "")]
    owner: String,
    /// What it can do, for discovery
    #[arg(long, value_delimiter = ',', value_name = "A,B,…")]
    capabilities: Vec<String>,
    /// A label, by which policies select; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A scope of its manifest such as repo:read; repeatable
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only agents with this capability
    #[arg(long)]
    capability: Option<String>,
    /// Only agents with this label
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Option<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct Observe {
    /// The agent
    name: AgentName,
    /// Until policy is enforced again by itself, in seconds: at most 604800, a week
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 3_600,
        value_parser = clap::value_parser!(u64).range(1..=LONGEST_OBSERVE))]
    seconds: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Lease {
    /// The agent
    name: AgentName,
    /// Its length, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(kill::MIN_LEASE_SECONDS..=kill::MAX_LEASE_SECONDS))]
    seconds: u64,
    /// What happens at its end: `continue` until the SVID ends, or `deny` everything until the control plane is heard
    #[arg(long, value_parser = ["continue", "deny"])]
    on_lost: String,
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The agent
    name: AgentName,
}

/// `key=value`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

/// Registers an agent, and answers the control plane's word on it.
pub(crate) async fn create(admin: &Admin, document: &Value) -> Result<Value, crate::exit::Failure> {
    let what = format!("agent {} was not created", cell(&document["name"]));
    admin.send(Method::POST, "/v1/agents", Some(document), &what).await
}

fn path(name: &AgentName) -> String {
    format!("/v1/agents/{name}")
}

impl AgentVerb {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let admin = Admin::open(globals)?;
        match self {
            Self::Create(verb) => {
                let name = verb.name.clone().or_else(|| verb.named.clone());
                let answer = create(&admin, &verb.document(name.as_ref())).await?;
                let sentence = format!("agent {} is registered", cell(&json!(name)));
                return Ok(report(globals, &answer, &sentence));
            }
            Self::List(verb) => verb.perform(globals, &admin).await?,
            Self::Show(Name { name }) => {
                let mut agent = admin.get(&path(&name)).await?;
                let drifted = crate::drift::blocked(&admin).await?;
                let drifted = drifted.into_iter().find(|drift| drift["agent"] == name.as_str());
                if globals.json() {
                    agent["drift"] = json!(drifted);
                    output::json(&agent)
                } else {
                    show(&agent);
                    drifted.iter().for_each(|drift| output::line(crate::drift::line(drift)));
                }
            }
            Self::Observe(Observe { name, seconds }) => {
                let until = unix_now().saturating_add(seconds);
                let sentence = format!("policy is only observed at {name} until {}", timestamp(until));
                let mode = json!({ "kind": "observe", "until": until });
                return Ok(set(globals, &admin, &name, ("mode", mode), &sentence).await?);
            }
            Self::Lease(Lease { name, seconds, on_lost }) => {
                let sentence = format!("the lease of {name} is {seconds} s, then: {on_lost}");
                let lease = json!({ "seconds": seconds, "on_lost": on_lost });
                return Ok(set(globals, &admin, &name, ("lease", lease), &sentence).await?);
            }
            Self::Enforce(Name { name }) => {
                let sentence = format!("policy is enforced at {name}");
                let mode = json!({ "kind": "enforce" });
                return Ok(set(globals, &admin, &name, ("mode", mode), &sentence).await?);
            }
            Self::Delete(Name { name }) => {
                let what = format!("agent {name} was not deleted");
                let answer = admin.send(Method::DELETE, &path(&name), None, &what).await?;
                let sentence = format!("agent {name} is removed, its SVIDs are revoked");
                return Ok(report(globals, &answer, &sentence));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn set(
    globals: &Globals,
    admin: &Admin,
    name: &AgentName,
    (field, value): (&str, Value),
    sentence: &str,
) -> Result<ExitCode, Failure> {
    let path = path(name);
    let what = format!("the {field} of {name} was not changed");
    let held = admin.get(&path).await?;
    let mut document = inner(&held).clone();
    document[field] = value;
    let revision = held["revision"].as_u64().unwrap_or_default();
    let answer = admin.replace(&path, &document, revision, &what).await?;
    Ok(report(globals, &answer, sentence))
}

/// The answer to a change: the document for programs, a sentence with the revision for people. What waits for a second
/// person has not been done, and is told apart from what has.
pub(crate) fn report(globals: &Globals, answer: &Value, done: &str) -> ExitCode {
    let proposal = answer["proposal"].as_str();
    if globals.json() {
        output::json(answer);
    } else {
        match (proposal, answer["revision"].as_u64()) {
            (Some(id), _) => output::line(crate::policy::rollout::proposed(id)),
            (None, Some(revision)) => output::line(format!("{done} (revision {revision})")),
            (None, None) => output::line(done),
        }
    }
    proposal.map_or(ExitCode::SUCCESS, |_| Exit::Proposed.into())
}

/// The document inside an answer, which carries it together with its revision.
pub(crate) fn inner(answer: &Value) -> &Value {
    &answer["resource"]
}

fn show(answer: &Value) {
    let agent = inner(answer);
    for key in ["name", "owner", "labels", "capabilities", "generation"] {
        output::line(format!("{key:<14}{}", cell(&agent[key])));
    }
    let manifest = &agent["manifest"];
    let lease = agent["lease"]["seconds"].as_u64().map(|seconds| format!("{seconds} s"));
    for (key, value) in [
        ("mode", &agent["mode"]["kind"]),
        ("lease", &json!(lease)),
        ("on lost", &agent["lease"]["on_lost"]),
        ("protocol", &agent["protocol"]),
        ("host", &agent["host"]),
        ("trust level", &manifest["trust_level"]),
        ("scopes", &manifest["scopes"]),
    ] {
        output::line(format!("{key:<14}{}", cell(value)));
    }
    if let Some(revision) = answer["revision"].as_u64() {
        output::line(format!("{:<14}{revision}", "revision"));
    }
}

impl Create {
    fn document(&self, name: Option<&AgentName>) -> Value {
        let labels: serde_json::Map<_, _> = self.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let mut document = json!({
            "name": name, "owner": self.owner, "labels": labels, "capabilities": self.capabilities,
        });
        if !self.scopes.is_empty() {
            document["manifest"] = json!({ "scopes": self.scopes });
        }
        document
    }
}

impl List {
    fn wants(&self, agent: &Value) -> bool {
        let able = |wanted: &String| {
            agent["capabilities"]
                .as_array()
                .is_some_and(|c| c.contains(&json!(wanted)))
        };
        let labelled = |(key, value): &(String, String)| agent["labels"][key] == *value;
        self.capability.as_ref().is_none_or(able) && self.label.as_ref().is_none_or(labelled)
    }

    async fn perform(self, globals: &Globals, admin: &Admin) -> anyhow::Result<()> {
        let mut agents = admin.list("/v1/agents").await?;
        agents.retain(|agent| self.wants(inner(agent)));
        if globals.json() {
            output::json(&agents);
            return Ok(());
        }
        let mut table = Table::new(["NAME", "OWNER", "LABELS", "CAPABILITIES", "MODE", "GENERATION"]);
        for agent in &agents {
            let agent = inner(agent);
            table.row([
                cell(&agent["name"]),
                cell(&agent["owner"]),
                cell(&agent["labels"]),
                cell(&agent["capabilities"]),
                cell(&agent["mode"]["kind"]),
                cell(&agent["generation"]),
            ]);
        }
        table.print("no agents; `aip agent create NAME` registers one, `aip run` does so by itself");
        Ok(())
    }
}

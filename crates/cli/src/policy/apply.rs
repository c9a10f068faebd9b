//! `aip policy apply`: a policy from a file to every sidecar that it concerns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use aip_api::AgentName;
use aip_api::resource::{Attach, Policy, PolicyName};
use clap::Args;
use hyper::Method;

use super::diagnostics::{self, Place};
use super::file::PolicyFiles;
use super::rollout;
use crate::Globals;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The Rego module, `package aip.policy.<name>`
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The policy's name [default: the package's]
    #[arg(long, value_parser = super::name)]
    name: Option<PolicyName>,
    /// Its data, JSON or YAML [default: STEM.data.json or .data.yaml beside it]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Its tests [default: STEM_test.rego beside it]
    #[arg(long, value_name = "FILE")]
    tests: Option<PathBuf>,
    /// Whose hops it takes part in: `mesh`, `agent=NAME`, or `label=KEY=VALUE`; repeatable [default: as it is now, or
    /// the mesh]
    #[arg(long, value_name = "TO", value_parser = target)]
    attach: Vec<Target>,
    /// Replace the baseline, the policy that takes part in every hop: everything it held back is decided anew
    #[arg(long)]
    replace_baseline: bool,
    #[command(flatten)]
    wait: rollout::Wait,
}

/// One `--attach`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Mesh,
    Agent(AgentName),
    Label(String, String),
}

fn target(text: &str) -> Result<Target, String> {
    match text.split_once('=') {
        None if text == "mesh" => Ok(Target::Mesh),
        Some(("agent", name)) => name.parse().map(Target::Agent).map_err(|e| format!("{e}")),
        Some(("label", rest)) => crate::agent::label(rest).map(|(k, v)| Target::Label(k, v)),
        _ => Err("expected mesh, agent=NAME or label=KEY=VALUE".into()),
    }
}

/// The attachment that several `--attach` mean; `None` where there is none.
fn attachment(targets: &[Target]) -> Result<Option<Attach>, Failure> {
    let mixed = || {
        Failure::new(Exit::Usage, "--attach names targets of different kinds")
            .next("attach to the mesh, or to agents, or to labels")
    };
    let mut agents = Vec::new();
    let mut labels = BTreeMap::new();
    let mut mesh = false;
    for target in targets {
        match target {
            Target::Mesh => mesh = true,
            Target::Agent(name) => agents.push(name.clone()),
            Target::Label(key, value) => {
                labels.insert(key.clone(), value.clone());
            }
        }
    }
    match (mesh, agents.is_empty(), labels.is_empty()) {
        (false, true, true) => Ok(None),
        (true, true, true) => Ok(Some(Attach::Mesh)),
        (false, false, true) => Ok(Some(Attach::Agents(agents))),
        (false, true, false) => Ok(Some(Attach::Labels(labels))),
        _ => Err(mixed()),
    }
}

impl Apply {
    pub(super) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let name = self.name.as_ref().map(PolicyName::as_str);
        let files = PolicyFiles::read(&self.file, name, self.data.as_deref(), self.tests.as_deref())?;
        let attach = attachment(&self.attach)?;
        let admin = Admin::open(globals)?;
        let name = PolicyName::try_from(files.source.name.clone()).map_err(|e| {
            Failure::new(Exit::Invalid, format!("{} can't be applied", self.file.display())).why(e.message)
        })?;
        let path = format!("/v1/policies/{name}");
        let attach = match attach {
            Some(attach) => attach,
            None => held(&admin, &path).await?,
        };
        self.are_registered(&admin).await?;
        let source = files.source.clone();
        let policy = Policy {
            name,
            rego: source.rego,
            data: source.data,
            tests: source.tests,
            attach,
        };
        let what = format!("policy {} was not applied; what was in force stays", policy.name);
        let body = serde_json::to_value(&policy)?;
        let started = Instant::now();
        let replace = if self.replace_baseline {
            "?replace_baseline=true"
        } else {
            ""
        };
        let path = format!("{path}{replace}");
        let send = admin.send(Method::PUT, &path, Some(&body), &what);
        let answer = output::waiting("checking the policy", send)
            .await
            .map_err(|mut failure| {
                let errors = std::mem::take(&mut failure.errors);
                failure.why(diagnostics::render_fields(&errors, &Place::of(&files)))
            })?;
        let outcome = rollout::Outcome::of(&answer, &what)?;
        let sentence = if answer["unchanged"] == true {
            format!(
                "policy {}, {}, is unchanged: it stands",
                policy.name,
                attached(&policy.attach)
            )
        } else {
            format!("policy {}, {}, is stored", policy.name, attached(&policy.attach))
        };
        rollout::report(globals, &admin, &outcome, &sentence, started, &self.wait).await
    }
}

impl Apply {
    /// A name with a typo in it is nobody's, and the policy would hold nothing back.
    async fn are_registered(&self, admin: &Admin) -> Result<(), Failure> {
        for target in &self.attach {
            let Target::Agent(name) = target else { continue };
            if admin.find(&format!("/v1/agents/{name}")).await?.is_none() {
                let what = format!("the policy was not applied: no agent {name} is registered to attach it to");
                let next = format!("`aip agent list` shows who is; register it first: aip agent create {name}");
                return Err(Failure::new(Exit::NotFound, what).next(next));
            }
        }
        Ok(())
    }
}

/// Whose hops a policy takes part in.
fn attached(attach: &Attach) -> String {
    match attach {
        Attach::Mesh => "attached to the mesh".into(),
        Attach::Agents(agents) => {
            let names: Vec<_> = agents.iter().map(AgentName::as_str).collect();
            format!("attached to {}", names.join(", "))
        }
        Attach::Labels(labels) => {
            let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("attached to label {}", labels.join(", "))
        }
    }
}

/// What the policy of this name is attached to now; the mesh where there is none.
async fn held(admin: &Admin, path: &str) -> Result<Attach, Failure> {
    let answer = admin.find(path).await?;
    let attach = answer.as_ref().map(|a| crate::agent::inner(a)["attach"].clone());
    Ok(attach.and_then(|a| serde_json::from_value(a).ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_not_mixed() {
        let parse = |list: &[&str]| list.iter().map(|t| target(t).unwrap()).collect::<Vec<_>>();
        assert_eq!(attachment(&[]).unwrap(), None);
        assert_eq!(attachment(&parse(&["mesh"])).unwrap(), Some(Attach::Mesh));
        let agents = attachment(&parse(&["agent=a", "agent=b"])).unwrap();
        assert_eq!(
            agents,
            Some(Attach::Agents(vec!["a".parse().unwrap(), "b".parse().unwrap()]))
        );
        let labels = attachment(&parse(&["label=tier=gold"])).unwrap();
        assert_eq!(
            labels,
            Some(Attach::Labels(BTreeMap::from([("tier".into(), "gold".into())])))
        );
        assert_eq!(attachment(&parse(&["mesh", "agent=a"])).unwrap_err().exit, Exit::Usage);
        for bad in ["", "agents=a", "agent=A", "label=x"] {
            assert!(target(bad).is_err(), "{bad:?}");
        }
    }
}

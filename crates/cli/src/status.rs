//! `aip status`: who runs what, and since which revision.

use std::process::ExitCode;

use aip_runtime::unix_now;
use clap::Args;
use serde_json::{Value, json};

use crate::Globals;
use crate::agent::inner;
use crate::client::Admin;
use crate::drift;
use crate::output::{self, Table, cell, counted, span};

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Fail unless every agent has a sidecar that holds the current revision
    #[arg(long)]
    check: bool,
}

/// What is read for the status: the mesh, its sidecars, its agents.
struct Read {
    mesh: Value,
    status: Value,
    sidecars: Vec<Value>,
    agents: Vec<Value>,
    drifted: Vec<Value>,
    /// Sidecars, as far as orders to stop are concerned.
    kills: Vec<Value>,
}

impl Status {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let admin = Admin::open(globals)?;
        let mut status = admin.get("/v1/status").await?;
        let sidecars = status.as_object_mut().and_then(|s| s.remove("sidecars"));
        let read = Read {
            mesh: admin.get("/v1/mesh").await?,
            status,
            sidecars: sidecars
                .and_then(|s| serde_json::from_value(s).ok())
                .unwrap_or_default(),
            agents: admin.list("/v1/agents").await?,
            drifted: drift::blocked(&admin).await?,
            kills: serde_json::from_value(admin.get("/v1/kills/sidecars").await?["items"].take()).unwrap_or_default(),
        };
        if globals.json() {
            let Read {
                mesh,
                status,
                sidecars,
                agents,
                drifted,
                kills,
            } = &read;
            output::json(&json!({
                "mesh": mesh, "status": status, "sidecars": sidecars, "agents": agents, "drifted": drifted,
                "kills": kills,
            }));
        } else {
            read.print();
        }
        let behind = read.behind();
        if self.check && !behind.is_empty() {
            use crate::exit::{Exit, Failure};
            let mut failure = Failure::new(Exit::Failed, "not every agent is served and up to date");
            for line in behind {
                failure = failure.why(line);
            }
            return Err(failure.into());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Read {
    fn print(&self) {
        let status = &self.status;
        output::line(format!(
            "mesh {} ({})   revision {}   {}, {}",
            cell(&self.mesh["trust_domain"]),
            cell(&self.mesh["mode"]),
            cell(&status["revision"]),
            counted(self.agents.len() as u64, "agent"),
            running(&self.sidecars),
        ));
        match status["approvals"].as_u64() {
            None | Some(0) => {}
            Some(1) => output::line("1 change waits for a second person: aip approvals list"),
            Some(n) => output::line(format!("{n} changes wait for a second person: aip approvals list")),
        }
        self.restored().into_iter().for_each(output::line);
        if self.agents.is_empty() {
            output::note("no agents; `aip run --name NAME -- CMD…` brings the first");
            return;
        }
        let mut table = Table::new([
            "AGENT",
            "SIDECAR",
            "REVISION",
            "MODE",
            "ASSURANCE",
            "ENFORCEMENT",
            "IDENTITY",
            "NACKS",
            "ORDERS",
            "RUNS UNHEARD",
            "UNREACHABLE",
        ]);
        for agent in &self.agents {
            let agent = inner(agent);
            let mine: Vec<&Value> = self.sidecars.iter().filter(|s| s["agent"] == agent["name"]).collect();
            for sidecar in &mine {
                table.row(self.row(agent, sidecar));
            }
            if mine.is_empty() {
                table.row(self.row(agent, &Value::Null));
            }
        }
        output::line("");
        output::line(table.render());
        for nack in self.nacks() {
            output::line(format!("  {nack}"));
        }
        for drifted in &self.drifted {
            output::line(format!("  {}", drift::line(drifted)));
        }
        for line in self.over(unix_now()) {
            output::line(format!("  {line}"));
        }
    }

    /// Agents none of whose sidecars is here, and whose SVIDs have ended: nothing but a join token brings one back.
    fn over(&self, now: u64) -> Vec<String> {
        let is_over = |name: &Value| {
            let mut own = self.sidecars.iter().filter(|s| s["agent"] == *name).peekable();
            own.peek().is_some()
                && own.all(|s| !is_connected(s) && s["ended"] != true && expires(s).is_some_and(|at| at <= now))
        };
        let names = self.agents.iter().map(|agent| &inner(agent)["name"]);
        names
            .filter(|name| is_over(name))
            .map(|name| {
                let name = cell(name);
                format!(
                    "{name}: its SVID has ended; `aip run` gets it another by itself, unless it was revoked, and any other sidecar takes a new \
                     join token: aip token create {name}"
                )
            })
            .collect()
    }

    /// The row of one sidecar; of an agent that drifted, no identity counts.
    fn row(&self, agent: &Value, sidecar: &Value) -> [String; 11] {
        let kill = self
            .kills
            .iter()
            .find(|k| !sidecar.is_null() && k["instance"] == sidecar["instance"]);
        let [orders, unheard, unreachable] = stops(kill.unwrap_or(&Value::Null));
        let [name, instance, revision, mode, assurance, enforcement, identity, nacks] = row(agent, sidecar);
        let mut row = [
            name,
            instance,
            revision,
            mode,
            assurance,
            enforcement,
            identity,
            nacks,
            orders,
            unheard,
            unreachable,
        ];
        if self.drifted.iter().any(|drift| drift["agent"] == agent["name"]) {
            row[6] = "drifted".into();
        }
        row
    }

    fn nacks(&self) -> Vec<String> {
        let of = |sidecar: &Value| -> Vec<String> {
            let agent = cell(&sidecar["agent"]);
            let nacks = sidecar["nacks"].as_array().into_iter().flatten();
            nacks
                .map(|r| {
                    format!(
                        "{agent} refused {}/{} at revision {}: {} ({})",
                        cell(&r["kind"]),
                        cell(&r["name"]),
                        cell(&r["revision"]),
                        cell(&r["detail"]),
                        cell(&r["reason"])
                    )
                })
                .collect()
        };
        self.sidecars.iter().flat_map(of).collect()
    }

    /// That the control plane was restored from an older copy, and what to do about it.
    fn restored(&self) -> Option<String> {
        let ahead = self.status["restored"].as_array().filter(|all| !all.is_empty())?;
        let seen: Vec<String> = ahead
            .iter()
            .map(|one| format!("{} has seen {}", cell(&one["agent"]), cell(&one["seen"])))
            .collect();
        Some(format!(
            "this control plane was restored from an older copy, and sidecars take nothing from it: {}; it is at {}\n    \
             next: aip admin lift, before anything is changed (docs/operations.md says what a copy has forgotten)",
            seen.join(", "),
            cell(&self.status["pushed"])
        ))
    }

    /// Agents without a sidecar, sidecars that lag or refused something.
    fn behind(&self) -> Vec<String> {
        let mut lines = self.nacks();
        lines.extend(self.restored());
        lines.extend(self.drifted.iter().map(drift::line));
        for agent in &self.agents {
            let name = &inner(agent)["name"];
            if !self.sidecars.iter().any(|s| s["agent"] == *name && is_connected(s)) {
                lines.push(format!("{} has no connected sidecar", cell(name)));
            }
        }
        let pushed = self.status["pushed"].as_u64();
        for sidecar in self.sidecars.iter().filter(|s| is_connected(s)) {
            if sidecar["revision"].as_u64() < pushed {
                lines.push(format!("the sidecar of {} is behind", cell(&sidecar["agent"])));
            }
        }
        lines
    }
}

/// When its SVID ends, Unix seconds.
fn expires(sidecar: &Value) -> Option<u64> {
    let attested = sidecar["identity"]["not_after"].as_u64();
    attested.or_else(|| sidecar["not_after"].as_u64())
}

fn is_connected(sidecar: &Value) -> bool {
    sidecar["connected"] == true
}

/// What became of a sidecar that is not connected: only one that said so has certainly ended.
fn gone(sidecar: &Value) -> &'static str {
    match sidecar["ended"] == true {
        true => "ended",
        false => "out of reach",
    }
}

/// How many sidecars run, and apart from them those that were there lately.
fn running(sidecars: &[Value]) -> String {
    let (here, away): (Vec<&Value>, Vec<&Value>) = sidecars.iter().partition(|sidecar| is_connected(sidecar));
    let mut said = format!("{} connected", counted(here.len() as u64, "sidecar"));
    for what in ["out of reach", "ended"] {
        match away.iter().filter(|sidecar| gone(sidecar) == what).count() {
            0 => {}
            count => said += &format!(", {count} {what}"),
        }
    }
    said
}

fn row(agent: &Value, sidecar: &Value) -> [String; 8] {
    // UUIDv7: the last digits tell two apart, the first ones are the time.
    let instance = cell(&sidecar["instance"]);
    let instance = instance
        .rsplit_once('-')
        .filter(|(_, last)| !last.is_empty())
        .map_or(instance.as_str(), |(_, last)| last)
        .to_owned();
    let identity = match expires(sidecar).map(|at| at.checked_sub(unix_now())) {
        Some(Some(left)) => format!("{} left", span(left)),
        Some(None) => "expired".into(),
        None => "-".into(),
    };
    [
        cell(&agent["name"]),
        if sidecar.is_null() || is_connected(sidecar) {
            instance
        } else {
            format!("{instance} ({})", gone(sidecar))
        },
        cell(&sidecar["revision"]),
        mode(&agent["mode"]),
        cell(&sidecar["assurance"]),
        cell(&sidecar["enforcement"]),
        identity,
        sidecar["nacks"].as_array().map_or("-".into(), |r| r.len().to_string()),
    ]
}

/// What it has enforced (term and epoch), how long it may go on unheard and what stops it then, and for how long it has
/// been out of reach.
fn stops(kill: &Value) -> [String; 3] {
    let enforced = match (kill["enforced"][0].as_u64(), kill["enforced"][1].as_u64()) {
        (Some(term), Some(epoch)) => format!("{term}.{epoch}"),
        _ => "-".into(),
    };
    let now = unix_now();
    let unheard = match kill["runs_until"].as_u64() {
        Some(until) => format!("{} ({})", span(until.saturating_sub(now)), cell(&kill["stopped_how"])),
        None => "-".into(),
    };
    let since = kill["unreachable_since"].as_u64();
    let unreachable = since.map_or_else(|| "-".into(), |since| span(now.saturating_sub(since)));
    [enforced, unheard, unreachable]
}

fn mode(mode: &Value) -> String {
    match mode["until"].as_u64() {
        Some(until) => match until.checked_sub(unix_now()) {
            None | Some(0) => "enforce".into(),
            Some(left) => format!("observe, {} left", span(left)),
        },
        None => cell(&mode["kind"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_store_is_said_with_the_command_that_lifts_it() {
        let read = |restored: Value| Read {
            mesh: Value::Null,
            status: json!({ "restored": restored, "pushed": 7 }),
            sidecars: Vec::new(),
            agents: Vec::new(),
            drifted: Vec::new(),
            kills: Vec::new(),
        };
        assert_eq!(read(json!([])).restored(), None);
        let said = read(json!([{ "agent": "planner", "seen": 90 }])).behind();
        let said = said.first().expect("it is not up to date");
        for part in ["planner has seen 90", "it is at 7", "aip admin lift"] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn sidecars_that_ended_are_counted_apart_from_those_that_run() {
        let sidecar = |connected: bool, ended: bool| json!({ "connected": connected, "ended": ended });
        let all = [
            (true, false),
            (false, true),
            (false, false),
            (true, false),
            (false, true),
        ];
        let all = all.map(|(connected, ended)| sidecar(connected, ended));
        assert_eq!(running(&all), "2 sidecars connected, 1 out of reach, 2 ended");
        assert_eq!(running(&all[..1]), "1 sidecar connected");
        assert_eq!(running(&[]), "0 sidecars connected");
    }
    #[test]
    fn an_agent_whose_svid_has_ended_is_said_with_what_brings_it_back() {
        let read = |sidecars: Value| Read {
            mesh: Value::Null,
            status: Value::Null,
            sidecars: sidecars.as_array().cloned().unwrap_or_default(),
            agents: vec![
                json!({ "resource": { "name": "planner" } }),
                json!({ "resource": { "name": "writer" } }),
            ],
            drifted: Vec::new(),
            kills: Vec::new(),
        };
        let sidecar = |connected: bool, ended: bool, at: u64| json!({ "agent": "planner", "connected": connected, "ended": ended, "not_after": at });
        let none = [
            json!([]),
            json!([sidecar(true, false, 10)]),
            json!([sidecar(false, true, 10)]),
            json!([sidecar(false, false, 11)]),
            json!([sidecar(false, false, 10), sidecar(true, false, 20)]),
        ];
        for sidecars in none {
            assert_eq!(read(sidecars.clone()).over(10), [""; 0], "{sidecars}");
        }
        let said = read(json!([sidecar(false, false, 10)])).over(10);
        assert!(
            matches!(&said[..], [one] if one.ends_with("aip token create planner")),
            "{said:?}"
        );
    }
}

//! `aip kill` and `aip resume`: stop agents, tools or the whole mesh, and let them go on.

mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use aip_api::AgentName;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::Globals;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::output::{self, Table, cell, span, timestamp};
use crate::policy::rollout;

/// How long `--wait` waits where no number is given.
const WAIT_SECONDS: &str = "30";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Kill {
    #[command(subcommand)]
    verb: Option<KillVerb>,
    #[command(flatten)]
    scope: Scope,
    /// Why: callers see it
    #[arg(long, required = true, value_parser = why)]
    reason: Option<String>,
    /// Answer new requests 503 with Retry-After, and let go on what is open
    #[arg(long)]
    pause: bool,
    /// How long to pause, such as 90s, 10m or 2h; else until it is resumed
    #[arg(long = "for", value_name = "TIME", requires = "pause", value_parser = duration)]
    seconds: Option<u64>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Subcommand)]
enum KillVerb {
    /// List the orders in force
    List,
    /// Who has enforced the orders in force, and by when the others have certainly stopped
    Progress(Wait),
}

/// Whom an order stops.
#[derive(Debug, Args)]
#[group(id = "scope", required = true, multiple = true)]
struct Scope {
    /// One agent: calls to it and from it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["selector", "pair"])]
    agent: Option<AgentName>,
    /// Agents that have all of these labels
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',', value_parser = crate::agent::label, conflicts_with_all = ["tool", "pair"])]
    selector: Vec<(String, String)>,
    /// One tool or skill: of --agent, or of every agent
    #[arg(long, value_name = "NAME", conflicts_with = "pair")]
    tool: Option<String>,
    /// Calls of one agent to another
    #[arg(long, value_name = "SOURCE:DESTINATION", value_parser = pair)]
    pair: Option<(AgentName, AgentName)>,
    /// The whole mesh
    #[arg(long, conflicts_with_all = ["agent", "selector", "tool", "pair"])]
    mesh: bool,
}

/// Whether to wait for the sidecars.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wait {
    /// Wait until every sidecar has enforced it, at most this long, and say who has and who has not [default: 30 where
    /// no number is given]
    #[arg(long = "wait", value_name = "SECONDS", num_args = 0..=1, default_missing_value = WAIT_SECONDS)]
    wait: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The orders, as `aip kill list` shows them
    #[arg(value_name = "ORDER", required_unless_present_any = ["all", "agent"])]
    orders: Vec<String>,
    /// Every order on this agent itself; those on its tools stay
    #[arg(long, value_name = "NAME", conflicts_with = "orders")]
    agent: Option<AgentName>,
    /// Every order in force
    #[arg(long, conflicts_with_all = ["orders", "agent"])]
    all: bool,
    #[command(flatten)]
    wait: Wait,
}

/// `90`, `90s`, `10m`, `2h`, `1d`, in seconds.
fn duration(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(['s', 'm', 'h', 'd']);
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => 0,
    };
    let seconds = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    seconds
        .filter(|s| *s > 0)
        .ok_or_else(|| "expected a time such as 90s, 10m or 2h".into())
}

/// A reason that is asked for: one that says something.
pub(crate) fn why(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err("it is blank: say why, for those who read it later".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// `source:destination`.
fn pair(text: &str) -> Result<(AgentName, AgentName), String> {
    let (source, destination) = text.split_once(':').ok_or("expected SOURCE:DESTINATION")?;
    let name = |text: &str| text.parse::<AgentName>().map_err(|e| e.to_string());
    Ok((name(source)?, name(destination)?))
}

impl Scope {
    /// A label that is asked for twice: an agent has one value of it, so that one of the two would be lost.
    fn twice(&self) -> Option<&str> {
        let mut seen = BTreeSet::new();
        let again = self.selector.iter().find(|(label, _)| !seen.insert(label));
        again.map(|(label, _)| label.as_str())
    }

    /// What of it no registered agent has, if that is so: a name that is mistyped stops nobody.
    async fn unmet(&self, admin: &Admin) -> Result<Option<String>, Failure> {
        let (source, destination) = self.pair.clone().unzip();
        for name in [&self.agent, &source, &destination].into_iter().flatten() {
            if admin.find(&format!("/v1/agents/{name}")).await?.is_none() {
                return Ok(Some(format!("no agent is called {name}")));
            }
        }
        if self.selector.is_empty() {
            return Ok(None);
        }
        let agents = admin.list("/v1/agents").await?;
        let has = |agent: &Value| {
            self.selector
                .iter()
                .all(|(label, value)| agent["labels"][label] == json!(value))
        };
        let met = agents.iter().any(|agent| has(crate::agent::inner(agent)));
        Ok((!met).then(|| "no agent has these labels".to_owned()))
    }

    fn document(&self) -> Value {
        let Self {
            agent,
            selector,
            tool,
            pair,
            ..
        } = self;
        match (agent, tool, pair) {
            (agent, Some(tool), _) => match agent {
                Some(agent) => json!({ "kind": "tool", "agent": agent, "tool": tool }),
                None => json!({ "kind": "tool", "tool": tool }),
            },
            (Some(agent), ..) => json!({ "kind": "agent", "agent": agent }),
            (_, _, Some((source, destination))) => {
                json!({ "kind": "pair", "source": source, "destination": destination })
            }
            _ if !selector.is_empty() => {
                let labels: BTreeMap<_, _> = selector.iter().cloned().collect();
                json!({ "kind": "selector", "labels": labels })
            }
            _ => json!({ "kind": "mesh" }),
        }
    }
}

impl Kill {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let admin = Admin::open(globals)?;
        match self.verb {
            Some(KillVerb::List) => {
                list(globals, &admin).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(KillVerb::Progress(wait)) => {
                let wait = Duration::from_secs(wait.wait.unwrap_or(0));
                return Ok(code(progress::show(globals, &admin, json!({}), wait).await?, false));
            }
            None => {}
        }
        if let Some(label) = self.scope.twice() {
            return Err(
                Failure::new(Exit::Usage, format!("the label {label} is asked for twice"))
                    .next("no agent has two values of one label: an order for each")
                    .into(),
            );
        }
        let mut order = json!({
            "scope": self.scope.document(),
            "mode": if self.pause { "pause" } else { "kill" },
            "reason": self.reason,
        });
        if let Some(seconds) = self.seconds {
            order["seconds"] = json!(seconds);
        }
        let what = "nothing was stopped";
        let answer = admin.send(Method::POST, "/v1/kills", Some(&order), what).await?;
        let done = match self.pause {
            true => "paused",
            false => "stopped",
        };
        let ended = said(globals, &admin, answer, done, &self.wait).await?;
        // Ordered first: whoever stops something is in a hurry. Not known is not said.
        let unmet = self.scope.unmet(&admin).await.ok().flatten();
        if let Some(unmet) = &unmet {
            let stands = match ended {
                Some(Exit::Proposed) => "the order is proposed",
                _ => "the order stands",
            };
            output::note(format!(
                "warning: {unmet}: {stands}, and stops whoever joins so; `aip kill list`, `aip resume ORDER`"
            ));
        }
        Ok(code(ended, unmet.is_some()))
    }
}

impl Resume {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let admin = Admin::open(globals)?;
        let orders = match (self.all, &self.agent) {
            (false, None) => self.orders.clone(),
            (_, agent) => {
                let on_it = |order: &&Value| agent.as_ref().is_none_or(|agent| is_on(order, agent));
                let all = admin.get("/v1/kills").await?;
                let items = all["items"].as_array().into_iter().flatten();
                items.filter(on_it).map(|order| cell(&order["id"])).collect()
            }
        };
        if orders.is_empty() {
            return Err(Failure::new(Exit::NotFound, "nothing is stopped")
                .next("aip kill list")
                .into());
        }
        let (body, what) = (json!({ "orders": orders }), "nothing was resumed");
        let answer = admin.send(Method::POST, "/v1/kills/resume", Some(&body), what).await;
        let answer = answer.map_err(|failure| match failure.exit {
            Exit::NotFound => failure.next("`aip kill list` shows the orders in force"),
            _ => failure,
        })?;
        Ok(code(said(globals, &admin, answer, "resumed", &self.wait).await?, false))
    }
}

/// The exit code: that it only waits for a second person, or that somebody has not enforced it, weighs more than that nobody
/// is met.
fn code(ended: Option<Exit>, unmet: bool) -> ExitCode {
    let unmet = unmet.then_some(Exit::NotFound);
    ended.or(unmet).map_or(ExitCode::SUCCESS, ExitCode::from)
}

/// Whether an order stops this agent itself: not one of its tools, which stays stopped by its own order.
fn is_on(order: &Value, agent: &AgentName) -> bool {
    order["scope"]["kind"] == "agent" && order["scope"]["agent"] == json!(agent)
}

/// Says what came of a change, and waits for the sidecars where that was asked for; answers what it ends with, where that is not
/// success.
async fn said(
    globals: &Globals,
    admin: &Admin,
    answer: Value,
    done: &str,
    wait: &Wait,
) -> Result<Option<Exit>, Failure> {
    if let Some(id) = answer["proposal"].as_str() {
        match globals.json() {
            true => output::json(&answer),
            false => output::line(rollout::proposed(id)),
        }
        // Nothing is stopped or resumed yet, and scripts must not take it for done.
        return Ok(Some(Exit::Proposed));
    }
    if !globals.json() {
        let order = answer["order"]
            .as_str()
            .map(|id| format!(", order {id}"))
            .unwrap_or_default();
        let (term, epoch) = (cell(&answer["term"]), cell(&answer["epoch"]));
        output::line(format!("{done}{order} (term {term}, epoch {epoch})"));
    }
    match wait.wait {
        Some(seconds) => progress::show(globals, admin, answer, Duration::from_secs(seconds)).await,
        None => {
            if globals.json() {
                output::json(&answer);
            }
            Ok(None)
        }
    }
}

async fn list(globals: &Globals, admin: &Admin) -> anyhow::Result<()> {
    let kills = admin.get("/v1/kills").await?;
    if globals.json() {
        output::json(&kills);
        return Ok(());
    }
    let mut table = Table::new(["ORDER", "MODE", "STOPS", "REASON", "BY", "SINCE", "ENDS"]);
    for order in kills["items"].as_array().into_iter().flatten() {
        let ends = order["expires"]
            .as_u64()
            .map(|at| at.saturating_sub(aip_runtime::unix_now()));
        table.row([
            cell(&order["id"]),
            cell(&order["mode"]),
            scope(&order["scope"]),
            cell(&order["reason"]),
            cell(&order["issued_by"]),
            order["issued_at"].as_u64().map_or("-".into(), timestamp),
            ends.map_or("when resumed".into(), |left| format!("in {}", span(left))),
        ]);
    }
    table.print("nothing is stopped");
    Ok(())
}

/// A scope in words.
fn scope(document: &Value) -> String {
    let scope = serde_json::from_value::<aip_api::kill::Scope>(document.clone());
    scope.map_or_else(|_| cell(document), |scope| scope.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_an_agent_leaves_its_tools_stopped() {
        let agent = "a".parse().unwrap();
        assert!(is_on(&json!({ "scope": { "kind": "agent", "agent": "a" } }), &agent));
        for scope in [
            json!({ "kind": "tool", "agent": "a", "tool": "t" }),
            json!({ "kind": "agent", "agent": "b" }),
            json!({ "kind": "mesh" }),
        ] {
            assert!(!is_on(&json!({ "scope": scope }), &agent));
        }
    }

    #[test]
    fn an_order_says_whom_it_stops_and_each_label_once() {
        let told = |args: &[&str]| {
            let command = Kill::augment_args(clap::Command::new("kill"));
            let found = command.try_get_matches_from([&["kill", "--reason", "x"], args].concat());
            found.map(|found| <Kill as clap::FromArgMatches>::from_arg_matches(&found).unwrap())
        };
        for blank in ["", " \t\n"] {
            assert!(why(blank).is_err(), "{blank:?}");
        }
        let missing = told(&[]).unwrap_err().to_string();
        assert!(
            missing.contains("--agent <NAME>") && missing.contains("--mesh"),
            "{missing}"
        );
        let twice = told(&["--selector", "tier=beta,tier=none"]).unwrap();
        assert_eq!(twice.scope.twice(), Some("tier"));
        let once = told(&["--selector", "tier=beta,zone=a"]).unwrap();
        assert_eq!(once.scope.twice(), None);
    }

    #[test]
    fn what_is_only_proposed_or_not_enforced_is_not_hidden_by_whom_it_meets() {
        let said = |ended, unmet| format!("{:?}", code(ended, unmet));
        let is = |exit: Exit| format!("{:?}", ExitCode::from(exit));
        assert_eq!(said(Some(Exit::Proposed), true), is(Exit::Proposed));
        assert_eq!(said(Some(Exit::TimedOut), true), is(Exit::TimedOut));
        assert_eq!(said(None, true), is(Exit::NotFound));
        assert_eq!(said(None, false), format!("{:?}", ExitCode::SUCCESS));
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(
            (duration("90"), duration("10m"), duration("2h")),
            (Ok(90), Ok(600), Ok(7_200))
        );
        for wrong in ["", "m", "0s", "-1s", "10 m", "10mm", "1w"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}

//! `aip call`: a policy-checked call through a running sidecar, and what the mesh decided about it.

mod decision;
mod proxy;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aip_api::AgentName;
use aip_api::problem::{CONTENT_TYPE, Problem};
use bytes::Bytes;
use clap::Args;
use hyper::{Method, Response};
use serde_json::{Value, json};

pub(crate) use decision::{Decision, decision, decisions};
pub(crate) use proxy::Proxy;

use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::http::HttpError;
use crate::run::state::{Phase, State};
use crate::{Globals, output, process};

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// The agent that is called
    name: AgentName,
    /// The path and query
    #[arg(default_value = "/")]
    path: String,
    /// The agent in whose name it is called: one that `aip run` runs here [default: the only one, or the first]
    #[arg(long, value_name = "AGENT")]
    from: Option<AgentName>,
    /// The method [default: GET, or POST with --data]
    #[arg(short = 'X', long, value_name = "METHOD")]
    method: Option<Method>,
    /// The body; @FILE reads it from a file
    #[arg(short, long, value_name = "TEXT|@FILE")]
    data: Option<String>,
    /// A header; repeatable
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The caller's sidecar as a proxy URL, instead of --from
    #[arg(long, value_name = "URL", conflicts_with = "from")]
    proxy: Option<String>,
    /// How long the answer, and then each part of it, may take, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

/// The states of the agents that run here.
pub(crate) fn running(home: &Home) -> Vec<State> {
    let here = here(home);
    let ready = here
        .into_iter()
        .filter(|s| s.phase == Phase::Ready && s.outbound.is_some());
    ready.collect()
}

/// The states of all whose `aip run` is there: a supervisor that was killed left its state behind.
fn here(home: &Home) -> Vec<State> {
    let states = home.agent_states().into_iter();
    let states = states.filter_map(|s| serde_json::from_value::<State>(s).ok());
    states.filter(|s| process::is_alive(s.supervisor)).collect()
}

/// Why nobody can make the call.
fn nobody(here: &[State], from: Option<&AgentName>) -> Failure {
    let so = "so nobody can make the call";
    let mut wanted = here.iter().filter(|s| from.is_none_or(|from| s.name == *from));
    if let Some(stopped) = wanted.clone().find(|s| s.phase == Phase::Stopped) {
        let what = format!("agent {} is stopped by an order, {so}", stopped.name);
        return Failure::new(Exit::Refused, what).next("`aip kill list` shows the orders, `aip resume` takes one back");
    }
    if let Some(drifted) = wanted.find(|s| s.phase == Phase::Drifted) {
        let what = format!("agent {} drifted, {so}", drifted.name);
        return Failure::new(Exit::Refused, what).next("`aip status` says what changed and what to do");
    }
    let who = from.map_or("no agent runs".to_owned(), |name| {
        format!("agent {name} does not run (or is still starting)")
    });
    Failure::new(Exit::NotReachable, format!("{who} here, {so}"))
        .next("start one with `aip run --name NAME -- CMD…`, or pass --proxy")
}

impl Call {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let home = globals.home()?;
        let (proxy, from) = match &self.proxy {
            Some(url) => (Proxy::of_url(url)?, None),
            None => self.caller(&home)?,
        };
        let trust_domain = match Admin::open(globals) {
            Ok(admin) => admin
                .get("/v1/mesh")
                .await
                .ok()
                .and_then(|m| m["trust_domain"].as_str().map(str::to_owned)),
            Err(_) => None,
        };
        let trust_domain = trust_domain.unwrap_or_else(|| aip_api::name::DEFAULT_TRUST_DOMAIN.to_owned());
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        let url = format!("http://{}.{trust_domain}{slash}{}", self.name, self.path);
        let body = self.body()?;
        let method = self
            .method
            .clone()
            .unwrap_or(if body.is_some() { Method::POST } else { Method::GET });
        let headers = self.headers(body.is_some())?;
        let started = Instant::now();
        let deadline = Duration::from_secs(self.timeout);
        let json = globals.json();
        let mut printed = output::Printed::new();
        let mut part = |bytes: &[u8]| {
            if !json {
                printed.part(bytes);
            }
        };
        let sent = proxy.send(
            method.clone(),
            &url,
            &headers,
            body.unwrap_or_default(),
            deadline,
            &mut part,
        );
        let answer = sent.await.map_err(|e| {
            let exit = if matches!(e, HttpError::Timeout) {
                Exit::TimedOut
            } else {
                Exit::NotReachable
            };
            Failure::new(exit, format!("no answer from the sidecar at {}", proxy.address))
                .why(e.to_string())
                .next("is the agent still running? `aip status` shows the sidecars")
        })?;
        let took = started.elapsed();
        report(globals, &format!("{method} {url}"), from.as_ref(), &answer, took)
    }

    fn caller(&self, home: &Home) -> Result<(Proxy, Option<AgentName>), Failure> {
        let running = running(home);
        let state = match &self.from {
            Some(name) => running.iter().find(|s| s.name == *name),
            // An agent that calls itself shows little; another one, where there is one, shows a hop.
            None => running.iter().find(|s| s.name != self.name).or_else(|| running.first()),
        };
        let state = state.ok_or_else(|| nobody(&here(home), self.from.as_ref()))?;
        let proxy = Proxy::of_state(state).ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!("{} can't be read", state.proxy_secret_file.display()),
            )
        })?;
        Ok((proxy, Some(state.name.clone())))
    }

    fn body(&self) -> Result<Option<Bytes>, Failure> {
        let Some(data) = &self.data else { return Ok(None) };
        let Some(path) = data.strip_prefix('@') else {
            return Ok(Some(Bytes::from(data.clone())));
        };
        let path = PathBuf::from(path);
        let read = std::fs::read(&path).map_err(|e| {
            Failure::new(Exit::Usage, format!("--data @{} can't be read", path.display())).why(e.to_string())
        })?;
        Ok(Some(read.into()))
    }

    fn headers(&self, has_body: bool) -> Result<Vec<(String, String)>, Failure> {
        let mut headers = Vec::new();
        for header in &self.headers {
            let (name, value) = header.split_once(':').ok_or_else(|| {
                Failure::new(Exit::Usage, format!("--header {header:?} has no colon")).next("write it as 'Name: value'")
            })?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        if has_body
            && !headers
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
        {
            headers.push(("content-type".into(), "application/json".into()));
        }
        Ok(headers)
    }
}

/// The mesh's own answer, where it is one and not the agent's: a problem document, or one in a JSON-RPC error.
pub(crate) fn problem(answer: &Response<Bytes>) -> Option<Problem> {
    let content = answer.headers().get("content-type")?.to_str().ok()?;
    if content.starts_with(CONTENT_TYPE) {
        return serde_json::from_slice(answer.body()).ok();
    }
    let mut body: Value = serde_json::from_slice(answer.body()).ok()?;
    let problem: Problem = serde_json::from_value(body.get_mut("error")?.get_mut("data")?.take()).ok()?;
    problem.kind.starts_with("urn:aip:reason:").then_some(problem)
}

fn report(
    globals: &Globals,
    what: &str,
    from: Option<&AgentName>,
    answer: &Response<Bytes>,
    took: Duration,
) -> anyhow::Result<ExitCode> {
    let decisions = decisions(answer.headers());
    let problem = problem(answer);
    let refused = decisions
        .iter()
        .any(|d| d.verdict == "deny" || d.verdict == "escalate" || d.verdict == "warn");
    let text = String::from_utf8_lossy(answer.body()).into_owned();
    let ms = (took.as_secs_f64() * 10_000.0).round() / 10.0;
    if globals.json() {
        let body = serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text));
        let list: Vec<Value> = decisions
            .iter()
            .map(|d| json!({ "id": d.id, "verdict": d.verdict, "end": d.end }))
            .collect();
        output::json(&json!({
            "request": what, "from": from, "status": answer.status().as_u16(), "ms": ms, "decisions": list,
            "problem": problem, "body": body,
        }));
    } else {
        if !text.is_empty() && !text.ends_with('\n') {
            output::line("");
        }
        let from = from.map(|f| format!(" as {f}")).unwrap_or_default();
        output::note(format!("{what}{from}: {} in {ms} ms", answer.status()));
        for d in &decisions {
            output::note(format!("  {:<6} at the {:<7} decision {}", d.verdict, d.end, d.id));
        }
    }
    let Some(problem) = problem else {
        return match refused {
            true => Err(Failure::new(Exit::Refused, format!("{what} was refused")).into()),
            false => Ok(ExitCode::SUCCESS),
        };
    };
    let mut failure = Failure::of_problem(&format!("{what} was not answered by the agent"), &problem);
    failure.exit = exit(&problem);
    Err(failure.into())
}

/// Reasons of a 503 that are a decision: the mesh answered, and the answer is no.
const DECIDED: [&str; 4] = ["killed", "paused", "drifted", "lease_lost"];

fn exit(problem: &Problem) -> Exit {
    match problem.status {
        502..=504 if !DECIDED.contains(&problem.reason.as_str()) => Exit::NotReachable,
        404 => Exit::NotFound,
        _ => Exit::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str, phase: &str) -> State {
        let state = json!({
            "name": name, "phase": phase, "supervisor": 1, "sidecar": null, "agent": null, "address": null, "inbound": null,
            "outbound": null, "admin": null, "probes": null, "proxy_secret_file": "", "sidecar_log": "", "sidecar_restarts": 0,
        });
        serde_json::from_value(state).unwrap()
    }

    #[test]
    fn who_is_stopped_is_not_said_to_be_gone() {
        let alpha: AgentName = "alpha".parse().unwrap();
        let here = [state("beta", "drifted"), state("alpha", "stopped")];
        for from in [Some(&alpha), None] {
            let said = nobody(&here, from);
            assert!(
                said.exit == Exit::Refused && said.what.contains("alpha is stopped by an order"),
                "{said}"
            );
        }
        let said = nobody(&here[..1], None);
        assert!(
            said.exit == Exit::Refused && said.what.contains("beta drifted"),
            "{said}"
        );
        let said = nobody(&here[..1], Some(&alpha));
        assert!(
            said.exit == Exit::NotReachable && said.what.contains("alpha does not run"),
            "{said}"
        );
    }

    #[test]
    fn a_refusal_is_one_whatever_its_status() {
        let of = |status, reason: &str| exit(&Problem::new(status, reason, ""));
        for reason in DECIDED {
            assert_eq!(of(503, reason), Exit::Refused, "{reason}");
        }
        assert_eq!(of(403, "reputation_too_low"), Exit::Refused);
        assert_eq!(of(502, "peer_unreachable"), Exit::NotReachable);
        assert_eq!(of(503, "overloaded"), Exit::NotReachable);
    }
}

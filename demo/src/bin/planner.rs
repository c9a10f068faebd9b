//! Turns a goal into calls of other agents, which it reaches by their URLs like any HTTP client would.

use std::process::ExitCode;
use std::time::Instant;

use demo_agents::agent::{Agent, Work, run};
use demo_agents::http::{Client, Request, Response};
use demo_agents::json::Json;
use demo_agents::mcp::call_request;

/// Calls of one plan.
const MAX_CALLS: usize = 32;
/// Events that one watch waits for.
const MAX_EVENTS: f64 = 1_000.0;

struct Planner {
    client: Client,
}

fn millis(since: Instant) -> Json {
    Json::Number((since.elapsed().as_secs_f64() * 100_000.0).round() / 100.0)
}

fn url(agent: &Agent, peer: &str, path: &str) -> Result<String, String> {
    let base = agent.declared.get("peers").get(peer).as_str();
    base.map(|base| format!("{base}{path}"))
        .ok_or_else(|| format!("no peer is called {peer:?}"))
}

/// Names and values in order: a name may come twice.
fn header_list(headers: &[(String, String)]) -> Json {
    let pairs = headers
        .iter()
        .map(|(k, v)| Json::Array(vec![k.as_str().into(), v.as_str().into()]));
    Json::Array(pairs.collect())
}

impl Planner {
    /// Calls one tool of one peer, and says what came back.
    fn call(&self, agent: &Agent, id: usize, step: &Json) -> Result<Json, String> {
        let peer = step.get("agent").as_str().ok_or("a call names its agent")?;
        let tool = step.get("tool").as_str().ok_or("a call names its tool")?;
        let url = url(agent, peer, "/mcp")?;
        let body = call_request(id as f64, tool, step.get("arguments")).to_string();
        let headers = [
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
        ];
        let started = Instant::now();
        let reply = self
            .client
            .send("POST", &url, &headers, body.as_bytes())
            .map_err(|e| format!("{url}: {e}"))?;
        let took = millis(started);
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let answer = Json::parse(&text).unwrap_or(Json::String(text));
        Ok(Json::object([
            ("url", url.into()),
            ("tool", tool.into()),
            ("status", f64::from(reply.status).into()),
            ("ms", took),
            ("headers", header_list(&reply.headers)),
            ("answer", answer),
        ]))
    }

    fn plan(&self, agent: &Agent, request: &Json) -> Result<Json, String> {
        let goal = request.get("goal").as_str().unwrap_or("look around");
        let search = Json::object([
            ("agent", "researcher".into()),
            ("tool", "search".into()),
            ("arguments", Json::object([("query", goal.into())])),
        ]);
        let steps = match request.get("calls").items() {
            [] => std::slice::from_ref(&search),
            steps if steps.len() <= MAX_CALLS => steps,
            steps => return Err(format!("{} calls; at most {MAX_CALLS}", steps.len())),
        };
        let results: Result<Vec<Json>, String> = steps
            .iter()
            .enumerate()
            .map(|(i, step)| self.call(agent, i + 1, step))
            .collect();
        Ok(Json::object([("goal", goal.into()), ("results", results?.into())]))
    }

    /// Follows the researcher's events, and says when each arrived.
    fn watch(&self, agent: &Agent, request: &Json) -> Result<Json, String> {
        let count = request.get("count").as_f64().unwrap_or(8.0).clamp(1.0, MAX_EVENTS);
        let url = url(agent, "researcher", &format!("/events?count={count}"))?;
        let (started, mut text, mut events) = (Instant::now(), String::new(), Vec::new());
        let reply = self
            .client
            .stream("GET", &url, &[("accept", "text/event-stream")], b"", &mut |part| {
                text.push_str(&String::from_utf8_lossy(part));
                while let Some(end) = text.find("\n\n") {
                    let event: String = text.drain(..end + 2).collect();
                    let id = event
                        .lines()
                        .find_map(|l| l.strip_prefix("id: "))
                        .unwrap_or("?")
                        .to_owned();
                    events.push(Json::object([("id", id.into()), ("ms", millis(started))]));
                }
                true
            });
        let reply = reply.map_err(|e| format!("{url}: {e}"))?;
        Ok(Json::object([
            ("url", url.into()),
            ("status", f64::from(reply.status).into()),
            ("headers", header_list(&reply.headers)),
            ("events", events.into()),
        ]))
    }
}

impl Work for Planner {
    fn tool(&self, agent: &Agent, name: &str, arguments: &Json) -> Result<Json, String> {
        match name {
            "plan" => self.plan(agent, arguments),
            "watch" => self.watch(agent, arguments),
            other => Err(format!("{other} is declared but not built")),
        }
    }

    fn route(&self, agent: &Agent, request: &Request) -> Option<Response> {
        let tool = match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/plan") => "plan",
            ("POST", "/watch") => "watch",
            _ => return None,
        };
        let arguments = match request.json() {
            Ok(arguments) => arguments,
            Err(why) => return Some(Response::error(400, &why)),
        };
        Some(match self.tool(agent, tool, &arguments) {
            Ok(result) => Response::json(200, &result),
            Err(why) => Response::error(502, &why),
        })
    }
}

fn main() -> ExitCode {
    run(Planner {
        client: Client::from_env(),
    })
}

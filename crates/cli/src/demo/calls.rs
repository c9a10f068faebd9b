//! Calls that the planner makes when its user asks it to, and what came back.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::access;
use super::mesh::Mesh;
use crate::call::{Decision, Proxy, decision, decisions};

/// One call of the planner.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) url: String,
    pub(super) status: u64,
    /// As the planner measured it.
    pub(super) ms: f64,
    pub(super) decisions: Vec<Decision>,
    pub(super) answer: Value,
}

impl Made {
    fn read(result: &Value) -> Self {
        let pairs = result["headers"].as_array().into_iter().flatten();
        let ours = pairs.filter(|p| p[0] == "x-aip-decision").filter_map(|p| p[1].as_str());
        Self {
            url: result["url"].as_str().unwrap_or_default().to_owned(),
            status: result["status"].as_u64().unwrap_or_default(),
            ms: result["ms"].as_f64().unwrap_or_default(),
            decisions: ours.flat_map(|v| v.split(',')).filter_map(decision).collect(),
            answer: result["answer"].clone(),
        }
    }

    /// The decision of one end (`caller` or `callee`).
    pub(super) fn at(&self, end: &str) -> Option<&Decision> {
        self.decisions.iter().find(|d| d.end == end)
    }

    /// The reason of a refusal, as the caller read it.
    pub(super) fn reason(&self) -> &str {
        let json_rpc = &self.answer["error"]["data"]["reason"];
        json_rpc
            .as_str()
            .or(self.answer["reason"].as_str())
            .unwrap_or("without a reason")
    }

    /// Whether both ends allowed it and the agent answered.
    pub(super) fn went_through(&self) -> bool {
        let allowed = |end| self.at(end).is_some_and(|d| d.verdict == "allow");
        self.status == 200 && allowed("caller") && allowed("callee")
    }
}

/// How long a sidecar that is asked directly may take.
const DIRECTLY: Duration = Duration::from_secs(30);

/// A call that goes out of an agent's own sidecar, whatever its agent does: what that sidecar refuses by itself.
pub(super) async fn out_of(mesh: &Mesh, agent: &str, to: &str) -> anyhow::Result<Made> {
    let proxy = Proxy::of_state(&mesh.state(agent)?).with_context(|| format!("the sidecar of {agent} is not up"))?;
    let url = format!("http://{to}.aip.internal/");
    let answer = proxy
        .send(Method::GET, &url, &[], Bytes::new(), DIRECTLY, &mut |_| ())
        .await
        .map_err(|error| anyhow::anyhow!("the sidecar of {agent}: {error}"))?;
    Ok(Made {
        status: u64::from(answer.status().as_u16()),
        ms: 0.0,
        decisions: decisions(answer.headers()),
        answer: serde_json::from_slice(answer.body()).unwrap_or_default(),
        url,
    })
}

/// One tool call by the planner.
pub(super) async fn mcp(mesh: &Mesh, agent: &str, tool: &str, arguments: Value) -> anyhow::Result<Made> {
    let step = json!({ "agent": agent, "tool": tool, "arguments": arguments });
    let plan = mesh
        .ask(
            "planner",
            Method::POST,
            "/plan",
            &json!({ "goal": "shore", "calls": [step] }),
        )
        .await?;
    match plan["results"].get(0) {
        Some(result) => Ok(Made::read(result)),
        None => anyhow::bail!("the planner's call failed: {plan}"),
    }
}

/// The researcher's events as the planner received them: the call, and when each event came, in milliseconds.
pub(super) async fn watch(mesh: &Mesh, count: u32) -> anyhow::Result<(Made, Vec<f64>)> {
    let seen = mesh
        .ask("planner", Method::POST, "/watch", &json!({ "count": count }))
        .await?;
    anyhow::ensure!(seen["status"].is_u64(), "the planner's watch failed: {seen}");
    let events = seen["events"].as_array().into_iter().flatten();
    Ok((Made::read(&seen), events.filter_map(|e| e["ms"].as_f64()).collect()))
}

/// What both sidecars recorded about a call: the caller's line, the callee's line.
pub(super) async fn recorded(made: &Made, caller: &Path, callee: &Path) -> anyhow::Result<(Value, Value)> {
    let id = |end| made.at(end).map(|d| d.id.as_str()).unwrap_or_default();
    let ours = access::line(caller, id("caller")).await?;
    let theirs = access::line(callee, id("callee")).await?;
    Ok((ours, theirs))
}

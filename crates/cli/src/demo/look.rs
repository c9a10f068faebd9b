//! Looking at the demo's mesh from outside: the agents' own ports, the sidecars' admin ports, and waiting.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request};
use serde_json::Value;
use tokio::time::Instant;

use super::mesh::Mesh;
use crate::http;
use crate::run::state::State;

/// How long an agent may take to answer: the longest stream of the demo, and more.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two looks at something that is waited for.
pub(super) const LOOK: Duration = Duration::from_millis(15);

impl Mesh {
    /// Asks an agent on its own port, as its user on this machine.
    pub(super) async fn ask(&self, name: &str, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let address = self.state(name)?.address;
        let address = address.with_context(|| format!("{name} serves nothing"))?;
        let bytes = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", address.to_string());
        let answer = http::send(address, request.body(Full::new(bytes))?, ANSWER).await;
        let answer = answer.map_err(|e| anyhow::anyhow!("{name}{path}: {e}"))?;
        serde_json::from_slice(answer.body()).with_context(|| format!("{name}{path} answered no JSON"))
    }

    /// How many requests an agent has counted on one line of its own access count.
    pub(super) async fn counted(&self, name: &str, line: &str) -> anyhow::Result<u64> {
        let stats = self.ask(name, Method::GET, "/stats", &Value::Null).await?;
        Ok(stats["requests"][line].as_u64().unwrap_or_default())
    }

    /// All that an agent has counted, except the questions for the count itself.
    pub(super) async fn counted_all(&self, name: &str) -> anyhow::Result<u64> {
        let stats = self.ask(name, Method::GET, "/stats", &Value::Null).await?;
        let lines = stats["requests"].as_object().into_iter().flatten();
        Ok(lines
            .filter(|(line, _)| *line != "GET /stats")
            .filter_map(|(_, n)| n.as_u64())
            .sum())
    }
}

/// Looks again and again until `look` finds something, up to `wait`.
pub(super) async fn until<T>(
    what: &str,
    wait: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + wait;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "{what}: not after {} s", wait.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}

/// A page of a sidecar's admin port.
pub(super) async fn page(state: &State, path: &str) -> anyhow::Result<Value> {
    let address = state.admin.context("the sidecar has no admin port")?;
    let page = http::get_json(address, path, Duration::from_secs(5)).await;
    page.map_err(|e| anyhow::anyhow!("{}'s sidecar{path}: {e}", state.name))
}

/// The metrics of a sidecar, as Prometheus would read them.
pub(super) async fn metrics(state: &State) -> anyhow::Result<String> {
    let address = state.admin.context("the sidecar has no admin port")?;
    let request = Request::get("/metrics")
        .header("host", address.to_string())
        .body(Full::<Bytes>::default())?;
    let answer = http::send(address, request, Duration::from_secs(5)).await;
    let answer = answer.map_err(|e| anyhow::anyhow!("{}'s sidecar /metrics: {e}", state.name))?;
    Ok(String::from_utf8_lossy(answer.body()).into_owned())
}

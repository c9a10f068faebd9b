//! As much of an HTTP client as joining two sidecars takes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// Longest an admin call may take: one that waits for acknowledgements waits for thirty seconds.
const DEADLINE: Duration = Duration::from_secs(40);
/// How long sidecars may take to hold what was changed.
const HELD_MS: u64 = 30_000;
/// Largest answer that is read.
const MAX_ANSWER: usize = 1024 * 1024;

/// The control plane's admin API.
#[derive(Clone)]
pub(crate) struct Admin {
    addr: SocketAddr,
    bearer: String,
}

impl Admin {
    pub(super) fn new(addr: SocketAddr, jwt: &str) -> Self {
        Self {
            addr,
            bearer: format!("Bearer {jwt}"),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(http::Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(http::Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(http::Method::PUT, path, Some(body)).await
    }

    /// Waits until every sidecar holds `revision`.
    pub(crate) async fn held(&self, revision: u64) -> anyhow::Result<()> {
        let acks = self
            .get(&format!("/v1/revisions/{revision}/acks?wait_ms={HELD_MS}"))
            .await?;
        ensure!(
            acks["missing"].as_array().is_some_and(Vec::is_empty),
            "not held by every sidecar: {acks}"
        );
        Ok(())
    }

    async fn call(&self, method: http::Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let what = format!("{method} {path}");
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, self.addr.to_string())
            .header(http::header::AUTHORIZATION, &self.bearer)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.map_or_else(String::new, Value::to_string))))?;
        let (status, text) = send(self.addr, request).await.with_context(|| what.clone())?;
        if !status.is_success() {
            bail!("{what}: {status}: {}", String::from_utf8_lossy(&text));
        }
        if text.is_empty() {
            Ok(Value::Null)
        } else {
            serde_json::from_slice(&text).with_context(|| what)
        }
    }
}

/// Whether a probe answers with 200.
pub(super) async fn answers_ok(addr: SocketAddr, path: &str) -> bool {
    let request = http::Request::get(path)
        .header(http::header::HOST, addr.to_string())
        .body(Full::default());
    match request {
        Ok(request) => send(addr, request).await.is_ok_and(|(status, _)| status == 200),
        Err(_) => false,
    }
}

async fn send(addr: SocketAddr, request: http::Request<Full<Bytes>>) -> anyhow::Result<(http::StatusCode, Bytes)> {
    tokio::time::timeout(DEADLINE, async {
        let stream = tokio::net::TcpStream::connect(addr).await?;
        let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(driver);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes()))
    })
    .await
    .context("no answer in time")?
}

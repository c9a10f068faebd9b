//! The control plane's admin API, and what tests ask of it.

use std::net::SocketAddr;

use ::http::{Method, Request};
use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::http::{self, Answer};
use crate::wait;

/// A client with the first credential.
#[derive(Debug, Clone)]
pub struct Admin {
    pub address: SocketAddr,
    pub token: String,
}

impl Admin {
    /// One call; any answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.attempt(method, path, body).await.expect("the admin API answers")
    }

    /// One call, of a control plane that may end meanwhile.
    pub async fn attempt(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .unwrap();
        http::send(self.address, request).await
    }

    /// One call that succeeds; its JSON.
    pub async fn ok(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let answer = self.call(method.clone(), path, body).await;
        assert!(
            answer.status.is_success(),
            "{method} {path} with {body:?}: {} {}",
            answer.status,
            answer.text()
        );
        if answer.body.is_empty() {
            Value::Null
        } else {
            answer.json()
        }
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ok(Method::GET, path, None).await
    }

    /// Registers an agent.
    pub async fn agent(&self, document: Value) -> Value {
        self.ok(Method::POST, "/v1/agents", Some(&document)).await
    }

    /// A join token for `agent`.
    pub async fn token(&self, agent: &str) -> String {
        let made = self
            .ok(Method::POST, "/v1/tokens", Some(&json!({"agent": agent})))
            .await;
        made["token"]
            .as_str()
            .unwrap_or_else(|| panic!("a token in {made}"))
            .to_owned()
    }

    /// Applies a policy and waits until every sidecar has it.
    pub async fn apply(&self, policy: &Value) -> u64 {
        let name = policy["name"].as_str().unwrap();
        let applied = self
            .ok(Method::PUT, &format!("/v1/policies/{name}"), Some(policy))
            .await;
        let revision = applied["revision"]
            .as_u64()
            .unwrap_or_else(|| panic!("a revision in {applied}"));
        self.acknowledged(revision).await;
        revision
    }

    /// Reports something about a hop of an agent, of which the audit learns in a moment, and waits until all sidecars know.
    pub async fn report(&self, agent: &str, report: &Value) -> Value {
        let path = format!("/v1/reputation/{agent}/reports");
        let taken = wait::until_ok("the audit has the hop", async || {
            let answer = self.call(Method::POST, &path, Some(report)).await;
            match answer.status.as_u16() {
                201 => Ok(answer.json()),
                status => Err(format!("{status} {}", answer.text())),
            }
        })
        .await;
        self.acknowledged(taken["revision"].as_u64().unwrap()).await;
        taken
    }

    /// Waits until every connected sidecar holds `revision`.
    pub async fn acknowledged(&self, revision: u64) -> Value {
        let path = format!("/v1/revisions/{revision}/acks?wait_ms=1000");
        wait::until_ok(&format!("all sidecars hold revision {revision}"), async || {
            let acks = self.get(&path).await;
            let missing = acks["missing"].as_array().map_or(1, Vec::len);
            if missing == 0 { Ok(acks) } else { Err(acks.to_string()) }
        })
        .await
    }
}

//! What an operator sees on 15000, read-only, and the probes on 15021: both on threads of their own.

use std::sync::Arc;

use aip_runtime::svid::SvidSource;
use aip_runtime::telemetry::Metrics;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::config::Config;
use crate::kill::Gate;
use crate::mesh::Mesh;
use crate::proxy::Proxy;

/// What the pages are made of.
#[derive(Clone)]
struct Sources {
    config: Arc<Config>,
    mesh: Mesh,
    svid: SvidSource,
    proxy: Arc<Proxy>,
}

/// The admin pages. None of them changes anything, and none shows a secret.
pub fn router(config: Arc<Config>, mesh: Mesh, svid: SvidSource, proxy: Arc<Proxy>, metrics: Metrics) -> Router {
    let sources = Sources {
        config,
        mesh,
        svid,
        proxy,
    };
    Router::new()
        .route("/config", get(async |State(s): State<Sources>| Json(json!(*s.config))))
        .route(
            "/snapshot",
            get(async |State(s): State<Sources>| Json(snapshot(&s.mesh))),
        )
        .route(
            "/policies",
            get(async |State(s): State<Sources>| Json(policies(&s.mesh))),
        )
        .route(
            "/identity",
            get(async |State(s): State<Sources>| Json(identity(&s.svid))),
        )
        .route(
            "/kill",
            get(async |State(s): State<Sources>| Json(kill(&s.proxy.settings.kill))),
        )
        .route(
            "/connections",
            get(async |State(s): State<Sources>| Json(s.proxy.connections())),
        )
        .route(
            "/audit",
            get(async |State(s): State<Sources>| Json(s.proxy.settings.audit.page())),
        )
        .with_state(sources)
        .merge(aip_runtime::admin::metrics(metrics))
        .layer(from_fn(local_only))
}

/// A page in a browser on this machine must not read this: its requests carry an `Origin`, a `Host` that only resolves to
/// loopback, or a `Sec-Fetch-Site` that names another site (as those for scripts and images do).
async fn local_only(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let local = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    let foreign = headers
        .get("sec-fetch-site")
        .is_some_and(|site| !matches!(site.as_bytes(), b"none" | b"same-origin"));
    if !local || foreign || headers.contains_key(header::ORIGIN) {
        return (
            StatusCode::FORBIDDEN,
            "address this port as localhost, and not from a web page\n",
        )
            .into_response();
    }
    next.run(request).await
}

fn snapshot(mesh: &Mesh) -> Value {
    let snapshot = mesh.snapshot();
    let endpoints: Value = snapshot
        .endpoints
        .iter()
        .map(|(name, list)| (name.to_string(), json!(&list[..])))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let agents: Vec<_> = snapshot.agents.values().map(|agent| &**agent).collect();
    json!({
        "revision": snapshot.revision,
        "id": snapshot.id,
        "mesh": &*snapshot.mesh,
        "traffic": &*snapshot.traffic,
        "agents": agents,
        "endpoints": endpoints,
    })
}

fn policies(mesh: &Mesh) -> Value {
    let snapshot = mesh.snapshot();
    let attached = snapshot.policies.iter().map(|(name, attached)| {
        json!({ "name": name, "revision": attached.revision, "attach": attached.policy.attach, "rego": attached.policy.rego })
    });
    attached.collect()
}

fn kill(gate: &Gate) -> Value {
    let orders = gate.orders();
    let version = orders.as_ref().map(|orders| orders.version());
    let left = gate
        .lease()
        .left()
        .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    json!({
        "known": orders.is_some(),
        "term": version.map(|(term, _)| term),
        "epoch": version.map(|(_, epoch)| epoch),
        "orders": orders.as_ref().map(|orders| orders.all()).unwrap_or_default(),
        "lease_lost": gate.lease().is_lost(),
        "lease_left_ms": left,
    })
}

fn identity(svid: &SvidSource) -> Value {
    match svid.current() {
        Some(svid) => json!({
            "id": svid.id(),
            "serial": svid.identity.serial,
            "not_before": svid.identity.not_before,
            "not_after": svid.identity.not_after,
            "attestation": svid.result(),
        }),
        None => Value::Null,
    }
}

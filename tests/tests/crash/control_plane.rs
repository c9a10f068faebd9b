//! The control plane, ended at each of its points.

use std::path::Path;

use aip_tests::process::{Admin, ControlPlane, DEV, Process};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

use crate::{FAULT, SEEN, is_killed, points};

/// Changes, in their order. Each is harmless when it is made twice.
fn changes() -> Vec<(Method, String, Value)> {
    let rego = "package aip.policy.kept\n\nrules contains {\"rule\": \"r\", \"verdict\": \"allow\", \"reason\": \"x\"} if input.request.path == [\"never\"]\n";
    let mut all = Vec::new();
    for name in ["one", "two", "three"] {
        let agent = json!({"name": name, "owner": "ops"});
        all.push((Method::POST, "/v1/agents".to_owned(), agent));
    }
    let policy = json!({"name": "kept", "rego": rego, "attach": "mesh"});
    all.push((Method::PUT, "/v1/policies/kept".to_owned(), policy));
    let changed = json!({"name": "two", "owner": "dev"});
    all.push((Method::PUT, "/v1/agents/two".to_owned(), changed));
    all.push((Method::POST, "/v1/tokens".to_owned(), json!({"agent": "one"})));
    all.push((Method::DELETE, "/v1/agents/three".to_owned(), Value::Null));
    all
}

/// Makes the changes until one gets no answer; how many were acknowledged, and the highest revision that was.
async fn change(admin: &Admin) -> (usize, u64) {
    let mut revision = 0;
    let all = changes();
    for (done, (method, path, body)) in all.iter().enumerate() {
        let body = Some(body).filter(|body| !body.is_null());
        let Ok(answer) = admin.attempt(method.clone(), path, body).await else {
            return (done, revision);
        };
        assert!(answer.status.is_success(), "{method} {path}: {}", answer.text());
        let said = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        revision = said["revision"].as_u64().unwrap_or(0).max(revision);
    }
    (all.len(), revision)
}

/// Holds that everything that was acknowledged is there.
async fn holds(admin: &Admin, acknowledged: usize, revision: u64, point: &str) {
    let mesh = admin.get("/v1/mesh").await;
    assert!(
        mesh["revision"].as_u64() >= Some(revision),
        "at {point}: {mesh} is below {revision}"
    );
    for (done, (_, path, body)) in changes().iter().enumerate().take(acknowledged) {
        let what = match path.as_str() {
            "/v1/agents" => format!("/v1/agents/{}", body["name"].as_str().unwrap()),
            "/v1/tokens" => continue,
            path => path.to_owned(),
        };
        let found = admin.call(Method::GET, &what, None).await;
        let deleted = body.is_null() || (what == "/v1/agents/three" && acknowledged == changes().len());
        let wanted = if deleted { 404 } else { 200 };
        // What follows may have been done without an answer.
        let undone = what == "/v1/agents/three" && done == 2 && acknowledged == changes().len() - 1;
        assert!(found.status == wanted || undone, "at {point}, {what}: {}", found.text());
    }
}

/// The control plane, until it listens or has ended.
async fn begin(dir: &Path, variable: &str, value: &str) -> (Process, Option<Value>) {
    let any = "127.0.0.1:0".parse().unwrap();
    let mut command = ControlPlane::command(&ControlPlane::data(dir), any, any, DEV);
    command.env(variable, value);
    let mut process = ControlPlane::begin(dir, &command);
    let file = ControlPlane::data(dir).join("run.json");
    let run = wait::until("it listens or ends", async || {
        if process.ended().is_some() {
            return Some(None);
        }
        let run = serde_json::from_slice::<Value>(&std::fs::read(&file).ok()?).ok()?;
        Some(Some(run))
    })
    .await;
    (process, run)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_at_any_point() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let (process, run) = begin(dir.path(), SEEN, seen.to_str().unwrap()).await;
    let control_plane = ControlPlane::of(process, dir.path(), &run.expect("it starts"));
    let (done, _) = change(&control_plane.admin).await;
    assert_eq!(done, changes().len());
    drop(control_plane);
    let points = points(&seen);
    for step in [
        "store:changed#1",
        "store:committed#1",
        "store:made#1",
        "admin.jwt:synced#1",
        "run.json:renamed#1",
    ] {
        assert!(points.contains(step), "{step} is not among {points:?}");
    }
    for point in &points {
        ends_at(point).await;
    }
}

/// Ends it at that point, and holds that nothing was lost there.
async fn ends_at(point: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (mut process, run) = begin(dir.path(), FAULT, point).await;
    let (mut acknowledged, mut revision) = (0, 0);
    if let Some(run) = run {
        // It may end between saying where it listens and being asked.
        let control_plane = ControlPlane::of(process, dir.path(), &run);
        (acknowledged, revision) = change(&control_plane.admin).await;
        process = control_plane.process;
    }
    is_killed(&mut process, point).await;
    let restarted = ControlPlane::start(dir.path(), DEV).await;
    holds(&restarted.admin, acknowledged, revision, point).await;
    // And it goes on from there: what got no answer is asked for again.
    for (method, path, body) in changes().into_iter().skip(acknowledged) {
        let body = Some(body).filter(|body| !body.is_null());
        let answer = restarted.admin.call(method.clone(), &path, body.as_ref()).await;
        let done_already = [404, 409].contains(&answer.status.as_u16());
        assert!(
            answer.status.is_success() || done_already,
            "at {point}, again {method} {path}: {}",
            answer.text()
        );
    }
}

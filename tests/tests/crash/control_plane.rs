//! The control plane, ended at each of its points: while it starts, and at each commit of a change that somebody asks for.

use std::path::Path;

use aip_tests::process::{Admin, ControlPlane, DEV, Process};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

use crate::{AFTER, FAULT, SEEN, is_killed, points};

/// A change that somebody asks for.
struct Change {
    /// What its transaction is for, which is in the names of its points.
    action: &'static str,
    method: Method,
    path: &'static str,
    body: Value,
    /// Where it can be read, and what of it must be there once it is acknowledged.
    read: &'static str,
    has: fn(&Value) -> bool,
}

/// A policy that decides nothing.
const REGO: &str = "package aip.policy.kept\n\nrules contains {\"rule\": \"r\", \"verdict\": \"allow\", \"reason\": \"x\"} if input.request.path == [\"never\"]\n";

/// Changes, in their order: all that was acknowledged is there at the end of any beginning of them.
fn changes() -> Vec<Change> {
    let order = json!({"scope": {"kind": "agent", "agent": "one"}, "mode": "kill", "reason": "a test"});
    let change = |action, method, path, body, read, has| Change {
        action,
        method,
        path,
        body,
        read,
        has,
    };
    vec![
        change(
            "agent.create",
            Method::POST,
            "/v1/agents",
            json!({"name": "one", "owner": "ops"}),
            "/v1/agents/one",
            |held| held["resource"]["name"] == "one",
        ),
        change(
            "policy.put",
            Method::PUT,
            "/v1/policies/kept",
            json!({"name": "kept", "rego": REGO, "attach": "mesh"}),
            "/v1/policies/kept",
            |held| held["resource"]["rego"] == REGO,
        ),
        change("kill.order", Method::POST, "/v1/kills", order, "/v1/kills", |held| {
            held["items"].as_array().is_some_and(|orders| !orders.is_empty())
        }),
        change(
            "agent.update",
            Method::PUT,
            "/v1/agents/one",
            json!({"name": "one", "owner": "dev"}),
            "/v1/agents/one",
            |held| held["resource"]["owner"] == "dev",
        ),
        change(
            "agent.revoke",
            Method::POST,
            "/v1/agents/one/revoke",
            json!({}),
            "/v1/agents/one",
            |held| held["resource"]["generation"] == 2,
        ),
        change(
            "token.create",
            Method::POST,
            "/v1/tokens",
            json!({"agent": "one"}),
            "/v1/tokens",
            |held| held["items"].as_array().is_some_and(|tokens| !tokens.is_empty()),
        ),
    ]
}

/// Makes the changes until one gets no answer; how many were acknowledged, and the highest revision that was.
async fn change(admin: &Admin) -> (usize, u64) {
    let mut revision = 0;
    let all = changes();
    for (done, change) in all.iter().enumerate() {
        let (method, path) = (change.method.clone(), change.path);
        let Ok(answer) = admin.attempt(method, path, Some(&change.body)).await else {
            return (done, revision);
        };
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
        let said = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
        revision = said["revision"].as_u64().unwrap_or(0).max(revision);
    }
    (all.len(), revision)
}

async fn is_there(admin: &Admin, change: &Change) -> bool {
    let found = admin.call(Method::GET, change.read, None).await;
    found.status.is_success() && (change.has)(&found.json())
}

/// Holds that everything that was acknowledged is there, and that what was under way is there whole or not at all, as the
/// point says.
async fn holds(admin: &Admin, acknowledged: usize, revision: u64, point: &str) {
    let mesh = admin.get("/v1/mesh").await;
    assert!(
        mesh["revision"].as_u64() >= Some(revision),
        "at {point}: {mesh} is below {revision}"
    );
    let all = changes();
    for change in all.iter().take(acknowledged) {
        let there = is_there(admin, change).await;
        assert!(there, "at {point}: {} was acknowledged, and is lost", change.action);
    }
    if let Some(under_way) = all.get(acknowledged).filter(|change| is_of(point, change)) {
        let committed = point.contains(":committed:");
        let there = is_there(admin, under_way).await;
        assert_eq!(there, committed, "at {point}: {}", under_way.action);
    }
}

/// Whether the point is one of this change's transaction.
fn is_of(point: &str, change: &Change) -> bool {
    let name = point.split('#').next().unwrap_or_default();
    name.starts_with("store:") && name.ends_with(&format!(":{}", change.action))
}

/// The control plane, until it listens or has ended.
async fn begin(dir: &Path, variables: &[(&str, &str)]) -> (Process, Option<Value>) {
    let any = "127.0.0.1:0".parse().unwrap();
    let mut command = ControlPlane::command(&ControlPlane::data(dir), any, any, DEV);
    command.envs(variables.iter().copied());
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

/// What it comes to while it starts: nobody was told anything yet, and the same start goes well afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_ends_while_it_starts_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let (process, run) = begin(dir.path(), &[(SEEN, seen.to_str().unwrap())]).await;
    drop(ControlPlane::of(process, dir.path(), &run.expect("it starts")));
    let points = points(&seen);
    for step in [
        "store:made#1",
        "checkpoints:made#1",
        "store:changed:mesh.create#1",
        "store:committed:mesh.create#1",
        "admin.jwt:synced#1",
        "run.json:renamed#1",
    ] {
        assert!(points.contains(step), "{step} is not among {points:?}");
    }
    for point in &points {
        let dir = tempfile::tempdir().unwrap();
        let (mut process, _) = begin(dir.path(), &[(FAULT, point)]).await;
        is_killed(&mut process, point).await;
        let restarted = ControlPlane::start(dir.path(), DEV).await;
        assert_eq!(change(&restarted.admin).await.0, changes().len(), "after {point}");
    }
}

/// What it comes to while somebody changes something.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_change_is_lost_at_any_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (seen, after) = (dir.path().join("seen"), dir.path().join("after"));
    let (process, run) = begin(
        dir.path(),
        &[(SEEN, seen.to_str().unwrap()), (AFTER, after.to_str().unwrap())],
    )
    .await;
    let control_plane = ControlPlane::of(process, dir.path(), &run.expect("it starts"));
    std::fs::write(&after, "").unwrap();
    assert_eq!(change(&control_plane.admin).await.0, changes().len());
    drop(control_plane);
    let points = points(&seen);
    let all = changes();
    for (n, change) in all.iter().enumerate() {
        for step in ["changed", "committed"] {
            let point = format!("store:{step}:{}#1", change.action);
            assert!(points.contains(&point), "{point} is not among {points:?}");
            let acknowledged = ends_at(&point).await;
            assert_eq!(acknowledged, n, "at {point}: all before it, and none after it");
        }
    }
}

/// Ends it at that point, and holds that nothing was lost there; how much was acknowledged.
async fn ends_at(point: &str) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let after = dir.path().join("after");
    let (process, run) = begin(dir.path(), &[(FAULT, point), (AFTER, after.to_str().unwrap())]).await;
    let mut control_plane = ControlPlane::of(process, dir.path(), &run.expect("nothing counts yet"));
    std::fs::write(&after, "").unwrap();
    let (acknowledged, revision) = change(&control_plane.admin).await;
    is_killed(&mut control_plane.process, point).await;
    drop(control_plane);
    let restarted = ControlPlane::start(dir.path(), DEV).await;
    holds(&restarted.admin, acknowledged, revision, point).await;
    // And it goes on from there: what got no answer is asked for again.
    for change in changes().into_iter().skip(acknowledged) {
        let asked = restarted.admin.call(change.method, change.path, Some(&change.body));
        let answer = asked.await;
        let done_already = [404, 409].contains(&answer.status.as_u16());
        assert!(
            answer.status.is_success() || done_already,
            "at {point}, again {}: {}",
            change.path,
            answer.text()
        );
    }
    acknowledged
}

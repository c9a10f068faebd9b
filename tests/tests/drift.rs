//! Drift, with real processes: a sidecar suspends itself with and without a control plane, stays so however it is ended,
//! and its agent comes back by approval and restart alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar, SidecarSpec};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

/// The variable that says at which point a process ends (`aip_runtime::fault`).
const FAULT: &str = "AIP_FAULT";

fn edit(dir: &Path) {
    std::fs::write(dir.join("code/agent.txt"), "edited").unwrap();
}

fn in_run(spec: &SidecarSpec, run: &str) -> SidecarSpec {
    let mut spec = spec.clone();
    spec.flags = vec!["--run".into(), run.into()];
    spec
}

async fn reaches(caller: &Sidecar, name: &str) {
    let url = format!("http://{name}.aip.internal/work");
    wait::until_ok("a call gets through", async || {
        let answer = caller.get(&url).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}

/// What the control plane has of the drift of this agent, once it has it.
async fn reported(mesh: &Mesh, name: &str) -> Value {
    wait::until("the report", async || {
        let all = mesh.admin().get("/v1/drift").await;
        let all = all["items"].as_array()?.clone();
        all.into_iter().find(|drift| drift["agent"] == name)
    })
    .await
}

async fn approve_all(mesh: &Mesh, name: &str) {
    let waiting = mesh
        .admin()
        .get(&format!("/v1/measurements?state=pending&agent={name}"))
        .await;
    for waits in waiting["items"].as_array().unwrap() {
        let print = waits["fingerprint"].as_str().unwrap();
        let path = format!("/v1/measurements/{name}/{print}/approve");
        mesh.admin().ok(Method::POST, &path, Some(&json!({}))).await;
    }
}

/// Approved and restarted: it serves again.
async fn comes_back(mesh: &Mesh, caller: &Sidecar, spec: &SidecarSpec, dir: &Path) -> Sidecar {
    approve_all(mesh, &spec.name).await;
    let mut spec = in_run(spec, "second-run");
    spec.token = mesh.admin().token(&spec.name).await;
    let back = Sidecar::start(spec, dir).await;
    assert!(!dir.join("data/drift.json").exists());
    reaches(caller, &back.spec.name).await;
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_plane_it_suspends_itself_stays_so_and_is_reported_later() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let dir = mesh.dir("callee");
    let mut callee = Sidecar::start(in_run(&spec, "first-run"), &dir).await;
    reaches(&caller, "callee").await;
    reaches(&callee, "caller").await;
    mesh.control_plane.kill();

    edit(&dir);
    let says = async |sidecar: &Sidecar, url: &str| {
        wait::until_ok("it is refused", async || {
            let answer = sidecar.get(url).await;
            let drifted = answer.status == 503 && answer.text().contains("\"drifted\"");
            drifted.then_some(()).ok_or_else(|| answer.text())
        })
        .await;
    };
    says(&caller, "http://callee.aip.internal/work").await;
    says(&callee, "http://caller.aip.internal/work").await;
    // Its own agent reaches nothing either, not the control plane past it.
    says(&callee, &format!("http://{}/", mesh.control_plane.mesh)).await;
    assert_eq!(callee.metric("aip_drifted", &[]).await, 1.0);

    // Ended before the report went out, and put back meanwhile: it remembers, once that is on disk.
    wait::until("the suspension is on disk", async || {
        dir.join("data/drift.json").exists().then_some(())
    })
    .await;
    callee.process.kill();
    std::fs::write(dir.join("code/agent.txt"), "callee").unwrap();
    let mut again = in_run(&spec, "first-run");
    again.ports = [callee.inbound, callee.outbound, callee.admin, callee.probes];
    let mut callee = Sidecar::start_unready(again, &dir).await;
    says(&callee, "http://caller.aip.internal/work").await;
    let seen = agent.seen("/refused").len();
    assert_ne!(caller.get("http://callee.aip.internal/refused").await.status, 200);
    assert_eq!(agent.seen("/refused").len(), seen);

    mesh.revive().await;
    let drift = reported(&mesh, "callee").await;
    assert_eq!(
        (&drift["generation"], &drift["paths"]),
        (&json!(2), &json!(["agent.txt"]))
    );
    approve_all(&mesh, "callee").await;
    callee.process.kill();
    // What lies there is what was approved at first, which needs a person as well.
    let token = mesh.admin().token("callee").await;
    let mut spec = in_run(&spec, "second-run");
    spec.token = token;
    let back = Sidecar::start_unready(spec.clone(), &dir);
    let approved = async {
        wait::until("the old content waits for a person", async || {
            approve_all(&mesh, "callee").await;
            let drift = reported(&mesh, "callee").await;
            drift["recovered_at"].is_u64().then_some(())
        })
        .await;
    };
    let (back, ()) = tokio::join!(back, approved);
    back.ready().await;
    reaches(&caller, "callee").await;
    assert_eq!(back.look("/identity").await.json()["attestation"]["generation"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_while_it_suspends_itself_stays_suspended() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let steps = ["written", "synced", "renamed", "kept"];
    let points = steps
        .iter()
        .flat_map(|step| [1, 2].map(|n| format!("drift.json:{step}#{n}")));
    for (i, point) in points.enumerate() {
        let name = format!("callee{i}");
        let spec = mesh.spec(json!({"name": name}), agent.address).await;
        let (dir, first) = (mesh.dir(&name), in_run(&spec, "first-run"));
        let mut command = Sidecar::command(&first, &dir);
        command.env(FAULT, &point);
        let mut callee = Sidecar::start_as(first.clone(), &dir, &command).await;
        callee.ready().await;
        reaches(&caller, &name).await;
        edit(&dir);
        let status = wait::until(&format!("it ends at {point}"), async || callee.process.ended()).await;
        assert_eq!(status.signal(), Some(9), "at {point}: {status}");

        let mut callee = Sidecar::start_unready(first, &dir).await;
        let answer = callee.get("http://caller.aip.internal/work").await;
        assert_eq!(answer.status, 503, "at {point}: {}", answer.text());
        let drift = reported(&mesh, &name).await;
        // Before the first rename nothing says what changed; that it measures otherwise than before is seen all the same.
        if !["written#1", "synced#1"].iter().any(|early| point.ends_with(early)) {
            assert_eq!(drift["paths"], json!(["agent.txt"]), "at {point}");
        }
        callee.process.kill();
        let mut back = comes_back(&mesh, &caller, &spec, &dir).await;
        back.process.kill();
    }
}

//! A sidecar, ended at each of its points.

use std::path::Path;
use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Process, Sidecar, SidecarSpec};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

use crate::{AFTER, FAULT, SEEN, is_killed, points};

const URL: &str = "http://callee.aip.internal/work";

async fn reaches(caller: &Sidecar) {
    wait::until_ok("a call gets through", async || {
        let answer = caller.get(URL).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}

/// A mesh with a caller, and what is needed to start callees of their own.
struct Rig {
    mesh: Mesh,
    agent: Agent,
    caller: Sidecar,
}

impl Rig {
    async fn start() -> Self {
        let mesh = Mesh::start().await;
        let agent = Agent::start();
        let caller = mesh.sidecar("caller", agent.address).await;
        Self { mesh, agent, caller }
    }

    async fn callee(&self) -> SidecarSpec {
        self.mesh.spec(json!({"name": "callee"}), self.agent.address).await
    }

    /// Changes something that every sidecar holds; the revision of that.
    async fn push(&self, version: usize) -> u64 {
        let rego = format!(
            "package aip.policy.pushed\n\nrules contains {{\"rule\": \"r{version}\", \"verdict\": \"allow\", \"reason\": \"x\"}} if input.request.path == [\"never\"]\n"
        );
        let policy = json!({"name": "pushed", "rego": rego, "attach": "mesh"});
        let admin = self.mesh.admin();
        let put = admin.ok(Method::PUT, "/v1/policies/pushed", Some(&policy)).await;
        put["revision"].as_u64().unwrap()
    }

    /// Whether the callee acknowledges it before it ends.
    async fn is_acknowledged(&self, revision: u64, process: &mut Process) -> bool {
        let path = format!("/v1/revisions/{revision}/acks?wait_ms=100");
        wait::until("the callee acknowledges, or ends", async || {
            let acks = self.mesh.admin().get(&path).await;
            let held = acks["acked"].as_array().into_iter().flatten();
            let is_callee = |one: &Value| one.as_str().is_some_and(|one| one.starts_with("callee/"));
            if held.into_iter().any(is_callee) {
                return Some(true);
            }
            process.ended().is_some().then_some(false)
        })
        .await
    }
}

/// Starts the callee and gives it work, until it has done all of it or has ended. Whether it was ready, and as what.
async fn work(rig: &Rig, spec: &SidecarSpec, command: &Command, name: &str) -> (Process, bool) {
    let dir = rig.mesh.dir(name);
    let run = dir.join("data/run.json");
    let mut process = Process::start(&format!("sidecar-{}", spec.name), command, &dir);
    let ports = wait::until("it listens or ends", async || {
        if process.ended().is_some() {
            return Some(None);
        }
        Some(serde_json::from_slice::<Value>(&std::fs::read(&run).ok()?).ok())
    })
    .await;
    let Some(ports) = ports else { return (process, false) };
    let probes = ports["probes"].as_str().unwrap().parse().unwrap();
    let ready = wait::until("it is ready or ends", async || {
        if process.ended().is_some() {
            return Some(false);
        }
        let answer = aip_tests::http::get(probes, "/readyz").await;
        answer.is_ok_and(|answer| answer.status.is_success()).then_some(true)
    })
    .await;
    for version in 0..4 {
        if !ready || process.ended().is_some() {
            break;
        }
        rig.push(version).await;
        let _ = rig.caller.get(URL).await;
    }
    (process, ready)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_comes_back_from_every_point() {
    let mut rig = Rig::start().await;
    let spec = rig.callee().await;
    let dir = rig.mesh.dir("first");
    let seen = dir.join("seen");
    let mut command = Sidecar::command(&spec, &dir);
    command.env(SEEN, &seen);
    let (process, ready) = work(&rig, &spec, &command, "first").await;
    assert!(ready, "{}", process.last_words());
    drop(process);
    let points = points(&seen);
    for step in [
        "identity.sealed:renamed#1",
        "joining.sealed:kept#1",
        "config.cache:synced#1",
        "config.floor:written#1",
    ] {
        assert!(points.contains(step), "{step} is not among {points:?}");
    }
    // Its log is another test's, and so is what it comes to again when it holds something already.
    let ours = |point: &&String| point.ends_with("#1") && !point.starts_with("log:");
    for point in points.iter().filter(ours) {
        ends_at(&mut rig, point).await;
    }
}

/// Starts the callee, and waits until it is ready.
async fn started(rig: &Rig, dir: &Path, variables: &[(&str, &Path)]) -> Sidecar {
    let spec = SidecarSpec {
        token: rig.mesh.admin().token("callee").await,
        ..rig.callee_again()
    };
    let mut command = Sidecar::command(&spec, dir);
    command.envs(variables.iter().copied());
    let callee = Sidecar::start_as(spec, dir, &command).await;
    callee.ready().await;
    callee
}

/// Once it has said that it holds something, it holds that, or what came after it, wherever it ends: without a control plane
/// that could tell it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sidecar_acknowledged_it_holds_after_every_point() {
    let mut rig = Rig::start().await;
    rig.callee().await;
    let dir = rig.mesh.dir("seen");
    let (seen, after) = (dir.join("points"), dir.join("after"));
    let mut first = started(&rig, &dir, &[(SEEN, &seen), (AFTER, &after)]).await;
    let revision = rig.push(0).await;
    assert!(rig.is_acknowledged(revision, &mut first.process).await);
    std::fs::write(&after, "").unwrap();
    // The cache has two files, in turns.
    for version in 1..=2 {
        let revision = rig.push(version).await;
        assert!(rig.is_acknowledged(revision, &mut first.process).await);
    }
    drop(first);
    let mut points = points(&seen);
    let is_of = |point: &str| point.starts_with("config.cache:") || point.starts_with("config.floor:");
    points.retain(|point| is_of(point) && point.ends_with("#1"));
    for step in ["config.cache:written#1", "config.cache:kept#1", "config.floor:kept#1"] {
        assert!(points.contains(step), "{step} is not among {points:?}");
    }
    for point in &points {
        acknowledges_and_ends_at(&mut rig, point).await;
    }
}

async fn acknowledges_and_ends_at(rig: &mut Rig, point: &str) {
    let dir = rig.mesh.dir(&point.replace([':', '#', '.'], "-"));
    let after = dir.join("after");
    let mut callee = started(rig, &dir, &[(FAULT, Path::new(point)), (AFTER, &after)]).await;
    let mut at_least = rig.push(100).await;
    assert!(rig.is_acknowledged(at_least, &mut callee.process).await);
    std::fs::write(&after, "").unwrap();
    // The first may go into the other file.
    for version in 101..105 {
        let revision = rig.push(version).await;
        if !rig.is_acknowledged(revision, &mut callee.process).await {
            break;
        }
        at_least = revision;
    }
    is_killed(&mut callee.process, point).await;
    rig.mesh.control_plane.kill();
    let callee = Sidecar::start(callee.spec.clone(), &dir).await;
    let held = callee.look("/policies").await.json();
    let all = held.as_array().unwrap().iter();
    let held: Vec<_> = all.filter(|policy| policy["name"] == "pushed").collect();
    assert!(
        held.len() == 1 && held[0]["revision"].as_u64() >= Some(at_least),
        "at {point}: it acknowledged revision {at_least}, and holds {held:?}"
    );
    rig.mesh.revive().await;
}

/// Ends it at that point, and holds that it comes back from there with the token that it had, and without a control plane
/// where it was ready before.
async fn ends_at(rig: &mut Rig, point: &str) {
    let spec = SidecarSpec {
        token: rig.mesh.admin().token("callee").await,
        ..rig.callee_again()
    };
    let name = point.replace([':', '#', '.'], "-");
    let dir = rig.mesh.dir(&name);
    let mut command = Sidecar::command(&spec, &dir);
    command.env(FAULT, point);
    let (mut process, ready) = work(rig, &spec, &command, &name).await;
    is_killed(&mut process, point).await;
    if ready {
        rig.mesh.control_plane.kill();
    }
    let back = Sidecar::start(spec, &dir).await;
    if ready {
        let own = back.look("/identity").await.json();
        assert_eq!(own["id"], "spiffe://aip.internal/agent/callee", "at {point}: {own}");
        rig.mesh.revive().await;
    }
    reaches(&rig.caller).await;
}

impl Rig {
    /// As [`Self::callee`], of one that is registered already.
    fn callee_again(&self) -> SidecarSpec {
        SidecarSpec {
            name: "callee".into(),
            ..self.caller.spec.clone()
        }
    }
}

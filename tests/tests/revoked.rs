//! A sidecar whose own SVID is revoked: peers hear of it and refuse, and its way out to hosts outside of the mesh, at
//! which there is no peer, ends too. What supervises it does not have it let in again.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use aip_tests::agent::Agent;
use aip_tests::pki::LeafSpec;
use aip_tests::process::{Mesh, RunAgent, Sidecar, fails};
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use http::Method;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

/// A mesh whose agents may reach `outside`.
async fn mesh_with_egress(outside: &Agent) -> Mesh {
    let mesh = Mesh::start().await;
    let mut config = mesh.admin().get("/v1/mesh-config").await["resource"].clone();
    config["egress"] = json!([{"host": "localhost", "port": outside.address.port(), "allow_private": true}]);
    mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(&config)).await;
    mesh
}

/// Calls until the sidecar has nothing to show any more.
async fn serves_nothing(sidecar: &Sidecar, url: &str) {
    wait::until_ok("the sidecar gave its SVID up", async || {
        let answer = sidecar.get(url).await;
        (answer.status == 503 && answer.reason() == "no_identity")
            .then_some(())
            .ok_or_else(|| format!("{} {}", answer.status, answer.text()))
    })
    .await;
    wait::until("it says that it is not ready", async || {
        let probe = aip_tests::http::get(sidecar.probes, "/readyz").await.unwrap();
        (probe.status == 503).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_or_removed_agent_loses_its_way_out_and_does_not_come_back_by_a_restart() {
    let (agent, outside) = (Agent::start(), Agent::start());
    let mesh = mesh_with_egress(&outside).await;
    let url = format!("http://localhost:{}/x", outside.address.port());
    for (name, method, path) in [
        ("generation", Method::POST, "/v1/agents/generation/revoke"),
        ("serial", Method::POST, "/v1/agents/serial/revoke"),
        ("removed", Method::DELETE, "/v1/agents/removed"),
    ] {
        let mut sidecar = mesh.sidecar(name, agent.address).await;
        wait::until("the way out is open", async || {
            (sidecar.get(&url).await.status == 200).then_some(())
        })
        .await;
        let svids = mesh.admin().get(&format!("/v1/agents/{name}/svids")).await;
        let body = match name {
            "serial" => json!({"serial": svids["items"][0]["serial"]}),
            "generation" => json!({}),
            _ => Value::Null,
        };
        mesh.admin()
            .ok(method, path, Some(&body).filter(|body| !body.is_null()))
            .await;
        serves_nothing(&sidecar, &url).await;
        // Of its own: what was on its way meanwhile may be heard late.
        let after = format!("/after-{name}");
        let answer = sidecar.get(&url.replace("/x", &after)).await;
        assert_eq!(answer.reason(), "no_identity", "{name}");
        assert!(outside.seen(&after).is_empty(), "{name}: nothing went out");
        assert!(!sidecar.dir.join("run/identity.sealed").exists(), "{name}");

        sidecar.process.kill();
        let said = fails(Sidecar::command(&sidecar.spec, &sidecar.dir)).await;
        assert!(said.contains("can't get an identity"), "{name}: {said}");
    }
}

/// One that was away while it was revoked serves from what it kept, and hears of it from the first answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_hears_of_its_revocation_when_it_is_back() {
    let (agent, outside) = (Agent::start(), Agent::start());
    let mesh = mesh_with_egress(&outside).await;
    let url = format!("http://localhost:{}/x", outside.address.port());
    let mut sidecar = mesh.sidecar("away", agent.address).await;
    wait::until("the way out is open", async || {
        (sidecar.get(&url).await.status == 200).then_some(())
    })
    .await;
    sidecar.process.kill();
    mesh.admin()
        .ok(Method::POST, "/v1/agents/away/revoke", Some(&json!({})))
        .await;
    let (spec, dir) = (sidecar.spec.clone(), sidecar.dir.clone());
    let back = Sidecar::start_unready(spec, &dir).await;
    serves_nothing(&back, &url).await;
}

/// Its streams may go on under the SVID before: a renewal is a word of the control plane like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_a_renewal_because_its_svid_is_revoked_gives_it_up() {
    let (scripted, dir) = (Scripted::start(), tempfile::TempDir::new().unwrap());
    let agent = Agent::start();
    // Past the half of its life: a renewal is due at once.
    scripted.issue_as(LeafSpec {
        from: -2_000,
        until: 400,
        ..LeafSpec::good("renews")
    });
    let sidecar = scripted.sidecar("renews", agent.address, dir.path()).await;
    scripted.refuse("generation_mismatch");
    wait::until("a renewal was refused for another reason", async || {
        let said = sidecar.process.stderr();
        said.contains("generation_mismatch").then_some(())
    })
    .await;
    assert!(sidecar.dir.join("run/identity.sealed").exists());
    scripted.refuse("svid_revoked");
    serves_nothing(&sidecar, "http://other.aip.internal/x").await;
    assert!(!sidecar.dir.join("run/identity.sealed").exists());
}

/// Revokes the agent, or only the SVID that it has, and ends its sidecar: nobody but a person says that it runs on.
async fn is_left_to_a_person(mesh: &Mesh, run: &RunAgent, all: bool) {
    let (admin, name) = (mesh.admin(), &run.name);
    let svids = admin.get(&format!("/v1/agents/{name}/svids")).await;
    let revoke = match all {
        true => json!({"reason": "a test"}),
        false => json!({"serial": svids["items"][0]["serial"], "reason": "a test"}),
    };
    admin
        .ok(Method::POST, &format!("/v1/agents/{name}/revoke"), Some(&revoke))
        .await;
    let probes = run.state["probes"].as_str().unwrap().parse().unwrap();
    wait::until("its sidecar has given it up", async || {
        let ready = aip_tests::http::get(probes, "/readyz").await;
        ready.is_ok_and(|ready| ready.text().contains("identity")).then_some(())
    })
    .await;
    let sidecar = run.state["sidecar"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let sidecar = Pid::from_raw(sidecar.unwrap()).unwrap();
    rustix::process::kill_process(sidecar, Signal::KILL).unwrap();
    wait::until("it is left to a person", async || {
        run.process.stderr().contains("was revoked while it ran").then_some(())
    })
    .await;
    let tokens = admin.get("/v1/tokens?limit=500").await;
    assert_eq!(tokens["items"], json!([]), "those of before are forgotten: {tokens}");
}

/// `aip run` started it, and does not take that for its word that it runs on.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_revoked_gets_no_other_join_token_by_itself() {
    let mesh = Mesh::start().await;
    for (name, all) in [("all", true), ("one", false)] {
        let run = RunAgent::start(&mesh, name, &RunAgent::answers(), &[]).await;
        is_left_to_a_person(&mesh, &run, all).await;
    }
}

/// Nor where it was started from what its sidecar kept, and has had no join token made yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_revoked_after_it_started_alone_gets_no_join_token_by_itself() {
    let mut mesh = Mesh::start().await;
    for (name, all) in [("all", true), ("one", false)] {
        let mut earlier = RunAgent::start(&mesh, name, &RunAgent::answers(), &[]).await;
        earlier.process.signal(Signal::TERM);
        earlier.process.end().await;
        fs::remove_file(earlier.directory().join("state.json")).unwrap();
        mesh.control_plane.kill();
        let run = RunAgent::start(&mesh, name, &RunAgent::answers(), &[]).await;
        let said = run.process.stderr();
        assert!(said.contains("starting from what the sidecar kept"), "{said}");
        mesh.revive().await;
        is_left_to_a_person(&mesh, &run, all).await;
    }
}

//! The control plane is killed: traffic goes on, a sidecar restarts from its cache, and nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, DEV, Mesh, Process, Records, Sidecar, pairs};
use aip_tests::wait;
use http::Method;
use serde_json::json;

const URL: &str = "http://callee.aip.internal/work";

/// Waits until a call gets through: a callee that is ready is a moment ahead of those who are told where it serves.
async fn reaches(caller: &Sidecar) {
    wait::until_ok("a first call gets through", async || {
        let answer = caller.get(URL).await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
}

/// Without a control plane, from what is on their disks.
async fn both_restart(caller: &mut Sidecar, callee: &mut Sidecar, revision: u64) {
    let serial = callee.look("/identity").await.json()["serial"].clone();
    callee.restart().await;
    assert_eq!(
        callee.look("/identity").await.json()["serial"],
        serial,
        "the sealed SVID"
    );
    assert!(
        callee.snapshot().await["revision"].as_u64() >= Some(revision),
        "the signed cache"
    );
    assert_eq!(
        caller.get(URL).await.status,
        200,
        "the callee serves again, from its cache"
    );
    caller.restart().await;
    assert_eq!(
        caller.get(URL).await.status,
        200,
        "the caller knows its peer from its cache"
    );
    assert_eq!(
        caller.get("http://callee.aip.internal/blocked").await.status,
        403,
        "the policy of the cache decides"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_outlives_its_control_plane() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let mut caller = mesh.sidecar("caller", agent.address).await;
    let mut callee = mesh.sidecar("callee", agent.address).await;
    reaches(&caller).await;
    let rego = "package aip.policy.extra\n\nrules contains {\"rule\": \"no_blocked\", \"verdict\": \"deny\", \"reason\": \"blocked\"} if input.request.path == [\"blocked\"]\n";
    let revision = mesh
        .admin()
        .apply(&json!({"name": "extra", "rego": rego, "attach": "mesh"}))
        .await;
    let before = mesh.admin().get("/v1/agents/callee").await;

    mesh.control_plane.kill();
    for _ in 0..20 {
        assert_eq!(caller.get(URL).await.status, 200, "traffic goes on");
    }
    both_restart(&mut caller, &mut callee, revision).await;

    mesh.revive().await;
    let after = mesh.admin().get("/v1/agents/callee").await;
    assert_eq!(after["revision"], before["revision"], "nothing lost");
    let policy = mesh.admin().get("/v1/policies/extra").await;
    assert_eq!(policy["revision"].as_u64(), Some(revision), "{policy}");
    // Both sidecars come again, with their endpoints.
    reaches(&caller).await;
    // And new changes reach everybody.
    mesh.admin().ok(Method::DELETE, "/v1/policies/extra", None).await;
    wait::until_ok("the removal arrives", async || {
        let answer = caller.get("http://callee.aip.internal/blocked").await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.text())
        }
    })
    .await;
}

/// The control plane dies in the middle of a stream of events, and the stream doesn't notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_the_control_plane() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let callee = mesh.sidecar("callee", agent.address).await;
    reaches(&caller).await;
    let stream = tokio::spawn({
        let outbound = caller.outbound;
        async move {
            let url = "http://callee.aip.internal/events?stream=outage&steps=3";
            let request = http::Request::get(url).header("host", "callee.aip.internal");
            aip_tests::http::send(outbound, request.body(http_body_util::Full::default()).unwrap())
                .await
                .unwrap()
        }
    });
    wait::until("the stream begins", async || {
        (!agent.seen("stream=outage").is_empty()).then_some(())
    })
    .await;
    mesh.control_plane.kill();
    for step in 1..=3 {
        agent.heard("outage", step);
    }
    let answer = stream.await.unwrap();
    assert_eq!(answer.text(), "data: step 1\n\ndata: step 2\n\ndata: step 3\n\n");
    // The first calls may have come before the callee was known, and have one end.
    let of_stream = |Records(all): Records| Records(all.into_iter().filter(|r| r.path() == "/events").collect());
    wait::until_ok("both ends recorded it", async || {
        pairs(&of_stream(caller.records()), &of_stream(callee.records()))
    })
    .await;
}

/// What listens in place of the control plane is another mesh's: nothing of it is taken, by who runs or by who starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_with_another_root_is_nobodys() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let mut callee = mesh.sidecar("callee", agent.address).await;
    reaches(&caller).await;
    let spec = mesh.spec(json!({"name": "late"}), agent.address).await;
    let (late, revision) = (mesh.dir("late"), caller.snapshot().await["revision"].clone());

    mesh.control_plane.kill();
    let other = mesh.dir("another");
    let any = "127.0.0.1:0".parse().unwrap();
    let command = ControlPlane::command(&ControlPlane::data(&other), mesh.control_plane.mesh, any, DEV);
    let impostor = ControlPlane::begin(&other, &command);
    wait::until("it listens", async || {
        ControlPlane::data(&other).join("run.json").exists().then_some(())
    })
    .await;
    callee.restart().await;
    let joins = Sidecar::command(&spec, &late);
    let joining = Process::start("late", &joins, &late);
    for (process, who) in [(&caller.process, "runs"), (&callee.process, "starts again")] {
        wait::until(&format!("who {who} says that it is not its own"), async || {
            process.stderr().contains("unknown_issuer").then_some(())
        })
        .await;
    }
    wait::until("who joins says so, too", async || {
        joining.stderr().contains("wrong_root").then_some(())
    })
    .await;
    assert_eq!(caller.get(URL).await.status, 200, "traffic goes on");
    assert_eq!(caller.snapshot().await["revision"], revision);
    drop(impostor);

    mesh.revive().await;
    let rego = "package aip.policy.extra\n\nrules contains {\"rule\": \"no_blocked\", \"verdict\": \"deny\", \"reason\": \"blocked\"} if input.request.path == [\"blocked\"]\n";
    mesh.admin()
        .apply(&json!({"name": "extra", "rego": rego, "attach": "mesh"}))
        .await;
    wait::until("changes of its own arrive", async || {
        let answer = caller.get("http://callee.aip.internal/blocked").await;
        (answer.status == 403).then_some(())
    })
    .await;
}

//! Reputation across processes: what is reported on one side of the mesh is refused on the other.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::agent::Agent;
use aip_tests::process::Mesh;
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

fn report(severity: &str, n: u32) -> Value {
    let evidence = format!("hop:0198f2f0-7d2b-7c3e-8a11-{n:012x}");
    json!({"finding": "hallucination", "severity": severity, "evidence": evidence, "claim": "made up"})
}

async fn slash(mesh: &Mesh, agent: &str, n: u32) -> Value {
    let path = format!("/v1/reputation/{agent}/reports");
    let taken = mesh.admin().ok(Method::POST, &path, Some(&report("critical", n))).await;
    mesh.admin().acknowledged(taken["revision"].as_u64().unwrap()).await;
    taken
}

async fn reset(mesh: &Mesh, agent: &str) {
    let path = format!("/v1/reputation/{agent}/reset");
    let done = mesh
        .admin()
        .ok(Method::POST, &path, Some(&json!({"reason": "a test"})))
        .await;
    mesh.admin().acknowledged(done["revision"].as_u64().unwrap()).await;
}

/// A report about one agent: its own sidecar lets nothing out, nobody's lets anything in to it; and it stays so when the
/// control plane is killed, when a sidecar restarts without it, and when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reported_is_refused_by_every_sidecar_and_survives_restarts() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let a = mesh.sidecar("a", agent.address).await;
    let mut b = mesh.sidecar("b", agent.address).await;
    let c = mesh.sidecar("c", agent.address).await;
    let to = |name: &str| format!("http://{name}.aip.internal/x");
    for (from, name) in [(&a, "b"), (&b, "a"), (&c, "a"), (&c, "b")] {
        assert_eq!(from.get(&to(name)).await.status, 200);
    }
    let before = agent.seen("/x").len();
    let taken = slash(&mesh, "a", 1).await;
    assert_eq!(
        (&taken["level"], &taken["told"]),
        (&json!("doubtful"), &json!(true)),
        "{taken}"
    );
    for (from, name) in [(&a, "b"), (&b, "a"), (&c, "a")] {
        let refused = from.get(&to(name)).await;
        let said = (refused.status.as_u16(), refused.reason());
        assert_eq!(said, (403, "reputation_too_low".to_owned()), "{}", refused.text());
    }
    assert_eq!(c.get(&to("b")).await.status, 200, "others go on");
    assert_eq!(
        agent.seen("/x").len(),
        before + 1,
        "no refused request reached an agent"
    );
    let shown = mesh.admin().get("/v1/reputation/a").await;

    mesh.control_plane.kill();
    assert_eq!(b.get(&to("a")).await.status, 403, "without a control plane, too");
    b.restart().await;
    assert_eq!(b.get(&to("a")).await.status, 403, "from the signed cache");
    mesh.revive().await;
    let again = mesh.admin().get("/v1/reputation/a").await;
    for field in ["history", "level", "revision", "told"] {
        assert_eq!(shown[field], again[field], "{field} from the event log after a restart");
    }
    assert_eq!(shown["reputation"]["slashes"], again["reputation"]["slashes"]);

    reset(&mesh, "a").await;
    for (from, name) in [(&a, "b"), (&b, "a"), (&c, "a")] {
        // One that had not reconnected when the reset was acknowledged takes it when it has.
        wait::until("calls go through after the reset", async || {
            (from.get(&to(name)).await.status == 200).then_some(())
        })
        .await;
    }
}

/// Who is removed and registered again under the same name has not left its past behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registering_anew_is_no_way_out() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let _a = mesh.sidecar("a", agent.address).await;
    slash(&mesh, "a", 1).await;
    mesh.admin().ok(Method::DELETE, "/v1/agents/a", None).await;
    let gone = mesh.admin().call(Method::GET, "/v1/reputation/a", None).await;
    assert_eq!(gone.status, 404);
    mesh.admin().agent(json!({"name": "a"})).await;
    let shown = mesh.admin().get("/v1/reputation/a").await;
    assert_eq!(
        (&shown["level"], &shown["below_floor"]),
        (&json!("doubtful"), &json!(true))
    );
}

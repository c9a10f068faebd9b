//! Reputation across processes: what is reported on one side of the mesh is refused on the other.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::Duration;

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Record, Sidecar, free_port};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

/// What hops say is gathered for 15 seconds and then written; the machine may be busy.
const WRITTEN: Duration = Duration::from_secs(90);

fn report(finding: &str, severity: &str, hop: &str) -> Value {
    json!({"finding": finding, "severity": severity, "evidence": format!("hop:{hop}"), "claim": "made up"})
}

/// The hop of the last call that this sidecar's agent made of `callee`.
async fn last_hop_to(caller: &Sidecar, callee: &str) -> String {
    let id = format!("/agent/{callee}");
    wait::until("the call is in the access log", async || {
        let made = caller.records().of("outbound").0;
        let to_callee = |record: &&Record| record.text("destination").ends_with(&id);
        made.iter().rev().find(to_callee).map(|record| record.hop().to_owned())
    })
    .await
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
    let hop = last_hop_to(&b, "a").await;
    let taken = mesh
        .admin()
        .report("a", &report("hallucination", "critical", &hop))
        .await;
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
    let b = mesh.sidecar("b", agent.address).await;
    assert_eq!(b.get("http://a.aip.internal/x").await.status, 200);
    let hop = last_hop_to(&b, "a").await;
    mesh.admin()
        .report("a", &report("hallucination", "critical", &hop))
        .await;
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

/// What an agent's reputation is now, once hops have brought it there.
async fn at_score(mesh: &Mesh, agent: &str, score: f64) -> Value {
    let path = format!("/v1/reputation/{agent}");
    wait::until_within(WRITTEN, &format!("{agent} is at {score}"), async || {
        let shown = mesh.admin().get(&path).await;
        let is = shown["score"].as_f64().unwrap();
        ((is - score).abs() < 0.015).then_some(shown)
    })
    .await
}

/// From real hops to the score: one agent fails, one answers too late, one is not there. Each falls by what the page says of
/// it, what the callers did is good, a reset control plane comes to the same, and a report on top of it shuts the agent out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_ends_saw_of_failures_lowers_a_score_by_as_much_as_is_documented() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let down: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let a = mesh.sidecar("a", agent.address).await;
    let b = mesh.sidecar("b", agent.address).await;
    let _late = mesh.sidecar("late", agent.address).await;
    let _down = mesh.sidecar("down", down).await;
    let limits = json!({"agent": "late", "response_timeout_ms": 500});
    let set = mesh.admin().ok(Method::PUT, "/v1/traffic/late", Some(&limits)).await;
    mesh.admin().acknowledged(set["revision"].as_u64().unwrap()).await;

    // As many as an hour counts, and one more.
    for _ in 0..5 {
        assert_eq!(a.get("http://b.aip.internal/fail").await.status, 500);
    }
    let late = a.get("http://late.aip.internal/slow?stream=never").await;
    assert_eq!(
        (late.status.as_u16(), late.reason().as_str()),
        (504, "response_timeout")
    );
    let down = a.get("http://down.aip.internal/x").await;
    assert_eq!(
        (down.status.as_u16(), down.reason().as_str()),
        (502, "agent_unreachable")
    );

    // 5 * 20 / 24 in reliability, which weighs 25 of 100.
    let failed = at_score(&mesh, "b", 5.0 - 0.25 * (5.0 - 100.0 / 24.0)).await;
    assert_eq!(failed["reputation"]["factors"]["quality"], 5.0, "{failed}");
    // One observation: 5 * 20 / 21, also in responsiveness, which weighs 10.
    at_score(&mesh, "late", 5.0 - 0.35 * (5.0 - 100.0 / 21.0)).await;
    at_score(&mesh, "down", 5.0 - 0.25 * (5.0 - 100.0 / 21.0)).await;
    let caller = mesh.admin().get("/v1/reputation/a").await;
    assert_eq!(
        caller["score"], 5.0,
        "it did nothing wrong, and nothing that was answered: {caller}"
    );

    // A verifier finds it unreliable by one of those hops: the hour's observations are full, so 2 come off.
    let hop = last_hop_to(&a, "b").await;
    let taken = mesh.admin().report("b", &report("unreliable", "critical", &hop)).await;
    assert_eq!(taken["points"], 2.0, "{taken}");
    let shown = at_score(&mesh, "b", 3.0 - 0.25 * (5.0 - 100.0 / 24.0)).await;
    assert_eq!((&shown["refused"], &shown["below_floor"]), (&json!(true), &json!(true)));
    for (from, name) in [(&a, "b"), (&b, "a")] {
        let refused = from.get(&format!("http://{name}.aip.internal/x")).await;
        let said = (refused.status.as_u16(), refused.reason());
        assert_eq!(said, (403, "reputation_too_low".to_owned()), "{}", refused.text());
    }

    mesh.control_plane.kill();
    mesh.revive().await;
    let again = mesh.admin().get("/v1/reputation/b").await;
    for field in ["history", "level", "told", "revision", "refused"] {
        assert_eq!(shown[field], again[field], "{field} from the event log after a restart");
    }
    let (was, is) = (shown["score"].as_f64().unwrap(), again["score"].as_f64().unwrap());
    assert!((was - is).abs() < 0.015, "{was} before, {is} after");
}

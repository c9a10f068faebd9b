//! Links that are slow, lossy, or narrow, and yet whole.

use aip_tests::network::{Link, isolated};
use futures_util::StreamExt as _;
use http::Method;
use serde_json::json;

use crate::world::World;

const POLICY: &str = "package aip.policy.lossy\n\nrules contains {\"rule\": \"no_blocked\", \"verdict\": \"deny\", \
                      \"reason\": \"blocked\"} if input.request.path == [\"blocked\"]\n";

async fn slow_and_lossy() {
    let world = World::start().await;
    let bad = Link {
        delay_ms: 40,
        loss: 0.05,
        ..Link::default()
    };
    world.network.between(&world.caller_host, &world.callee_host, bad);
    world.network.between(&world.caller_host, &world.control_plane, bad);
    world.network.between(&world.callee_host, &world.control_plane, bad);
    let calls = futures_util::stream::iter(0..60).map(|n| {
        let world = &world;
        async move {
            let path = format!("/lossy/{n}/");
            let answer = world.post(&path, vec![b'x'; 5_000]).await;
            (path, answer)
        }
    });
    let answered: Vec<_> = calls.buffer_unordered(8).collect().await;
    for (path, answer) in &answered {
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.body.len(), 5_000, "{path}");
    }
    world.delivered_once(&answered);
    // What the control plane says arrives, too.
    let policy = json!({"name": "lossy", "rego": POLICY, "attach": "mesh"});
    let applied = world.ask(Method::PUT, "/v1/policies/lossy", policy).await;
    let mesh = world.mesh.clone();
    let revision = applied["revision"].as_u64().unwrap();
    let heard = async move || mesh.admin().acknowledged(revision).await;
    world.control_plane.run(heard).await;
    assert_eq!(world.post("/blocked", "").await.reason(), "policy_denied");
    assert!(world.agent.seen("/blocked").is_empty());
}

/// Where routers say how large a packet may be, as they should.
async fn narrow() {
    let world = World::start().await;
    let narrow = Link {
        mtu: 600,
        icmp: true,
        ..Link::default()
    };
    world.network.between(&world.caller_host, &world.callee_host, narrow);
    let body = vec![b'x'; 300_000];
    let answer = world.post("/large", body.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, body.len()));
    assert_eq!(world.agent.only("/large").body, body);
}

#[test]
fn a_slow_lossy_or_narrow_link_carries_each_call_once() {
    isolated(
        "slow::a_slow_lossy_or_narrow_link_carries_each_call_once",
        [
            ("slow and lossy", Box::pin(slow_and_lossy())),
            ("narrow", Box::pin(narrow())),
        ],
    );
}

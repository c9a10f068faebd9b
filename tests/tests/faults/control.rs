//! The way to the control plane is cut, in one direction or both: what was known goes on to hold, what was ordered
//! meanwhile holds as soon as it can be heard, and nobody who was cut off is said to have heard it.

use aip_tests::network::{Link, isolated};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

use crate::world::{SILENCE, World};

const POLICY: &str = "package aip.policy.later\n\nrules contains {\"rule\": \"no_later\", \"verdict\": \"deny\", \
                      \"reason\": \"later\"} if input.request.path == [\"later\"]\n";

async fn progress(world: &World, order: &Value) -> Value {
    let (term, epoch) = (&order["term"], &order["epoch"]);
    world
        .get(&format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms=0"))
        .await
}

/// While packets of the control plane, or both ways, are lost.
async fn cut_off(world: &World, both: bool) {
    let sidecars = [&world.caller_host, &world.callee_host];
    for host in sidecars {
        world.network.from(&world.control_plane, host, Link::CUT);
        if both {
            world.network.from(host, &world.control_plane, Link::CUT);
        }
    }
    let policy = json!({"name": "later", "rego": POLICY, "attach": "mesh"});
    world.ask(Method::PUT, "/v1/policies/later", policy).await;
    let scope = json!({"kind": "pair", "source": "caller", "destination": "callee"});
    let order = json!({"scope": scope, "mode": "pause", "reason": "a test"});
    let order = world.ask(Method::POST, "/v1/kills", order).await;
    for n in 0..5 {
        assert_eq!(
            world.post(&format!("/meanwhile/{n}"), "").await.status,
            200,
            "what was known holds"
        );
    }
    assert_eq!(
        progress(world, &order).await["enforced"],
        json!([]),
        "nobody heard of it"
    );
    // Both ends give up the silent connections.
    for (host, sidecar) in [(&world.caller_host, &world.caller), (&world.callee_host, &world.callee)] {
        world.metric_is(host, sidecar, "aip_kill_stream_connected", 0.0).await;
    }
    assert_eq!(world.post("/still", "").await.status, 200);
    for host in sidecars {
        world.network.between(&world.control_plane, host, Link::default());
    }
    wait::until_within(SILENCE, "both enforce it", async || {
        let shown = progress(world, &order).await;
        (shown["enforced"].as_array().map(Vec::len) == Some(2)).then_some(())
    })
    .await;
    let heard = world.agent.seen("").len();
    assert_eq!(world.post("/paused", "").await.reason(), "paused");
    assert_eq!(world.agent.seen("").len(), heard);
    let id = order["order"].as_str().unwrap();
    world
        .ask(Method::POST, "/v1/kills/resume", json!({"orders": [id]}))
        .await;
    world.goes_through().await;
    wait::until_within(SILENCE, "the policy of meanwhile holds", async || {
        let answer = world.post("/later", "").await;
        (answer.status == 403).then_some(())
    })
    .await;
}

#[test]
fn a_silent_way_to_the_control_plane_changes_nothing_and_heals() {
    let cut = |both| Box::pin(async move { cut_off(&World::start().await, both).await });
    isolated(
        "control::a_silent_way_to_the_control_plane_changes_nothing_and_heals",
        [("partition", cut(true)), ("half-open", cut(false))],
    );
}

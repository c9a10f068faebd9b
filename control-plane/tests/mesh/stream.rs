//! The Config stream: what is pushed, and when.

use aip_api::resource::{Endpoint, KeyPurpose, Kind};
use aip_api::wire::{Hello, Resource};
use aip_runtime::signed;
use aip_runtime::signing::Signer;
use serde_json::json;
use tonic::Status;

use crate::support::sidecar::{held, hello, names, why};
use crate::support::{Mesh, Sidecar, eventually};

fn has(all: &[(Kind, String, u64)], kind: Kind, name: &str) -> bool {
    all.iter().any(|(k, n, _)| *k == kind && n == name)
}

#[tokio::test]
async fn the_first_push_is_what_a_sidecar_must_hold_and_the_acknowledged_one_is_not_sent_again() {
    let mesh = Mesh::dev().await;
    mesh.token("ledger").await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    let push = stream.push().await.unwrap();
    let first = names(&push);
    for (kind, name) in [
        (Kind::TrustBundle, "aip.internal"),
        (Kind::MeshConfig, "mesh"),
        (Kind::Agent, "planner"),
        (Kind::Policy, "baseline"),
        (Kind::Traffic, "default"),
    ] {
        assert!(has(&first, kind, name), "{kind}/{name} is missing from {first:?}");
    }
    assert_eq!(first.iter().filter(|(k, ..)| *k == Kind::SigningKey).count(), 5);
    assert!(!has(&first, Kind::Agent, "ledger"), "others come on demand");
    assert!(!first.iter().any(|(k, ..)| *k == Kind::Measurement));
    assert!(
        push.synced.contains(&(Kind::Revocation.to_wire() as i32)),
        "none is an answer too"
    );
    assert_eq!(first[0].0, Kind::TrustBundle, "in the order in which they are needed");
    stream.ack(push.nonce).await;

    let again = sidecar
        .open(Hello {
            held: held(&first),
            ..hello()
        })
        .await;
    let push = again.unwrap().push().await.unwrap();
    assert_eq!(names(&push), []);
    assert!(!push.synced.is_empty());
}

#[tokio::test]
async fn changes_merge_while_a_push_is_on_its_way() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    let put = async |n: u64| {
        let answer = mesh
            .admin
            .ok(
                "PUT",
                "/v1/traffic/planner",
                json!({"agent": "planner", "max_concurrency": n}),
            )
            .await;
        answer["revision"].as_u64().unwrap()
    };
    let first = put(1).await;
    let push = stream.push().await.unwrap();
    assert_eq!(names(&push), [(Kind::Traffic, "planner".into(), first)]);
    put(2).await;
    let mut last = put(3).await;
    last = last.max(put(4).await);
    let waiting = mesh.admin.get(&format!("/v1/revisions/{last}/acks")).await;
    assert_eq!(waiting["missing"].as_array().unwrap().len(), 1);
    assert_eq!(mesh.admin.get("/v1/sidecars").await["items"][0]["outstanding"], true);
    eventually("the world to catch up", async || {
        (mesh.admin.get("/v1/status").await["pushed"].as_u64().unwrap() >= last).then_some(())
    })
    .await;
    stream.ack(push.nonce).await;
    let push = stream.push().await.unwrap();
    assert_eq!(
        names(&push),
        [(Kind::Traffic, "planner".into(), last)],
        "one push for three changes"
    );
    stream.ack(push.nonce).await;
    let acks = mesh
        .admin
        .get(&format!("/v1/revisions/{last}/acks?wait_ms=10000"))
        .await;
    assert_eq!(acks["missing"], json!([]));
    assert_eq!(acks["acked"].as_array().unwrap().len(), 1);
    assert!(acks["ms"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn a_rejected_resource_is_not_held_and_is_sent_again_only_when_it_changes() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    let put = async |n: u64| {
        mesh.admin
            .ok(
                "PUT",
                "/v1/traffic/planner",
                json!({"agent": "planner", "max_concurrency": n}),
            )
            .await["revision"]
            .as_u64()
            .unwrap()
    };
    let bad = put(1).await;
    let push = stream.push().await.unwrap();
    stream.nack(&push, 0, "invalid").await;
    let acks = mesh.admin.get(&format!("/v1/revisions/{bad}/acks?wait_ms=10000")).await;
    assert_eq!(acks["nacked"].as_array().unwrap().len(), 1, "{acks}");
    let shown = mesh.admin.get("/v1/sidecars").await;
    assert_eq!(shown["items"][0]["nacks"][0]["reason"], "invalid");
    let other = json!({"agent": "default", "max_concurrency": 7});
    let other = mesh.admin.ok("PUT", "/v1/traffic/default", other).await;
    let push = stream.push().await.unwrap();
    assert!(
        !has(&names(&push), Kind::Traffic, "planner"),
        "the rejected one is not repeated"
    );
    stream.ack(push.nonce).await;
    let path = format!("/v1/revisions/{}/acks?wait_ms=10000", other["revision"]);
    let acks = mesh.admin.get(&path).await;
    assert_eq!(acks["nacked"], json!([]), "what it took is not what it refused: {acks}");
    assert_eq!(acks["acked"].as_array().unwrap().len(), 1, "{acks}");
    let good = put(2).await;
    let push = stream.push().await.unwrap();
    assert_eq!(names(&push), [(Kind::Traffic, "planner".into(), good)]);
    stream.ack(push.nonce).await;
    mesh.admin
        .get(&format!("/v1/revisions/{good}/acks?wait_ms=10000"))
        .await;
    assert_eq!(
        mesh.admin.get("/v1/sidecars").await["items"][0]["nacks"],
        json!([]),
        "taken since"
    );
}

#[tokio::test]
async fn peers_come_on_demand_and_missing_ones_are_said_to_be() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let ledger = mesh.joined("ledger").await;
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    stream.subscribe(Kind::Agent, &["ledger", "nobody"]).await;
    let push = stream.push().await.unwrap();
    assert!(has(&names(&push), Kind::Agent, "ledger"));
    let missing: Vec<_> = push.missing.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(missing, ["nobody"]);
    assert_eq!(push.synced, [Kind::Agent.to_wire() as i32]);
    stream.ack(push.nonce).await;

    stream.subscribe(Kind::Endpoint, &["ledger"]).await;
    let push = stream.push().await.unwrap();
    assert_eq!(
        (push.resources.len(), push.missing[0].name.as_str()),
        (0, "ledger"),
        "it serves nowhere yet"
    );
    stream.ack(push.nonce).await;
    let mut served = ledger.stream().await;
    served.synced().await;
    served.lease("127.0.0.1:15006").await;
    let push = stream.push().await.unwrap();
    let name = format!("ledger/{}", served.instance);
    assert!(has(&names(&push), Kind::Endpoint, &name));
    stream.ack(push.nonce).await;

    stream.subscribe(Kind::Policy, &["ledger"]).await;
    let push = stream.push().await.unwrap();
    assert_eq!(
        (push.resources.len(), push.synced.len()),
        (0, 1),
        "the baseline is held already"
    );
    stream.ack(push.nonce).await;
}

#[tokio::test]
async fn subscriptions_follow_what_appears_and_goes() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    mesh.token("ledger").await;
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    stream.subscribe(Kind::Agent, &["ledger", "nobody"]).await;
    let push = stream.push().await.unwrap();
    stream.ack(push.nonce).await;

    mesh.admin.ok("POST", "/v1/agents", json!({"name": "nobody"})).await;
    let push = stream.push().await.unwrap();
    assert!(
        has(&names(&push), Kind::Agent, "nobody"),
        "what was missing comes when it is there"
    );
    stream.ack(push.nonce).await;

    mesh.admin.ok("DELETE", "/v1/agents/nobody", json!(null)).await;
    let push = stream.push().await.unwrap();
    let gone = push.resources.iter().find(|r| r.name == "nobody").unwrap();
    assert!(gone.deleted && gone.payload.is_empty());
    stream.ack(push.nonce).await;

    stream.unsubscribe(Kind::Agent, &["ledger"]).await;
    stream.subscribe(Kind::Traffic, &["ledger"]).await;
    let push = stream.push().await.unwrap();
    stream.ack(push.nonce).await;
    let labelled = json!({"name": "ledger", "labels": {"tier": "gold"}});
    mesh.admin.ok("PUT", "/v1/agents/ledger", labelled).await;
    mesh.admin
        .ok("PUT", "/v1/traffic/ledger", json!({"agent": "ledger"}))
        .await;
    let push = stream.push().await.unwrap();
    assert!(has(&names(&push), Kind::Traffic, "ledger") && !has(&names(&push), Kind::Agent, "ledger"));
}

#[tokio::test]
async fn endpoints_live_as_long_as_their_stream_and_go_at_drain() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let endpoints = async || mesh.admin.get("/v1/endpoints").await["items"].as_array().unwrap().len();
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    stream.lease("127.0.0.1:15006").await;
    eventually("the endpoint", async || (endpoints().await == 1).then_some(())).await;
    stream.lease("").await;
    eventually("its withdrawal at drain", async || {
        (endpoints().await == 0).then_some(())
    })
    .await;
    stream.lease("127.0.0.1:15007").await;
    eventually("the endpoint", async || (endpoints().await == 1).then_some(())).await;
    drop(stream);
    eventually("its withdrawal with the stream", async || {
        (endpoints().await == 0).then_some(())
    })
    .await;

    let mut stream = sidecar.stream().await;
    stream.synced().await;
    stream.lease("169.254.169.254:80").await;
    assert_eq!(stream.ended().await, "endpoint_refused");
}

/// Why a stream is refused to a sidecar that shows this as the newest that it has.
async fn refused_to(sidecar: &Sidecar, newest: Resource) -> Status {
    let hello = Hello {
        newest: Some(newest),
        ..hello()
    };
    sidecar.open(hello).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_restored_store_pushes_nothing_until_an_operator_lifts_it() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    let before = stream.synced().await;
    let floor = 5_000;
    // As the store signed it after the copy was made.
    let config = mesh.plane.api.ca.signer(KeyPurpose::Config);
    let newest = signed::sign(&config, Kind::Agent, "planner", floor, false, b"{}".as_slice());
    let refused = refused_to(&sidecar, newest.clone()).await;
    assert_eq!(why(&refused), "restored_store");
    assert!(
        refused.message().contains("/v1/mesh/lift {\"above\": 5000}"),
        "{}",
        refused.message()
    );
    // Nobody is asked to lift a store to what a sidecar made up.
    let (own, _) = Signer::generate(KeyPurpose::Config).unwrap();
    let other = mesh.plane.api.ca.signer(KeyPurpose::Kill);
    let sign = |signer: &Signer| signed::sign(signer, Kind::Agent, "planner", 1 << 40, false, b"{}".as_slice());
    let mut raised = newest.clone();
    raised.revision = u64::MAX;
    for lie in [sign(&own), sign(&other), raised] {
        let refused = refused_to(&sidecar, lie).await;
        assert_eq!(why(&refused), "protocol_violation");
        assert!(
            refused.message().contains("planner") && !refused.message().contains("lift"),
            "{}",
            refused.message()
        );
    }
    let far = mesh
        .admin
        .refused("POST", "/v1/mesh/lift", json!({"above": 1_u64 << 40}))
        .await;
    assert_eq!(far.0, 422, "{far:?}");
    let lifted = mesh.admin.ok("POST", "/v1/mesh/lift", json!({"above": floor})).await;
    assert_eq!(lifted["revision"], floor + 1);
    let pushed = eventually("the world to catch up", async || {
        sidecar
            .open(Hello {
                newest: Some(newest.clone()),
                held: held(&before),
                ..hello()
            })
            .await
            .ok()
    })
    .await
    .synced()
    .await;
    assert_eq!(pushed.len(), before.len());
    assert!(
        pushed.iter().all(|(.., revision)| *revision == floor + 1),
        "all are newer than what was held"
    );
}

#[tokio::test]
async fn policies_follow_labels_and_attachment() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    let policy = |attach: serde_json::Value| {
        let rego = "package aip.policy.gold\n\nrules contains {\"rule\": \"g\", \"verdict\": \"deny\", \"reason\": \"no\"} if {\n\
                    \tinput.request.method == \"TRACE\"\n}\n";
        json!({"name": "gold", "rego": rego, "attach": attach})
    };
    mesh.admin
        .ok("PUT", "/v1/policies/gold", policy(json!({"labels": {"tier": "gold"}})))
        .await;
    mesh.admin
        .ok(
            "PUT",
            "/v1/agents/planner",
            json!({"name": "planner", "labels": {"tier": "gold"}}),
        )
        .await;
    let push = stream.push().await.unwrap();
    assert!(
        has(&names(&push), Kind::Policy, "gold"),
        "the label brought it: {:?}",
        names(&push)
    );
    stream.ack(push.nonce).await;
    mesh.admin
        .ok("PUT", "/v1/policies/gold", policy(json!({"agents": ["ledger"]})))
        .await;
    let push = stream.push().await.unwrap();
    assert!(
        has(&names(&push), Kind::Policy, "gold"),
        "it learns that it is not attached any more"
    );
    stream.ack(push.nonce).await;
    mesh.admin.ok("DELETE", "/v1/policies/gold", json!(null)).await;
    let push = stream.push().await.unwrap();
    assert!(push.resources.iter().any(|r| r.name == "gold" && r.deleted));
}

#[tokio::test]
async fn one_agent_burdens_its_peers_with_a_bounded_number_of_endpoints() {
    let mesh = Mesh::dev().await;
    mesh.joined("planner").await;
    mesh.joined("ledger").await;
    let put = async |agent: &str, n: u16, port: u16| {
        let endpoint = Endpoint {
            agent: agent.parse().unwrap(),
            instance: format!("00000000-0000-7000-8000-{n:012}"),
            address: format!("127.0.0.1:{port}").parse().unwrap(),
        };
        mesh.plane.registry.put_endpoint(&endpoint).await
    };
    for n in 0..512 {
        put("planner", n, 1 + n).await.unwrap();
    }
    let refused = put("planner", 512, 1).await.unwrap_err();
    assert_eq!(refused.reason(), "limit_reached", "{}", refused.detail);
    put("planner", 7, 9_999).await.expect("what is there may move");
    put("ledger", 512, 1)
        .await
        .expect("another agent has endpoints of its own");
}

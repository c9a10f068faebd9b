//! What ends a Config stream, and who comes after it.

use std::time::Duration;

use aip_api::resource::Kind;
use aip_api::wire::config_request::Message;
use aip_api::wire::{Ack, Hello};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::sidecar::{Stream, held, hello, names, why};
use crate::support::{Mesh, Sidecar, eventually};

/// A mesh whose streams have other limits.
async fn with_limits(change: impl FnOnce(&mut aip_control_plane::config::Limits)) -> Mesh {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = crate::support::settings(&dir.path().join("data"));
    change(&mut settings.limits);
    let mut mesh = Mesh::start(settings).await;
    mesh.dir = Some(dir);
    mesh
}

/// Changes what every sidecar holds; answers the revision.
async fn change(mesh: &Mesh, limit: u64) -> u64 {
    let traffic = json!({"agent": "default", "max_concurrency": limit});
    mesh.admin.ok("PUT", "/v1/traffic/default", traffic).await["revision"]
        .as_u64()
        .unwrap()
}

/// Who acknowledged, once the others were waited for, while this stream acknowledges whatever comes: a change may come in
/// the push after the one that completes the first state.
async fn waited(mesh: &Mesh, stream: &mut Stream, revision: u64) -> Value {
    let acks = format!("/v1/revisions/{revision}/acks?wait_ms=30000");
    tokio::select! {
        acks = mesh.admin.get(&acks) => acks,
        () = stream.follow() => panic!("the stream ended"),
    }
}

async fn sidecars(mesh: &Mesh) -> Vec<Value> {
    mesh.admin.get("/v1/sidecars").await["items"]
        .as_array()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn a_restarted_sidecar_is_waited_for_in_the_place_of_its_ghost() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut ghost = sidecar.stream().await;
    ghost.synced().await;
    drop(ghost);
    eventually("its end to be noticed", async || {
        (sidecars(&mesh).await[0]["connected"] == false).then_some(())
    })
    .await;
    let revision = change(&mesh, 7).await;
    let acks = format!("/v1/revisions/{revision}/acks");
    let missing = mesh.admin.get(&acks).await["missing"].clone();
    assert_eq!(
        missing.as_array().unwrap().len(),
        1,
        "its SVID is good: it may be running"
    );

    // The same sealed identity, another process.
    let mut successor = sidecar.stream().await;
    successor.synced().await;
    let all = waited(&mesh, &mut successor, revision).await;
    assert_eq!(
        (&all["missing"], all["acked"].as_array().unwrap().len()),
        (&json!([]), 1)
    );
    let instances: Vec<_> = sidecars(&mesh).await.iter().map(|s| s["instance"].clone()).collect();
    assert_eq!(instances, [json!(successor.instance)]);
}

/// Drift and revocation raise the generation: what had the earlier one is refused by every peer.
#[tokio::test]
async fn a_ghost_of_an_earlier_generation_is_not_waited_for() {
    let mesh = Mesh::dev().await;
    let revoked = mesh.joined("planner").await;
    let mut ghost = revoked.stream().await;
    ghost.synced().await;
    drop(ghost);
    eventually("its end to be noticed", async || {
        (sidecars(&mesh).await[0]["connected"] == false).then_some(())
    })
    .await;
    mesh.admin
        .ok("POST", "/v1/agents/planner/revoke", json!({"reason": "test"}))
        .await;
    let token = mesh.another_token("planner").await;
    let mut again = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    again.join(&token).await.unwrap();
    let revision = change(&mesh, 7).await;
    let mut successor = again.stream().await;
    successor.synced().await;
    let acks = waited(&mesh, &mut successor, revision).await;
    assert_eq!(acks["missing"], json!([]), "{acks}");
    let instances: Vec<_> = sidecars(&mesh).await.iter().map(|s| s["instance"].clone()).collect();
    assert_eq!(instances, [json!(successor.instance)]);
}

#[tokio::test]
async fn who_drained_is_not_waited_for_and_who_vanished_is_while_it_may_serve() {
    let mesh = Mesh::dev().await;
    let drained = mesh.joined("planner").await;
    let vanished = mesh.joined("researcher").await;
    let mut ends = drained.stream().await;
    ends.synced().await;
    ends.lease("127.0.0.1:15006").await;
    let mut breaks = vanished.stream().await;
    breaks.synced().await;
    breaks.lease("127.0.0.1:15007").await;
    ends.lease("").await;
    ends.close().await;
    drop(breaks);
    eventually("both ends to be noticed", async || {
        sidecars(&mesh)
            .await
            .iter()
            .all(|s| s["connected"] == false)
            .then_some(())
    })
    .await;
    let revision = change(&mesh, 7).await;
    let acks = mesh.admin.get(&format!("/v1/revisions/{revision}/acks")).await;
    let missing = acks["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{acks}");
    assert!(missing[0].as_str().unwrap().starts_with("researcher/"), "{acks}");
    let left = sidecars(&mesh).await;
    let researcher = left.iter().find(|s| s["agent"] == "researcher").unwrap();
    let until = json!([{"sidecar": missing[0], "not_after": researcher["not_after"]}]);
    assert_eq!(acks["vanished"], until);
}

#[tokio::test]
async fn a_ghost_that_is_noticed_late_is_not_waited_for_either() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    // The network went away: the stream stands, and nobody is at its other end.
    let mut ghost = sidecar.stream().await;
    ghost.synced().await;
    let mut successor = sidecar.stream().await;
    successor.synced().await;
    let revision = change(&mesh, 7).await;
    let waiting = waited(&mesh, &mut successor, revision);
    let (acks, ()) = tokio::join!(waiting, async { drop(ghost) });
    assert_eq!(acks["missing"], json!([]));
    assert_eq!(sidecars(&mesh).await.len(), 1);
}

#[tokio::test]
async fn a_push_that_is_not_acknowledged_in_time_ends_the_stream() {
    let mesh = with_limits(|limits| limits.ack = Duration::from_millis(200)).await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    let first = stream.push().await.unwrap();
    let status = stream.push().await.unwrap_err();
    assert_eq!(why(&status), "ack_timeout");
    let gone = eventually("its end", async || {
        sidecars(&mesh).await.into_iter().find(|s| s["connected"] == false)
    })
    .await;
    assert_eq!(gone["revision"], 0, "what was not acknowledged is not known to be held");

    // Who acknowledges is left alone, however long it waits for the next push.
    let mut stream = sidecar.stream().await;
    let again = stream.push().await.unwrap();
    assert_eq!(names(&again), names(&first), "all of it again");
    stream.ack(again.nonce).await;
    for limit in 1..=3 {
        let revision = change(&mesh, limit).await;
        let push = stream.push().await.unwrap();
        stream.ack(push.nonce).await;
        let acks = format!("/v1/revisions/{revision}/acks?wait_ms=10000");
        assert_eq!(mesh.admin.get(&acks).await["missing"], json!([]));
    }
}

#[tokio::test]
async fn a_stream_of_its_age_is_renewed_and_nothing_is_sent_twice() {
    let mesh = with_limits(|limits| limits.age = Duration::from_millis(400)).await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    let before = stream.synced().await;
    assert_eq!(stream.ended().await, "stream_renewed");
    let mut next = sidecar
        .open(Hello {
            held: held(&before),
            instance: stream.instance.clone(),
            ..hello()
        })
        .await
        .unwrap();
    let push = next.push().await.unwrap();
    assert_eq!(names(&push), []);
    assert!(!push.synced.is_empty());
    assert_eq!(sidecars(&mesh).await.len(), 1, "the same sidecar");
    // A stream that owes an acknowledgement is renewed all the same.
    assert_eq!(why(&next.push().await.unwrap_err()), "stream_renewed");
}

#[tokio::test]
async fn a_new_stream_of_the_same_instance_takes_over_and_keeps_its_endpoint() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let first = hello();
    let mut old = sidecar.open(first.clone()).await.unwrap();
    old.synced().await;
    old.lease("127.0.0.1:15006").await;
    let endpoint = eventually("the endpoint", async || {
        mesh.admin.get("/v1/endpoints").await["items"].get(0).cloned()
    })
    .await;
    let mut new = sidecar.open(first).await.unwrap();
    new.lease("127.0.0.1:15006").await;
    assert_eq!(old.ended().await, "superseded");
    new.synced().await;
    // The grace of a stream that ended later is over: so is that of the old one.
    let ledger = mesh.joined("ledger").await;
    let later = ledger.stream().await;
    later.lease("127.0.0.1:15008").await;
    let endpoints = async || {
        mesh.admin.get("/v1/endpoints").await["items"]
            .as_array()
            .unwrap()
            .clone()
    };
    eventually("the later endpoint", async || {
        (endpoints().await.len() == 2).then_some(())
    })
    .await;
    drop(later);
    let now = eventually("its withdrawal", async || {
        let now = endpoints().await;
        now.iter().all(|e| e["resource"]["agent"] == "planner").then_some(now)
    })
    .await;
    assert_eq!(now, [endpoint], "the same, at the same revision");
    let sidecars = mesh.admin.get("/v1/sidecars").await;
    let planners = sidecars["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|s| s["agent"] == "planner");
    assert_eq!(planners.count(), 1);
}

#[tokio::test]
async fn a_live_stream_ends_when_its_svid_is_revoked_or_its_agent_removed() {
    let mesh = Mesh::dev().await;
    for (revoke, expected) in [
        (json!({}), "generation_mismatch"),
        (json!({"serial": true}), "svid_revoked"),
        (json!(null), "agent_unknown"),
    ] {
        let sidecar = mesh.joined("planner").await;
        let mut stream = sidecar.stream().await;
        stream.synced().await;
        if revoke.is_null() {
            mesh.admin.ok("DELETE", "/v1/agents/planner", json!(null)).await;
        } else {
            let serial = sidecar.svid.current().unwrap().identity.serial.clone();
            let body = if revoke["serial"] == true {
                json!({"serial": serial})
            } else {
                json!({})
            };
            mesh.admin.ok("POST", "/v1/agents/planner/revoke", body).await;
        }
        assert_eq!(stream.ended().await, expected);
        assert!(sidecar.open(hello()).await.is_err(), "and no other one opens");
        if !revoke.is_null() {
            mesh.admin.ok("DELETE", "/v1/agents/planner", json!(null)).await;
        }
    }
}

#[tokio::test]
async fn what_the_protocol_does_not_allow_ends_the_stream() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let refused = |hello: Hello| async { why(&sidecar.open(hello).await.map(|_| ()).unwrap_err()) };
    assert_eq!(
        refused(Hello {
            instance: "x".into(),
            ..hello()
        })
        .await,
        "instance_invalid"
    );
    // Refused while they come in, whatever they would be once they are read.
    let many = vec![aip_api::wire::Held::default(); 200_000];
    assert_eq!(refused(Hello { held: many, ..hello() }).await, "protocol_violation");

    let anonymous = Sidecar::new(mesh.plane.run.mesh, "planner", &mesh.another_token("planner").await).await;
    let pin = mesh.plane.run.root;
    let tls = aip_runtime::tls::pinned_client(pin).unwrap();
    let channel = aip_runtime::grpc::channel(anonymous.mesh, tls).await.unwrap();
    assert_eq!(
        why(&Stream::open(channel, hello(), None).await.map(|_| ()).unwrap_err()),
        "credential_missing"
    );

    let cases: Vec<(Message, &str)> = vec![
        (Message::Hello(hello()), "protocol_violation"),
        (
            Message::Ack(Ack {
                nonce: 77,
                rejected: vec![],
            }),
            "protocol_violation",
        ),
        (
            Message::Subscribe(aip_api::wire::Subscribe {
                kind: Kind::MeshConfig.to_wire() as i32,
                names: vec![],
            }),
            "protocol_violation",
        ),
        (
            Message::Subscribe(aip_api::wire::Subscribe {
                kind: Kind::Agent.to_wire() as i32,
                names: vec!["Not A Name".into()],
            }),
            "protocol_violation",
        ),
    ];
    for (message, expected) in cases {
        let mut stream = sidecar.stream().await;
        stream.synced().await;
        stream.say(message.clone()).await;
        assert_eq!(stream.ended().await, expected, "{message:?}");
    }
}

#[tokio::test]
async fn messages_and_subscriptions_are_bounded() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    // More than a busy machine reads in the time in which so many are let through.
    for _ in 0..3_000 {
        stream.unsubscribe(Kind::Agent, &["x"]).await;
    }
    assert_eq!(stream.ended().await, "rate_exceeded");
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    for batch in 0..14 {
        let names: Vec<_> = (0..1_000).map(|i| format!("a{batch}-{i}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        stream.subscribe(Kind::Agent, &names).await;
    }
    assert_eq!(stream.ended().await, "subscription_limit");
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    for port in 0..20 {
        stream.lease(&format!("127.0.0.1:{}", 15_006 + port)).await;
    }
    assert_eq!(stream.ended().await, "rate_exceeded", "each is a transaction");
}

#[tokio::test]
async fn streams_are_bounded_for_each_agent() {
    let mesh = with_limits(|limits| limits.per_agent = 2).await;
    let sidecar = mesh.joined("planner").await;
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(sidecar.stream().await);
    }
    let instance = Uuid::now_v7().hyphenated().to_string();
    let third = sidecar
        .open(Hello { instance, ..hello() })
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(why(&third), "session_limit");
}

#[tokio::test]
async fn what_one_agent_lists_is_bounded_over_all_its_streams() {
    let mesh = with_limits(|limits| limits.listed = 50).await;
    let sidecar = mesh.joined("planner").await;
    let listing = |count: usize| {
        let all: Vec<_> = (0..count).map(|i| (Kind::Agent, format!("a{i}"), 1)).collect();
        Hello {
            held: held(&all),
            ..hello()
        }
    };
    let _open = sidecar.open(listing(30)).await.unwrap();
    let refused = sidecar.open(listing(30)).await.map(|_| ()).unwrap_err();
    assert_eq!(why(&refused), "session_limit");
    sidecar.open(listing(20)).await.unwrap();
    let other = mesh.joined("ledger").await;
    other.open(listing(30)).await.expect("another agent's are its own");
}

#[tokio::test]
async fn a_sidecar_rejects_what_it_was_pushed_and_nothing_else() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.stream().await;
    let push = stream.push().await.unwrap();
    let traffic = push
        .resources
        .iter()
        .find(|r| r.kind == Kind::Traffic.to_wire() as i32)
        .unwrap();
    let rejection = |name: String, length: usize| aip_api::wire::Rejection {
        kind: traffic.kind,
        name,
        revision: traffic.revision,
        reason: "r".repeat(length),
        detail: "d".repeat(length),
    };
    let mut rejected: Vec<_> = (0..400).map(|i| rejection(format!("invented-{i}"), 100)).collect();
    rejected.push(rejection(traffic.name.clone(), 5_000));
    let nonce = push.nonce;
    stream.say(Message::Ack(Ack { nonce, rejected })).await;
    let nacks = eventually("the rejection", async || {
        let nacks = sidecars(&mesh).await[0]["nacks"].clone();
        (nacks != json!([])).then_some(nacks)
    })
    .await;
    assert_eq!(nacks.as_array().unwrap().len(), 1, "{nacks}");
    assert_eq!(nacks[0]["name"], "default");
    assert!(nacks.to_string().len() < 1_000);
}

//! What the sidecars of one agent, or whoever has its key, may make the control plane read, hold and write; and that another
//! agent notices nothing of it.

use aip_api::resource::Kind;
use aip_api::wire::config_request::Message;
use aip_api::wire::kill_request::Message as Said;
use aip_api::wire::kill_response::Message as Answer;
use aip_api::wire::{Beat, ConfigRequest, EndpointLease, Held, Hello, KillHello, KillRequest};
use aip_runtime::grpc::config_client::ConfigClient;
use aip_runtime::grpc::kill_client::KillClient;
use aip_runtime::svid::PendingKey;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::support::sidecar::{evidence, hello, sign, why};
use crate::support::{Mesh, Sidecar};

/// A hello that lists so many bytes of names.
fn long_hello(bytes: usize) -> Hello {
    let held = |n: usize| Held {
        kind: Kind::Policy.to_wire() as i32,
        name: format!("{n:0>100}"),
        revision: 1,
    };
    Hello {
        held: (0..bytes / 100).map(held).collect(),
        ..hello()
    }
}

#[tokio::test]
async fn only_a_hello_may_be_large() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = sidecar.open(long_hello(1 << 20)).await.unwrap();
    let address = "x".repeat(300 * 1024);
    stream.say(Message::Endpoint(EndpointLease { address })).await;
    assert_eq!(stream.ended().await, "protocol_violation", "it was not read");
    let mut stream = sidecar.stream().await;
    stream.synced().await;
    let names: Vec<String> = (0..1_000).map(|n| format!("{n:a>50}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    stream.subscribe(Kind::Agent, &names).await;
    let push = stream.push().await.unwrap();
    assert!(!push.missing.is_empty(), "what a sidecar says is read");
}

/// Opens a stream and says nothing on it.
async fn silent(sidecar: &Sidecar) -> Result<(), Status> {
    let (_say, requests) = mpsc::channel::<ConfigRequest>(1);
    let mut client = ConfigClient::new(sidecar.connected().await.unwrap());
    client.stream(ReceiverStream::new(requests)).await.map(drop)
}

#[tokio::test]
async fn who_opens_streams_and_says_nothing_keeps_nobody_else_waiting() {
    let mesh = Mesh::dev().await;
    let (planner, ledger) = (mesh.joined("planner").await, mesh.joined("ledger").await);
    let mut waiting = JoinSet::new();
    for _ in 0..5 {
        let planner = planner.another();
        waiting.spawn(async move { silent(&planner).await });
    }
    ledger.stream().await.synced().await;
    // Four are waited for until their time is over; the fifth had no turn before.
    let first = waiting.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(why(&first), "overloaded");
    let rest: Vec<String> = waiting
        .join_all()
        .await
        .iter()
        .map(|end| why(end.as_ref().unwrap_err()))
        .collect();
    assert_eq!(rest, ["protocol_violation"; 4]);
    planner.stream().await.synced().await;
}

#[tokio::test]
async fn evidence_is_not_verified_for_a_nonce_that_nobody_made_or_more_often_than_svids_are_issued() {
    let mesh = Mesh::dev().await;
    let mut sidecar = mesh.joined("planner").await;
    let token = mesh.another_token("planner").await;
    let (key, other) = (PendingKey::generate().unwrap(), PendingKey::generate().unwrap());
    let mut forged = async |nonce: &[u8]| {
        let mut request = sidecar.good(&token, &key).await;
        // Whoever looks at the signature first says that it is another key's.
        request.evidence = sign(&evidence("planner", &key, nonce, b"code"), &other);
        why(&sidecar.issue(request).await.unwrap_err())
    };
    assert_eq!(forged(&[7; 32]).await, "nonce_unknown");
    let mut refused = Vec::new();
    for _ in 0..70 {
        let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
        let nonce = sidecar.nonce().await;
        refused.push(forged(&nonce).await);
    }
    assert_eq!(refused.first().map(String::as_str), Some("evidence_other_key"));
    assert_eq!(refused.last().map(String::as_str), Some("rate_exceeded"));
    mesh.joined("ledger").await;
}

#[tokio::test]
async fn a_used_join_token_counts_nothing_against_its_agent() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    sidecar.join(&token).await.unwrap();
    let mut thief = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    for _ in 0..70 {
        assert_eq!(why(&thief.join(&token).await.unwrap_err()), "token_other_key");
    }
    sidecar.renew(b"code").await.unwrap();
}

/// A process of the agent that has just begun beats once: granted, or why not.
async fn beats(channel: &Channel) -> Result<(), String> {
    let (say, requests) = mpsc::channel(2);
    let hello = KillHello {
        instance: hello().instance,
        ..KillHello::default()
    };
    let beat = Beat {
        sequence: 1,
        granted: 0,
    };
    for message in [Said::Hello(hello), Said::Beat(beat)] {
        let message = Some(message);
        say.send(KillRequest { message }).await.unwrap();
    }
    let opened = KillClient::new(channel.clone())
        .stream(ReceiverStream::new(requests))
        .await;
    let mut answers = opened.map_err(|status| why(&status))?.into_inner();
    loop {
        match answers.message().await.map_err(|status| why(&status))?.unwrap().message {
            Some(Answer::Heartbeat(_)) => return Ok(()),
            _ => continue,
        }
    }
}

#[tokio::test]
async fn one_agent_has_no_more_noted_of_it_than_its_sidecars_need() {
    let mesh = Mesh::dev().await;
    let (planner, ledger) = (mesh.joined("planner").await, mesh.joined("ledger").await);
    let channel = planner.connected().await.unwrap();
    let (mut granted, began) = (0, std::time::Instant::now());
    let refused = loop {
        match beats(&channel).await {
            Ok(()) => granted += 1,
            Err(reason) => break reason,
        }
    };
    assert_eq!(refused, "rate_exceeded");
    // As many as there are at once, and what came back meanwhile.
    let most = 512.0 + 4.0 * began.elapsed().as_secs_f64();
    assert!(
        (512.0..=most + 1.0).contains(&f64::from(granted)),
        "{granted} were noted"
    );
    beats(&ledger.connected().await.unwrap()).await.unwrap();
}

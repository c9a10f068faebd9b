//! Open requests are decided again when the world changes; and a drain lets them finish.

use std::net::SocketAddr;
use std::time::Duration;

use aip_api::resource::EgressRule;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::client::{begin, get, raw_on, send};
use crate::kinds::{AT_THE_CALLEE, Open, echo, requests};
use crate::mesh::{DEADLINE, Pair, World, until};

/// An event stream of which the first event has come.
async fn open(agent: &Agent, pair: &Pair) -> Response<Incoming> {
    agent.go();
    let mut response = begin(pair.caller.outbound, get("/events")).await;
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    response
}

async fn is_cut(mut response: Response<Incoming>) {
    let rest = async {
        while let Some(frame) = response.body_mut().frame().await {
            if frame.is_err() {
                return;
            }
        }
        panic!("the stream ended as if it were whole");
    };
    tokio::time::timeout(DEADLINE, rest).await.expect("cut in time");
}

fn denying(path: &str) -> String {
    format!(
        "package aip.policy.baseline\nrules contains {{\"rule\": \"everything\", \"verdict\": \"allow\", \"reason\": \"t\"}}\nrules contains {{\"rule\": \"not_this\", \"verdict\": \"deny\", \"reason\": \"t\"}} if input.request.path[0] == \"{path}\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_policy_would_refuse_now_is_cut_and_others_go_on() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let mut response = open(&agent, &pair).await;
    pair.callee
        .push(|world| world.policies = vec![("baseline".into(), denying("other"))]);
    agent.go();
    assert!(
        response.body_mut().frame().await.unwrap().is_ok(),
        "this one is still allowed"
    );
    pair.callee
        .push(|world| world.policies = vec![("baseline".into(), denying("events"))]);
    is_cut(response).await;
    assert_eq!(pair.callee.line().await["end"], "policy_denied");
}

/// A pair of which the caller may speak to an outside host, and that.
async fn with_outside(agent: &Agent) -> (Pair, SocketAddr) {
    let outside = echo().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.egress.push(EgressRule {
        host: "localhost".into(),
        port: outside.port(),
        allow_private: true,
    });
    (Pair::in_world(agent.address, world).await, outside)
}

/// Events, a WebSocket, a call inside a tunnel, gRPC, an upload, a download, and a tunnel to an outside host.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_stream_is_cut_by_a_policy_that_would_refuse_it_now() {
    for at_the_caller in [true, false] {
        let agent = Agent::start().await;
        let (pair, outside) = with_outside(&agent).await;
        let open = Open::all(&pair.caller, &pair.callee, &agent, outside).await;
        let side = if at_the_caller { &pair.caller } else { &pair.callee };
        side.push(|world| world.policies.clear());
        // One after the other.
        until("all of it is cut", async || (requests(side) == 0).then_some(())).await;
        open.end_cut(&agent, at_the_caller).await;
        let cut = AT_THE_CALLEE + u64::from(at_the_caller);
        let lines = side.lines(cut as usize).await;
        assert!(lines.iter().all(|line| line["end"] == "policy_denied"), "{lines:?}");
        until("nothing is left of them", async || {
            let left = requests(&pair.caller) + requests(&pair.callee);
            // The tunnel was dropped by now.
            (left == 0).then_some(())
        })
        .await;
        side.push(|world| world.policies = World::of(&[]).policies);
        assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_stream_goes_on_under_a_policy_that_allows_it_still() {
    let agent = Agent::start().await;
    let (pair, outside) = with_outside(&agent).await;
    let mut open = Open::all(&pair.caller, &pair.callee, &agent, outside).await;
    for side in [&pair.caller, &pair.callee] {
        side.push(|world| world.policies = vec![("baseline".into(), denying("other"))]);
        open.goes_on(&agent).await;
    }
    let answer = send(pair.caller.outbound, get("/other")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason().as_str()),
        (403, "policy_denied")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_s_own_policy_cuts_too() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let response = open(&agent, &pair).await;
    pair.caller.push(|world| world.policies.clear());
    is_cut(response).await;
    assert_eq!(pair.caller.line().await["end"], "policy_denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_cut_when_the_mesh_comes_to_require_more() {
    for at_the_callee in [true, false] {
        let agent = Agent::start().await;
        let pair = Pair::start(agent.address).await;
        let response = open(&agent, &pair).await;
        let side = if at_the_callee { &pair.callee } else { &pair.caller };
        side.push(|world| {
            world.mesh.require.assurance = aip_api::evidence::Assurance::Observed;
            // What the mesh requires is never only observed.
            world.agent(&side.name).mode = aip_api::resource::Mode::Observe { until: u64::MAX };
        });
        is_cut(response).await;
        assert_eq!(side.line().await["end"], "policy_denied");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_revoked_peer_is_cut() {
    for at_the_callee in [true, false] {
        let agent = Agent::start().await;
        let pair = Pair::start(agent.address).await;
        let response = open(&agent, &pair).await;
        match at_the_callee {
            true => pair.callee.revoke("planner", 2),
            false => pair.caller.revoke("ledger", 2),
        }
        is_cut(response).await;
        let answer = send(pair.caller.outbound, get("/x")).await;
        assert!(
            answer.status.is_client_error() || answer.status.is_server_error(),
            "{answer:?}"
        );
        if at_the_callee {
            // In a handshake that was over for the caller: whoever is refused so has sent its request to nobody.
            until("a new connection is refused for what it is", async || {
                let answer = send(pair.caller.outbound, get("/x")).await;
                (answer.status == 502 && answer.reason() == "peer_not_verified").then_some(())
            })
            .await;
        }
        assert_eq!(agent.seen().len(), 1, "nothing new reached the agent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_deregistered_peer_is_cut() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let response = open(&agent, &pair).await;
    pair.callee
        .push(|world| world.agents.retain(|a| a.name.as_str() != "planner"));
    is_cut(response).await;
    assert_eq!(pair.callee.line().await["end"], "deregistered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_gives_up_its_identity_cuts_everything_and_serves_nothing() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let response = open(&agent, &pair).await;
    pair.caller.svid.clear();
    is_cut(response).await;
    let answer = send(pair.caller.outbound, get("/x")).await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "no_identity"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_still_waits_is_cut_as_well() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let waiting = tokio::spawn(send(pair.caller.outbound, get("/slow")));
    until("the agent has it", async || (!agent.seen().is_empty()).then_some(())).await;
    pair.callee.push(|world| world.policies.clear());
    let answer = tokio::time::timeout(DEADLINE, waiting)
        .await
        .expect("answered in time")
        .unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.reason().as_str()),
        (403, "policy_denied")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_which_nothing_moves_is_cut() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.traffic.idle_timeout_ms = 200;
    let pair = Pair::in_world(agent.address, world).await;
    is_cut(open(&agent, &pair).await).await;
    assert_eq!(pair.callee.line().await["end"], "idle_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_is_cut() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let text = "GET http://ledger.aip.internal/upgrade HTTP/1.1\r\nhost: ledger.aip.internal\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut connection = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let head = raw_on(&mut connection, text.as_bytes(), "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    pair.callee.push(|world| world.policies.clear());
    // Until the end of the stream.
    raw_on(&mut connection, b"", "").await;
    assert_eq!(pair.callee.line().await["end"], "policy_denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_requests_finish_and_takes_no_new_connections() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let waiting = tokio::spawn(send(pair.caller.outbound, get("/slow")));
    until("the agent has it", async || (!agent.seen().is_empty()).then_some(())).await;
    let drain = pair.callee.drain();
    let idle = tokio::spawn(drain.idle(Duration::from_secs(20)));
    until("the port is closed", async || {
        tokio::net::TcpStream::connect(pair.callee.inbound)
            .await
            .is_err()
            .then_some(())
    })
    .await;
    assert!(!idle.is_finished(), "a request is still in flight");
    agent.go();
    assert_eq!(waiting.await.unwrap().text(), "at last");
    assert!(
        tokio::time::timeout(DEADLINE, idle).await.unwrap().unwrap(),
        "idle before its deadline"
    );
    // The caller's pool noticed, and finds nobody.
    let answer = send(pair.caller.outbound, get("/x")).await;
    assert_eq!(answer.reason(), "peer_unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_takes_over_without_a_gap() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let mut response = open(&agent, &pair).await;
    let renewed = pair.pki.svid("planner", crate::pki::Says::default());
    let serial = renewed.identity.serial.clone();
    pair.caller.svid.set(renewed).unwrap();
    until("new requests come with the new certificate", async || {
        assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
        let connections = pair.callee.proxy.connections()["connections"].clone();
        let serials: Vec<&Value> = connections.as_array().unwrap().iter().map(|c| &c["serial"]).collect();
        serials.contains(&&Value::from(serial.clone())).then_some(())
    })
    .await;
    agent.go();
    let event: Bytes = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(event.starts_with(b"data:"), "the old stream goes on");
}

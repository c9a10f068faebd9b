//! A peer with a good certificate that does not behave like a sidecar of ours.

use std::net::SocketAddr;

use aip_api::id::HopId;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use serde_json::json;

use crate::agent::Agent;
use crate::client::{Answer, Stranger, collect};
use crate::mesh::{Side, World, until};
use crate::pki::{Pki, Says};

struct Callee {
    pki: Pki,
    side: Side,
    agent: Agent,
}

async fn callee() -> Callee {
    let pki = Pki::new();
    let agent = Agent::start().await;
    let side = Side::start(&pki, "ledger", agent.address, World::of(&["planner", "ledger"])).await;
    Callee { pki, side, agent }
}

type Sender = SendRequest<Full<Bytes>>;

async fn connect(pki: &Pki, name: &str, says: Says, address: SocketAddr) -> Sender {
    Stranger::new(pki, name, says).connect(address, "ledger").await
}

async fn send(sender: &mut Sender, host: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(format!("https://{host}/x"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    collect(
        sender
            .send_request(request.body(Full::default()).unwrap())
            .await
            .unwrap(),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hop_is_good_once() {
    let callee = callee().await;
    let mut sender = connect(&callee.pki, "planner", Says::default(), callee.side.inbound).await;
    let hop = HopId::fresh().to_string();
    let host = "ledger.aip.internal";
    assert_eq!(send(&mut sender, host, &[("x-aip-hop", &hop)]).await.status, 200);
    let replayed = send(&mut sender, host, &[("x-aip-hop", &hop)]).await;
    assert_eq!(
        (replayed.status.as_u16(), replayed.reason().as_str()),
        (409, "hop_replayed")
    );
    // Nor on another connection.
    let mut other = connect(&callee.pki, "planner", Says::default(), callee.side.inbound).await;
    assert_eq!(send(&mut other, host, &[("x-aip-hop", &hop)]).await.status, 409);
    // An hour old.
    let old = send(
        &mut sender,
        host,
        &[("x-aip-hop", "01800000-0000-7000-8000-000000000001")],
    )
    .await;
    assert_eq!(old.status, 409);
    // From further ahead than clocks may differ: it would be refused to all that come in between.
    let ahead = |seconds: u64| {
        let hop = HopId::fresh().to_string().replace('-', "");
        let ms = u64::from_str_radix(&hop[..12], 16).unwrap() + seconds * 1_000;
        let all = format!("{ms:012x}{}", &hop[12..]);
        format!(
            "{}-{}-{}-{}-{}",
            &all[..8],
            &all[8..12],
            &all[12..16],
            &all[16..20],
            &all[20..]
        )
    };
    let future = send(&mut sender, host, &[("x-aip-hop", &ahead(310))]).await;
    assert_eq!(
        (future.status.as_u16(), future.reason().as_str()),
        (409, "hop_replayed")
    );
    assert_eq!(send(&mut sender, host, &[("x-aip-hop", &ahead(290))]).await.status, 200);
    let hop = HopId::fresh().to_string();
    assert_eq!(
        send(&mut sender, host, &[("x-aip-hop", &hop)]).await.status,
        200,
        "nor was the floor raised"
    );
    for bad in [&[("x-aip-hop", "1")][..], &[], &[("x-aip-hop", "")]] {
        assert_eq!(send(&mut sender, host, bad).await.reason(), "invalid_hop");
    }
    assert_eq!(callee.agent.seen().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_who_its_certificate_says() {
    let callee = callee().await;
    let mut sender = connect(&callee.pki, "planner", Says::default(), callee.side.inbound).await;
    let hop = HopId::fresh().to_string();
    let forged = [
        ("x-aip-hop", hop.as_str()),
        ("x-aip-source", "spiffe://aip.internal/agent/admin"),
    ];
    assert_eq!(send(&mut sender, "ledger.aip.internal", &forged).await.status, 200);
    assert_eq!(
        callee.agent.only().header("x-aip-source"),
        "spiffe://aip.internal/agent/planner"
    );
    let hop = HopId::fresh().to_string();
    let wrong = send(&mut sender, "planner.aip.internal", &[("x-aip-hop", &hop)]).await;
    assert_eq!((wrong.status.as_u16(), wrong.reason().as_str()), (421, "wrong_agent"));
    // A good certificate of somebody who is not registered any more.
    callee.side.absent("ghost");
    let mut ghost = connect(&callee.pki, "ghost", Says::default(), callee.side.inbound).await;
    let hop = HopId::fresh().to_string();
    let unknown = send(&mut ghost, "ledger.aip.internal", &[("x-aip-hop", &hop)]).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.reason().as_str()),
        (403, "unknown_source")
    );
    let lines = callee.side.lines(3).await;
    assert_eq!(lines[2]["source"], "spiffe://aip.internal/agent/ghost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_peer_is_cut_and_not_let_in_again() {
    let callee = callee().await;
    let mut sender = connect(&callee.pki, "planner", Says::default(), callee.side.inbound).await;
    let host = "ledger.aip.internal";
    let hop = HopId::fresh().to_string();
    assert_eq!(send(&mut sender, host, &[("x-aip-hop", &hop)]).await.status, 200);
    callee.side.revoke("planner", 2);
    until("the connection is cut", async || sender.is_closed().then_some(())).await;
    until("nothing is left of it", async || {
        (callee.side.proxy.connections()["connections"] == json!([])).then_some(())
    })
    .await;
    // A later generation is let in.
    let renewed = Says {
        generation: 2,
        ..Says::default()
    };
    let mut sender = connect(&callee.pki, "planner", renewed, callee.side.inbound).await;
    let hop = HopId::fresh().to_string();
    assert_eq!(send(&mut sender, host, &[("x-aip-hop", &hop)]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_certificate() {
    let callee = callee().await;
    let short = Says {
        seconds: 3,
        ..Says::default()
    };
    let mut sender = connect(&callee.pki, "planner", short, callee.side.inbound).await;
    let hop = HopId::fresh().to_string();
    assert_eq!(
        send(&mut sender, "ledger.aip.internal", &[("x-aip-hop", &hop)])
            .await
            .status,
        200
    );
    until("the connection ends", async || sender.is_closed().then_some(())).await;
}

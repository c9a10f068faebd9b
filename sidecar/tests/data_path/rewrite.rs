//! What is rewritten so that unchanged agents and clients stay on the mesh, and what is not.

use aip_api::resource::HostHeader;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::agent::Agent;
use crate::client::{get, send, to_ledger};
use crate::mesh::{Pair, World};

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_card_points_at_the_mesh() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let answer = send(pair.caller.outbound, get("/.well-known/agent-card.json")).await;
    assert_eq!(answer.json()["url"], "http://ledger.aip.internal/rpc");
    assert_eq!(answer.header("content-length"), answer.body.len().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_signed_card_advertises_leads_to_its_agent() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let elsewhere = || {
        Request::get("http://ledger.corp:9000/rpc")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    assert_eq!(
        send(pair.caller.outbound, elsewhere()).await.reason(),
        "egress_not_listed"
    );
    let card = send(pair.caller.outbound, get("/signed/.well-known/agent-card.json")).await;
    assert!(
        card.text().contains("http://ledger.corp:9000/rpc"),
        "as it was signed: {}",
        card.text()
    );
    assert_eq!(send(pair.caller.outbound, elsewhere()).await.status, 200);
    let seen = agent.seen();
    assert_eq!((seen.len(), seen[1].target.as_str()), (2, "/rpc"));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_and_legacy_endpoints_point_at_the_mesh() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let answer = send(pair.caller.outbound, get("/redirect")).await;
    assert_eq!(answer.header("location"), "http://ledger.aip.internal/redirect/");
    let events = send(pair.caller.outbound, get("/sse")).await.text();
    assert_eq!(
        events,
        "event: endpoint\r\ndata: http://ledger.aip.internal/messages?s=1\r\n\r\ndata: x\n\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_origin_are_local_or_original() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let with_origin = |origin: &str| {
        to_ledger("GET", "/x")
            .header("origin", origin)
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    send(pair.caller.outbound, with_origin("http://ledger.aip.internal")).await;
    send(pair.caller.outbound, with_origin("http://evil.example.com")).await;
    let mut world = World::of(&["planner", "ledger"]);
    world.agent("ledger").host = HostHeader::Original;
    let original = Pair::in_world(agent.address, world).await;
    send(original.caller.outbound, with_origin("http://ledger.aip.internal")).await;
    let seen = agent.seen();
    let local = format!("http://{}", agent.address);
    assert_eq!(
        (seen[0].header("origin"), seen[0].header("host")),
        (local.as_str(), agent.address.to_string().as_str())
    );
    assert_eq!(
        seen[1].header("origin"),
        "http://evil.example.com",
        "a foreign origin stays for the agent to refuse"
    );
    assert_eq!(
        (seen[2].header("origin"), seen[2].header("host")),
        ("http://ledger.aip.internal", "ledger.aip.internal")
    );
    assert_eq!(seen[2].header("forwarded"), "");
}

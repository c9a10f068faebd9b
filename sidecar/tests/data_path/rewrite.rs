//! What is rewritten so that unchanged agents and clients stay on the mesh, and what is not.

use aip_api::resource::{EgressRule, HostHeader};
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

fn elsewhere(authority: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://{authority}/rpc"))
        .body(Full::default())
        .unwrap()
}

/// That a card is signed proves nothing: whoever has its key may name any host.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_signed_card_advertises_leads_to_its_agent_where_the_registry_says_so() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let card = send(pair.caller.outbound, get("/signed/.well-known/agent-card.json")).await;
    assert!(
        card.text().contains("http://ledger.corp:9000/rpc"),
        "as it was signed: {}",
        card.text()
    );
    let answer = send(pair.caller.outbound, elsewhere("ledger.corp:9000")).await;
    assert_eq!(answer.reason(), "egress_not_listed", "the card alone diverts nothing");
    pair.caller
        .push(|world| world.agent("ledger").aliases = vec!["ledger.corp:9000".into()]);
    for authority in ["ledger.corp:9000", "LEDGER.corp:9000", "ledger.corp.:9000"] {
        assert_eq!(
            send(pair.caller.outbound, elsewhere(authority)).await.status,
            200,
            "{authority}"
        );
    }
    assert_eq!(agent.seen()[1].target, "/rpc");
    for authority in ["ledger.corp", "ledger.corp:9001", "x.ledger.corp:9000"] {
        let answer = send(pair.caller.outbound, elsewhere(authority)).await;
        assert_eq!(answer.reason(), "egress_not_listed", "{authority}");
    }
    // Two agents of one authority: it is nobody's.
    pair.caller
        .push(|world| world.agent("planner").aliases = vec!["ledger.corp:9000".into()]);
    let answer = send(pair.caller.outbound, elsewhere("ledger.corp:9000")).await;
    assert_eq!(answer.reason(), "egress_not_listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_alias_takes_over_a_name_of_the_mesh_or_a_listed_host() {
    let agent = Agent::start().await;
    // What goes outside is refused, so that it is seen which way a call would take.
    let rego = "package aip.policy.baseline\nrules contains {\"rule\": \"inside\", \"verdict\": \"allow\", \"reason\": \"t\"} if input.destination.kind == \"agent\"\n";
    let mut world = World::of(&["planner", "ledger", "other"]).policy(rego);
    world.agent("ledger").aliases = vec!["other.aip.internal".into(), "api.corp".into()];
    let pair = Pair::in_world(agent.address, world).await;
    assert_eq!(send(pair.caller.outbound, elsewhere("api.corp")).await.status, 200);
    assert_eq!(
        send(pair.caller.outbound, elsewhere("other.aip.internal"))
            .await
            .reason(),
        "no_endpoint",
        "it is the other's"
    );
    pair.caller.push(|world| {
        world.mesh.egress.push(EgressRule {
            host: "api.corp".into(),
            port: 80,
            allow_private: false,
        });
    });
    let answer = send(pair.caller.outbound, elsewhere("api.corp")).await;
    assert_eq!(answer.json()["rule"], "no_rule", "it is outside: {}", answer.text());
    assert_eq!(agent.seen().len(), 1);
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

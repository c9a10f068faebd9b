//! Only WebSocket may switch a connection: whatever else an agent agreed to would be a tunnel that no policy reads.

use aip_api::id::HopId;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::Full;
use hyper::ext::Protocol;

use crate::agent::Agent;
use crate::client::{Answer, Stranger, begin_h2, collect, raw};
use crate::mesh::Pair;
use crate::pki::Says;
use crate::refuse::is_refused;

/// The agent would switch to anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_wish_for_anything_else_is_not_passed_on() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for protocol in ["h2c", "TLS/1.0", "custom", "websocket, custom", "custom, websocket"] {
        let text = format!(
            "GET http://ledger.aip.internal/upgrade HTTP/1.1\r\nhost: ledger.aip.internal\r\n\
             connection: upgrade, close\r\nupgrade: {protocol}\r\n\r\n"
        );
        let answer = raw(pair.caller.outbound, text.as_bytes(), "").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{protocol}: {answer}");
    }
    for seen in agent.seen() {
        assert_eq!(
            (seen.header("upgrade"), seen.header("connection")),
            ("", ""),
            "{seen:?}"
        );
    }
    let with_body = "POST http://ledger.aip.internal/upgrade HTTP/1.1\r\nhost: ledger.aip.internal\r\n\
                     connection: upgrade, close\r\nupgrade: websocket\r\ncontent-length: 2\r\n\r\nhi";
    let answer = raw(pair.caller.outbound, with_body.as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

fn connect_to(protocol: Option<&'static str>, host: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = match protocol {
        Some(_) => format!("https://{host}/upgrade").parse().unwrap(),
        None => format!("{host}:80").parse().unwrap(),
    };
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(Protocol::from_static(protocol));
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extended_connect_for_anything_else_is_refused_at_both_ports() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for protocol in ["connect-udp", "custom", "h2c"] {
        let mut request = connect_to(Some(protocol), "ledger.aip.internal");
        *request.uri_mut() = "http://ledger.aip.internal/upgrade".parse().unwrap();
        let answer = collect(begin_h2(pair.caller.outbound, request).await).await;
        is_refused(&answer, 400, "unsupported_target");
        let answer = as_peer(&pair, connect_to(Some(protocol), "ledger.aip.internal")).await;
        is_refused(&answer, 400, "unsupported_target");
    }
    assert!(agent.seen().is_empty());
}

/// A peer gets no tunnel out of 15006, to the agent, to others or to this machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_bare_connect_of_a_peer_is_refused() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for host in [
        "ledger.aip.internal",
        "planner.aip.internal",
        "127.0.0.1",
        "example.com",
    ] {
        let answer = as_peer(&pair, connect_to(None, host)).await;
        is_refused(&answer, 400, "unsupported_target");
    }
    assert_eq!(agent.connections(), 0);
}

async fn as_peer(pair: &Pair, mut request: Request<Full<Bytes>>) -> Answer {
    let stranger = Stranger::new(&pair.pki, "planner", Says::default());
    let mut sender = stranger.connect(pair.callee.inbound, "ledger").await;
    let hop = HopId::fresh().to_string().parse().unwrap();
    request.headers_mut().insert("x-aip-hop", hop);
    // A refused CONNECT is an answer like any other.
    let response = sender.send_request(request).await.unwrap();
    assert_ne!(response.status(), StatusCode::OK);
    collect(response).await
}

//! CONNECT in its three meanings, and the guard before everything outside.

use std::net::SocketAddr;

use aip_api::resource::EgressRule;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::Agent;
use crate::client::{collect, h2_on, raw, raw_on, send};
use crate::mesh::{Pair, World};

pub(crate) async fn connect(proxy: SocketAddr, authority: &str) -> (TcpStream, String) {
    let mut tcp = TcpStream::connect(proxy).await.unwrap();
    let text = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
    let head = raw_on(&mut tcp, text.as_bytes(), "\r\n\r\n").await;
    (tcp, head)
}

pub(crate) fn listed(host: &str, port: u16, allow_private: bool) -> EgressRule {
    EgressRule {
        host: host.into(),
        port,
        allow_private,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inside_of_a_tunnel_to_an_agent_is_decided_like_any_call() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let (mut tcp, head) = connect(pair.caller.outbound, "ledger.aip.internal:80").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let inner = "POST /inside HTTP/1.1\r\nhost: ledger.aip.internal\r\ncontent-length: 2\r\n\r\nhi";
    let answer = raw_on(&mut tcp, inner.as_bytes(), "\r\n\r\nhi").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    // And the next one on the same tunnel, refused by then.
    pair.caller.push(|world| world.policies.clear());
    let answer = raw_on(&mut tcp, inner.as_bytes(), "no_rule").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(agent.only().target, "/inside");
    let lines = pair.caller.lines(2).await;
    assert_eq!(lines.len(), 2, "the tunnel itself is no call: {lines:?}");
    assert!(
        lines.iter().all(|l| l["connect"] == true && l["method"] == "POST"),
        "{lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_inside_a_tunnel_is_read_too() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let (tcp, _) = connect(pair.caller.outbound, "ledger.aip.internal:50051").await;
    let request = Request::post("http://ledger.aip.internal:50051/test.Echo/Unary")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from("\0\0\0\0\0")))
        .unwrap();
    let answer = collect(h2_on(TokioIo::new(tcp), request).await).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(agent.only().target, format!("http://{}/test.Echo/Unary", agent.address));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_inside_a_tunnel_to_an_agent_is_refused_in_words() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let (mut tcp, head) = connect(pair.caller.outbound, "ledger.aip.internal:443").await;
    assert!(head.starts_with("HTTP/1.1 200 "));
    let answer = raw_on(&mut tcp, b"\x16\x03\x01\x00\x05hello", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("tls_inside_tunnel"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_goes_where_connect_said_and_nowhere_else() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let (mut tcp, _) = connect(pair.caller.outbound, "ledger.aip.internal:80").await;
    let inner = "GET / HTTP/1.1\r\nhost: planner.aip.internal\r\nconnection: close\r\n\r\n";
    assert!(raw_on(&mut tcp, inner.as_bytes(), "").await.contains("host_mismatch"));
    let (_, head) = connect(pair.caller.outbound, "x.ledger.aip.internal:80").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    let (_, head) = connect(pair.caller.outbound, "ledger.aip.internal").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
}

/// A server outside, on this machine: says what it got.
pub(crate) async fn outside() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut part = [0; 4096];
                while let Ok(n @ 1..) = tcp.read(&mut part).await {
                    let text = String::from_utf8_lossy(&part[..n]).into_owned();
                    let http = text.starts_with("GET ");
                    let body = format!("got {text:?}");
                    let answer = match http {
                        true => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
                        false => body,
                    };
                    tcp.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

/// A ClientHello with this server name.
pub(crate) fn hello(name: Option<&str>) -> Vec<u8> {
    let u16b = |n: usize| (n as u16).to_be_bytes();
    let extension = name.map_or(Vec::new(), |name| {
        let entry = [&[0][..], &u16b(name.len()), name.as_bytes()].concat();
        let list = [&u16b(entry.len())[..], &entry].concat();
        [&[0, 0][..], &u16b(list.len()), &list].concat()
    });
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0x13, 1, 1, 0],
        &u16b(extension.len()),
        &extension,
    ]
    .concat();
    let message = [&[1, 0][..], &u16b(body.len()), &body].concat();
    [&[22, 3, 1][..], &u16b(message.len()), &message].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_listed_host_goes_through_unread() {
    let (agent, outside) = (Agent::start().await, outside().await);
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.egress.push(listed("localhost", outside.port(), true));
    let pair = Pair::in_world(agent.address, world).await;
    let (mut tcp, head) = connect(pair.caller.outbound, &format!("localhost:{}", outside.port())).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let answer = raw_on(&mut tcp, &hello(Some("LocalHost")), "got").await;
    assert!(answer.contains("LocalHost"), "{answer}");
    assert!(raw_on(&mut tcp, b"\x17more", "more").await.contains("more"));
    drop(tcp);
    let line = pair.caller.line().await;
    assert_eq!(
        (&line["protocol"], &line["destination"]),
        (&json!("tunnel"), &json!("localhost"))
    );
    assert_eq!(
        (&line["verdict"], &line["end"], &line["connect"]),
        (&json!("allow"), &json!("complete"), &json!(true))
    );
    assert_eq!(line["endpoint"], outside.to_string());
    assert!(line["bytes_in"].as_u64().unwrap() > 60 && line["bytes_out"].as_u64().unwrap() > 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_another_name_than_connect_s_is_refused() {
    let (agent, outside) = (Agent::start().await, outside().await);
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.egress.push(listed("localhost", outside.port(), true));
    let pair = Pair::in_world(agent.address, world).await;
    for first in [
        hello(Some("evil.example.com")),
        hello(None),
        b"\x16\x03\x01\x00\x01\x02".to_vec(),
    ] {
        let (mut tcp, _) = connect(pair.caller.outbound, &format!("localhost:{}", outside.port())).await;
        let answer = raw_on(&mut tcp, &first, "").await;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("sni_mismatch"),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_goes_out_by_both_ways_and_takes_nothing_of_the_mesh_along() {
    let (agent, outside) = (Agent::start().await, outside().await);
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.egress.push(listed("localhost", outside.port(), true));
    let pair = Pair::in_world(agent.address, world).await;
    let authority = format!("localhost:{}", outside.port());
    let request = Request::get(format!("http://{authority}/page?x=1")).header("x-aip-forged", "1");
    let answer = send(pair.caller.outbound, request.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.text().contains("GET /page?x=1 HTTP/1.1"), "{}", answer.text());
    assert!(!answer.text().contains("x-aip"), "{}", answer.text());
    // Node sends CONNECT for plain text, too.
    let (mut tcp, _) = connect(pair.caller.outbound, &authority).await;
    let inner = format!("GET /inside HTTP/1.1\r\nhost: {authority}\r\n\r\n");
    assert!(
        raw_on(&mut tcp, inner.as_bytes(), "GET /inside")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let lines = pair.caller.lines(2).await;
    assert!(
        lines.iter().all(|l| l["protocol"] == "http" && l["method"] == "GET"),
        "{lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_listed_or_not_public_is_not_reached() {
    let (agent, outside) = (Agent::start().await, outside().await);
    let mut world = World::of(&["planner", "ledger"]);
    let port = outside.port();
    world.mesh.egress = vec![
        listed("127.0.0.1", port, false),
        listed("169.254.169.254", 80, true),
        listed("localhost", 1, true),
    ];
    let pair = Pair::in_world(agent.address, world).await;
    let plain = async |authority: &str| {
        let text = format!("GET http://{authority}/ HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
        raw(pair.caller.outbound, text.as_bytes(), "").await
    };
    for (authority, reason) in [
        (format!("localhost:{port}"), "egress_not_listed"),
        ("example.com".into(), "egress_not_listed"),
        (format!("127.0.0.1:{port}"), "egress_address_forbidden"),
        ("169.254.169.254".into(), "egress_address_forbidden"),
        ("localhost:1".into(), "egress_unreachable"),
    ] {
        let answer = plain(&authority).await;
        assert!(answer.contains(reason), "{authority}: {answer}");
    }
    let text = "CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n";
    let answer = raw(pair.caller.outbound, text.as_bytes(), "egress_not_listed").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // The mesh's own ports are not reached even where the host is allowed.
    for own in [pair.caller.outbound, pair.caller.inbound, pair.callee.inbound] {
        pair.caller
            .push(|world| world.mesh.egress = vec![listed("127.0.0.1", own.port(), true)]);
        let answer = plain(&own.to_string()).await;
        assert!(answer.contains("egress_address_forbidden"), "{own}: {answer}");
    }
}

/// Where metadata services are, in the spellings that resolvers take, though each is listed as it is written.
const METADATA: [&str; 9] = [
    "169.254.169.254",
    "169.254.169.254.",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
];

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_not_reached_by_any_spelling() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    let bare = |host: &str| host.trim_matches(['[', ']']).trim_end_matches('.').to_owned();
    world.mesh.egress = METADATA.iter().map(|host| listed(&bare(host), 80, true)).collect();
    let pair = Pair::in_world(agent.address, world).await;
    for host in METADATA {
        let plain = format!("GET http://{host}/latest HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = raw(pair.caller.outbound, plain.as_bytes(), "").await;
        assert!(answer.contains("egress_address_forbidden"), "{host}: {answer}");
        // Inside a tunnel the same, once it is known what is spoken there.
        let tunnel = format!("CONNECT {host}:80 HTTP/1.1\r\nhost: {host}:80\r\n\r\n{plain}");
        let answer = raw(pair.caller.outbound, tunnel.as_bytes(), "").await;
        assert!(answer.contains("egress_address_forbidden"), "{host}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_decides_on_outside_hosts_by_name_and_port() {
    let (agent, outside) = (Agent::start().await, outside().await);
    let rego = format!(
        "package aip.policy.baseline\nrules contains {{\"rule\": \"out\", \"verdict\": \"allow\", \"reason\": \"t\"}} if {{\n\tinput.destination.kind == \"external\"\n\tinput.destination.name == \"localhost\"\n\tinput.destination.port == {}\n}}\n",
        outside.port()
    );
    let mut world = World::of(&["planner", "ledger"]).policy(&rego);
    world.mesh.egress = vec![
        listed("localhost", outside.port(), true),
        listed("127.0.0.1", outside.port(), true),
    ];
    let pair = Pair::in_world(agent.address, world).await;
    let (mut tcp, head) = connect(pair.caller.outbound, &format!("localhost:{}", outside.port())).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(raw_on(&mut tcp, &hello(Some("localhost")), "got").await.contains("got"));
    let (_, head) = connect(pair.caller.outbound, &outside.to_string()).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let refused = pair.caller.lines(1).await;
    assert_eq!(
        (&refused[0]["rule"], &refused[0]["verdict"]),
        (&json!("no_rule"), &json!("deny")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_tunnel_is_cut_when_its_host_is_no_longer_listed() {
    let (agent, outside) = (Agent::start().await, outside().await);
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.egress.push(listed("localhost", outside.port(), true));
    let pair = Pair::in_world(agent.address, world).await;
    let (mut tcp, _) = connect(pair.caller.outbound, &format!("localhost:{}", outside.port())).await;
    raw_on(&mut tcp, &hello(Some("localhost")), "got").await;
    pair.caller.push(|world| world.mesh.egress.clear());
    assert_eq!(raw_on(&mut tcp, b"", "").await, "", "the end");
    assert_eq!(pair.caller.line().await["end"], "policy_denied");
}

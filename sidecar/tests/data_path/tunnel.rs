//! Tunnels through which TLS goes unread: nothing is looked at later, so what holds when they open must hold, and they
//! count for as long as they are open.

use std::net::SocketAddr;
use std::time::Duration;

use aip_audit::record::Event;
use aip_runtime::limits::raise_open_files;
use aip_sidecar::proxy::limits::MAX_OUTBOUND_CONNECTIONS;
use bytes::Bytes;
use hyper::body::Frame;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::agent::Agent;
use crate::client::{channel, raw_on, send, to_ledger};
use crate::connect::{connect, hello, listed, outside};
use crate::mesh::{ALLOW_ALL, DEADLINE, Pair, World, until};
use crate::pki::Says;
use crate::refuse::POLICY;

/// A mesh that lists this host outside.
async fn pair_to(outside: SocketAddr) -> (Agent, Pair) {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.egress.push(listed("localhost", outside.port(), true));
    let pair = Pair::in_world(agent.address, world).await;
    (agent, pair)
}

fn authority(outside: SocketAddr) -> String {
    format!("localhost:{}", outside.port())
}

/// An agent may be silent for half a minute within its ClientHello.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_decided_in_the_world_in_which_its_hello_ends() {
    let outside = outside().await;
    let (_agent, pair) = pair_to(outside).await;
    let (mut tcp, head) = connect(pair.caller.outbound, &authority(outside)).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let hello = hello(Some("localhost"));
    tcp.write_all(&hello[..20]).await.unwrap();
    pair.caller.push(|world| world.policies.clear());
    let answer = raw_on(&mut tcp, &hello[20..], "").await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("policy_denied"),
        "{answer}"
    );
    let line = pair.caller.line().await;
    assert_eq!((&line["verdict"], &line["rule"]), (&json!("deny"), &json!("no_rule")));
    assert!(line["endpoint"].is_null(), "nobody was reached: {line}");
}

/// A host that takes no connection before it is let go: its queue is full.
async fn unresponsive() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let (address, mut queue) = (listener.local_addr().unwrap(), Vec::new());
    while let Ok(connected) = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(address)).await {
        queue.push(connected.unwrap());
        assert!(queue.len() < 16, "a queue of one");
    }
    (listener, queue)
}

/// So may a host be, until its connection is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_decided_again_when_its_host_was_reached() {
    let (listener, queue) = unresponsive().await;
    let address = listener.local_addr().unwrap();
    let (_agent, pair) = pair_to(address).await;
    let (mut tcp, _) = connect(pair.caller.outbound, &authority(address)).await;
    tcp.write_all(&hello(Some("localhost"))).await.unwrap();
    until("it is decided", async || {
        let decided = |event: &Event| matches!(event, Event::Decision(_));
        pair.caller.recorded().iter().any(decided).then_some(())
    })
    .await;
    pair.caller.push(|world| world.policies.clear());
    drop(queue);
    let taken = tokio::spawn(async move {
        let mut said = Vec::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.read_to_end(&mut said).await;
            assert!(said.is_empty(), "{said:?}");
        }
    });
    let answer = raw_on(&mut tcp, b"", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("policy_denied"),
        "{answer}"
    );
    assert!(!taken.is_finished(), "nothing was said to it");
    taken.abort();
}

/// Of a tunnel nothing can be limited: an obligation that is not carried out allows nothing, from the start or later.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_with_an_obligation_that_nobody_keeps_is_refused() {
    let rule = r#"{"rule": "r", "reason": "t", "verdict": "allow", "obligations": {"max_request_bytes": 5}}"#;
    let limited = format!("package aip.policy.baseline\nrules contains {rule}\n");
    let outside = outside().await;
    let (_agent, pair) = pair_to(outside).await;
    let (mut tcp, _) = connect(pair.caller.outbound, &authority(outside)).await;
    let answer = raw_on(&mut tcp, &hello(Some("localhost")), "got").await;
    assert!(answer.contains("got"), "{answer}");
    pair.caller.push(|world| world.policies[0].1 = limited);
    assert_eq!(raw_on(&mut tcp, b"", "").await, "", "the end");
    assert_eq!(pair.caller.line().await["end"], "policy_denied");
    let (_, head) = connect(pair.caller.outbound, &authority(outside)).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert_eq!(pair.caller.lines(2).await[1]["reason"], "unsupported_obligation");
    pair.caller.push(|world| world.policies[0].1 = ALLOW_ALL.into());
    let (mut tcp, _) = connect(pair.caller.outbound, &authority(outside)).await;
    assert!(raw_on(&mut tcp, &hello(Some("localhost")), "got").await.contains("got"));
}

/// What goes outside needs no handshake in which an identity would have to be shown.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_outside_under_an_svid_that_expired_while_its_body_was_awaited() {
    let outside = outside().await;
    let (_agent, pair) = pair_to(outside).await;
    pair.caller.push(|world| world.policies[0].1 = POLICY.into());
    let (frames, body) = channel();
    let mut request = to_ledger("POST", "/x").header("content-type", "application/json");
    let uri = format!("http://{}/x", authority(outside));
    let host = authority(outside).parse().unwrap();
    request = request.uri(uri);
    request.headers_mut().unwrap().insert("host", host);
    let waiting = tokio::spawn(send(pair.caller.outbound, request.body(body).unwrap()));
    frames.send(Frame::data(Bytes::from("{\"a\":"))).await.unwrap();
    until("the body is awaited", async || {
        (pair.caller.proxy.connections()["held_bytes"] != 0).then_some(())
    })
    .await;
    let short = Says {
        seconds: 2,
        ..Says::default()
    };
    pair.caller.svid.set(pair.pki.svid("planner", short)).unwrap();
    let expires = pair.caller.svid.current().unwrap().identity.not_after;
    until("it expires", async || {
        (aip_runtime::unix_now() >= expires).then_some(())
    })
    .await;
    frames.send(Frame::data(Bytes::from("1}"))).await.unwrap();
    drop(frames);
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "no_identity"));
    assert!(pair.caller.line().await["endpoint"].is_null());
}

/// A WebSocket takes the place of its connection, and an idle tunnel its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_its_connection_s_requests_keeps_its_place() {
    raise_open_files();
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let proxy = pair.caller.outbound;
    let mut socket = TcpStream::connect(proxy).await.unwrap();
    let switch = "GET http://ledger.aip.internal/upgrade HTTP/1.1\r\nhost: ledger.aip.internal\r\n\
                  connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                  sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let head = raw_on(&mut socket, switch.as_bytes(), "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut open = Vec::new();
    for _ in 1..MAX_OUTBOUND_CONNECTIONS {
        let (mut tcp, head) = connect(proxy, "ledger.aip.internal:80").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        // The beginning of a request, which may take longer than the first byte.
        tcp.write_all(b"G").await.unwrap();
        open.push(tcp);
    }
    let mut next = TcpStream::connect(proxy).await.unwrap();
    let request = "GET http://ledger.aip.internal/x HTTP/1.1\r\nhost: ledger.aip.internal\r\n\r\n";
    next.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let early = tokio::time::timeout(Duration::from_millis(300), next.read_exact(&mut answer)).await;
    assert!(early.is_err(), "there are no more places");
    drop(socket);
    let answered = tokio::time::timeout(DEADLINE, next.read_exact(&mut answer)).await;
    answered.expect("the place of the WebSocket is free").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(open);
}

//! What is cut is ended, and all that it held given back, also where its reader takes nothing more: the HTTP library would
//! wait for that reader for as long as the connection lasts.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aip_api::resource::EgressRule;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::Agent;
use crate::client::{Stranger, begin_h2, connected_h2, get, post, raw_on, send};
use crate::kinds::{echo, hello, requests};
use crate::mesh::{DEADLINE, Pair, World, until};
use crate::pki::Says;

/// Bytes that fill every buffer on the way, many times over.
const PLENTY: u64 = 256 << 20;
/// Downloads of [`unread`] that go through the caller's sidecar.
const DOWNLOADS: u64 = 4;

/// Downloads without end, of which nobody reads more than the beginning: over HTTP/1.1, as events, over HTTP/2, as gRPC, and of
/// a peer that has no sidecar.
async fn unread(pair: &Pair) -> Vec<Box<dyn Any + Send>> {
    let proxy = pair.caller.outbound;
    let mut open: Vec<Box<dyn Any + Send>> = Vec::new();
    for path in ["/endless", "/endless-events"] {
        let mut http1 = TcpStream::connect(proxy).await.unwrap();
        let head = format!("GET http://ledger.aip.internal{path} HTTP/1.1\r\nhost: ledger.aip.internal\r\n\r\n");
        let begun = raw_on(&mut http1, head.as_bytes(), "xxx").await;
        assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
        open.push(Box::new(http1));
    }
    let grpc = post("/endless", "application/grpc", &b"\0\0\0\0\x01x"[..]);
    for request in [get("/endless"), grpc] {
        let http2 = begin_h2(proxy, request).await;
        assert_eq!(http2.status(), StatusCode::OK);
        open.push(Box::new(http2));
    }
    open.push(Box::new(of_peer(pair).await));
    open
}

async fn of_peer(pair: &Pair) -> (Box<dyn Any + Send>, Response<Incoming>) {
    let stranger = Stranger::new(&pair.pki, "planner", Says::default());
    let mut sender = stranger.connect(pair.callee.inbound, "ledger").await;
    let request = Request::get("https://ledger.aip.internal/endless")
        .header("x-aip-hop", aip_api::id::HopId::fresh().to_string())
        .body(Full::<Bytes>::default());
    let peer = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(peer.status(), StatusCode::OK);
    (Box::new(sender), peer)
}

/// Waits until nothing moves any more, as this number says: every buffer on the way is full.
async fn is_still(moved: impl Fn() -> u64) {
    let (mut before, mut looks) = (0, 0);
    until("nothing moves any more", async || {
        let now = moved();
        looks = if now == before { looks + 1 } else { 0 };
        before = now;
        (looks > 60).then_some(())
    })
    .await;
}

fn in_a_moment() -> World {
    let mut world = World::of(&["planner", "ledger"]);
    world.traffic.idle_timeout_ms = 300;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_nobody_reads_is_cut_by_policy() {
    for at_the_caller in [true, false] {
        let agent = Agent::start().await;
        let pair = Pair::start(agent.address).await;
        let open = unread(&pair).await;
        is_still(|| agent.frames()).await;
        let side = if at_the_caller { &pair.caller } else { &pair.callee };
        side.push(|world| world.policies.clear());
        // The peer's own goes on; and what the callee cut waits for its readers at the caller, whose own agent they are.
        let left = if at_the_caller { (0, 1) } else { (DOWNLOADS, 0) };
        until("what was cut is given back", async || {
            let now = (requests(&pair.caller), requests(&pair.callee));
            (now == left).then_some(())
        })
        .await;
        let ended = if at_the_caller { DOWNLOADS } else { DOWNLOADS + 1 };
        let ended = usize::try_from(ended).unwrap();
        let lines = side.lines(ended).await;
        assert!(lines.iter().all(|line| line["end"] == "policy_denied"), "{lines:?}");
        for (_, end) in side.audited(ended).await {
            assert_eq!(end.end, "policy_denied", "{end:?}");
        }
        side.push(|world| world.policies = World::of(&[]).policies);
        assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
        drop(open);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_nobody_reads_is_cut_for_its_silence() {
    let agent = Agent::start().await;
    let pair = Pair::in_world(agent.address, in_a_moment()).await;
    let open = unread(&pair).await;
    until("all of it is given back", async || {
        (requests(&pair.callee) == 0).then_some(())
    })
    .await;
    let lines = pair.callee.lines(open.len()).await;
    assert!(lines.iter().all(|line| line["end"] == "idle_timeout"), "{lines:?}");
    until(
        "the agent's connections are closed but the one for all gRPC",
        async || (connections_to(agent.address) <= 1).then_some(()),
    )
    .await;
    assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
    drop(open);
    until("its readers are gone", async || {
        (requests(&pair.caller) == 0).then_some(())
    })
    .await;
}

/// Connections to this port of this machine that their client has not closed, unread as they may be.
fn connections_to(address: SocketAddr) -> usize {
    const ESTABLISHED: &str = "01";
    let remote = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_open = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|to| to.ends_with(&remote)) && fields.next() == Some(ESTABLISHED)
    };
    table.lines().filter(is_open).count()
}

/// Writes without end, for as long as somebody takes it: what is counted, and what ends when nobody does any more.
fn endless(mut io: impl AsyncWrite + Unpin + Send + 'static) -> (Arc<AtomicU64>, tokio::task::JoinHandle<()>) {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let sending = tokio::spawn(async move {
        while io.write_all(&[b'x'; 16 * 1024]).await.is_ok() && io.flush().await.is_ok() {
            let sent = counted.fetch_add(16 * 1024, Ordering::Relaxed);
            assert!(sent < PLENTY, "somebody takes all of it");
        }
    });
    (sent, sending)
}

async fn ends(sending: tokio::task::JoinHandle<()>, what: &str) {
    tokio::time::timeout(DEADLINE, sending).await.expect(what).unwrap();
}

/// An agent that reads no more than it is asked to; and an upload to it without end.
async fn unread_upload() -> (Pair, TcpListener, TcpStream) {
    let agent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Pair::start(agent.local_addr().unwrap()).await;
    let mut upload = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let head =
        "POST http://ledger.aip.internal/x HTTP/1.1\r\nhost: ledger.aip.internal\r\ncontent-length: 900000000\r\n\r\n";
    upload.write_all(head.as_bytes()).await.unwrap();
    (pair, agent, upload)
}

async fn is_given_back(pair: &Pair) {
    until("it is given back, at both ends", async || {
        (requests(&pair.caller) == 0 && requests(&pair.callee) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_agent_does_not_read_is_cut_by_policy() {
    let (pair, agent, upload) = unread_upload().await;
    let (mut back, upload) = upload.into_split();
    let (sent, sending) = endless(upload);
    let (_tcp, _) = agent.accept().await.unwrap();
    is_still(|| sent.load(Ordering::Relaxed)).await;
    assert_eq!((requests(&pair.caller), requests(&pair.callee)), (1, 1));
    pair.callee.push(|world| world.policies.clear());
    let mut answer = vec![0; 12];
    let read = tokio::time::timeout(DEADLINE, back.read_exact(&mut answer)).await;
    // Whoever is still sending may meet a reset before its answer.
    if read.expect("an end in time").is_ok() {
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 403");
    }
    is_given_back(&pair).await;
    until("the agent's connection is closed", async || {
        (connections_to(agent.local_addr().unwrap()) == 0).then_some(())
    })
    .await;
    drop(back);
    ends(sending, "nobody takes the upload any more").await;
}

/// The agent has begun to answer: nothing of the request is waited for any more but its body.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_answered_and_not_read_is_cut_by_policy() {
    for at_the_caller in [true, false] {
        let (pair, agent, upload) = unread_upload().await;
        let (mut back, upload) = upload.into_split();
        let (sent, sending) = endless(upload);
        let (mut tcp, _) = agent.accept().await.unwrap();
        // Of the request, no more than that it is there.
        tcp.read_exact(&mut [0; 16]).await.unwrap();
        let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun";
        tcp.write_all(begun).await.unwrap();
        let mut answer = vec![0; 12];
        let read = tokio::time::timeout(DEADLINE, back.read_exact(&mut answer)).await;
        assert!(
            read.is_ok_and(|read| read.is_ok()) && answer == b"HTTP/1.1 200",
            "{answer:?}"
        );
        is_still(|| sent.load(Ordering::Relaxed)).await;
        let side = if at_the_caller { &pair.caller } else { &pair.callee };
        side.push(|world| world.policies.clear());
        is_given_back(&pair).await;
        assert_eq!(side.line().await["end"], "policy_denied");
        until("the agent's connection is closed", async || {
            (connections_to(agent.local_addr().unwrap()) == 0).then_some(())
        })
        .await;
        ends(sending, "nobody takes the upload any more").await;
    }
}

/// Over HTTP/1.1, and over HTTP/2 of the agent: between the sidecars both go over HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_nobody_reads_is_cut_for_its_silence() {
    let agent = Agent::start().await;
    let pair = Pair::in_world(agent.address, in_a_moment()).await;
    let mut http1 = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let head = "GET http://ledger.aip.internal/upgrade HTTP/1.1\r\nhost: ledger.aip.internal\r\n\
                connection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let switched = raw_on(&mut http1, head.as_bytes(), "\r\n\r\n").await;
    assert!(switched.starts_with("HTTP/1.1 101"), "{switched}");
    let upgrade = "http://ledger.aip.internal/upgrade";
    let http2 = connected_h2(pair.caller.outbound, upgrade, Some("websocket")).await;
    let (_unread1, http1) = http1.into_split();
    let (_unread2, http2) = tokio::io::split(http2);
    let sending = [endless(http1).1, endless(http2).1];
    is_given_back(&pair).await;
    let lines = pair.callee.lines(2).await;
    assert!(lines.iter().all(|line| line["end"] == "idle_timeout"), "{lines:?}");
    for sending in sending {
        ends(sending, "nobody takes its bytes any more").await;
    }
    assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_nobody_reads_is_cut_for_its_silence() {
    let (agent, outside) = (Agent::start().await, echo().await);
    let mut world = in_a_moment();
    let (host, port) = ("localhost".to_owned(), outside.port());
    world.mesh.egress.push(EgressRule {
        host,
        port,
        allow_private: true,
    });
    let pair = Pair::in_world(agent.address, world).await;
    let authority = format!("localhost:{port}");
    let mut http1 = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let head = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
    raw_on(&mut http1, head.as_bytes(), "\r\n\r\n").await;
    let mut http2 = connected_h2(pair.caller.outbound, &authority, None).await;
    let hello = hello("localhost");
    http1.write_all(&hello).await.unwrap();
    http1.read_exact(&mut vec![0; hello.len()]).await.unwrap();
    http2.write_all(&hello).await.unwrap();
    http2.read_exact(&mut vec![0; hello.len()]).await.unwrap();
    let (_unread1, http1) = http1.into_split();
    let (_unread2, http2) = tokio::io::split(http2);
    let sending = [endless(http1).1, endless(http2).1];
    let lines = pair.caller.lines(2).await;
    assert!(lines.iter().all(|line| line["end"] == "idle_timeout"), "{lines:?}");
    for sending in sending {
        ends(sending, "nobody takes its bytes any more").await;
    }
    until("the outside's connections are closed", async || {
        (connections_to(outside) == 0).then_some(())
    })
    .await;
}

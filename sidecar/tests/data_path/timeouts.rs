//! How long each step of a connection may take that somebody draws out: byte by byte, or with nothing more. In paused
//! time: minutes pass in a moment.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip_api::resource::EgressRule;
use aip_runtime::preface::PREFACE_TIMEOUT;
use aip_sidecar::proxy::limits::{
    HEADER_READ_TIMEOUT, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STRANGER_FIRST_BYTE, STRANGER_SECRET, TUNNEL_FIRST_BYTE,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::Agent;
use crate::client::{Stranger, get, send};
use crate::mesh::{Pair, Side, World};
use crate::paused::Paused;
use crate::pki::{Pki, Says};

/// Between two bytes.
const STEP: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Heard {
    text: String,
    ended: bool,
}

/// A connection that is drawn out, and what came back on it.
struct Slow<'a, IO> {
    clock: &'a Paused,
    io: WriteHalf<IO>,
    heard: Arc<Mutex<Heard>>,
}

impl<'a, IO: AsyncRead + AsyncWrite + Send + 'static> Slow<'a, IO> {
    fn new(clock: &'a Paused, io: IO) -> Self {
        let (mut from, io) = tokio::io::split(io);
        let heard = Arc::<Mutex<Heard>>::default();
        let hears = heard.clone();
        tokio::spawn(async move {
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut part).await {
                let text = String::from_utf8_lossy(&part[..read]);
                hears.lock().unwrap().text.push_str(&text);
            }
            hears.lock().unwrap().ended = true;
        });
        Self { clock, io, heard }
    }

    /// Says this, and waits until it has its answer.
    async fn asks(&mut self, bytes: &[u8], answer: &str) {
        self.io.write_all(bytes).await.unwrap();
        let what = String::from_utf8_lossy(bytes);
        let came = || {
            let heard = self.heard.lock().unwrap();
            let begun = &heard.text[..answer.len().min(heard.text.len())];
            assert!(answer.starts_with(begun), "{what}: {heard:?}");
            heard.text.ends_with("\r\n\r\n") || heard.text.ends_with('}')
        };
        self.clock.until(&what, came).await;
        self.heard.lock().unwrap().text.clear();
    }

    /// Says a byte each [`STEP`], over and over those of `bytes`, and is heard out for as long as `limit`, and no longer.
    /// What came back.
    async fn is_cut_after(&mut self, what: &str, limit: Duration, bytes: &[u8]) -> String {
        let mut bytes = bytes.chunks(1).cycle();
        let mut passed = Duration::ZERO;
        while passed + STEP < limit {
            if let Some(byte) = bytes.next() {
                self.io.write_all(byte).await.unwrap();
                self.io.flush().await.unwrap();
            }
            self.clock.passes(STEP).await;
            passed += STEP;
            let heard = self.heard.lock().unwrap();
            assert!(
                !heard.ended && heard.text.is_empty(),
                "{what}, after {passed:?}: {heard:?}"
            );
        }
        // What is refused in words is closed a moment later.
        for _ in 0..4 {
            self.clock.passes(STEP).await;
        }
        // An answer, or the end without one.
        let over = || {
            let heard = self.heard.lock().unwrap();
            heard.ended || !heard.text.is_empty()
        };
        self.clock.until(&format!("{what} is cut"), over).await;
        self.heard.lock().unwrap().text.clone()
    }
}

async fn slow<'a>(clock: &'a Paused, side: &Side) -> Slow<'a, TcpStream> {
    Slow::new(clock, TcpStream::connect(side.outbound).await.unwrap())
}

const WHOLE: &[u8] = b"GET http://ledger.aip.internal/empty HTTP/1.1\r\nhost: ledger.aip.internal\r\n\r\n";
const HEAD: &[u8] = b"GET http://ledger.aip.internal/slow HTTP/1.1\r\nhost: ledger.aip.internal\r\nx-slow: ";

/// The agent got whole requests only, and the next one.
async fn goes_on(pair: &Pair, agent: &Agent) {
    send(pair.caller.outbound, get("/empty")).await;
    let seen = agent.seen();
    assert!(seen.iter().all(|seen| seen.target == "/empty"), "{seen:?}");
    assert!(!seen.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_in_is_cut() {
    let clock = Paused::new();
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let limit = HEADER_READ_TIMEOUT;

    let mut said = slow(&clock, &pair.caller).await;
    said.is_cut_after("a head from its first byte on", limit, HEAD).await;

    let mut said = slow(&clock, &pair.caller).await;
    said.io.write_all(HEAD).await.unwrap();
    said.is_cut_after("the end of a head", limit, b"x").await;

    let mut said = slow(&clock, &pair.caller).await;
    said.asks(WHOLE, "HTTP/1.1 204").await;
    said.is_cut_after("the next head", limit, HEAD).await;

    let mut said = slow(&clock, &pair.caller).await;
    said.asks(WHOLE, "HTTP/1.1 204").await;
    said.is_cut_after("a connection that is kept for nothing", limit, b"")
        .await;

    let mut said = slow(&clock, &pair.caller).await;
    let connect = b"CONNECT ledger.aip.internal:80 HTTP/1.1\r\nhost: ledger.aip.internal:80\r\n\r\n";
    said.asks(connect, "HTTP/1.1 200").await;
    said.asks(WHOLE, "HTTP/1.1 204").await;
    said.is_cut_after("a head inside a tunnel", limit, HEAD).await;
    goes_on(&pair, &agent).await;
}

/// A tunnel in which nothing begins, and one to an outside host in which TLS does not get on.
#[tokio::test(start_paused = true)]
async fn a_tunnel_in_which_nothing_begins_is_cut() {
    let clock = Paused::new();
    let agent = Agent::start().await;
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = outside.local_addr().unwrap().port();
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.egress.push(EgressRule {
        host: "localhost".into(),
        port,
        allow_private: true,
    });
    let pair = Pair::in_world(agent.address, world).await;
    for (what, host, begun, more) in [
        ("silence", "ledger.aip.internal:80".to_owned(), &b""[..], &b""[..]),
        ("silence to an outside host", format!("localhost:{port}"), b"", b""),
        (
            "a ClientHello",
            format!("localhost:{port}"),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\x01",
        ),
        (
            "half a preface",
            "ledger.aip.internal:80".to_owned(),
            b"PRI * HTTP/2",
            b"",
        ),
    ] {
        let mut said = slow(&clock, &pair.caller).await;
        let connect = format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        said.asks(connect.as_bytes(), "HTTP/1.1 200").await;
        said.io.write_all(begun).await.unwrap();
        said.is_cut_after(what, TUNNEL_FIRST_BYTE, more).await;
    }
    assert_eq!(agent.connections(), 0);
    let came = tokio::time::timeout(Duration::ZERO, outside.accept()).await;
    assert!(came.is_err(), "the host outside was not called");
    goes_on(&pair, &agent).await;
}

/// Where the agent shows a secret, whoever shows none in time goes.
#[tokio::test(start_paused = true)]
async fn who_shows_no_secret_in_time_is_cut() {
    let clock = Paused::new();
    let pki = Pki::new();
    let nobody = "127.0.0.1:9".parse().unwrap();
    let world = World::of(&["planner", "ledger"]);
    let side = Side::start_with(&pki, "planner", nobody, world, Says::default(), Some("secret")).await;

    let mut said = slow(&clock, &side).await;
    said.is_cut_after("silence", STRANGER_FIRST_BYTE, b"").await;
    let mut said = slow(&clock, &side).await;
    said.is_cut_after("a head", STRANGER_SECRET, HEAD).await;
    let mut said = slow(&clock, &side).await;
    said.io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    clock.settle().await;
    clock.passes(STRANGER_SECRET + STEP).await;
    clock.until("HTTP/2 ends", || said.heard.lock().unwrap().ended).await;
    let mut said = slow(&clock, &side).await;
    said.asks(WHOLE, "HTTP/1.1 407").await;
    clock.passes(STRANGER_SECRET).await;
    said.is_cut_after("who showed none", STEP, b"").await;

    let mut said = slow(&clock, &side).await;
    let shown = String::from_utf8(WHOLE.to_vec()).unwrap();
    let shown = shown.replace("\r\n\r\n", "\r\nproxy-authorization: Basic YWlwOnNlY3JldA==\r\n\r\n");
    // Nobody is there to answer, but the request is the agent's.
    said.asks(shown.as_bytes(), "HTTP/1.1 50").await;
    said.is_cut_after("who showed it, and says no more", HEADER_READ_TIMEOUT, b"")
        .await;
}

/// An HTTP/2 client's first bytes: its preface and its settings.
const BEGUN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A peer past mutual TLS that does not get on: with its preface, or with what comes after it.
#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_get_on_is_cut() {
    let clock = Paused::new();
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let peer = Stranger::new(&pair.pki, "planner", Says::default());
    let alive = KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT;
    // HEADERS without END_HEADERS: CONTINUATION may follow.
    let half = [BEGUN, b"\0\0\x01\x01\0\0\0\0\x01\x82"].concat();
    for (what, begun, limit) in [
        ("silence", &b""[..], PREFACE_TIMEOUT),
        ("half a preface", &BEGUN[..12], PREFACE_TIMEOUT),
        ("settings", BEGUN, alive),
        ("half a head", &half, alive),
    ] {
        let mut io = peer.connect_raw(pair.callee.inbound, "ledger").await;
        io.write_all(begun).await.unwrap();
        io.flush().await.unwrap();
        let said = Slow::new(&clock, io);
        clock.passes(limit - STEP).await;
        assert!(!said.heard.lock().unwrap().ended, "{what}");
        clock.passes(limit).await;
        clock.until(what, || said.heard.lock().unwrap().ended).await;
    }
    // Who answers when it is asked stays.
    let mut sender = peer.connect(pair.callee.inbound, "ledger").await;
    for _ in 0..60 {
        clock.passes(KEEPALIVE_TIMEOUT / 2).await;
    }
    assert!(sender.ready().await.is_ok() && !sender.is_closed());
    goes_on(&pair, &agent).await;
}

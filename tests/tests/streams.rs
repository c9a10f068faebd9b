//! Streams in great number: idle ones, ones that never end, and ones that are opened and left
//! without pause. What each takes is bounded, is there again for the next, and takes nothing from others.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;

use aip_api::resource::{Resource as _, Traffic};
use aip_tests::agent::Agent;
use aip_tests::process::Sidecar;
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Streams of one connection of a client: what a sidecar takes (`MAX_STREAMS`).
const STREAMS: usize = 512;
/// Streams of one caller; another takes the next ones.
const OF_A_CALLER: usize = 2_000;
/// Bytes of memory that an idle stream takes in a sidecar, at most: docs/operations.md says so.
const IDLE_STREAM: u64 = 48 * 1024;
/// Bytes that a process takes for the first of its kind, whatever their number: its arenas, tables and connections.
const ONCE: u64 = 24 << 20;

struct Rig {
    scripted: Scripted,
    agent: Agent,
    callee: Sidecar,
    callers: Vec<Sidecar>,
    dir: TempDir,
}

impl Rig {
    /// A callee for so many requests at once, of which one caller may have all, with this limit of silence.
    async fn start(callers: usize, concurrency: usize, idle_ms: u64) -> Self {
        let (scripted, agent, dir) = (Scripted::start(), Agent::start(), TempDir::new().unwrap());
        let mut traffic = Traffic::defaults();
        (traffic.max_concurrency, traffic.peer_max_concurrency) = (concurrency as u32, Some(concurrency as u32));
        (traffic.peer_rate_per_second, traffic.peer_burst) = (100_000, 100_000);
        traffic.idle_timeout_ms = idle_ms;
        assert!(traffic.validate().is_empty(), "{:?}", traffic.validate());
        scripted.put(&traffic);
        let callee = scripted.sidecar("callee", agent.address, dir.path()).await;
        let mut rig = Self {
            scripted,
            agent,
            callee,
            callers: Vec::new(),
            dir,
        };
        for n in 0..callers {
            let caller = rig.sidecar(&format!("caller-{n}")).await;
            rig.callers.push(caller);
        }
        for caller in &rig.callers {
            reaches(caller).await;
        }
        rig
    }

    async fn sidecar(&self, name: &str) -> Sidecar {
        self.scripted.sidecar(name, self.agent.address, self.dir.path()).await
    }

    fn processes(&self) -> impl Iterator<Item = &Sidecar> {
        [&self.callee].into_iter().chain(&self.callers)
    }

    fn resident(&self) -> Vec<u64> {
        self.processes().map(|sidecar| sidecar.process.resident()).collect()
    }

    /// Nothing is open any more, anywhere, and calls go through.
    async fn is_idle_and_serves(&self) {
        for sidecar in self.processes() {
            wait::until_ok(&format!("{} has nothing open", sidecar.spec.name), async || {
                let left = sidecar.look("/connections").await.json();
                let nothing = left["requests"] == 0 && left["held_bytes"] == 0;
                nothing
                    .then_some(())
                    .ok_or(format!("{} {}", left["requests"], left["held_bytes"]))
            })
            .await;
        }
        for caller in &self.callers {
            reaches(caller).await;
        }
    }
}

async fn reaches(caller: &Sidecar) {
    wait::until_ok("a call gets through", async || {
        let answer = caller.get("http://callee.aip.internal/work").await;
        let through = answer.status == 200;
        through
            .then_some(())
            .ok_or(format!("{} {}", answer.status, answer.text()))
    })
    .await;
}

type Client = SendRequest<Empty<Bytes>>;

/// A client that lets the other end send as much as it likes, and speaks HTTP/2.
async fn client(proxy: SocketAddr) -> Client {
    let tcp = TcpStream::connect(proxy).await.unwrap();
    let most = (1 << 31) - 1;
    let handshake = Builder::new(TokioExecutor::new())
        .initial_stream_window_size(most)
        .initial_connection_window_size(most)
        .handshake(TokioIo::new(tcp));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn begin(client: &mut Client, path: &str) -> Response<Incoming> {
    let request = Request::get(format!("http://callee.aip.internal{path}"));
    client.ready().await.unwrap();
    let asked = client.send_request(request.body(Empty::new()).unwrap());
    let response = tokio::time::timeout(wait::DEADLINE, asked).await;
    let response = response.expect("an answer in time").expect("an answer");
    assert_eq!(response.status(), 200, "{response:?}");
    response
}

/// An event stream of which the first event came, and no other will.
async fn idle(client: &mut Client) -> Response<Incoming> {
    let mut response = begin(client, "/events?stream=idle&steps=2").await;
    let event = tokio::time::timeout(wait::DEADLINE, response.body_mut().frame()).await;
    assert!(event.expect("an event in time").unwrap().is_ok());
    response
}

/// So many idle streams, of all callers in turn.
async fn open(rig: &Rig, streams: usize) -> Vec<(Client, Vec<Response<Incoming>>)> {
    let mut opening = Vec::new();
    let mut left = streams;
    for n in 0.. {
        let some = left.min(STREAMS);
        if some == 0 {
            break;
        }
        left -= some;
        let proxy = rig.callers[n % rig.callers.len()].outbound;
        opening.push(tokio::spawn(async move {
            let mut client = client(proxy).await;
            let mut open = Vec::new();
            for _ in 0..some {
                open.push(idle(&mut client).await);
            }
            (client, open)
        }));
    }
    let mut all = Vec::new();
    for one in opening {
        all.push(one.await.unwrap());
    }
    all
}

/// Opens them, again and again: what the first took is enough for the last. An allocator may keep some of a round between.
async fn idle_streams(streams: usize) {
    let rig = Rig::start(streams.div_ceil(OF_A_CALLER), streams + 100, 600_000).await;
    let before = rig.resident();
    let mut peaks = Vec::new();
    for round in ["first", "second", "third", "fourth"] {
        let open = open(&rig, streams).await;
        for caller in &rig.callers {
            reaches(caller).await;
        }
        let now = rig.resident();
        for (n, sidecar) in rig.processes().enumerate() {
            let of_this = if n == 0 {
                streams
            } else {
                streams.div_ceil(rig.callers.len())
            };
            let grown = now[n].saturating_sub(before[n]);
            let each = grown / of_this as u64;
            println!(
                "{} in its {round} round: {grown} bytes for {of_this} streams, {each} each",
                sidecar.spec.name
            );
            assert!(
                grown < ONCE + of_this as u64 * IDLE_STREAM,
                "{grown} bytes for {of_this}"
            );
        }
        drop(open);
        rig.is_idle_and_serves().await;
        peaks.push(now);
    }
    for (n, first) in peaks[0].iter().enumerate() {
        let last = peaks[2][n].min(peaks[3][n]);
        assert!(last < first + first / 4, "{peaks:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_streams_take_a_bounded_memory_each_and_give_it_back() {
    idle_streams(2_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, and 20,000 open files: `make soak` runs it"]
async fn ten_thousand_idle_streams_take_a_bounded_memory_each() {
    idle_streams(10_000).await;
}

/// A download that never ends passes through, and nothing of it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_never_ends_takes_no_memory() {
    const READ: usize = 128 << 20;
    let rig = Rig::start(1, 100, 600_000).await;
    let before = rig.resident();
    let mut client = client(rig.callers[0].outbound).await;
    let mut endless = begin(&mut client, "/endless").await;
    let mut read = 0;
    while read < READ {
        let frame = tokio::time::timeout(wait::DEADLINE, endless.body_mut().frame()).await;
        read += frame.unwrap().unwrap().unwrap().data_ref().map_or(0, Bytes::len);
    }
    for (now, before) in rig.resident().into_iter().zip(before) {
        assert!(now < before + ONCE, "{before}, then {now}");
    }
    drop(endless);
    rig.is_idle_and_serves().await;
}

/// Whoever opens a stream and leaves it, over and over, on new connections and on old ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_opened_and_left_without_pause_leave_nothing_behind() {
    const ROUNDS: usize = 150;
    let rig = Rig::start(1, 1_000, 600_000).await;
    let proxy = rig.callers[0].outbound;
    let mut sizes = Vec::new();
    for _ in 0..2 {
        let leaving: Vec<_> = (0..8)
            .map(|_| {
                tokio::spawn(async move {
                    let mut kept = client(proxy).await;
                    for n in 0..ROUNDS {
                        match n % 2 {
                            0 => drop(idle(&mut kept).await),
                            _ => drop(idle(&mut client(proxy).await).await),
                        }
                    }
                })
            })
            .collect();
        for one in leaving {
            one.await.unwrap();
        }
        rig.is_idle_and_serves().await;
        sizes.push(rig.resident());
    }
    for (second, first) in sizes[1].iter().zip(&sizes[0]) {
        assert!(*second < first + ONCE, "{first}, then {second}");
    }
}

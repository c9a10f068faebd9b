//! What is answered is over: the body of its request goes no further, and takes nothing from anybody else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aip_api::resource::{AgentProtocol, EgressRule};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::agent::Agent;
use crate::client::{Frames, Stranger, begin, begin_h2, channel, get, post, send};
use crate::kinds::requests;
use crate::mesh::{DEADLINE, Pair, World, until};
use crate::pki::Says;

/// How an upload begins: as gRPC does.
const BEGUN: &[u8] = b"\0\0\0\0\x05hello";
const LATER: &[u8] = b"after the answer";

/// Whoever answers at once and goes on reading, over HTTP/1.1 and over HTTP/2.
struct Reads {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    /// Bodies that it is still reading.
    open: Arc<AtomicUsize>,
}

impl Reads {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (heard, open) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicUsize>::default());
        let reads = Self {
            address: listener.local_addr().unwrap(),
            heard: heard.clone(),
            open: open.clone(),
        };
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (heard, open) = (heard.clone(), open.clone());
                let service = hyper::service::service_fn(move |request| answer(request, heard.clone(), open.clone()));
                tokio::spawn(async move {
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(tcp), service)
                        .await;
                });
            }
        });
        reads
    }
}

async fn answer(
    request: Request<Incoming>,
    heard: Arc<Mutex<Vec<u8>>>,
    open: Arc<AtomicUsize>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut body = request.into_body();
    let mut begun = 0;
    // So that what was sent before the answer is there before it.
    while begun < BEGUN.len()
        && let Some(Ok(frame)) = body.frame().await
    {
        begun += frame.data_ref().map_or(0, Bytes::len);
        heard.lock().unwrap().extend_from_slice(frame.data_ref().unwrap());
    }
    open.fetch_add(1, Ordering::SeqCst);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            heard.lock().unwrap().extend_from_slice(frame.data_ref().unwrap());
        }
        open.fetch_sub(1, Ordering::SeqCst);
    });
    Ok(Response::new(Full::new(Bytes::from("ok"))))
}

/// Of an upload: over which HTTP, to whom, and whether more of it comes after its answer.
#[derive(Debug, Clone, Copy)]
struct Case {
    http2: bool,
    to: &'static str,
    goes_on: bool,
}

fn upload(case: Case, outside: SocketAddr, body: Frames) -> Request<Frames> {
    let (authority, kind) = match case.to {
        "an outside host" => (format!("localhost:{}", outside.port()), "text/plain"),
        "an agent over HTTP/2" => ("ledger.aip.internal".to_owned(), "application/grpc"),
        _ => ("ledger.aip.internal".to_owned(), "text/plain"),
    };
    let request = Request::post(format!("http://{authority}/x"));
    let request = request.header("host", authority).header("content-type", kind);
    request.body(body).unwrap()
}

async fn an_upload_that_outlives_its_answer(case: Case) {
    let reads = Reads::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    // One place: who comes next has it only when it was given back.
    world.traffic.max_concurrency = 1;
    world.mesh.egress.push(EgressRule {
        host: "localhost".to_owned(),
        port: reads.address.port(),
        allow_private: true,
    });
    let pair = Pair::in_world(reads.address, world).await;
    let (say, body) = channel();
    say.send(Frame::data(Bytes::from_static(BEGUN))).await.unwrap();
    let request = upload(case, reads.address, body);
    let response = match case.http2 {
        true => begin_h2(pair.caller.outbound, request).await,
        false => begin(pair.caller.outbound, request).await,
    };
    assert_eq!(response.status(), StatusCode::OK, "{case:?}");
    let whole = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(whole, "ok", "{case:?}");
    if case.goes_on {
        let _ = say.send(Frame::data(Bytes::from_static(LATER))).await;
    }
    until(&format!("nobody hears more of it: {case:?}"), async || {
        (reads.open.load(Ordering::SeqCst) == 0).then_some(())
    })
    .await;
    assert_eq!(*reads.heard.lock().unwrap(), BEGUN, "{case:?}");
    let sides = match case.to {
        "an outside host" => vec![&pair.caller],
        _ => vec![&pair.caller, &pair.callee],
    };
    for side in sides {
        until("it is over", async || (requests(side) == 0).then_some(())).await;
        let line = side.line().await;
        assert_eq!(
            (&line["end"], line["bytes_in"].as_u64()),
            (&"complete".into(), Some(BEGUN.len() as u64))
        );
        let (_, end) = side.audited(1).await.remove(0);
        assert_eq!(
            (&*end.end, end.request_out.bytes),
            ("complete", BEGUN.len() as u64),
            "{case:?}"
        );
    }
    until("its place is free", async || {
        let answer = send(pair.caller.outbound, get("/x")).await;
        (answer.status == StatusCode::OK).then_some(())
    })
    .await;
    drop(say);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_ends_with_its_answer() {
    let to = ["an agent", "an agent over HTTP/2", "an outside host"];
    let cases = to.into_iter().flat_map(|to| {
        let both = [(false, false), (false, true), (true, false), (true, true)];
        both.map(|(http2, goes_on)| Case { http2, to, goes_on })
    });
    futures_util::future::join_all(cases.map(an_upload_that_outlives_its_answer)).await;
}

/// A client that sends all of its request before it reads, and is answered before: it reads the answer.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_still_sending_reads_the_answer() {
    let reads = Reads::start().await;
    let pair = Pair::start(reads.address).await;
    for _ in 0..3 {
        let (say, body) = channel();
        let sending = tokio::spawn(async move {
            let _ = say.send(Frame::data(Bytes::from_static(BEGUN))).await;
            // Until nobody takes more.
            for _ in 0..64 {
                let _ = say.send(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024]))).await;
            }
        });
        let case = Case {
            http2: false,
            to: "an agent",
            goes_on: true,
        };
        let answer = send(pair.caller.outbound, upload(case, reads.address, body)).await;
        assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "ok"));
        let sent = tokio::time::timeout(DEADLINE, sending).await;
        sent.expect("somebody takes it, or nobody").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_agent_with_half_a_request_are_nobody_elses() {
    let reads = Reads::start().await;
    let pair = Pair::start(reads.address).await;
    let mut open = Vec::new();
    for _ in 0..6 {
        let (say, body) = channel();
        say.send(Frame::data(Bytes::from_static(BEGUN))).await.unwrap();
        let case = Case {
            http2: false,
            to: "an agent",
            goes_on: false,
        };
        let response = begin(pair.caller.outbound, upload(case, reads.address, body)).await;
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        open.push(say);
    }
    for _ in 0..12 {
        let answer = tokio::time::timeout(DEADLINE, send(pair.caller.outbound, post("/x", "text/plain", BEGUN)));
        assert_eq!(answer.await.expect("an answer at once").status, StatusCode::OK);
    }
    drop(open);
}

/// Over the one HTTP/2 connection that all callers share.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_one_caller_leaves_unread_hold_up_nobody_else() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger", "auditor"]);
    world.agent("ledger").protocol = AgentProtocol::H2c;
    let pair = Pair::in_world(agent.address, world).await;
    let hop = || aip_api::id::HopId::fresh().to_string();
    let ask = |path: &str| {
        let request = Request::get(format!("https://ledger.aip.internal{path}")).header("x-aip-hop", hop());
        request.body(Full::<Bytes>::default()).unwrap()
    };
    let greedy = Stranger::new(&pair.pki, "planner", Says::default());
    let mut unread = Vec::new();
    // More than one connection: each may be another worker's.
    for _ in 0..4 {
        let mut sender = greedy.connect(pair.callee.inbound, "ledger").await;
        for _ in 0..16 {
            let response = sender.send_request(ask("/endless")).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            unread.push(response);
        }
    }
    let (mut before, mut looks) = (0, 0);
    until("nothing moves any more", async || {
        let now = agent.frames();
        looks = if now == before { looks + 1 } else { 0 };
        before = now;
        (looks > 60).then_some(())
    })
    .await;
    let other = Stranger::new(&pair.pki, "auditor", Says::default());
    for _ in 0..4 {
        let mut sender = other.connect(pair.callee.inbound, "ledger").await;
        let answered = async {
            let request = ask("/trailers");
            let response = sender.send_request(request).await.unwrap();
            response.into_body().collect().await.unwrap().to_bytes()
        };
        let answered = tokio::time::timeout(DEADLINE, answered).await;
        assert_eq!(
            answered.expect("an answer, though others leave theirs unread"),
            "with trailers"
        );
    }
    drop(unread);
}

//! The link between two sidecars falls silent while calls are on it, and nobody is told.

use std::time::Instant;

use aip_tests::http::read_until;
use aip_tests::network::{Link, isolated};
use aip_tests::wait;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::world::{SILENCE, World};

const REASONS: [&str; 2] = ["connection_broken", "peer_unreachable"];
/// More than fits into what the sidecars and the kernel hold on the way.
const LARGE: usize = 4 * 1024 * 1024;

/// A stream of events that the caller's agent reads to its end, however that is; what it read.
async fn reads_events(world: &World) -> tokio::sync::oneshot::Receiver<String> {
    let outbound = world.caller.outbound;
    let (begun, first) = tokio::sync::oneshot::channel();
    let (done, read) = tokio::sync::oneshot::channel();
    let host = world.caller_host.clone();
    tokio::spawn(async move {
        host.run(async move || {
            let mut tcp = TcpStream::connect(outbound).await.unwrap();
            let head = "GET http://callee.aip.internal/events?stream=silent&steps=2 HTTP/1.1\r\nHost: callee.aip.internal\r\n\r\n";
            tcp.write_all(head.as_bytes()).await.unwrap();
            let mut got = read_until(&mut tcp, |got| String::from_utf8_lossy(got).contains("step 1")).await;
            let _ = begun.send(());
            let mut rest = Vec::new();
            let _ = tokio::time::timeout(SILENCE, tcp.read_to_end(&mut rest)).await.expect("the stream ends");
            got.push_str(&String::from_utf8_lossy(&rest));
            let _ = done.send(got);
        })
        .await;
    });
    first.await.expect("the stream begins");
    read
}

/// Calls that are under way, and new ones, while packets from the callee, or both ways, are lost: each ends with what
/// happened, and was delivered once at most. Then all goes on.
async fn falls_silent(world: &World, both: bool) {
    let events = reads_events(world).await;
    let slow = world.post("/slow?stream=silent", "");
    let silence = async {
        wait::until("the agent works on the call", async || {
            (!world.agent.seen("/slow").is_empty()).then_some(())
        })
        .await;
        world.network.from(&world.callee_host, &world.caller_host, Link::CUT);
        if both {
            world.network.from(&world.caller_host, &world.callee_host, Link::CUT);
        }
        let began = Instant::now();
        world.agent.heard("silent", 1);
        let calls = (0..3).map(|n| async move {
            let path = format!("/during/{n}/");
            let answer = world.post(&path, "").await;
            (path, answer)
        });
        let answered = futures_util::future::join_all(calls).await;
        for (path, answer) in &answered {
            assert!(REASONS.contains(&answer.reason().as_str()), "{path}: {}", answer.text());
        }
        world.delivered_once(&answered);
        let late = world.post("/late", "").await;
        assert_eq!(late.reason(), "peer_unreachable", "{}", late.text());
        assert!(began.elapsed() < SILENCE);
    };
    let (slow, ()) = tokio::join!(slow, silence);
    assert_eq!(slow.reason(), "connection_broken", "{}", slow.text());
    let events = events.await.expect("the stream was read to its end");
    assert!(!events.ends_with("0\r\n\r\n"), "it ended as if it were whole: {events}");
    // The callee's side gives up what it held for them, before anybody speaks again.
    world
        .metric_is(&world.callee_host, &world.callee, "aip_requests_in_flight", 0.0)
        .await;
    world
        .network
        .between(&world.caller_host, &world.callee_host, Link::default());
    world.goes_through().await;
    assert_eq!(world.agent.seen("/slow").len(), 1, "it is not tried again");
    assert!(world.agent.seen("/late").is_empty());
}

/// A router that drops large packets and says nothing: small calls pass, a large body never arrives.
async fn swallows_large_packets() {
    let world = World::start().await;
    let hole = Link {
        mtu: 600,
        ..Link::default()
    };
    world.network.between(&world.caller_host, &world.callee_host, hole);
    let answer = world.post("/large", vec![b'x'; LARGE]).await;
    assert!(REASONS.contains(&answer.reason().as_str()), "{}", answer.text());
    assert!(
        world.agent.seen("/large").is_empty(),
        "the agent got a part of it as if it were whole"
    );
    world
        .network
        .between(&world.caller_host, &world.callee_host, Link::default());
    world.goes_through().await;
    assert_eq!(world.post("/large", vec![b'x'; LARGE]).await.status, 200);
}

#[test]
fn a_silent_link_ends_calls_in_time_and_repeats_none() {
    let silent = |both| Box::pin(async move { falls_silent(&World::start().await, both).await });
    isolated(
        "silence::a_silent_link_ends_calls_in_time_and_repeats_none",
        [
            ("partition", silent(true)),
            ("half-open", silent(false)),
            ("black hole", Box::pin(swallows_large_packets())),
        ],
    );
}

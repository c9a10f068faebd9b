use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;

/// Answers every request, but sleeps once, `stall` long, at the request with number `stall_at`.
async fn server(listener: TcpListener, stall_at: usize, stall: Duration) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    let mut count = 0;
    let mut buffer = [0u8; 4096];
    loop {
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        if read == 0 {
            return;
        }
        seen.extend_from_slice(&buffer[..read]);
        while let Some(at) = seen.windows(BODY.len()).position(|w| w == BODY.as_bytes()) {
            seen.drain(..at + BODY.len());
            count += 1;
            if count == stall_at {
                tokio::time::sleep(stall).await;
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .await
                .unwrap();
        }
    }
}

async fn measure(pace: Pace, stall: Duration) -> Outcome<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target {
        addr: listener.local_addr().unwrap(),
        path: "/mcp".to_owned(),
        host: "localhost".to_owned(),
        headers: Vec::new(),
    };
    let serving = tokio::task::spawn_local(server(listener, 40, stall));
    let length = Duration::from_millis(500);
    let plan = Plan {
        target,
        connections: 1,
        pace,
        warmup: Duration::ZERO,
        length,
    };
    let outcome = run(&plan, || Ok(())).await.unwrap();
    serving.await.unwrap();
    outcome
}

#[test]
fn the_body_is_what_the_documents_say() {
    assert_eq!(BODY.len(), 390);
    serde_json::from_str::<serde_json::Value>(BODY).unwrap();
}

/// The promise of the open loop: one stall of 200 ms at 1,000 requests per second is felt by some 200 requests.
#[tokio::test(flavor = "current_thread")]
async fn a_stall_is_charged_to_every_request_that_was_due_meanwhile() {
    let stall = Duration::from_millis(200);
    let open = LocalSet::new()
        .run_until(measure(Pace::Fixed { per_second: 1000 }, stall))
        .await;
    assert_eq!(open.errors, 0, "{:?}", open.first_error);
    let slow = open.latency.count_between(20_000_000, u64::MAX / 2);
    assert!(
        slow >= 100,
        "only {slow} of {} requests felt the stall",
        open.latency.len()
    );
    assert!(
        open.latency.len() >= 450,
        "the schedule waited: {} requests",
        open.latency.len()
    );
}

#[tokio::test(flavor = "current_thread")]
async fn the_closed_loop_sends_when_the_answer_is_there() {
    let closed = LocalSet::new().run_until(measure(Pace::Closed, Duration::ZERO)).await;
    assert_eq!(closed.errors, 0, "{:?}", closed.first_error);
    assert!(closed.latency.len() > 100);
}

#[tokio::test(flavor = "current_thread")]
async fn an_answer_other_than_200_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let work = async {
        tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0u8; 4096];
            while stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\n{}";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
        let target = Target {
            addr,
            path: "/".to_owned(),
            host: "localhost".to_owned(),
            headers: Vec::new(),
        };
        let length = Duration::from_millis(50);
        let plan = Plan {
            target,
            connections: 1,
            pace: Pace::Closed,
            warmup: Duration::ZERO,
            length,
        };
        run(&plan, || Ok(())).await.unwrap()
    };
    let outcome = LocalSet::new().run_until(work).await;
    assert!(outcome.latency.is_empty());
    assert!(outcome.errors > 0);
    assert_eq!(outcome.first_error.as_deref(), Some("answered 403 Forbidden"));
}

#[tokio::test(flavor = "current_thread")]
async fn only_loopback_is_a_target() {
    let addr = "192.0.2.1:80".parse().unwrap();
    let target = Target {
        addr,
        path: "/".to_owned(),
        host: "localhost".to_owned(),
        headers: Vec::new(),
    };
    let plan = Plan {
        target,
        connections: 1,
        pace: Pace::Closed,
        warmup: Duration::ZERO,
        length: Duration::from_millis(10),
    };
    assert!(
        run(&plan, || Ok(()))
            .await
            .unwrap_err()
            .to_string()
            .contains("not a loopback address")
    );
}

//! What was sent is never sent again, whatever its method; what was not may be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{get, post, send};
use crate::mesh::Pair;
use crate::refuse::is_refused;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An agent that hangs up on the requests with this path, once it has read them; and how many requests came.
async fn fragile(path: &'static str, after_each: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, path, after_each, counted.clone()));
        }
    });
    (address, requests)
}

async fn serve(mut tcp: TcpStream, path: &str, after_each: bool, requests: Arc<AtomicUsize>) {
    let mut got = Vec::new();
    let mut part = [0; 4096];
    while let Ok(n @ 1..) = tcp.read(&mut part).await {
        got.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&got).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        if head.starts_with("POST ") && !body.ends_with('x') {
            continue;
        }
        requests.fetch_add(1, Ordering::SeqCst);
        if head.contains(path) {
            return;
        }
        tcp.write_all(ANSWER).await.unwrap();
        if after_each {
            return;
        }
        got.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_got_no_answer_is_not_sent_again() {
    let (agent, requests) = fragile(" /break ", false).await;
    let pair = Pair::start(agent).await;
    let mut sent = 0;
    for request in [post("/break", "text/plain", "x"), get("/break")] {
        // On a kept connection, which is what makes a repetition tempting.
        let first = send(pair.caller.outbound, get("/first")).await;
        assert_eq!(first.status, StatusCode::OK, "{}", first.text());
        is_refused(&send(pair.caller.outbound, request).await, 502, "connection_broken");
        sent += 2;
        assert_eq!(requests.load(Ordering::SeqCst), sent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_the_agent_closed_is_replaced() {
    let (agent, requests) = fragile("none", true).await;
    let pair = Pair::start(agent).await;
    for n in 1..=5 {
        let answer = send(pair.caller.outbound, post("/x", "text/plain", "x")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(requests.load(Ordering::SeqCst), n);
    }
}

//! The agent without a mesh: what it does directly is what the tests expect through sidecars.

use http_body_util::Full;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;
use crate::http::{head_came, raw, read_until, send_h2c, to_the_end};

#[tokio::test]
async fn it_waits_for_each_event_to_be_heard() {
    let agent = Agent::start();
    let mut tcp = TcpStream::connect(agent.address).await.unwrap();
    tcp.write_all(b"GET /events?stream=direct&steps=2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    for step in 1..=2 {
        let event = format!("data: step {step}\n\n");
        let part = read_until(&mut tcp, |got| String::from_utf8_lossy(got).contains(&event)).await;
        assert!(
            !part.contains("step 2") || step == 2,
            "the second event came before the first was heard: {part}"
        );
        agent.heard("direct", step);
    }
    assert!(read_until(&mut tcp, to_the_end).await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn it_shows_trailers_in_both_directions() {
    let agent = Agent::start();
    let request =
        b"POST /trailers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: x-sum\r\n\
        Connection: close\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 42\r\n\r\n";
    let answer = raw(agent.address, request, to_the_end).await;
    assert!(answer.contains("x-checksum: abc"), "{answer}");
    let seen = agent.only("/trailers");
    assert_eq!(
        (&seen.body[..], &seen.trailers.unwrap()["x-sum"]),
        (&b"hi"[..], &"42".parse().unwrap())
    );
}

#[tokio::test]
async fn it_speaks_http_2_and_upgrades() {
    let agent = Agent::start();
    let request = Request::post(format!("http://{}/two", agent.address))
        .body(Full::new(Bytes::from_static(b"x")))
        .unwrap();
    assert_eq!(send_h2c(agent.address, request).await.unwrap().text(), "x");
    assert_eq!(agent.only("/two").version, Version::HTTP_2);
    let mut tcp = TcpStream::connect(agent.address).await.unwrap();
    let head = b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    tcp.write_all(head).await.unwrap();
    assert!(read_until(&mut tcp, head_came).await.starts_with("HTTP/1.1 101"));
    tcp.write_all(b"bytes").await.unwrap();
    assert_eq!(read_until(&mut tcp, |got| got.len() == 5).await, "bytes");
}

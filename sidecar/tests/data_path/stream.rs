//! Nothing is buffered: what one end sends, the other has, frame by frame, both ways.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Frame;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::client::{begin, begin_h2, channel, collect, connected_h2, get, raw, raw_on, send, to_ledger};
use crate::mesh::{DEADLINE, Pair};
use crate::refuse::{POLICY, pair_with};

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_one_by_one() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    agent.go();
    let mut response = begin(pair.caller.outbound, get("/events")).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for n in 0..5 {
        let frame = tokio::time::timeout(DEADLINE, response.body_mut().frame())
            .await
            .expect("the event, at once");
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), format!("data: {n}\n\n"));
        // The next is sent only now.
        agent.go();
    }
    drop(response);
    // A client that leaves ends the stream everywhere.
    assert_eq!(pair.caller.line().await["end"], "aborted");
    assert_eq!(pair.callee.line().await["end"], "aborted");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_are_live_at_once() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for h2 in [false, true] {
        let (frames, body) = channel();
        let request = to_ledger("POST", "/chat").body(body).unwrap();
        let mut response = match h2 {
            false => begin(pair.caller.outbound, request).await,
            true => begin_h2(pair.caller.outbound, request).await,
        };
        for n in 0..3 {
            let said = Bytes::from(format!("say {n}"));
            frames.send(Frame::data(said.clone())).await.unwrap();
            let heard = tokio::time::timeout(DEADLINE, response.body_mut().frame())
                .await
                .expect("an echo, at once");
            assert_eq!(heard.unwrap().unwrap().into_data().unwrap(), said);
        }
        drop(frames);
        let rest = response.into_body().collect().await.expect("a clean end").to_bytes();
        assert!(rest.is_empty());
    }
    let lines = pair.callee.lines(2).await;
    assert!(
        lines
            .iter()
            .all(|l| l["end"] == "complete" && l["bytes_in"] == 15 && l["bytes_out"] == 15),
        "{lines:?}"
    );
}

/// Trailers of which one is the caller's to send.
const FORGED: &str = "x-sum, x-aip-forged, x-forwarded-for, x_forwarded_for, x_http_method_override, x-original-url";

fn forged() -> HeaderMap {
    let name = |name: &str| name.parse::<http::HeaderName>().unwrap();
    FORGED.split(", ").map(|n| (name(n), "1".parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_both_ways() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let (frames, body) = channel();
    let request = to_ledger("POST", "/trailers")
        .header("te", "trailers")
        .header("trailer", FORGED)
        .body(body)
        .unwrap();
    let sending = tokio::spawn(async move {
        frames.send(Frame::data(Bytes::from("body"))).await.unwrap();
        frames.send(Frame::trailers(forged())).await.unwrap();
    });
    let answer = send(pair.caller.outbound, request).await;
    sending.await.unwrap();
    let trailers = answer.trailers.expect("trailers of the response");
    assert_eq!(
        (trailers.len(), &trailers["x-checksum"]),
        (1, &"abc".parse().unwrap()),
        "the forged one is gone"
    );
    let seen = agent.only().trailers.expect("trailers of the request");
    assert_eq!((seen.len(), &seen["x-sum"]), (1, &"1".parse().unwrap()));
}

/// The same where policy holds the body until it has read it, and where what is inside the mesh is HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_body_that_policy_reads_pass_too() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    for (over_http2, data) in [
        (false, &b"{\"a\":1}"[..]),
        (true, b"{\"a\":1}"),
        (false, b""),
        (false, b" \n"),
    ] {
        let (frames, body) = channel();
        let request = to_ledger("POST", "/trailers")
            .header("content-type", "application/json")
            .header("te", "trailers")
            .header("trailer", FORGED);
        let sending = tokio::spawn(async move {
            if !data.is_empty() {
                frames.send(Frame::data(Bytes::from_static(data))).await.unwrap();
            }
            frames.send(Frame::trailers(forged())).await.unwrap();
        });
        let answer = match over_http2 {
            false => send(pair.caller.outbound, request.body(body).unwrap()).await,
            true => {
                let length = request.header("content-length", data.len());
                collect(begin_h2(pair.caller.outbound, length.body(body).unwrap()).await).await
            }
        };
        sending.await.unwrap();
        if data.iter().all(u8::is_ascii_whitespace) {
            assert_eq!(answer.reason(), "invalid_json", "nothing is no JSON");
            continue;
        }
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let seen = agent.seen().pop().unwrap();
        assert_eq!(&seen.body[..], data);
        let trailers = seen.trailers.expect("trailers of the request");
        assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &"1".parse().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_passes_whole() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let body: Vec<u8> = (0..8 * 1024 * 1024u32).map(|n| (n % 251) as u8).collect();
    let request = to_ledger("POST", "/large")
        .body(Full::new(Bytes::from(body.clone())))
        .unwrap();
    let answer = send(pair.caller.outbound, request).await;
    assert!(answer.body == body, "8 MiB there and back");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_body_is_read_arrives() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let (frames, body) = channel();
    let request = to_ledger("POST", "/early").body(body).unwrap();
    // The body never ends.
    let answer = tokio::time::timeout(DEADLINE, begin(pair.caller.outbound, request))
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "too much");
    drop(frames);
}

const WEBSOCKET: &str = "GET http://ledger.aip.internal/upgrade HTTP/1.1\r\nhost: ledger.aip.internal\r\n\
    connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: abcd\r\n\r\n";

async fn echoes<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(io: &mut IO, text: &str) {
    io.write_all(text.as_bytes()).await.unwrap();
    let mut heard = vec![0; text.len()];
    tokio::time::timeout(DEADLINE, io.read_exact(&mut heard))
        .await
        .expect("an echo in time")
        .unwrap();
    assert_eq!(heard, text.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_passes_both_sidecars() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let head = raw_on(&mut tcp, WEBSOCKET.as_bytes(), "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    for header in [
        "upgrade: websocket\r\n",
        "connection: upgrade\r\n",
        "sec-websocket-accept: abcd\r\n",
    ] {
        assert!(head.contains(header), "{header} in {head}");
    }
    for text in ["hello", "again", &"x".repeat(200_000)] {
        echoes(&mut tcp, text).await;
    }
    drop(tcp);
    for side in [&pair.caller, &pair.callee] {
        let line = side.line().await;
        assert_eq!(
            (&line["protocol"], &line["method"]),
            (&json!("websocket"), &json!("GET"))
        );
        assert_eq!(
            (&line["bytes_in"], &line["bytes_out"]),
            (&json!(200_010), &json!(200_010)),
            "{line}"
        );
    }
    let seen = agent.only();
    assert_eq!(
        (seen.header("upgrade"), seen.header("sec-websocket-version")),
        ("websocket", "13")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http2_of_the_agent_passes_too() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let upgrade = "http://ledger.aip.internal/upgrade";
    let mut io = connected_h2(pair.caller.outbound, upgrade, Some("websocket")).await;
    echoes(&mut io, "over h2").await;
    assert_eq!(
        agent.only().header("sec-websocket-key").len(),
        24,
        "the agent needs one"
    );
}

/// The tunnel is open for as long as what was switched in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_in_a_tunnel_over_http2_passes_too() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let mut io = connected_h2(pair.caller.outbound, "ledger.aip.internal:80", None).await;
    let inside = WEBSOCKET.replace("http://ledger.aip.internal", "");
    let head = raw_on(&mut io, inside.as_bytes(), "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    for text in ["hello", "again", &"x".repeat(200_000)] {
        echoes(&mut io, text).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_switch_answers_as_it_likes() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let request = WEBSOCKET.replace("/upgrade", "/plain");
    let answer = raw(pair.caller.outbound, request.as_bytes(), "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(!answer.contains("x-aip-status"), "{answer}");
    assert_eq!(pair.caller.line().await["status"], 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_for_h2c_is_no_upgrade() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let request = to_ledger("POST", "/java")
        .header("connection", "Upgrade, HTTP2-Settings")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAEAAEAAAAIAAAAA")
        .body(Full::new(Bytes::from("x")))
        .unwrap();
    let answer = send(pair.caller.outbound, request).await;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "x"));
    let seen = agent.only();
    assert_eq!(
        (
            seen.header("upgrade"),
            seen.header("http2-settings"),
            seen.header("connection")
        ),
        ("", "", "")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_is_waited_for() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let waiting = tokio::spawn(send(pair.caller.outbound, get("/slow")));
    crate::mesh::until("the agent has the request", async || {
        (!agent.seen().is_empty()).then_some(())
    })
    .await;
    agent.go();
    let answer = tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.text(), "at last");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_trailers_and_empty_bodies_of_grpc_pass() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let request = Request::post("http://ledger.aip.internal/trailers")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from("\0\0\0\0\x01x")))
        .unwrap();
    let answer = collect(begin_h2(pair.caller.outbound, request).await).await;
    assert_eq!(answer.trailers.expect("trailers")["x-checksum"], "abc");
}

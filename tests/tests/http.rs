//! HTTP through both sidecars: what the agent receives is what was sent, in every form that HTTP has.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use ::http::{Request, Version};
use aip_tests::http::{self, head_came, read_until, to_the_end};
use aip_tests::pair::{Pair, registered};
use aip_tests::wait;
use bytes::Bytes;
use http_body_util::Full;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

static PAIR: OnceCell<Pair> = OnceCell::const_new();

async fn pair() -> &'static Pair {
    PAIR.get_or_init(async || Pair::start().await).await
}

const HOST: &str = "callee.aip.internal";

const PATHS_ONLY: &str = r#"package aip.policy.baseline

rules contains {"rule": "open", "verdict": "allow", "reason": "open for tests"} if true

rules contains {"rule": "no_denied_path", "verdict": "deny", "reason": "a test denies it"} if {
	input.request.path[_] == "denied"
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_name_in_absolute_and_in_origin_form() {
    let pair = pair().await;
    let absolute = pair.get("/absolute?q=1").await;
    assert_eq!(
        (
            absolute.status.as_u16(),
            absolute.headers["x-aip-decision"].to_str().unwrap().split(';').nth(1)
        ),
        (200, Some("allow"))
    );
    let origin = pair
        .raw(
            &format!("GET /origin?q=1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"),
            to_the_end,
        )
        .await;
    assert!(origin.starts_with("HTTP/1.1 200"), "{origin}");
    let odd = String::from(
        "GET http://CALLEE.aip.internal.:1234/odd HTTP/1.1\r\nHost: CALLEE.aip.internal.:1234\r\nConnection: close\r\n\r\n",
    );
    let odd = pair.raw(&odd, to_the_end).await;
    assert!(
        odd.starts_with("HTTP/1.1 200"),
        "upper case, a trailing dot and a port name the same agent: {odd}"
    );
    for path in ["/absolute", "/origin", "/odd"] {
        let seen = pair.agent.only(path);
        assert_eq!(
            seen.header("host"),
            pair.agent.address.to_string(),
            "a server bound to localhost accepts it"
        );
        assert!(
            seen.header("forwarded").to_lowercase().contains(HOST),
            "the original: {}",
            seen.header("forwarded")
        );
        assert_eq!(seen.header("x-aip-source"), "spiffe://aip.internal/agent/caller");
        let (outbound, inbound) = pair.recorded(path).await;
        assert_eq!((outbound.0.len(), inbound.0.len()), (1, 1));
        assert_eq!(outbound.0[0].status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn method_path_query_headers_and_body_arrive_as_sent() {
    let pair = pair().await;
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let request = Request::builder()
        .method("PROPFIND")
        .uri(format!("http://{HOST}/as-sent/%C3%A4~!$&'()*+,=:@?a=%2F&b=c%20d&&e"))
        .header("x-custom", "one")
        .header("x-custom", "two, three")
        .header("content-type", "application/octet-stream")
        .header("cookie", "a=1; b=2")
        .header("authorization", "Bearer of-the-agents-own");
    let answer = pair.caller.call(request, body.clone()).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body == body),
        (200, true),
        "the body comes back whole"
    );
    let seen = pair.agent.only("/as-sent");
    assert_eq!(seen.method, "PROPFIND");
    assert_eq!(seen.target, "/as-sent/%C3%A4~!$&'()*+,=:@?a=%2F&b=c%20d&&e");
    assert!(seen.body == body, "every byte");
    let custom: Vec<_> = seen.headers.get_all("x-custom").iter().collect();
    assert_eq!(custom, ["one", "two, three"]);
    assert_eq!(
        (seen.header("cookie"), seen.header("authorization")),
        ("a=1; b=2", "Bearer of-the-agents-own")
    );
    assert_eq!(seen.version, Version::HTTP_11);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_one_by_one() {
    let pair = pair().await;
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let request =
        format!("GET /events?stream=one-by-one&steps=3 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    for step in 1..=3 {
        let event = format!("data: step {step}\n\n");
        // The agent sends the next one only when it is told that this one was heard.
        let part = read_until(&mut tcp, |got| String::from_utf8_lossy(got).contains(&event)).await;
        assert!(part.contains(&event), "{part}");
        all += &part;
        pair.agent.heard("one-by-one", step);
    }
    all += &read_until(&mut tcp, to_the_end).await;
    assert!(all.contains("text/event-stream") && all.ends_with("0\r\n\r\n"), "{all}");
    let (outbound, inbound) = pair.recorded("/events").await;
    assert_eq!((outbound.0.len(), inbound.0.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_and_trailers_both_ways() {
    let pair = pair().await;
    let request = format!(
        "POST /trailers HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum, x-aip-source\r\nTE: trailers\r\n\
         Connection: close, TE\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 42\r\nX-Aip-Source: forged\r\n\r\n"
    );
    let answer = pair.raw(&request, to_the_end).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("with trailers"),
        "{answer}"
    );
    let lower = answer.to_lowercase();
    assert!(
        lower.contains("\r\nx-checksum: abc\r\n"),
        "the trailer arrives: {answer}"
    );
    let (_, trailers) = lower.split_once("0\r\n").unwrap();
    assert!(
        !trailers.contains("forged"),
        "a trailer that is ours is dropped: {answer}"
    );
    let seen = pair.agent.only("/trailers");
    assert_eq!(&seen.body[..], b"hello world");
    let trailers = seen.trailers.expect("the request's trailers arrive");
    assert_eq!(trailers["x-sum"], "42");
    assert!(!trailers.contains_key("x-aip-source"), "{trailers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_waits_for_100_continue() {
    let pair = pair().await;
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let head = format!(
        "POST /expect HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let interim = read_until(&mut tcp, head_came).await;
    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    tcp.write_all(b"hello").await.unwrap();
    let answer = read_until(&mut tcp, to_the_end).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
}

/// Where policy reads no bodies, it refuses before the body is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_body_is_never_asked_for() {
    let pair = Pair::start_ruled(PATHS_ONLY).await;
    let head = format!(
        "POST /denied/expect HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    let refused = pair.raw(&head, to_the_end).await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert!(pair.agent.seen("/denied").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_carries_bytes_both_ways() {
    let pair = pair().await;
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    let head = format!(
        "GET /upgrade HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n{key}\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let switched = read_until(&mut tcp, head_came).await.to_lowercase();
    assert!(
        switched.starts_with("http/1.1 101") && switched.contains("upgrade: websocket"),
        "{switched}"
    );
    for message in ["first", "second"] {
        tcp.write_all(message.as_bytes()).await.unwrap();
        let echo = read_until(&mut tcp, |got| got.len() >= message.len()).await;
        assert_eq!(echo, message);
    }
    tcp.shutdown().await.unwrap();
    assert_eq!(read_until(&mut tcp, to_the_end).await, "");
    let seen = pair.agent.only("/upgrade");
    assert_eq!(
        (seen.header("upgrade"), seen.header("sec-websocket-version")),
        ("websocket", "13")
    );
    pair.recorded("/upgrade").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_with_prior_knowledge() {
    let pair = pair().await;
    let request = Request::post(format!("http://{HOST}/two"))
        .body(Full::new(Bytes::from_static(b"hello")))
        .unwrap();
    let answer = http::send_h2c(pair.caller.outbound, request).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello"));
    assert_eq!(pair.agent.only("/two").method, "POST");
    pair.recorded("/two").await;

    // gRPC keeps its version to the agent, and its trailers.
    let request = Request::post(format!("http://{HOST}/trailers/grpc"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(b"\0\0\0\0\x01x")))
        .unwrap();
    let answer = http::send_h2c(pair.caller.outbound, request).await.unwrap();
    assert_eq!(answer.status, 200);
    let seen = pair.agent.only("/trailers/grpc");
    assert_eq!((seen.version, seen.header("te")), (Version::HTTP_2, "trailers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_come_before_the_body_was_read() {
    let pair = pair().await;
    // More than any buffer between here and the agent, so that a sidecar that waited for the end would hang.
    let head =
        format!("POST /early HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000000\r\nConnection: close\r\n\r\n");
    let answer = pair
        .raw(&(head + &"x".repeat(10_000)), |got| {
            String::from_utf8_lossy(got).contains("too much")
        })
        .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_useful_answers() {
    let pair = pair().await;
    let denied = pair.get("/denied/useful").await;
    assert_eq!(denied.status, 403);
    let problem = denied.json();
    assert_eq!(
        (denied.header("content-type"), problem["status"].as_u64()),
        ("application/problem+json", Some(403))
    );
    assert_eq!(
        (&problem["rule"], &problem["reason"]),
        (&json!("no_denied_path"), &json!("policy_denied")),
        "{problem}"
    );
    let id = problem["decision_id"].as_str().expect("a decision id");
    assert_eq!(denied.header("x-aip-decision"), format!("{id};deny;caller"));
    let record = wait::until("the refusal is on the record", async || {
        pair.records_of(&pair.caller, "/denied/useful").0.into_iter().next()
    })
    .await;
    assert_eq!(
        (record.text("decision"), record.status(), record.verdict()),
        (id, 403, "deny"),
        "{}",
        record.0
    );
    assert!(pair.records_of(&pair.callee, "/denied/useful").0.is_empty());

    let unknown = pair.caller.get("http://nobody.aip.internal/x").await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.reason().as_str()),
        (404, "unknown_agent")
    );
    assert!(pair.agent.seen("/denied/useful").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_rpc_refusal_is_a_json_rpc_error_of_that_call() {
    let pair = pair().await;
    let url = format!("http://{HOST}/json-rpc");
    let call = |method: &str, id: serde_json::Value| {
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {}}).to_string()
    };
    for id in [json!(7), json!("seven")] {
        let request = Request::post(&url).header("content-type", "application/json");
        let answer = pair.caller.call(request, call("denied", id.clone())).await;
        let error = answer.json();
        assert_eq!((&error["jsonrpc"], &error["id"]), (&json!("2.0"), &id), "{error}");
        assert!(
            error["error"]["code"].is_i64() && error["error"]["message"].is_string(),
            "{error}"
        );
        assert_eq!(error["error"]["data"]["rule"], "no_denied_call", "{error}");
        assert_ne!(answer.status, 400);
    }
    let request = Request::post(&url).header("content-type", "application/json");
    let body = call("allowed", json!(1));
    let allowed = pair.caller.call(request, body.clone()).await;
    assert_eq!((allowed.status.as_u16(), allowed.text()), (200, body.clone()));
    assert_eq!(
        pair.agent.only("/json-rpc").body,
        body.as_bytes(),
        "the bytes that policy read, and no others"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_down_is_an_answer() {
    let pair = pair().await;
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], aip_tests::process::free_port()));
    let _sidecar = pair.third(registered("down"), nobody).await;
    let answer = wait::until("the caller learns of it", async || {
        let answer = pair.caller.get("http://down.aip.internal/x").await;
        (answer.status != 404 && answer.reason() != "no_endpoint").then_some(answer)
    })
    .await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason().as_str()),
        (502, "agent_unreachable"),
        "{}",
        answer.text()
    );
    assert!(answer.header("x-aip-decision").ends_with(";callee"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn well_known_documents_are_answered_for_the_agent() {
    let pair = pair().await;
    let manifest = pair.get("/.well-known/agent-manifest").await;
    assert_eq!(
        (manifest.status.as_u16(), &manifest.json()["agent_id"]),
        (200, &json!("callee"))
    );
    let attestation = pair.get("/.well-known/agent-attestation").await.json();
    assert_eq!(attestation["spiffe_id"], "spiffe://aip.internal/agent/callee");
    assert_eq!(
        attestation["result"].as_str().unwrap().split('.').count(),
        3,
        "a JWS: {attestation}"
    );
    assert!(pair.agent.seen("/.well-known").is_empty(), "the agent is not asked");
}

/// SIGTERM: what is in flight ends well, nothing new is taken, exit 0.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains() {
    let mut pair = Pair::start().await;
    let outbound = pair.caller.outbound;
    let slow = tokio::spawn(async move {
        let request = Request::get(format!("http://{HOST}/slow?stream=drain")).header("host", HOST);
        http::send(outbound, request.body(Full::default()).unwrap()).await
    });
    wait::until("the slow call is in flight", async || {
        (!pair.agent.seen("/slow").is_empty()).then_some(())
    })
    .await;
    for sidecar in [&pair.callee, &pair.caller] {
        sidecar.process.signal(Signal::TERM);
        wait::until("the sidecar says that it drains", async || {
            match http::get(sidecar.probes, "/readyz").await {
                Ok(answer) if answer.status.is_success() => None,
                _ => Some(()),
            }
        })
        .await;
    }
    // The outbound port goes on: what the agent still answers may need calls of its own.
    let inbound = pair.callee.inbound;
    wait::until("nothing new is taken", async || {
        TcpStream::connect(inbound).await.is_err().then_some(())
    })
    .await;
    pair.agent.heard("drain", 1);
    let answer = slow.await.unwrap().expect("the call in flight ends well");
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "at last"));
    for sidecar in [&mut pair.callee, &mut pair.caller] {
        assert_eq!(
            sidecar.process.end().await.code(),
            Some(0),
            "{}",
            sidecar.process.last_words()
        );
    }
}

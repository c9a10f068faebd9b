//! HTTP/1 as no library would write it, at the port of a sidecar's own agent: what is no request, or two, reaches nobody.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::http::{head_came, read_until, to_the_end};
use aip_tests::pair::Pair;
use aip_tests::wait;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

static PAIR: OnceCell<Pair> = OnceCell::const_new();

async fn pair() -> &'static Pair {
    PAIR.get_or_init(async || Pair::start().await).await
}

const HOST: &str = "callee.aip.internal";

/// These bytes, and what came back until the sidecar closed.
async fn say(pair: &Pair, bytes: &[u8]) -> String {
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    // Where it is closed in the middle, an answer may still be there.
    let _ = tcp.write_all(bytes).await;
    read_until(&mut tcp, to_the_end).await
}

/// One answer, a refusal, and then the end.
fn is_refused_alone(what: &str, answer: &str, statuses: &[&str]) {
    let one_of = statuses
        .iter()
        .any(|status| answer.starts_with(&format!("HTTP/1.1 {status}")));
    assert!(one_of, "{what}: {answer}");
    assert_eq!(
        answer.matches("HTTP/1.1 ").count(),
        1,
        "{what}: nothing after the refusal: {answer}"
    );
}

async fn serves_on(pair: &Pair, path: &str) {
    assert_eq!(pair.get(path).await.status, 200, "{path}");
    pair.agent.only(path);
    wait::until_ok("nothing is in flight", async || {
        let page = pair.caller.look("/connections").await.json();
        let nothing = page["requests"].as_u64() == Some(0) && page["held_bytes"].as_u64() == Some(0);
        if nothing { Ok(()) } else { Err(page.to_string()) }
    })
    .await;
}

/// What is wrong with the head of a POST, whose body is `hello`.
const HEADS: &[(&str, &str)] = &[
    ("two lengths that differ", "Content-Length: 5\r\nContent-Length: 6\r\n"),
    ("two lengths in a list", "Content-Length: 5, 6\r\n"),
    ("a length with a sign", "Content-Length: +5\r\n"),
    ("a negative length", "Content-Length: -5\r\n"),
    ("a length in hex", "Content-Length: 0x5\r\n"),
    ("a length with a space in it", "Content-Length: 5 5\r\n"),
    ("an empty length", "Content-Length: \r\n"),
    ("a length beyond all", "Content-Length: 99999999999999999999\r\n"),
    ("a coding that is none", "Transfer-Encoding: xchunked\r\n"),
    ("chunked and more", "Transfer-Encoding: chunked, identity\r\n"),
    ("gzip before chunked", "Transfer-Encoding: gzip, chunked\r\n"),
    ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n"),
    (
        "chunked twice, in two lines",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: Chunked\r\n",
    ),
    (
        "chunked behind a tab that is none",
        "Transfer-Encoding: \x0bchunked\r\n",
    ),
    ("chunked in quotes", "Transfer-Encoding: \"chunked\"\r\n"),
    ("a coding that is no text", "Transfer-Encoding: \u{ff}\r\n"),
    ("a folded header", "X-One: 1\r\n two\r\nContent-Length: 5\r\n"),
    ("a folded coding", "Transfer-Encoding:\r\n chunked\r\n"),
    ("a space before the colon", "Content-Length : 5\r\n"),
    ("a line without a colon", "Content-Length\r\n"),
    ("a name with a space", "X One: 1\r\nContent-Length: 5\r\n"),
    ("NUL in a name", "X\0One: 1\r\nContent-Length: 5\r\n"),
    ("NUL in a value", "X-One: 1\0\r\nContent-Length: 5\r\n"),
    ("a bare CR in a value", "X-One: 1\rContent-Length: 5\r\n"),
    ("a space before the first name", " X-One: 1\r\nContent-Length: 5\r\n"),
];

#[tokio::test(flavor = "multi_thread")]
async fn heads_with_two_readings_are_refused_and_nothing_after_them_is_read() {
    let pair = pair().await;
    let inner = format!("GET /inner HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    for (what, lines) in HEADS {
        let bytes = format!("POST /outer HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\nhello{inner}");
        is_refused_alone(what, &say(pair, bytes.as_bytes()).await, &["400"]);
    }
    let old = format!("POST /outer HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}");
    is_refused_alone("chunks in HTTP/1.0", &say(pair, old.as_bytes()).await, &["400"]);
    assert!(pair.agent.seen("/outer").is_empty() && pair.agent.seen("/inner").is_empty());
    serves_on(pair, "/after-heads").await;
}

/// Chunks beside a length are read as chunks, and the connection is closed behind them (RFC 9112 section 6.1).
#[tokio::test(flavor = "multi_thread")]
async fn behind_chunks_beside_a_length_nothing_is_read() {
    let pair = pair().await;
    for (n, lines) in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ]
    .iter()
    .enumerate()
    {
        let bytes = format!(
            "POST /both-{n} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n5\r\nhello\r\n0\r\n\r\nGET /behind-both HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        );
        let answer = say(pair, bytes.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lines}: {answer}");
        let seen = pair.agent.only(&format!("/both-{n}"));
        assert_eq!(
            (&seen.body[..], seen.header("content-length")),
            (&b"hello"[..], ""),
            "{lines}"
        );
    }
    assert!(pair.agent.seen("/behind-both").is_empty());
    serves_on(pair, "/after-both").await;
}

/// Bodies in chunks that are none, behind `2\r\nok\r\n`.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_with_two_readings_are_no_body() {
    let pair = pair().await;
    let inner = format!("GET /chunk-inner HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let (long, trailer) = ("a".repeat(64 * 1024), "x-a: 1\r\n".repeat(8 * 1024));
    for (what, rest) in [
        ("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a negative size", "-5\r\nhello\r\n0\r\n\r\n"),
        ("a size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a size beyond all", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("a space before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("a bare LF behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("a bare CR behind the size", "5\rhello\r\n0\r\n\r\n"),
        ("a size too small", "2\r\nhello\r\n0\r\n\r\n"),
        ("a size too great", "7\r\nhello\r\n0\r\n\r\n"),
        ("a bare LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("an extension without end", &format!("5;{long}\r\nhello\r\n0\r\n\r\n")),
        ("trailers without end", &format!("0\r\n{trailer}\r\n")),
        ("a trailer that is none", "0\r\nx a: 1\r\n\r\n"),
    ] {
        let bytes = format!(
            "POST /chunks HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n{rest}{inner}"
        );
        let answer = say(pair, bytes.as_bytes()).await;
        assert!(
            !answer.starts_with("HTTP/1.1 200") && answer.matches("HTTP/1.1 ").count() <= 1,
            "{what}: {answer}"
        );
    }
    let seen = pair.agent.seen("/chunks");
    assert!(
        seen.is_empty() && pair.agent.seen("/chunk-inner").is_empty(),
        "{seen:?}"
    );
    serves_on(pair, "/after-chunks").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_request_carry_nothing_of_a_head() {
    let pair = pair().await;
    let forged = [
        "X-AIP_Source",
        "x-aip-hop",
        "Content-Length",
        "Transfer-Encoding",
        "Host",
        "Authorization",
        "Cookie",
        "Content-Type",
        "X-Forwarded-For",
        "X-Original-URL",
        "Proxy-Authorization",
        "Expect",
        "Connection",
        "TE",
    ];
    let lines: String = forged.iter().map(|name| format!("{name}: forged\r\n")).collect();
    let bytes = format!(
        "POST /trailing HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nConnection: te, close\r\nTrailer: X-Sum, {}\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{lines}X-Sum: 1\r\n\r\n",
        forged.join(", ")
    );
    let answer = say(pair, bytes.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = pair.agent.only("/trailing");
    let trailers = seen.trailers.expect("the one that may be there");
    assert_eq!(
        (trailers.len(), trailers["x-sum"].as_bytes()),
        (1, &b"1"[..]),
        "{trailers:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn request_lines_that_are_none_are_refused() {
    let pair = pair().await;
    let rest = format!("\r\nHost: {HOST}\r\n\r\nGET /line-inner HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    for line in [
        "GET /line",
        "GET /line HTTP/0.9",
        "GET /line HTTP/1.2",
        "GET /line HTTP/1.10",
        "GET /line HTTP/2.0",
        "GET /line HTTP/3",
        "GET /line http/1.1",
        "GET /line HTTP/1.1 HTTP/1.1",
        "GET /line x HTTP/1.1",
        "GET  /line HTTP/1.1",
        "GET\t/line HTTP/1.1",
        "G ET /line HTTP/1.1",
        "GE(T /line HTTP/1.1",
        "/line HTTP/1.1",
        "GET /li\0ne HTTP/1.1",
        "GET /li\u{7f}ne HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        is_refused_alone(
            line,
            &say(pair, format!("{line}{rest}").as_bytes()).await,
            &["400", "404", "405", "505"],
        );
    }
    // As browsers of 1991 asked: a line alone.
    let answer = say(pair, b"GET /line\r\n\r\n").await;
    is_refused_alone("HTTP/0.9", &answer, &["400"]);
    for (host, reason) in [
        ("", "invalid_host"),
        (
            "Host: callee.aip.internal\r\nHost: callee.aip.internal\r\n",
            "invalid_host",
        ),
        ("Host: \r\n", "invalid_host"),
    ] {
        let answer = say(
            pair,
            format!("GET /line HTTP/1.1\r\n{host}Connection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains(reason),
            "{host:?}: {answer}"
        );
    }
    let other = format!("GET http://caller.aip.internal/line HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let answer = say(pair, other.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("host_mismatch"),
        "{answer}"
    );
    assert!(pair.agent.seen("line").iter().all(|seen| seen.target == "/after-lines"));
    serves_on(pair, "/after-lines").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn great_heads_are_refused_and_take_no_memory() {
    const ROOM: u64 = 24 << 20;
    let pair = pair().await;
    let before = pair.caller.process.resident();
    let (many, one) = ("X-A: 1\r\n".repeat(2_000), format!("X-A: {}\r\n", "a".repeat(1 << 20)));
    let all = format!("X-A: {}\r\n", "a".repeat(8_000)).repeat(64);
    for (what, path, lines) in [
        ("many headers", "/great", &many),
        ("one header", "/great", &one),
        ("all headers", "/great", &all),
        ("a path", &format!("/great{}", "a".repeat(1 << 20)), &String::new()),
        ("a query", &format!("/great?{}", "a".repeat(70_000)), &String::new()),
    ] {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n");
        let answer = say(pair, bytes.as_bytes()).await;
        // Or a reset, where it sends on for too long.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{what}: {answer}"
        );
    }
    let grown = pair.caller.process.resident().saturating_sub(before);
    assert!(grown < ROOM, "{} MiB", grown >> 20);
    assert!(pair.agent.seen("/great").is_empty());
    serves_on(pair, "/after-greatness").await;
}

/// What follows a refused request on its connection is a request of its own, and decided as one.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_refusal_is_decided_for_itself() {
    let pair = pair().await;
    let head = |method: &str, path: &str, rest: &str| format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{rest}\r\n");
    let denied = head("POST", "/denied/1", "Content-Length: 31\r\n") + "GET /denied/body HTTP/1.1\r\n\r\n..";
    let all = [
        denied,
        head("GET", "/allowed-1", ""),
        head("GET", "/denied/2", ""),
        head("GET", "/a/../denied", ""),
        head("GET", "/allowed-2", "Connection: close\r\n"),
        head("GET", "/behind-the-last", ""),
    ];
    let answer = say(pair, all.concat().as_bytes()).await;
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["403", "200", "403", "400", "200"], "{answer}");
    assert!(pair.agent.seen("denied").is_empty() && pair.agent.seen("/behind-the-last").is_empty());
    pair.agent.only("/allowed-1");
    pair.agent.only("/allowed-2");
}

/// Whoever hangs up, or stops to speak, in the middle of a request: nothing of it stays.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_is_none_and_leaves_nothing() {
    let pair = pair().await;
    for (what, bytes) in [
        ("half a head", format!("POST /half HTTP/1.1\r\nHost: {HOST}\r\nX-A")),
        (
            "half a body",
            format!("POST /half HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 50\r\n\r\nhello"),
        ),
        (
            "half of the chunks",
            format!("POST /half HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ),
        (
            "half a call",
            format!(
                "POST /half HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{\"jsonrpc\""
            ),
        ),
    ] {
        let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
        tcp.write_all(bytes.as_bytes()).await.unwrap();
        tcp.shutdown().await.unwrap();
        let answer = read_until(&mut tcp, to_the_end).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{what}: {answer}");
    }
    assert!(pair.agent.seen("/half").is_empty());
    serves_on(pair, "/after-halves").await;
    // One that has said all and then closes its side may still read.
    let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
    let whole = format!("GET /whole-and-closed HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    tcp.write_all(whole.as_bytes()).await.unwrap();
    let answer = read_until(&mut tcp, head_came).await;
    tcp.shutdown().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        !read_until(&mut tcp, to_the_end).await.contains("HTTP/1.1 "),
        "and then it is closed"
    );
}

//! What a request can't smuggle past policy: headers that are ours, framing that two readers read in two ways, paths
//! that mean something else to the agent, hops that were seen before.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::http::{collect, to_the_end};
use aip_tests::pair::{Pair, registered};
use aip_tests::pki::LeafSpec;
use aip_tests::wire;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

static PAIR: OnceCell<Pair> = OnceCell::const_new();

async fn pair() -> &'static Pair {
    PAIR.get_or_init(async || Pair::start().await).await
}

const HOST: &str = "callee.aip.internal";

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_mesh_are_removed_in_both_directions() {
    let pair = pair().await;
    let request = Request::get(format!("http://{HOST}/forged"))
        .header("x-aip-source", "spiffe://aip.internal/agent/admin")
        .header("X_AIP_Verdict", "allow")
        .header("x-Aip_hop", "forged")
        .header("x-aip-new-one", "forged")
        .header("x-aiport", "kept");
    let answer = pair.caller.call(request, "").await;
    let seen = pair.agent.only("/forged");
    assert_eq!(seen.header("x-aip-source"), "spiffe://aip.internal/agent/caller");
    assert_eq!(seen.header("x-aiport"), "kept", "only what folds to x-aip-");
    for (name, value) in &seen.headers {
        assert!(
            !value.to_str().unwrap().contains("forged") && name != "x_aip_verdict",
            "{name}: {value:?}"
        );
    }
    assert_eq!(answer.text(), "forged");
    assert_eq!(answer.header("x-kept"), "kept");
    for (name, value) in &answer.headers {
        assert!(!value.to_str().unwrap().contains("forged"), "{name}: {value:?}");
    }
    assert!(!answer.headers.contains_key("x-hop-only"), "Connection named it");
    assert!(answer.header("x-aip-decision").ends_with(";allow;callee"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_is_processed_before_anything_else() {
    let pair = pair().await;
    let request = Request::get(format!("http://{HOST}/hop-by-hop"))
        .header("connection", "x-drop-me, x-aip-source, forwarded")
        .header("x-drop-me", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("te", "trailers, deflate")
        .header("x-keep-me", "1");
    assert_eq!(pair.caller.call(request, "").await.status, 200);
    let seen = pair.agent.only("/hop-by-hop");
    for dropped in ["x-drop-me", "keep-alive", "proxy-connection"] {
        assert!(
            !seen.headers.contains_key(dropped),
            "{dropped} is between two ends of one connection"
        );
    }
    assert_eq!(seen.header("x-keep-me"), "1");
    assert_eq!(
        seen.header("x-aip-source"),
        "spiffe://aip.internal/agent/caller",
        "can't be dropped by naming it"
    );
    assert!(!seen.header("forwarded").is_empty(), "nor can this");
}

#[tokio::test(flavor = "multi_thread")]
async fn method_and_url_overrides_are_refused() {
    let pair = pair().await;
    let overrides = [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
    ];
    for name in overrides {
        let request = Request::get(format!("http://{HOST}/override")).header(name, "DELETE");
        let answer = pair.caller.call(request, "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.reason().as_str()),
            (400, "override_header"),
            "{name}"
        );
    }
    assert!(pair.agent.seen("/override").is_empty());
}

/// Paths that an agent may resolve to another than policy read.
const AMBIGUOUS: [&str; 14] = [
    "/ambiguous/../x",
    "/ambiguous/./x",
    "/ambiguous/..",
    "/ambiguous//x",
    "//ambiguous",
    "/ambiguous%2fx",
    "/ambiguous%2Fx",
    "/ambiguous/%2e%2e/x",
    "/ambiguous/%2E./x",
    "/ambiguous;v=1/x",
    "/ambiguous\\x",
    "/ambiguous%5cx",
    "/ambiguous%00",
    "/ambiguous%252fx",
];

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_paths_are_refused() {
    let pair = pair().await;
    for path in AMBIGUOUS {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let answer = pair.raw(&request, to_the_end).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
    }
    assert!(pair.agent.seen("ambiguous").is_empty());
    assert_eq!(
        pair.get("/ambiguity/fine/%41%20b/...").await.status,
        200,
        "what has one meaning passes"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_opt_out_of_the_path_rules() {
    let pair = pair().await;
    let mut document = registered("lax");
    document.allow_ambiguous_paths = true;
    let _sidecar = pair.third(document, pair.agent.address).await;
    for path in ["/lax/a//b", "/lax/a%2Fb", "/lax/a;v=1"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: lax.aip.internal\r\nConnection: close\r\n\r\n");
        let answer = aip_tests::wait::until("the agent's endpoint is known", async || {
            let answer = pair.raw(&request, to_the_end).await;
            (!answer.contains("no_endpoint")).then_some(answer)
        })
        .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        assert_eq!(
            pair.agent.seen(path).last().expect("it arrived").target,
            path,
            "as sent"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn framing_with_two_readings_is_refused_and_the_connection_closed() {
    let pair = pair().await;
    let head = |extra: &str| format!("POST /smuggled HTTP/1.1\r\nHost: {HOST}\r\n{extra}\r\n");
    let inner = format!("GET /smuggled-inner HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    for (what, extra, body) in [
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n", "hello"),
        ("a length in disguise", "Content-Length: +5\r\n", "hello"),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        (
            "chunked not last",
            "Transfer-Encoding: chunked, identity\r\n",
            "0\r\n\r\n",
        ),
        ("a folded header", "X-One: 1\r\n two\r\n", ""),
        ("a space before the colon", "Content-Length : 5\r\n", "hello"),
    ] {
        let answer = pair.raw(&(head(extra) + body + &inner), to_the_end).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{what}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{what}: nothing after the refusal: {answer}"
        );
    }
    let hosts = pair
        .raw(&head("Host: caller.aip.internal\r\nConnection: close\r\n"), to_the_end)
        .await;
    assert!(
        hosts.starts_with("HTTP/1.1 400") && hosts.contains("invalid_host"),
        "two hosts: {hosts}"
    );
    assert!(pair.agent.seen("/smuggled").is_empty());
    // Both at once: either refused, or read as chunked and re-framed; never two requests.
    let both = head("Content-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n") + "0\r\n\r\n" + &inner;
    let answer = pair.raw(&both, to_the_end).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(pair.agent.seen("/smuggled-inner").is_empty());
}

/// A hop id is believed from a verified peer only, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_hop_is_taken_once() {
    let pair = pair().await;
    let leaf = pair.scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")));
    let tcp = TcpStream::connect(pair.callee.inbound).await.unwrap();
    let tls = TlsConnector::from(wire::client(Some(&leaf), &[b"h2"]));
    let tls = tls
        .connect(ServerName::try_from("aip.invalid").unwrap(), tcp)
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
        .await
        .unwrap();
    tokio::spawn(connection);
    let hop = uuid::Uuid::now_v7().to_string();
    let mut call = async |path: &str, hop: &str| {
        let request = Request::get(format!("http://{HOST}{path}")).header("x-aip-hop", hop);
        collect(
            sender
                .send_request(request.body(Full::<Bytes>::default()).unwrap())
                .await
                .unwrap(),
        )
        .await
    };
    assert_eq!(call("/hop-first", &hop).await.status, 200);
    let replayed = call("/hop-replayed", &hop).await;
    assert_eq!(
        (replayed.status.as_u16(), replayed.reason().as_str()),
        (409, "hop_replayed")
    );
    let malformed = call("/hop-malformed", "not-a-uuid").await;
    assert_eq!(malformed.status, 400, "{}", malformed.text());
    assert_eq!(call("/hop-next", &uuid::Uuid::now_v7().to_string()).await.status, 200);
    assert!(pair.agent.seen("/hop-replayed").is_empty() && pair.agent.seen("/hop-malformed").is_empty());
}

//! What a caller says of itself in headers and trailers is not who it is; and a page in a browser on this machine is not
//! the agent.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::frames::{DATA, END_HEADERS, Fate, HEADERS, WHOLE, field, frame, request};
use aip_tests::http::{self, to_the_end};
use aip_tests::pair::{Pair, Port};
use aip_tests::wait;
use http_body_util::Full;
use tokio::sync::OnceCell;

static PAIR: OnceCell<Pair> = OnceCell::const_new();

async fn pair() -> &'static Pair {
    PAIR.get_or_init(async || Pair::start().await).await
}

const CALLER: &str = "spiffe://aip.internal/agent/caller";

/// The mesh's own names, as servers that fold `_` to `-` would read them.
const OURS: [&str; 9] = [
    "x-aip-source",
    "x_aip_source",
    "x-aip_source",
    "x_aip-source",
    "x-aip-decision",
    "x_aip_hop",
    "x-aip-hops_",
    "x-aip-verified",
    "x-aip-",
];

/// A peer past mutual TLS: in the head, and in trailers.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_s_word_on_who_it_is_ends_at_the_sidecar() {
    let pair = pair().await;
    for port in [Port::Outbound, Port::Inbound] {
        let path = format!("/claims-{port:?}");
        let mut raw = pair.frames(port, &[]).await;
        let forged: Vec<u8> = OURS.iter().flat_map(|name| field(name.as_bytes(), b"forged")).collect();
        let listed = field(b"trailer", format!("x-sum, {}", OURS.join(", ")).as_bytes());
        let head = [
            request("POST", &path),
            field(b"te", b"trailers"),
            listed,
            forged.clone(),
        ]
        .concat();
        assert!(raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await);
        assert!(raw.send(&frame(DATA, 0, 1, b"body")).await);
        let trailers = [forged, field(b"x-sum", b"1")].concat();
        assert!(raw.send(&frame(HEADERS, WHOLE, 1, &trailers)).await);
        assert!(matches!(raw.until(1).await, Fate::Answered(_)));
        let seen = pair.agent.only(&path);
        assert_eq!(seen.header("x-aip-source"), CALLER, "{port:?}");
        let trailers = seen.trailers.unwrap_or_default();
        for (name, value) in seen.headers.iter().chain(&trailers) {
            assert!(!value.to_str().unwrap().contains("forged"), "{port:?}: {name}");
        }
        let ours = seen
            .headers
            .keys()
            .filter(|name| name.as_str().replace('_', "-").starts_with("x-aip"));
        assert_eq!(ours.count(), 2, "{port:?}: source and hop: {:?}", seen.headers);
        assert_eq!(trailers.len(), 1, "{port:?}: {trailers:?}");
    }
}

/// The hop id of a peer is one header, or none is believed.
#[tokio::test(flavor = "multi_thread")]
async fn hops_that_a_peer_made_up_are_refused() {
    let pair = pair().await;
    let mut raw = pair.frames(Port::Inbound, &[]).await;
    let authority = (":authority", "callee.aip.internal");
    let mut stream = 1;
    for (name, value) in [
        ("x-aip-hop", "forged"),
        ("x-aip-hop", "00000000-0000-0000-0000-000000000000"),
        ("x_aip_hop", "01a202b3-6a3d-7426-8798-59d9cd299bc9"),
        ("x-aip-hops", "1"),
    ] {
        let listed = [
            (":method", "GET"),
            (":scheme", "http"),
            authority,
            (":path", "/made-up"),
            (name, value),
        ];
        assert!(
            raw.send(&frame(HEADERS, WHOLE, stream, &aip_tests::frames::fields(&listed)))
                .await
        );
        let fate = raw.until(stream).await;
        let reasons = ["invalid_hop", "hop_replayed"];
        assert!(
            matches!(&fate, Fate::Answered(body) if reasons.iter().any(|r| body.contains(r))),
            "{name}: {value}: {fate:?}"
        );
        stream += 2;
    }
    assert!(pair.agent.seen("/made-up").is_empty());
}

/// A trace says nothing of who calls, and is bounded where it is written down.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_a_caller_made_up_is_nobody_s_identity() {
    let pair = pair().await;
    let great = format!("a={}", "x".repeat(20_000));
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let two = format!("{good}\r\nTraceparent: {good}");
    for (n, (traceparent, kept)) in [(good, true), (two.as_str(), false), ("forged", false), (CALLER, false)]
        .iter()
        .enumerate()
    {
        let path = format!("/trace-{n}-");
        let bytes = format!(
            "GET {path} HTTP/1.1\r\nHost: callee.aip.internal\r\nTraceparent: {traceparent}\r\nTracestate: {great}\r\n\
             Baggage: aip.source=spiffe://aip.internal/agent/admin,{great}\r\nConnection: close\r\n\r\n"
        );
        assert!(
            pair.raw(&bytes, to_the_end).await.starts_with("HTTP/1.1 200"),
            "{traceparent}"
        );
        let seen = pair.agent.only(&path);
        assert_eq!(seen.header("x-aip-source"), CALLER);
        let written = seen.header("traceparent").to_owned();
        assert_eq!(
            (seen.headers.get_all("traceparent").iter().count(), written.len()),
            (1, 55),
            "{written}"
        );
        assert_eq!(written[3..35] == good[3..35], *kept, "{traceparent}: {written}");
        assert_eq!(seen.headers.contains_key("tracestate"), *kept, "{traceparent}");
        wait::until("both ends wrote it down, and not much", async || {
            for side in [&pair.caller, &pair.callee] {
                let records = pair.records_of(side, &path);
                let record = records.0.first()?;
                assert_eq!((record.text("source"), record.text("trace")), (CALLER, &written[3..35]));
                assert!(record.0.to_string().len() < 2_048, "{:?}", record.0);
            }
            Some(())
        })
        .await;
    }
}

/// What a page can make a browser send, to any port of this machine.
const FROM_A_PAGE: [&str; 6] = [
    "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n\r\n",
    "GET /x HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n",
    "OPTIONS /x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\
     Access-Control-Request-Headers: proxy-authorization\r\nAccess-Control-Request-Private-Network: true\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: null\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
    "GET /x HTTP/1.1\r\nHost: evil.example:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: https://evil.example\r\n\r\n",
];

async fn from_a_page(address: std::net::SocketAddr) {
    for text in FROM_A_PAGE {
        let text = text.replace("{port}", &address.port().to_string());
        let text = text.replacen(
            "\r\n",
            "\r\nConnection: close\r\n",
            usize::from(!text.contains("Upgrade")),
        );
        let answer = http::raw(address, text.as_bytes(), http::head_came).await;
        let status: u16 = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_default();
        assert!((400..500).contains(&status), "{text}: {answer}");
        let allows = answer.to_lowercase().contains("access-control-allow");
        assert!(!allows, "{text}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser_is_refused_at_every_port() {
    let pair = pair().await;
    for address in [pair.caller.outbound, pair.caller.admin, pair.caller.probes] {
        from_a_page(address).await;
    }
    // 15006 knows TLS only, and no page has a certificate.
    for text in FROM_A_PAGE {
        let answer = http::raw(pair.callee.inbound, text.as_bytes(), to_the_end).await;
        assert!(!answer.contains("HTTP"), "{text}: {answer}");
    }
    // A script or an image is asked for without an origin.
    let look = |site: &'static str| {
        let request = ::http::Request::get("/config").header("host", pair.caller.admin.to_string());
        http::send(
            pair.caller.admin,
            request.header("sec-fetch-site", site).body(Full::default()).unwrap(),
        )
    };
    for site in ["cross-site", "same-site"] {
        assert_eq!(look(site).await.unwrap().status, 403, "{site}");
    }
    assert_eq!(
        look("none").await.unwrap().status,
        200,
        "a person who types the address"
    );
    // As an agent's own requests come, where the port asks for a secret: a page has none.
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let guarded = Pair::start_guarded(&secret).await;
    from_a_page(guarded.caller.outbound).await;
    let rebound = "GET /rebound HTTP/1.1\r\nHost: callee.aip.internal\r\nConnection: close\r\n\r\n";
    let answer = guarded.raw(rebound, to_the_end).await;
    assert!(answer.starts_with("HTTP/1.1 407"), "{answer}");
    assert!(guarded.agent.seen("/").is_empty());
    assert!(pair.agent.seen("/x").is_empty());
}

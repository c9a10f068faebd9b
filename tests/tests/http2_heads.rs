//! HTTP/2 heads that no library writes, at both ports of a sidecar: what is no request reaches no agent.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, HEADERS, PROTOCOL_ERROR, RST_STREAM, Raw, WHOLE, frame,
    head, request,
};
use aip_tests::pair::{Pair, Port};
use tokio::sync::OnceCell;

static PAIR: OnceCell<Pair> = OnceCell::const_new();

async fn pair() -> &'static Pair {
    PAIR.get_or_init(async || Pair::start().await).await
}

const HOST: &str = "callee.aip.internal";

const BOTH: [Port; 2] = [Port::Outbound, Port::Inbound];

/// A good request on the same connection is answered, and is what the agent got.
async fn serves_on(pair: &Pair, raw: &mut Raw, stream: u32, path: &str) {
    assert!(
        raw.send(&frame(HEADERS, WHOLE, stream, &request("GET", path))).await,
        "{path}"
    );
    assert!(matches!(raw.until(stream).await, Fate::Answered(_)), "{path}");
    pair.agent.only(path);
}

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const AUTHORITY: (&str, &str) = (":authority", HOST);
const PATH: (&str, &str) = (":path", "/malformed");

/// What is no request by RFC 9113 (sections 8.2, 8.3) or RFC 8441.
const MALFORMED: &[(&str, &[(&str, &str)])] = &[
    ("a method twice", &[METHOD, METHOD, SCHEME, AUTHORITY, PATH]),
    (
        "a path twice",
        &[METHOD, SCHEME, AUTHORITY, PATH, (":path", "/malformed/2")],
    ),
    ("an authority twice", &[METHOD, SCHEME, AUTHORITY, AUTHORITY, PATH]),
    (
        "a pseudo-header after a header",
        &[METHOD, SCHEME, AUTHORITY, ("x-a", "1"), PATH],
    ),
    (
        "an unknown pseudo-header",
        &[METHOD, SCHEME, AUTHORITY, PATH, (":x", "1")],
    ),
    ("a status", &[METHOD, SCHEME, AUTHORITY, PATH, (":status", "200")]),
    ("no method", &[SCHEME, AUTHORITY, PATH]),
    ("no scheme", &[METHOD, AUTHORITY, PATH]),
    ("an empty path", &[METHOD, SCHEME, AUTHORITY, (":path", "")]),
    (
        "a path with a space",
        &[METHOD, SCHEME, AUTHORITY, (":path", "/malformed x")],
    ),
    (
        "a path with a request in it",
        &[METHOD, SCHEME, AUTHORITY, (":path", "/malformed HTTP/1.1\r\nhost: x")],
    ),
    (
        "a path without a slash",
        &[METHOD, SCHEME, AUTHORITY, (":path", "malformed")],
    ),
    (
        "a path without a slash for OPTIONS",
        &[(":method", "OPTIONS"), SCHEME, AUTHORITY, (":path", "malformed")],
    ),
    (
        "more than an asterisk",
        &[(":method", "OPTIONS"), SCHEME, AUTHORITY, (":path", "*malformed")],
    ),
    (
        "a method with a space",
        &[(":method", "GET /malformed"), SCHEME, AUTHORITY, PATH],
    ),
    (
        "an authority with a space",
        &[METHOD, SCHEME, (":authority", "callee.aip.internal x"), PATH],
    ),
    (
        "a name in upper case",
        &[METHOD, SCHEME, AUTHORITY, PATH, ("X-Upper", "1")],
    ),
    ("a name with a space", &[METHOD, SCHEME, AUTHORITY, PATH, ("x a", "1")]),
    ("a name with a colon", &[METHOD, SCHEME, AUTHORITY, PATH, ("x:a", "1")]),
    (
        "a name with a line end",
        &[METHOD, SCHEME, AUTHORITY, PATH, ("x\r\nhost", "1")],
    ),
    ("an empty name", &[METHOD, SCHEME, AUTHORITY, PATH, ("", "1")]),
    (
        "a value with a line end",
        &[METHOD, SCHEME, AUTHORITY, PATH, ("x-a", "1\r\nx-aip-source: a")],
    ),
    (
        "a value with a bare LF",
        &[METHOD, SCHEME, AUTHORITY, PATH, ("x-a", "1\nx-aip-source: a")],
    ),
    ("a value with NUL", &[METHOD, SCHEME, AUTHORITY, PATH, ("x-a", "1\0")]),
    ("connection", &[METHOD, SCHEME, AUTHORITY, PATH, ("connection", "x-a")]),
    ("keep-alive", &[METHOD, SCHEME, AUTHORITY, PATH, ("keep-alive", "1")]),
    (
        "proxy-connection",
        &[METHOD, SCHEME, AUTHORITY, PATH, ("proxy-connection", "close")],
    ),
    (
        "transfer-encoding",
        &[METHOD, SCHEME, AUTHORITY, PATH, ("transfer-encoding", "chunked")],
    ),
    ("upgrade", &[METHOD, SCHEME, AUTHORITY, PATH, ("upgrade", "websocket")]),
    (
        "te with more than trailers",
        &[METHOD, SCHEME, AUTHORITY, PATH, ("te", "gzip")],
    ),
    (
        "a protocol without CONNECT",
        &[METHOD, (":protocol", "websocket"), SCHEME, AUTHORITY, PATH],
    ),
    ("a CONNECT with a path", &[(":method", "CONNECT"), AUTHORITY, PATH]),
    (
        "an extended CONNECT without a path",
        &[(":method", "CONNECT"), (":protocol", "websocket"), SCHEME, AUTHORITY],
    ),
    (
        "two protocols",
        &[
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":protocol", "h2c"),
            SCHEME,
            AUTHORITY,
            PATH,
        ],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_of_http_2_reaches_no_agent() {
    let pair = pair().await;
    for port in BOTH {
        let mut raw = pair.frames(port, &[]).await;
        let mut stream = 1;
        for (what, listed) in MALFORMED {
            assert!(raw.send(&frame(HEADERS, WHOLE, stream, &head(listed))).await, "{what}");
            match raw.until(stream).await {
                Fate::Reset(PROTOCOL_ERROR) => stream += 2,
                // The library ends the connection for some of them: nobody else is on it.
                Fate::Ended(Some(PROTOCOL_ERROR)) => (raw, stream) = (pair.frames(port, &[]).await, 1),
                other => panic!("{port:?}: {what}: {other:?}"),
            }
        }
        serves_on(pair, &mut raw, stream, &format!("/after-malformed-{port:?}")).await;
    }
    assert!(pair.agent.seen("malformed?").is_empty() && pair.agent.seen("/malformed").is_empty());
}

/// Well-formed, and refused by us: with a reason.
const REFUSED: &[(&str, &[(&str, &str)])] = &[
    (
        "host_mismatch",
        &[
            METHOD,
            SCHEME,
            AUTHORITY,
            (":path", "/refused"),
            ("host", "caller.aip.internal"),
        ],
    ),
    (
        "invalid_host",
        &[
            METHOD,
            SCHEME,
            AUTHORITY,
            (":path", "/refused"),
            ("host", HOST),
            ("host", HOST),
        ],
    ),
    ("invalid_host", &[METHOD, SCHEME, (":path", "/refused")]),
    (
        "invalid_host",
        &[
            METHOD,
            SCHEME,
            (":authority", "u@callee.aip.internal"),
            (":path", "/refused"),
        ],
    ),
    ("unsupported_target", &[METHOD, SCHEME, AUTHORITY, (":path", "*")]),
    (
        "ambiguous_path",
        &[METHOD, SCHEME, AUTHORITY, (":path", "/refused/../x")],
    ),
    (
        "override_header",
        &[
            METHOD,
            SCHEME,
            AUTHORITY,
            (":path", "/refused"),
            ("x_http_method_override", "PUT"),
        ],
    ),
    (
        "invalid_content",
        &[
            (":method", "POST"),
            SCHEME,
            AUTHORITY,
            (":path", "/refused"),
            ("content-length", "0"),
            ("content-length", "00"),
        ],
    ),
    (
        "unsupported_target",
        &[
            (":method", "CONNECT"),
            (":protocol", "connect-tcp"),
            SCHEME,
            AUTHORITY,
            (":path", "/refused"),
        ],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn http_2_that_two_readers_take_for_two_requests_is_refused_with_its_reason() {
    let pair = pair().await;
    for port in BOTH {
        let mut raw = pair.frames(port, &[]).await;
        let mut stream = 1;
        for (reason, listed) in REFUSED {
            assert!(
                raw.send(&frame(HEADERS, WHOLE, stream, &head(listed))).await,
                "{reason}"
            );
            let fate = raw.until(stream).await;
            let refused = matches!(&fate, Fate::Answered(body) if body.contains(reason));
            // The library knows two lengths by itself.
            assert!(
                refused || (*reason == "invalid_content" && fate == Fate::Reset(PROTOCOL_ERROR)),
                "{port:?}: {listed:?}: {fate:?}"
            );
            stream += 2;
        }
        serves_on(pair, &mut raw, stream, &format!("/after-refused-{port:?}")).await;
    }
    assert!(pair.agent.seen("/refused").is_empty());
}

/// What an agent of HTTP/1.1 reads of a header is what policy reads, also where the caller wrote blanks around it.
#[tokio::test(flavor = "multi_thread")]
async fn blanks_around_a_value_hide_it_from_no_policy() {
    const RULES: &str = r#"package aip.policy.baseline

rules contains {"rule": "allow_all", "verdict": "allow", "reason": "a test allows everything"}

rules contains {"rule": "no_admin", "verdict": "deny", "reason": "a test"} if {
    input.request.headers["x-role"][_] == "admin"
}
"#;
    let pair = Pair::start_ruled(RULES).await;
    for port in BOTH {
        let mut raw = pair.frames(port, &[]).await;
        let mut stream = 1;
        for value in ["admin", " admin", "admin ", "\tadmin \t"] {
            let listed = [METHOD, SCHEME, AUTHORITY, (":path", "/padded"), ("x-role", value)];
            assert!(raw.send(&frame(HEADERS, WHOLE, stream, &head(&listed))).await);
            let fate = raw.until(stream).await;
            let denied = matches!(&fate, Fate::Answered(body) if body.contains("no_admin"));
            assert!(denied, "{port:?}: {value:?}: {fate:?}");
            stream += 2;
        }
        serves_on(&pair, &mut raw, stream, &format!("/after-padded-{port:?}")).await;
    }
    assert!(pair.agent.seen("/padded").is_empty());
}

/// A length is what comes, or nothing of it counts: not even what came so far is a request for the agent to work on.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_not_what_comes_is_no_request() {
    let pair = pair().await;
    for port in BOTH {
        let mut raw = pair.frames(port, &[]).await;
        let mut stream = 1;
        for (length, body) in [("3", &b"too much"[..]), ("8", b"few"), ("0", b"some"), ("5", b"")] {
            let path = (":path", "/lengths");
            let listed = [(":method", "POST"), SCHEME, AUTHORITY, path, ("content-length", length)];
            let sent = match body {
                b"" => frame(HEADERS, WHOLE, stream, &head(&listed)),
                _ => [
                    frame(HEADERS, END_HEADERS, stream, &head(&listed)),
                    frame(DATA, END_STREAM, stream, body),
                ]
                .concat(),
            };
            assert!(raw.send(&sent).await);
            assert_eq!(
                raw.until(stream).await,
                Fate::Reset(PROTOCOL_ERROR),
                "{port:?}: {length}"
            );
            stream += 2;
        }
        serves_on(pair, &mut raw, stream, &format!("/after-lengths-{port:?}")).await;
    }
    assert!(pair.agent.seen("/lengths").is_empty());
}

/// Frames that break the protocol for the whole connection.
fn breaking() -> Vec<(&'static str, Vec<u8>)> {
    let begun = frame(HEADERS, 0, 1, &request("GET", "/broken"));
    let whole = |stream| frame(HEADERS, WHOLE, stream, &request("GET", "/broken-off"));
    vec![
        ("a stream of the server's", whole(2)),
        ("no stream", whole(0)),
        ("a stream that is over", [whole(3), whole(1)].concat()),
        ("DATA for no stream", frame(DATA, 0, 0, b"x")),
        ("DATA for a stream that is none", frame(DATA, 0, 9, b"x")),
        ("more padding than there is", frame(DATA, frames::PADDED, 1, &[200, 1])),
        (
            "another frame between the pieces of a head",
            [begun.clone(), frame(frames::PING, 0, 0, &[0; 8])].concat(),
        ),
        (
            "another stream's piece of a head",
            [begun, frame(CONTINUATION, END_HEADERS, 3, b"")].concat(),
        ),
        ("a piece of no head", frame(CONTINUATION, END_HEADERS, 1, b"")),
        (
            "a promise of a client",
            frame(frames::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
        ),
        ("a frame above the limit", frame(DATA, 0, 1, &[0; 20_000])),
        (
            "a window above the limit",
            [
                frame(frames::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
                frame(frames::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
            ]
            .concat(),
        ),
        (
            "a window that does not grow",
            frame(frames::WINDOW_UPDATE, 0, 0, &[0; 4]),
        ),
        ("settings of an odd length", frame(frames::SETTINGS, 0, 0, &[0; 5])),
        ("settings that may not be", frames::settings(&[(4, u32::MAX)])),
        ("a reset of no stream", frame(RST_STREAM, 0, 0, &[0; 4])),
        (
            "an index that is none",
            frame(HEADERS, WHOLE, 1, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ),
        ("an integer without end", frame(HEADERS, WHOLE, 1, &[0xff; 64])),
        (
            "a text that is longer than all",
            frame(HEADERS, WHOLE, 1, &[0, 0x7f, 0xff, 0xff, 0xff, 0x0f]),
        ),
        (
            "a table above the limit",
            frame(HEADERS, WHOLE, 1, &[0x3f, 0xff, 0xff, 0xff, 0x0f]),
        ),
        (
            "a text in Huffman's code that ends in its middle",
            frame(HEADERS, WHOLE, 1, &[0, 0x81, 0, 0]),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_break_the_protocol_end_their_connection_and_no_other() {
    let pair = pair().await;
    for port in BOTH {
        for (what, bytes) in breaking() {
            let mut raw = pair.frames(port, &[]).await;
            raw.send(&bytes).await;
            let ended = tokio::time::timeout(aip_tests::wait::DEADLINE, raw.until_ended()).await;
            assert!(ended.is_ok(), "{port:?}: {what}");
        }
        let mut raw = pair.frames(port, &[]).await;
        serves_on(pair, &mut raw, 1, &format!("/after-breaking-{port:?}")).await;
    }
    assert!(pair.agent.seen("/broken").len() <= pair.agent.seen("/broken-off").len());
}

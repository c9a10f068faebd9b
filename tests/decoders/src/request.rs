//! What a request says before policy is asked: head, path, headers, trace, and what a tunnel begins with.

use std::cell::RefCell;
use std::convert::Infallible;

use aip_api::id::DecisionId;
use aip_policy::Direction;
use aip_sidecar::proxy::limits::MAX_HTTP1_BUFFER;
use aip_sidecar::reading::{self, ClientHello};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use http_body_util::Empty;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::runtime::{Builder, Runtime};

use crate::split::{line, lines};
use crate::{Seeds, text_of};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().build().unwrap();
}

/// The heads of the requests that a server reads from these bytes, which are all that comes.
fn served(bytes: &[u8]) -> Vec<Parts> {
    let heads = RefCell::new(Vec::new());
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        heads.borrow_mut().push(request.into_parts().0);
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let io = TokioIo::new(tokio::io::join(bytes, tokio::io::sink()));
    let serving = http1::Builder::new()
        .max_buf_size(MAX_HTTP1_BUFFER)
        .serve_connection(io, service);
    // What is no HTTP ends in an error: the heads before it count.
    let _ = RUNTIME.with(|runtime| runtime.block_on(serving));
    heads.into_inner()
}

/// Bytes that a caller sends, up to the facts of its first requests.
pub(crate) fn http_head(bytes: &[u8]) -> bool {
    let accepted = served(bytes).into_iter().filter(|head| is_taken(head.clone())).count();
    accepted > 0
}

/// Whether a request with this head would go on. What the agent is then sent, it reads as we did.
pub(crate) fn is_taken(head: Parts) -> bool {
    let (Ok(authority), true) = (reading::authority(&head), reading::has_target(&head)) else {
        return false;
    };
    assert!(!authority.host().is_empty() && !authority.as_str().contains('@'));
    assert!(head.headers.get_all(HOST).iter().count() <= 1);
    let mut taken = true;
    for direction in [Direction::Inbound, Direction::Outbound] {
        let mut headers = head.headers.clone();
        taken &= reading::clean(&mut headers, direction).is_ok() && reading::ambiguous_path(head.uri.path()).is_none();
        if taken {
            is_clean(&headers, direction);
            is_read_alike(&head, &headers);
        }
    }
    taken
}

fn folded(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

fn is_clean(headers: &HeaderMap, direction: Direction) {
    for name in [&CONNECTION, &TRANSFER_ENCODING, &UPGRADE] {
        assert!(!headers.contains_key(name), "{name} goes on");
    }
    for name in headers.keys().map(folded) {
        assert!(!name.starts_with("x-aip-"), "{name} goes on");
        assert!(
            direction == Direction::Outbound || !name.starts_with("x-forwarded-"),
            "{name} goes on"
        );
    }
    assert!(headers.get_all(CONTENT_LENGTH).iter().count() <= 1);
    let mut again = headers.clone();
    reading::clean(&mut again, direction).unwrap();
    assert_eq!(*headers, again, "what was cleaned is cleaned further");
}

/// Written as a request of HTTP/1.1, it is one request, with the same method, path and headers.
fn is_read_alike(head: &Parts, headers: &HeaderMap) {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut bytes = format!("{} {path} HTTP/1.1\r\nhost: a\r\n", head.method).into_bytes();
    let mut sent = headers.clone();
    // A body does not come with it here.
    for name in [HOST, CONTENT_LENGTH, http::header::EXPECT] {
        sent.remove(name);
    }
    for (name, value) in &sent {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend(b"\r\n");
    if head.method == http::Method::CONNECT || bytes.len() > MAX_HTTP1_BUFFER / 2 || sent.len() > 90 {
        return;
    }
    let mut read = served(&bytes);
    assert_eq!(
        read.len(),
        1,
        "{:?} is not one request",
        String::from_utf8_lossy(&bytes)
    );
    let mut read = read.remove(0);
    read.headers.remove(HOST);
    assert_eq!(
        (read.method, read.uri.path_and_query()),
        (head.method.clone(), head.uri.path_and_query())
    );
    assert_eq!(read.headers, sent);
}

pub(crate) fn http_head_seeds() -> Seeds {
    let of = |text: &str| text.replace('\n', "\r\n").into_bytes();
    vec![
        (
            "get",
            of("GET /a/b?q=1 HTTP/1.1\nHost: researcher.aip.internal\nAccept: */*\n\n"),
        ),
        (
            "absolute",
            of("GET http://researcher.aip.internal/p HTTP/1.1\nHost: researcher.aip.internal\n\n"),
        ),
        (
            "post",
            of("POST /mcp HTTP/1.1\nHost: a\nContent-Type: application/json\nContent-Length: 2\n\n{}"),
        ),
        (
            "chunked",
            of("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n2\n{}\n0\nX: y\n\n"),
        ),
        (
            "two_lengths",
            of("POST / HTTP/1.1\nHost: a\nContent-Length: 2\nContent-Length: 3\n\n{}"),
        ),
        (
            "length_and_chunked",
            of("POST / HTTP/1.1\nHost: a\nContent-Length: 2\nTransfer-Encoding: chunked\n\n0\n\n"),
        ),
        (
            "pipelined",
            of("GET /a HTTP/1.1\nHost: a\n\nGET /b HTTP/1.1\nHost: a\n\n"),
        ),
        (
            "upgrade",
            of("GET / HTTP/1.1\nHost: a\nConnection: Upgrade, X-B\nUpgrade: websocket\nX-B: 1\nTE: trailers\n\n"),
        ),
        (
            "ours",
            of("GET / HTTP/1.1\nHost: a\nX-AIP-Source: b\nx_aip_hop: c\nX-Forwarded-For: d\nForwarded: for=e\n\n"),
        ),
        (
            "override",
            of("POST / HTTP/1.1\nHost: a\nX_HTTP_Method_Override: DELETE\n\n"),
        ),
        (
            "connect",
            of("CONNECT researcher.aip.internal:80 HTTP/1.1\nHost: researcher.aip.internal:80\n\n"),
        ),
        ("options", of("OPTIONS * HTTP/1.1\nHost: a\n\n")),
        ("old", of("GET / HTTP/1.0\n\n")),
        ("two_hosts", of("GET / HTTP/1.1\nHost: a\nHost: b\n\n")),
        ("folded", of("GET / HTTP/1.1\nHost: a\nX: b\n c\n\n")),
        ("bare_lf", b"GET / HTTP/1.1\nHost: a\n\n".to_vec()),
        ("obs_text", b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\r\n\r\n".to_vec()),
    ]
}

/// Trailers that a peer sends: a line each.
pub(crate) fn trailers(bytes: &[u8]) -> bool {
    let mut trailers = header_lines(bytes);
    let before = trailers.len();
    reading::clean_trailers(&mut trailers);
    for name in trailers.keys().map(folded) {
        let of_head = [
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "authorization",
            "cookie",
            "te",
        ];
        assert!(
            !name.starts_with("x-aip-") && !of_head.contains(&name.as_str()),
            "{name} is a trailer"
        );
        assert!(
            !name.starts_with("x-forwarded-") && name != "forwarded",
            "{name} is a trailer"
        );
    }
    let mut again = trailers.clone();
    reading::clean_trailers(&mut again);
    assert_eq!(trailers, again);
    before > 0 && trailers.len() == before
}

fn header_lines(bytes: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&line[colon + 1..])) {
            headers.append(name, value);
        }
    }
    headers
}

pub(crate) fn trailers_seeds() -> Seeds {
    vec![
        ("grpc", b"grpc-status:0\ngrpc-message:ok".to_vec()),
        (
            "head",
            b"content-length:1\nhost:a\nx-aip-source:b\nauthorization:c".to_vec(),
        ),
        (
            "spelled",
            b"content_length:1\nX_Forwarded_For:b\nx_http_method_override:c".to_vec(),
        ),
        ("forwarded", b"forwarded:for=a\nx-real-ip:b\nx-checksum:c".to_vec()),
    ]
}

/// Path and query of a request.
pub(crate) fn path(bytes: &[u8]) -> bool {
    let Ok(uri) = text_of(bytes).parse::<Uri>() else {
        return false;
    };
    let (segments, query) = reading::path_and_query(&uri);
    is_query(&query);
    if !uri.path().starts_with('/') || reading::ambiguous_path(uri.path()).is_some() {
        return false;
    }
    for segment in &segments {
        assert!(
            segment != "." && segment != ".." && !segment.contains(['/', '\\', ';', '\0']),
            "{segment:?}"
        );
        assert_eq!(once_more(segment), *segment, "decoded again it is another");
    }
    let canonical: String = segments
        .iter()
        .map(|segment| format!("/{}", encoded(segment)))
        .collect();
    let canonical = if segments.is_empty() { "/".to_owned() } else { canonical };
    let again: Uri = canonical.parse().unwrap();
    assert_eq!(
        reading::ambiguous_path(again.path()),
        None,
        "{canonical} stands for {}",
        uri.path()
    );
    assert_eq!(reading::path_and_query(&again).0, segments);
    true
}

/// Written as a form has it, a query says the same.
fn is_query(pairs: &[(String, String)]) {
    let text: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    let Ok(uri) = format!("/?{}", text.join("&")).parse::<Uri>() else {
        return;
    };
    assert_eq!(reading::path_and_query(&uri).1, pairs);
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~!:@".contains(&byte);
    let one = |byte: u8| match byte {
        // A dot can't be written otherwise where encoded dots are refused.
        b'.' => ".".to_owned(),
        byte if plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// Percent-decoding as any server does it.
fn once_more(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let pair = bytes
            .get(at + 1..at + 3)
            .and_then(|pair| std::str::from_utf8(pair).ok());
        let pair = pair.filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match (bytes[at], pair) {
            (b'%', Some(pair)) => {
                out.push(u8::from_str_radix(pair, 16).unwrap());
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(crate) fn path_seeds() -> Seeds {
    vec![
        ("plain", b"/v1/tasks/1:cancel?x=1&y=a+b&z".to_vec()),
        ("encoded", b"/a%20b/100%25?n%61me=%2f%ff".to_vec()),
        ("dots", b"/a/../b".to_vec()),
        ("slashes", b"/a%2fb//c".to_vec()),
        ("twice", b"/%2561dmin".to_vec()),
        ("half", b"/%25%36%31dmin".to_vec()),
        ("parameter", b"/a;x=1/b\\c".to_vec()),
        ("absolute", b"http://a.aip.internal:80/p?q#f".to_vec()),
        ("trailing", b"/a/".to_vec()),
        ("root", b"/".to_vec()),
        ("utf8", "/ü/%C3%BC".as_bytes().to_vec()),
    ]
}

/// Trace context that comes with a request. Lines: values of `traceparent`, but for the first, `tracestate`.
pub(crate) fn trace(bytes: &[u8]) -> bool {
    let (state, parents) = line(bytes);
    let mut headers = HeaderMap::new();
    let mut add = |name: &'static str, value: &[u8]| {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    };
    add("tracestate", state);
    parents
        .split(|byte| *byte == b'\n')
        .take(3)
        .for_each(|parent| add("traceparent", parent));
    let had_state = headers.contains_key("tracestate");
    let decision: DecisionId = "018f7c3e-0000-7000-8000-000000000001".parse().unwrap();
    let came = headers.get("traceparent").cloned();
    let id = reading::carry_trace(&mut headers, &decision);
    let written = headers
        .get_all("traceparent")
        .iter()
        .map(|value| value.to_str().unwrap());
    let written: Vec<&str> = written.collect();
    assert_eq!(written.len(), 1);
    let parts: Vec<&str> = written[0].split('-').collect();
    assert_eq!(
        (parts.len(), parts[0], parts[1], parts[2]),
        (4, "00", id.as_str(), "8000000000000001")
    );
    let is_lower_hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    assert!(
        id.len() == 32 && is_lower_hex && id.bytes().any(|byte| byte != b'0'),
        "{id}"
    );
    assert!(["00", "01", "02", "03"].contains(&parts[3]), "{written:?}");
    let carried = came.is_some_and(|came| came.as_bytes().windows(32).any(|window| window == id.as_bytes()));
    assert_eq!(
        headers.contains_key("tracestate"),
        had_state && carried,
        "the state of another trace"
    );
    assert_eq!(
        reading::carry_trace(&mut headers, &decision),
        id,
        "what we wrote is a trace"
    );
    carried
}

pub(crate) fn trace_seeds() -> Seeds {
    let good = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    vec![
        ("carried", lines(b"a=1", good)),
        (
            "later_version",
            lines(b"", b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff-more"),
        ),
        (
            "zero",
            lines(b"a=1", b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
        ),
        (
            "upper_case",
            lines(b"a=1", b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
        ),
        ("twice", lines(b"a=1", &lines(good, good))),
        ("none", b"a=1".to_vec()),
    ]
}

/// What a tunnel begins with: the server name of its ClientHello.
pub(crate) fn client_hello(bytes: &[u8]) -> bool {
    let said = reading::client_hello(bytes);
    let ClientHello::Whole(name) = &said else {
        return false;
    };
    if let Some(name) = name {
        let stands = |window: &[u8]| window.eq_ignore_ascii_case(name.as_bytes());
        assert!(!name.is_empty() && *name == name.to_ascii_lowercase());
        // In records of a byte or two it doesn't stand in one piece.
        let whole: Vec<u8> = messages(bytes);
        assert!(whole.windows(name.len()).any(stands), "{name} does not stand in it");
    }
    for cut in 0..bytes.len().min(300) {
        let part = reading::client_hello(&bytes[..cut]);
        assert!(
            part == ClientHello::Part || part == said,
            "{cut} bytes of it are {part:?}"
        );
    }
    let message = messages(bytes);
    let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    let split: Vec<u8> = message.chunks(7).flat_map(record).collect();
    assert_eq!(reading::client_hello(&split), said, "in other records");
    // A client goes on with what its session allows, at once: that changes nothing about where it goes.
    let followed = [bytes, &[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 2, 7, 7]].concat();
    assert_eq!(reading::client_hello(&followed), said, "followed by other records");
    true
}

/// What is in the handshake records at the beginning, up to the end of the ClientHello.
fn messages(bytes: &[u8]) -> Vec<u8> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while let [22, _, _, high, low, after @ ..] = rest {
        let length = (usize::from(*high) << 8 | usize::from(*low)).min(after.len());
        out.extend(&after[..length]);
        rest = &after[length..];
    }
    if let [_, a, b, c, ..] = out.as_slice() {
        let length = 4 + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c));
        out.truncate(length);
    }
    out
}

pub(crate) fn client_hello_seeds() -> Seeds {
    let extension =
        |kind: u16, content: &[u8]| [&kind.to_be_bytes()[..], &(content.len() as u16).to_be_bytes(), content].concat();
    let sni = |name: &str| {
        let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name.as_bytes()].concat();
        extension(0, &[&(entry.len() as u16).to_be_bytes()[..], &entry].concat())
    };
    let hello = |extensions: &[Vec<u8>]| {
        let extensions = extensions.concat();
        let mut body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0]].concat();
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat()
    };
    let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    let named = hello(&[extension(43, &[2, 3, 4]), sni("Api.Example.com")]);
    vec![
        ("named", record(&named)),
        ("nameless", record(&hello(&[]))),
        ("twice", record(&hello(&[sni("a.com"), sni("b.com")]))),
        ("in_pieces", named.chunks(9).flat_map(record).collect()),
        ("part", record(&named)[..40].to_vec()),
        ("not_tls", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("application_data", vec![23, 3, 3, 0, 1, 0]),
    ]
}

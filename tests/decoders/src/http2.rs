//! Heads of HTTP/2, up to the facts of their requests.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use aip_sidecar::proxy::limits::MAX_HEADER_LIST;
use aip_sidecar::reading;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, Version};
use http_body_util::Empty;
use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper::server::conn::http2;
use hyper::service::service_fn;

use crate::Seeds;
use crate::request::is_taken;
use crate::split::{first, with};

/// How a client begins (RFC 9113 section 3.4), and its settings, which say nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Requests are read here, and not answered.
#[derive(Clone)]
struct Nobody;

impl<F> Executor<F> for Nobody {
    fn execute(&self, _: F) {}
}

/// A connection on which these bytes came, and nothing else for now: at its end, what was read last would not be looked at.
/// Whatever is written is taken.
struct Came<'b>(&'b [u8]);

impl Read for Came<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut to: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let all = self.0;
        let (now, later) = all.split_at(all.len().min(to.remaining()));
        if now.is_empty() {
            return Poll::Pending;
        }
        to.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Came<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The heads of the requests that a server reads from these bytes.
fn served(bytes: &[u8]) -> Vec<Parts> {
    let heads = RefCell::new(Vec::new());
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        heads.borrow_mut().push(request.into_parts().0);
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let mut server = http2::Builder::new(Nobody);
    server.enable_connect_protocol().max_header_list_size(MAX_HEADER_LIST);
    let mut serving = pin!(server.serve_connection(Came(bytes), service));
    let mut cx = Context::from_waker(Waker::noop());
    // It reads for as long as there is something. What is no HTTP ends in an error: the heads before it count.
    let _ = serving.as_mut().poll(&mut cx);
    heads.take()
}

/// First byte 0: frames. Else: a line for each field of one head, name and value with a colon between them.
pub(crate) fn http2_head(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    if mode == 0 {
        let heads = served(&[PREFACE, rest].concat());
        return heads.into_iter().filter(|head| goes_on(head.clone())).count() > 0;
    }
    let fields = fields(rest);
    let mut heads = served(&[PREFACE, &head(&fields)].concat());
    assert!(heads.len() <= 1);
    let Some(head) = heads.pop() else { return false };
    is_what_was_said(&head, &fields);
    goes_on(head)
}

/// Whether a request with this head would go on.
fn goes_on(mut head: Parts) -> bool {
    assert_eq!(head.version, Version::HTTP_2);
    // RFC 9113 section 8.2.2.
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    ] {
        assert!(!head.headers.contains_key(name), "{name} in HTTP/2");
    }
    if head.method == Method::CONNECT && !reading::extended_connect(&mut head) {
        return false;
    }
    is_taken(head)
}

type Field<'b> = (&'b [u8], &'b [u8]);

fn fields(bytes: &[u8]) -> Vec<Field<'_>> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(field).collect()
}

/// Up to its first colon but the one that it begins with, and behind that.
fn field(line: &[u8]) -> Field<'_> {
    let colon = line[1..].iter().position(|byte| *byte == b':');
    let end = colon.map_or(line.len(), |at| at + 1);
    (&line[..end], line.get(end + 1..).unwrap_or_default())
}

/// A request without a body, of these fields, as literals that no table takes (RFC 7541 section 6.2.2).
fn head(fields: &[Field<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(name, &mut block);
        text(value, &mut block);
    }
    // END_STREAM and END_HEADERS, on the first stream.
    let length = (block.len() as u32).to_be_bytes();
    [&length[1..], &[1, 0x05, 0, 0, 0, 1], &block].concat()
}

/// A string with its length in a prefix of 7 bits (section 5.1).
fn text(bytes: &[u8], out: &mut Vec<u8>) {
    match bytes.len().checked_sub(127) {
        None => out.push(bytes.len() as u8),
        Some(mut rest) => {
            out.push(127);
            while rest >= 128 {
                out.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            out.push(rest as u8);
        }
    }
    out.extend(bytes);
}

/// What is read is what stands in the fields: each pseudo-header once and first, everything else as it was written.
fn is_what_was_said(head: &Parts, fields: &[Field<'_>]) {
    let is_pseudo = |(name, _): &Field<'_>| name.starts_with(b":");
    let regular = fields
        .iter()
        .position(|field| !is_pseudo(field))
        .unwrap_or(fields.len());
    let (pseudo, rest) = fields.split_at(regular);
    assert!(!rest.iter().any(is_pseudo), "a pseudo-header after others");
    let said = |name: &str| {
        let mut all = pseudo.iter().filter(|(of, _)| *of == name.as_bytes());
        let (one, more) = (all.next(), all.next());
        assert!(more.is_none(), "{name} twice");
        one.map(|(_, value)| std::str::from_utf8(value).unwrap())
    };
    let known = [":method", ":scheme", ":authority", ":path", ":protocol"].map(said);
    assert_eq!(known.iter().flatten().count(), pseudo.len(), "one that there is not");
    let [method, scheme, authority, path, _] = known;
    assert_eq!(method, Some(head.method.as_str()));
    assert_eq!(
        authority.filter(|text| !text.is_empty()),
        head.uri.authority().map(|read| read.as_str())
    );
    if let (Some(scheme), Some(read)) = (scheme, head.uri.scheme_str()) {
        assert!(scheme.eq_ignore_ascii_case(read), "{scheme} is {read}");
    }
    // What stands behind a `#` is nobody's.
    let path = path.map(|path| path.split('#').next().unwrap_or_default());
    // The library reads one without a path as `/` where it has no authority.
    let path = path.or(authority.is_none().then_some("/"));
    assert_eq!(path, head.uri.path_and_query().map(|read| read.as_str()));
    assert_eq!(head.headers.len(), rest.len());
    for (name, value) in rest {
        let name = std::str::from_utf8(name).unwrap();
        let mut read = head.headers.iter();
        assert!(
            read.any(|(of, read)| of.as_str() == name && read.as_bytes() == *value),
            "{name} is another"
        );
    }
}

/// What every request has.
const GET: &str = ":method:GET\n:scheme:http\n:authority:researcher.aip.internal\n:path:/a/b?q=1";

pub(crate) fn http2_head_seeds() -> Seeds {
    let of = |text: &str| with(1, text);
    let and = |more: &str| with(1, format!("{GET}\n{more}"));
    let websocket = "\n:protocol:websocket\nsec-websocket-version:13";
    let frames = head(&fields(GET.as_bytes()));
    let cut = [&[0, 0, 2, 1, 1, 0, 0, 0, 1][..], &frames[9..11]].concat();
    let rest = &frames[11..];
    let continued = [&cut[..], &[0, 0, rest.len() as u8, 9, 4, 0, 0, 0, 1], rest].concat();
    vec![
        ("get", of(GET)),
        ("frames", with(0, &frames)),
        ("continued", with(0, continued)),
        ("host", and("host:researcher.aip.internal\naccept:*/*")),
        ("other_host", and("host:writer.aip.internal")),
        ("host_alone", of(":method:GET\n:scheme:http\n:path:/\nhost:a")),
        ("websocket", of(&(GET.replace("GET", "CONNECT") + websocket))),
        ("connect", of(":method:CONNECT\n:authority:a:80")),
        ("options", of(&GET.replace("GET", "OPTIONS").replace("/a/b?q=1", "*"))),
        ("no_slash", of(&GET.replace("/a/b", "a"))),
        ("fragment", of(&format!("{GET}#c"))),
        ("two_paths", and(":path:/c")),
        ("late", and("x:y\n:path:/c")),
        ("connection", and("connection:x")),
        ("te", and("te:trailers\nte:gzip")),
        (
            "ours",
            and("x-aip-source:b\nx_aip_hop:c\nx-forwarded-for:d\nforwarded:for=e"),
        ),
        ("override", and("x_http_method_override:DELETE")),
        ("lengths", and("content-length:0\ncontent-length:1")),
        ("padded", and("x-role: admin ")),
        ("quoted_name", and("x\"y:z")),
        ("line_end", and("x:a\r")),
        ("obs_text", with(1, [GET.as_bytes(), b"\nx:\xe9"].concat())),
        ("utf8_path", of(&GET.replace("/a/b", "/ü\"<>{}|^`"))),
        ("cookies", and("cookie:a=1\ncookie:b=2")),
    ]
}

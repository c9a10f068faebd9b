//! The agent of the training: answers what the query asks for. It runs in this process, so that a build needs nothing
//! that is not in this tree.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::socket;
use super::wire::Body;

/// Most that one answer, or one part of it, has: what the largest of the mix asks for.
const MAX_BYTES: usize = 64 * 1024;
/// Of an answer whose query does not say.
const USUAL_BYTES: usize = 200;
/// Most parts of an answer.
const MAX_PARTS: usize = 64;
/// Between two parts, so that each travels on its own.
const BETWEEN: Duration = Duration::from_millis(1);

/// What the query of a request asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    status: StatusCode,
    /// Of the answer, or of each of its parts.
    bytes: usize,
    /// Parts of an answer whose length is not said.
    chunks: usize,
    /// Server-sent events.
    events: usize,
}

/// Starts it on this thread; where it listens.
pub(super) async fn start() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Answers wait for nothing else; a failure shows at the caller.
            let _ = stream.set_nodelay(true);
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::task::spawn_local(serving.with_upgrades());
        }
    });
    Ok(addr)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    if request.headers().contains_key(UPGRADE) {
        return Ok(switched(request));
    }
    let asked = Asked::by(request.uri().query().unwrap_or_default());
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let (content_type, body) = match (asked.events, asked.chunks) {
        (0, 0) => ("application/json", Full::new(page(asked.bytes)).boxed_unsync()),
        (0, chunks) => ("application/json", parts(chunks, page(asked.bytes))),
        (events, _) => ("text/event-stream", parts(events, event())),
    };
    let mut response = Response::new(body);
    *response.status_mut() = asked.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// Agrees to switch, and echoes from then on.
fn switched(mut request: Request<Incoming>) -> Response<Body> {
    tokio::task::spawn_local(async move {
        if let Ok(stream) = hyper::upgrade::on(&mut request).await {
            let (mut reading, mut writing) = tokio::io::split(TokioIo::new(stream));
            // Ends when the caller does.
            let _ = tokio::io::copy(&mut reading, &mut writing).await;
        }
    });
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(socket::PROTOCOL));
    headers.insert("sec-websocket-accept", HeaderValue::from_static(socket::ACCEPT));
    response
}

impl Asked {
    fn by(query: &str) -> Self {
        let number = |name: &str| {
            let value = query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse::<usize>().ok())
        };
        let status = number("status").and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
        Self {
            status: status.unwrap_or(StatusCode::OK),
            bytes: number("bytes").unwrap_or(USUAL_BYTES).min(MAX_BYTES),
            chunks: number("chunks").unwrap_or_default().min(MAX_PARTS),
            events: number("events").unwrap_or_default().min(MAX_PARTS),
        }
    }
}

/// JSON of `bytes` bytes; shorter than its frame there is nothing.
fn page(bytes: usize) -> Bytes {
    const FRAME: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"text":""}}"#;
    let Some(room) = bytes.checked_sub(FRAME.len()) else {
        return Bytes::new();
    };
    let (head, tail) = FRAME.split_at(FRAME.len() - 3);
    Bytes::from([head, &"an answer. ".repeat(room / 11 + 1)[..room], tail].concat())
}

fn event() -> Bytes {
    Bytes::from_static(b"event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"progress\",\"params\":{\"of\":8}}\n\n")
}

/// `count` times `part`, one after the other.
fn parts(count: usize, part: Bytes) -> Body {
    let (into, parts) = mpsc::channel(1);
    tokio::task::spawn_local(async move {
        for _ in 0..count {
            if into.send(Ok(Frame::data(part.clone()))).await.is_err() {
                return;
            }
            tokio::time::sleep(BETWEEN).await;
        }
    });
    StreamBody::new(ReceiverStream::new(parts)).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_what_is_answered_and_no_more_than_the_bound() {
        let asked = Asked::by("language=en&bytes=300&events=99999&status=404");
        let expected = Asked {
            status: StatusCode::NOT_FOUND,
            bytes: 300,
            chunks: 0,
            events: MAX_PARTS,
        };
        assert_eq!(asked, expected);
        assert_eq!(Asked::by("bytes=9999999&status=9").bytes, MAX_BYTES);
        assert_eq!(Asked::by("").status, StatusCode::OK);
        assert_eq!(Asked::by("").bytes, USUAL_BYTES);
    }

    #[test]
    fn a_page_is_json_of_the_asked_length() {
        for bytes in [45, 46, 80, 200, 65536] {
            let page = page(bytes);
            assert_eq!(page.len(), bytes);
            serde_json::from_slice::<serde_json::Value>(&page).unwrap();
        }
    }
}

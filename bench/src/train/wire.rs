//! A connection of a caller, and one request with its whole answer over it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::mix::{Content, Errand};
use crate::load::Target;

/// Bodies both ways.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Longest for one request: an instrumented sidecar is slow, and a stuck one must not hold a build.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of one part of a body whose length is not said.
const PART: usize = 2048;

/// Runs what HTTP/2 has to run, on this thread.
#[derive(Clone, Copy)]
struct Here;

impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

pub(super) enum Wire {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Wire {
    pub(super) async fn http1(addr: SocketAddr) -> anyhow::Result<Self> {
        let (sender, driver) = http1::handshake(TokioIo::new(connect(addr).await?)).await?;
        // What broke the connection is reported by the request that was on it.
        tokio::task::spawn_local(driver);
        Ok(Self::Http1(sender))
    }

    /// With prior knowledge: no TLS, no upgrade.
    pub(super) async fn http2(addr: SocketAddr) -> anyhow::Result<Self> {
        let (sender, driver) = http2::handshake(Here, TokioIo::new(connect(addr).await?)).await?;
        tokio::task::spawn_local(driver);
        Ok(Self::Http2(sender))
    }

    /// Another stream of the same connection; HTTP/1.1 has none.
    pub(super) fn another(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    /// Sends `errand` as the request with number `number` and reads its whole answer; the status.
    pub(super) async fn exchange(
        &mut self,
        target: &Target,
        errand: &Errand,
        number: usize,
    ) -> anyhow::Result<StatusCode> {
        tokio::time::timeout(DEADLINE, async {
            let response = self.send(target, errand, number).await?;
            let status = response.status();
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                frame.context("answer cut short")?;
            }
            Ok(status)
        })
        .await
        .with_context(|| format!("no answer within {DEADLINE:?}"))?
    }

    async fn send(&mut self, target: &Target, errand: &Errand, number: usize) -> anyhow::Result<Response<Incoming>> {
        let host = errand.to.unwrap_or(&target.host);
        Ok(match self {
            Self::Http1(sender) => {
                sender.ready().await.context("connection closed")?;
                let mut request = request(target, errand, number, errand.path)?;
                request.headers_mut().insert(HOST, host.parse()?);
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await.context("connection closed")?;
                let uri = format!("http://{host}{}", errand.path);
                sender.send_request(request(target, errand, number, &uri)?).await?
            }
        })
    }
}

async fn connect(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(addr)
        .await
        .with_context(|| format!("connect to {addr}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn request(target: &Target, errand: &Errand, number: usize, uri: &str) -> anyhow::Result<Request<Body>> {
    let mut request = Request::builder()
        .method(errand.method.clone())
        .uri(uri)
        .header(ACCEPT, "application/json, text/event-stream")
        .header(USER_AGENT, "train/1.0");
    if let Some(content_type) = errand.content_type() {
        request = request.header(CONTENT_TYPE, content_type);
    }
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    Ok(request.body(body(errand, number))?)
}

fn body(errand: &Errand, number: usize) -> Body {
    let bytes = errand.body(number);
    if errand.content != Content::Unsized {
        return Full::new(bytes).boxed_unsync();
    }
    let parts: Vec<_> = bytes
        .chunks(PART)
        .map(|part| Ok(Frame::data(Bytes::copy_from_slice(part))))
        .collect();
    StreamBody::new(tokio_stream::iter(parts)).boxed_unsync()
}

//! A small HTTP/1.1 client: the admin API, a sidecar's admin port, a call through a sidecar's proxy.

use std::net::SocketAddr;
use std::time::Duration;

use aip_api::Digest;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Time to connect: on one machine or one network, more means that nobody is there.
const CONNECT: Duration = Duration::from_secs(5);
/// Largest answer that is read: a `dump` of a few thousand agents.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Why there was no answer.
#[derive(Debug)]
pub(crate) enum HttpError {
    /// No connection.
    Connect(String),
    /// No answer in time.
    Timeout,
    /// The connection broke, or what came isn't HTTP.
    Broken(String),
}

impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(why) => write!(f, "no connection: {why}"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Broken(why) => write!(f, "the connection broke: {why}"),
        }
    }
}

/// Sends one request over a connection of its own, and reads the whole answer.
pub(crate) async fn send(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<Response<Bytes>, HttpError> {
    exchange(connect(address).await?, request, deadline).await
}

/// As [`send`], over TLS to a control plane whose root has this digest.
pub(crate) async fn send_pinned(
    address: SocketAddr,
    root: Digest,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<Response<Bytes>, HttpError> {
    let tls = aip_runtime::tls::connect_pinned(root, &[b"http/1.1"], connect(address).await?);
    let stream = tls
        .await
        .map_err(|e| HttpError::Connect(format!("{e} ({})", e.reason())))?;
    exchange(stream, request, deadline).await
}

async fn connect(address: SocketAddr) -> Result<TcpStream, HttpError> {
    let connect = tokio::time::timeout(CONNECT, TcpStream::connect(address));
    let stream = connect.await.map_err(|_| HttpError::Connect("timed out".into()))?;
    let stream = stream.map_err(|e| HttpError::Connect(e.to_string()))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<Response<Bytes>, HttpError> {
    let broken = |e: hyper::Error| HttpError::Broken(e.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|e| HttpError::Broken(e.to_string()))?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    // The connection is driven beside the exchange and ends with it: nothing outlives the call.
    let driven = async {
        tokio::pin!(exchange);
        tokio::pin!(connection);
        tokio::select! {
            answer = &mut exchange => answer,
            closed = &mut connection => match exchange.await {
                Ok(answer) => Ok(answer),
                Err(error) => Err(closed.err().map_or(error, broken)),
            },
        }
    };
    tokio::time::timeout(deadline, Box::pin(driven))
        .await
        .map_err(|_| HttpError::Timeout)?
}

/// A `GET` of a JSON document from a port on this machine.
pub(crate) async fn get_json(
    address: SocketAddr,
    path: &str,
    deadline: Duration,
) -> Result<serde_json::Value, HttpError> {
    let request = Request::get(path)
        .header("host", address.to_string())
        .body(Full::default());
    let answer = send(
        address,
        request.map_err(|e| HttpError::Broken(e.to_string()))?,
        deadline,
    )
    .await?;
    if !answer.status().is_success() {
        return Err(HttpError::Broken(format!("{path} answered {}", answer.status())));
    }
    serde_json::from_slice(answer.body()).map_err(|e| HttpError::Broken(format!("{path}: {e}")))
}

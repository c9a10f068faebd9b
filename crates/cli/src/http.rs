//! A small HTTP/1.1 client: the admin API, a sidecar's admin port, a call through a sidecar's proxy.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aip_api::Digest;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

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

/// As [`send`], over a connection that is there.
pub(crate) async fn send_over(
    stream: Connection,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<Response<Bytes>, HttpError> {
    exchange(stream, request, deadline).await
}

/// A connection of any kind.
pub(crate) type Connection = Box<dyn Stream>;

/// What a connection can do.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection over TCP.
pub(crate) async fn plain(address: SocketAddr) -> Result<Connection, HttpError> {
    Ok(Box::new(connect(address).await?))
}

/// A connection over TLS to a control plane whose root has this digest.
pub(crate) async fn pinned(address: SocketAddr, root: Digest) -> Result<Connection, HttpError> {
    let tls = aip_runtime::tls::connect_pinned(root, &[b"http/1.1"], connect(address).await?);
    let stream = tls
        .await
        .map_err(|e| HttpError::Connect(format!("{e} ({})", e.reason())))?;
    Ok(Box::new(stream))
}

/// A connection over a Unix socket.
pub(crate) async fn socket(path: &Path) -> Result<Connection, HttpError> {
    let stream = UnixStream::connect(path).await;
    Ok(Box::new(stream.map_err(|e| HttpError::Connect(e.to_string()))?))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, HttpError> {
    let connect = tokio::time::timeout(CONNECT, TcpStream::connect(address));
    let stream = connect.await.map_err(|_| HttpError::Connect("timed out".into()))?;
    let stream = stream.map_err(|e| HttpError::Connect(e.to_string()))?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// As [`send`], handing each part of the body to `part` as it arrives; `silence` bounds the wait for each.
pub(crate) async fn send_each(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
    silence: Duration,
    part: &mut dyn FnMut(&[u8]),
) -> Result<Response<Bytes>, HttpError> {
    each(connect(address).await?, request, silence, part).await
}

/// An answer that goes on for as long as it is read; dropped, its connection ends.
#[derive(Debug)]
pub(crate) struct Open {
    body: Incoming,
    driver: tokio::task::JoinHandle<()>,
}

impl Open {
    /// The next part, within `silence`; none at the end.
    pub(crate) async fn part(&mut self, silence: Duration) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = tokio::time::timeout(silence, self.body.frame());
            match frame.await.map_err(|_| HttpError::Timeout)?.transpose() {
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Err(error) => return Err(HttpError::Broken(error.to_string())),
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends a request over a connection of its own, and reads the head of the answer.
pub(crate) async fn open(
    stream: Connection,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<Response<Open>, HttpError> {
    let broken = |e: hyper::Error| HttpError::Broken(e.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(async move {
        // How it ended, the body says.
        let _ = connection.await;
    });
    let answer = tokio::time::timeout(deadline, sender.send_request(request)).await;
    let (head, body) = match answer {
        Ok(Ok(answer)) => answer.into_parts(),
        failed => {
            driver.abort();
            return Err(match failed {
                Ok(Err(error)) => broken(error),
                _ => HttpError::Timeout,
            });
        }
    };
    Ok(Response::from_parts(head, Open { body, driver }))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<Response<Bytes>, HttpError> {
    let mut unheard = |_: &[u8]| ();
    let whole = each(stream, request, deadline, &mut unheard);
    tokio::time::timeout(deadline, Box::pin(whole))
        .await
        .map_err(|_| HttpError::Timeout)?
}

async fn each(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
    silence: Duration,
    part: &mut dyn FnMut(&[u8]),
) -> Result<Response<Bytes>, HttpError> {
    let broken = |e: hyper::Error| HttpError::Broken(e.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async {
        let answer = tokio::time::timeout(silence, sender.send_request(request)).await;
        let (head, mut body) = answer.map_err(|_| HttpError::Timeout)?.map_err(broken)?.into_parts();
        let mut whole = Vec::new();
        while let Some(frame) = tokio::time::timeout(silence, body.frame())
            .await
            .map_err(|_| HttpError::Timeout)?
        {
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            if whole.len() + data.len() > MAX_ANSWER {
                return Err(HttpError::Broken(format!(
                    "the answer is longer than {MAX_ANSWER} bytes"
                )));
            }
            part(&data);
            whole.extend_from_slice(&data);
        }
        Ok(Response::from_parts(head, Bytes::from(whole)))
    };
    // The connection is driven beside the exchange and ends with it: nothing outlives the call.
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        closed = &mut connection => match exchange.await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(closed.err().map_or(error, broken)),
        },
    }
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

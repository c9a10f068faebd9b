//! HTTP through a sidecar, and to admin APIs.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::wait::DEADLINE;

/// A response with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("JSON ({e}) in {self:?}"))
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
    /// The stable reason of a problem document.
    pub fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        self.json()["reason"]
            .as_str()
            .expect("a problem has a reason")
            .to_owned()
    }
}

/// A whole response, of any body.
pub async fn collect<B>(response: Response<B>) -> Answer
where
    B: hyper::body::Body,
    B::Error: std::fmt::Debug,
{
    whole(response).await.expect("a whole body")
}

async fn whole<B>(response: Response<B>) -> Result<Answer, String>
where
    B: hyper::body::Body,
    B::Error: std::fmt::Debug,
{
    let (head, body) = response.into_parts();
    let collected = body.collect().await.map_err(|e| format!("{e:?}"))?;
    let trailers = collected.trailers().cloned();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: collected.to_bytes(),
        trailers,
    })
}

/// Sends one HTTP/1.1 request on a connection of its own. The URI goes on the wire as it is: absolute-form for a
/// proxy.
///
/// # Errors
/// The connection was refused or broke.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    send_within(DEADLINE, address, request).await
}

/// As [`send`], of what may take longer.
///
/// # Errors
/// The connection was refused or broke.
pub async fn send_within(
    deadline: Duration,
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    let exchange = async {
        let tcp = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        whole(response).await
    };
    tokio::time::timeout(deadline, exchange)
        .await
        .map_err(|_| "no answer in time".to_owned())?
}

/// Sends one HTTP/2 request with prior knowledge.
///
/// # Errors
/// The connection was refused or broke.
pub async fn send_h2c(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    let exchange = async {
        let tcp = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        Ok(collect(response).await)
    };
    tokio::time::timeout(DEADLINE, exchange)
        .await
        .map_err(|_| "no answer in time".to_owned())?
}

/// A GET of `path` at `address`.
///
/// # Errors
/// The connection was refused or broke.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer, String> {
    let request = Request::get(path)
        .header("host", address.to_string())
        .body(Full::default())
        .unwrap();
    send(address, request).await
}

/// Writes bytes and reads until the other end closes or `enough` says so.
pub async fn raw(address: SocketAddr, bytes: &[u8], enough: impl Fn(&[u8]) -> bool) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    read_until(&mut tcp, enough).await
}

/// Reads until the other end closes or `enough` says so.
pub async fn read_until(tcp: &mut TcpStream, enough: impl Fn(&[u8]) -> bool) -> String {
    let mut answer = Vec::new();
    let mut part = vec![0; 16 * 1024];
    while !enough(&answer) {
        let read = tokio::time::timeout(DEADLINE, tcp.read(&mut part)).await;
        match read.unwrap_or_else(|_| panic!("only {:?} came in time", String::from_utf8_lossy(&answer))) {
            Ok(0) | Err(_) => break,
            Ok(n) => answer.extend_from_slice(&part[..n]),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Enough: a whole head.
pub fn head_came(answer: &[u8]) -> bool {
    answer.windows(4).any(|w| w == b"\r\n\r\n")
}

/// Enough: never; reads to the end.
pub fn to_the_end(_: &[u8]) -> bool {
    false
}

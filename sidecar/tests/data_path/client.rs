//! What the calling agent does, and what a peer with a certificate could do.

use std::convert::Infallible;
use std::net::SocketAddr;

use aip_runtime::svid::SvidSource;
use aip_runtime::tls;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::request::Builder;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::mesh::DEADLINE;
use crate::pki::{Pki, Says, TRUST_DOMAIN};

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    pub fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap_or_default().to_owned()
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
    pub fn decisions(&self) -> Vec<&str> {
        self.headers
            .get_all("x-aip-decision")
            .iter()
            .map(|v| v.to_str().unwrap())
            .collect()
    }
}

pub async fn collect(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.expect("a whole body");
    let trailers = collected.trailers().cloned();
    Answer {
        status: head.status,
        headers: head.headers,
        body: collected.to_bytes(),
        trailers,
    }
}

/// A request of the agent to `ledger`.
pub fn to_ledger(method: &str, path: &str) -> Builder {
    Request::builder()
        .method(method)
        .uri(format!("http://ledger.{TRUST_DOMAIN}{path}"))
        .header("host", "ledger.aip.internal")
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    to_ledger("GET", path).body(Full::default()).unwrap()
}

pub fn post(path: &str, content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    to_ledger("POST", path)
        .header("content-type", content_type)
        .body(Full::new(body.into()))
        .unwrap()
}

pub type Frames = StreamBody<futures_util::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// A body whose frames a test sends when it wants to.
pub fn channel() -> (mpsc::Sender<Frame<Bytes>>, Frames) {
    let (send, frames) = mpsc::channel(1);
    let frames = ReceiverStream::new(frames).map(Ok::<_, Infallible>).boxed();
    (send, StreamBody::new(frames))
}

/// Sends without waiting for the body of the response.
pub async fn begin<B>(proxy: SocketAddr, request: Request<B>) -> Response<Incoming>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let tcp = TcpStream::connect(proxy).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let response = tokio::time::timeout(DEADLINE, sender.send_request(request));
    response.await.expect("an answer in time").expect("an answer")
}

pub async fn send<B>(proxy: SocketAddr, request: Request<B>) -> Answer
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    collect(begin(proxy, request).await).await
}

/// Over HTTP/2 with prior knowledge.
pub async fn begin_h2<B>(proxy: SocketAddr, request: Request<B>) -> Response<Incoming>
where
    B: hyper::body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let tcp = TcpStream::connect(proxy).await.unwrap();
    h2_on(TokioIo::new(tcp), request).await
}

pub async fn h2_on<IO, B>(io: IO, request: Request<B>) -> Response<Incoming>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let response = tokio::time::timeout(DEADLINE, sender.send_request(request));
    response.await.expect("an answer in time").expect("an answer")
}

/// What a CONNECT for this over HTTP/2 opens: a tunnel, or a WebSocket where it names that protocol.
pub async fn connected_h2(proxy: SocketAddr, uri: &str, protocol: Option<&'static str>) -> TokioIo<Upgraded> {
    let mut request = Request::connect(uri).body(Empty::<Bytes>::new()).unwrap();
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(Protocol::from_static(protocol));
    }
    let mut response = begin_h2(proxy, request).await;
    assert_eq!(response.status(), StatusCode::OK);
    TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap())
}

/// Writes bytes; reads until the other end closes, or `enough` came.
pub async fn raw(address: SocketAddr, bytes: &[u8], enough: &str) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    raw_on(&mut tcp, bytes, enough).await
}

pub async fn raw_on<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    io: &mut IO,
    bytes: &[u8],
    enough: &str,
) -> String {
    io.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let reading = async {
        let mut part = [0; 4096];
        loop {
            match io.read(&mut part).await {
                Ok(0) | Err(_) => return,
                Ok(n) => answer.extend_from_slice(&part[..n]),
            }
            if !enough.is_empty() && String::from_utf8_lossy(&answer).contains(enough) {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, reading)
        .await
        .expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A peer that speaks for itself, without a sidecar of ours.
pub struct Stranger {
    svid: SvidSource,
    trust: aip_runtime::trust::Trust,
}

impl Stranger {
    pub fn new(pki: &Pki, name: &str, says: Says) -> Self {
        let svid = SvidSource::default();
        svid.set(pki.svid(name, says)).unwrap();
        Self {
            svid,
            trust: pki.trust().shared(),
        }
    }

    /// A connection to the sidecar of `agent`.
    pub async fn connect(&self, address: SocketAddr, agent: &str) -> SendRequest<Full<Bytes>> {
        self.connect_streaming(address, agent).await
    }

    /// A connection on which nothing has been said inside of TLS.
    pub async fn connect_raw(&self, address: SocketAddr, agent: &str) -> tls::ClientTls<TcpStream> {
        let expected = format!("spiffe://{TRUST_DOMAIN}/agent/{agent}").parse().unwrap();
        let config = tls::agent_client(self.svid.slot(), &self.trust, expected, tls::ALPN_H2).unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        tls::connect(&config, &self.trust, tcp).await.unwrap().0
    }

    /// A connection for requests with bodies of any kind.
    pub async fn connect_streaming<B>(&self, address: SocketAddr, agent: &str) -> SendRequest<B>
    where
        B: hyper::body::Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let tls = self.connect_raw(address, agent).await;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

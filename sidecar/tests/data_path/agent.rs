//! An agent that records what reached it. What it answers depends on the path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub target: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

pub struct Agent {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    /// What `/events` and `/slow` wait for.
    go: Semaphore,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Agent {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            address,
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            go: Semaphore::new(0),
        });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let shared = serving.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| answer(shared.clone(), request));
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(tcp), service)
                        .await;
                });
            }
        });
        Self { address, shared }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn only(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Lets `/events` or `/slow` go one step on.
    pub fn go(&self) {
        self.shared.go.add_permits(1);
    }
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed_unsync()
}

async fn answer(shared: Arc<Shared>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let record = |request: &Request<Incoming>, body: Bytes, trailers: Option<HeaderMap>| {
        shared.seen.lock().unwrap().push(Seen {
            method: request.method().clone(),
            target: request.uri().to_string(),
            version: request.version(),
            headers: request.headers().clone(),
            body,
            trailers,
        });
    };
    if request.headers().contains_key("upgrade") && path == "/upgrade" {
        record(&request, Bytes::new(), None);
        return Ok(upgrade(&mut request));
    }
    if path == "/early" {
        record(&request, Bytes::new(), None);
        return Ok(Response::builder()
            .status(StatusCode::PAYLOAD_TOO_LARGE)
            .body(full("too much"))
            .unwrap());
    }
    if path == "/chat" {
        record(&request, Bytes::new(), None);
        // Every frame of the request is a frame of the response, at once.
        let body = request.into_body();
        return Ok(Response::new(
            body.map_err(|_| unreachable!("an unbroken body")).boxed_unsync(),
        ));
    }
    let collected = {
        let mut body = Vec::new();
        let mut trailers = None;
        while let Some(Ok(frame)) = request.body_mut().frame().await {
            match frame.into_data() {
                Ok(data) => body.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        (Bytes::from(body), trailers)
    };
    record(&request, collected.0.clone(), collected.1);
    Ok(match path.as_str() {
        "/events" => {
            let events = stream::unfold((shared.clone(), 0), |(shared, n)| async move {
                shared.go.acquire().await.unwrap().forget();
                Some((Ok(Frame::data(Bytes::from(format!("data: {n}\n\n")))), (shared, n + 1)))
            });
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(StreamBody::new(events).boxed_unsync()).unwrap()
        }
        "/slow" => {
            shared.go.acquire().await.unwrap().forget();
            Response::new(full("at last"))
        }
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", "abc".parse().unwrap());
            trailers.insert("x-aip-decision", "forged".parse().unwrap());
            let frames = [
                Ok(Frame::data(Bytes::from("with trailers"))),
                Ok(Frame::trailers(trailers)),
            ];
            let response = Response::builder().header("trailer", "x-checksum, x-aip-decision");
            response
                .body(StreamBody::new(stream::iter(frames)).boxed_unsync())
                .unwrap()
        }
        "/forged" => Response::builder()
            .header("x-aip-source", "forged")
            .header("x_aip_verdict", "forged")
            .header("x-aip-decision", "forged;allow;callee")
            .header("connection", "x-hop-only")
            .header("x-hop-only", "dropped")
            .header("x-kept", "kept")
            .body(full("forged"))
            .unwrap(),
        "/redirect" => Response::builder()
            .status(StatusCode::TEMPORARY_REDIRECT)
            .header("location", format!("http://{}/redirect/", shared.address))
            .body(full(""))
            .unwrap(),
        "/sse" => {
            let event = format!(
                "event: endpoint\r\ndata: http://{}/messages?s=1\r\n\r\ndata: x\n\n",
                shared.address
            );
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(full(event)).unwrap()
        }
        "/.well-known/agent-card.json" => Response::builder()
            .header("content-type", "application/json")
            .body(full(format!(r#"{{"name":"x","url":"http://{}/rpc"}}"#, shared.address)))
            .unwrap(),
        "/signed/.well-known/agent-card.json" => {
            let card =
                r#"{"name":"x","url":"http://ledger.corp:9000/rpc","signatures":[{"protected":"","signature":""}]}"#;
            Response::builder()
                .header("content-type", "application/json")
                .body(full(card))
                .unwrap()
        }
        "/empty" => Response::builder()
            .status(StatusCode::NO_CONTENT)
            .body(full(""))
            .unwrap(),
        _ => Response::new(full(collected.0)),
    })
}

fn upgrade(request: &mut Request<Incoming>) -> Response<Body> {
    let wanted = request.headers()["upgrade"].clone();
    let key = request.headers().get("sec-websocket-key").cloned();
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", wanted);
    if let Some(key) = key {
        response = response.header("sec-websocket-accept", key);
    }
    response.body(full("")).unwrap()
}

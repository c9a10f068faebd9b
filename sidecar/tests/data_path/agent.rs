//! An agent that records what reached it. What it answers depends on the path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
    /// Of `/endless`.
    frames: AtomicU64,
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
            frames: AtomicU64::new(0),
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

    /// Of all that it has seen.
    pub fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
    }

    /// How many frames of `/endless` went out.
    pub fn frames(&self) -> u64 {
        self.shared.frames.load(Ordering::SeqCst)
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
    let switches = path == "/upgrade" && request.headers().contains_key("upgrade");
    if switches || path == "/early" || path == "/chat" {
        shared.record(&request, Bytes::new(), None);
        return Ok(at_once(&path, request));
    }
    let mut body = Vec::new();
    let mut trailers = None;
    while let Some(Ok(frame)) = request.body_mut().frame().await {
        match frame.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let body = Bytes::from(body);
    shared.record(&request, body.clone(), trailers);
    if path == "/slow" {
        shared.go.acquire().await.unwrap().forget();
    }
    Ok(about_the_mesh(&path, &shared).unwrap_or_else(|| plain(&path, &shared, body)))
}

impl Shared {
    fn record(&self, request: &Request<Incoming>, body: Bytes, trailers: Option<HeaderMap>) {
        self.seen.lock().unwrap().push(Seen {
            method: request.method().clone(),
            target: request.uri().to_string(),
            version: request.version(),
            headers: request.headers().clone(),
            body,
            trailers,
        });
    }
}

/// Answers that don't wait for the body.
fn at_once(path: &str, mut request: Request<Incoming>) -> Response<Body> {
    match path {
        "/upgrade" => upgrade(&mut request),
        "/early" => Response::builder()
            .status(StatusCode::PAYLOAD_TOO_LARGE)
            .body(full("too much"))
            .unwrap(),
        // Every frame of the request is a frame of the response, at once.
        _ => Response::new(
            request
                .into_body()
                .map_err(|_| unreachable!("an unbroken body"))
                .boxed_unsync(),
        ),
    }
}

fn plain(path: &str, shared: &Arc<Shared>, body: Bytes) -> Response<Body> {
    match path {
        "/events" => {
            let events = stream::unfold((shared.clone(), 0), |(shared, n)| async move {
                shared.go.acquire().await.unwrap().forget();
                Some((Ok(Frame::data(Bytes::from(format!("data: {n}\n\n")))), (shared, n + 1)))
            });
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(StreamBody::new(events).boxed_unsync()).unwrap()
        }
        "/endless" | "/endless-events" => {
            let shared = shared.clone();
            let endless = stream::repeat_with(move || {
                shared.frames.fetch_add(1, Ordering::SeqCst);
                Ok(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))
            });
            let mut response = Response::new(StreamBody::new(endless).boxed_unsync());
            if path == "/endless-events" {
                let events = "text/event-stream".parse().unwrap();
                response.headers_mut().insert("content-type", events);
            }
            response
        }
        "/slow" => Response::new(full("at last")),
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", "abc".parse().unwrap());
            for forged in ["x-aip-decision", "x-forwarded-for", "x_http_method_override"] {
                trailers.insert(forged, "forged".parse().unwrap());
            }
            let frames = [
                Ok(Frame::data(Bytes::from("with trailers"))),
                Ok(Frame::trailers(trailers)),
            ];
            let response = Response::builder().header(
                "trailer",
                "x-checksum, x-aip-decision, x-forwarded-for, x_http_method_override",
            );
            response
                .body(StreamBody::new(stream::iter(frames)).boxed_unsync())
                .unwrap()
        }
        "/empty" => Response::builder()
            .status(StatusCode::NO_CONTENT)
            .body(full(""))
            .unwrap(),
        _ => Response::new(full(body)),
    }
}

/// Answers that name the agent's own address, or what only the mesh may say.
fn about_the_mesh(path: &str, shared: &Shared) -> Option<Response<Body>> {
    let address = shared.address;
    let json = || Response::builder().header("content-type", "application/json");
    let response = match path {
        "/forged" => Response::builder()
            .header("x-aip-source", "forged")
            .header("x_aip_verdict", "forged")
            .header("x-aip-decision", "forged;allow;callee")
            .header("connection", "x-hop-only")
            .header("x-hop-only", "dropped")
            .header("x-kept", "kept")
            .body(full("forged")),
        "/redirect" => Response::builder()
            .status(StatusCode::TEMPORARY_REDIRECT)
            .header("location", format!("http://{address}/redirect/"))
            .body(full("")),
        "/sse" => {
            let event = format!("event: endpoint\r\ndata: http://{address}/messages?s=1\r\n\r\ndata: x\n\n");
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(full(event))
        }
        "/.well-known/agent-card.json" => json().body(full(format!(r#"{{"name":"x","url":"http://{address}/rpc"}}"#))),
        "/signed/.well-known/agent-card.json" => {
            let card =
                r#"{"name":"x","url":"http://ledger.corp:9000/rpc","signatures":[{"protected":"","signature":""}]}"#;
            json().body(full(card))
        }
        _ => return None,
    };
    Some(response.unwrap())
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

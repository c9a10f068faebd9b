//! An HTTP agent in this process, on a thread of its own: it records what reached it, exactly.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge on one port. What it answers depends on the path:
//!
//! | path | answer |
//! |---|---|
//! | `/events?stream=S&steps=N` | N server-sent events; each waits until the test calls [`Agent::heard`] for the last |
//! | `/trailers` | a body and trailers, one of which no agent may set |
//! | `/forged` | headers that no agent may set |
//! | `/slow` | begins when the test calls [`Agent::heard`] |
//! | `/fail` | 500 |
//! | `/endless` | bytes without end |
//! | `/early` | answers without reading the body |
//! | `/upgrade` | switches protocols where asked to, and then echoes bytes |
//! | anything else | 200 and the body as it came |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch;

/// A request as it reached the agent.
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
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

/// The agent.
#[derive(Clone)]
pub struct Agent {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    forgets: bool,
    steps: Arc<watch::Sender<BTreeMap<String, u64>>>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Agent {
    /// Serves on a free port until the process ends.
    pub fn start() -> Self {
        Self::serving(false)
    }

    /// One that records nothing: for more requests than memory can hold.
    pub fn forgetful() -> Self {
        Self::serving(true)
    }

    fn serving(forgets: bool) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let agent = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            forgets,
            steps: Arc::new(watch::Sender::new(BTreeMap::new())),
        };
        let serving = agent.clone();
        // A test's runtime ends with the test; an agent that tests share needs its own.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serving.serve(listener));
        });
        agent
    }

    async fn serve(self, listener: std::net::TcpListener) {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((tcp, _)) = listener.accept().await {
            let _ = tcp.set_nodelay(true);
            let agent = self.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let agent = agent.clone();
                    async move { Ok::<_, Infallible>(agent.answer(request).await) }
                });
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(tcp), service)
                    .await;
            });
        }
    }

    /// The requests with this text in their target.
    pub fn seen(&self, target: &str) -> Vec<Seen> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|s| s.target.contains(target))
            .cloned()
            .collect()
    }

    /// The only request with this text in its target.
    pub fn only(&self, target: &str) -> Seen {
        let mut seen = self.seen(target);
        assert_eq!(seen.len(), 1, "one request for {target}: {seen:?}");
        seen.remove(0)
    }

    /// The client has event `step` of `stream`.
    pub fn heard(&self, stream: &str, step: u64) {
        self.steps.send_modify(|steps| {
            steps.insert(stream.to_owned(), step);
        });
    }

    async fn until_heard(&self, stream: &str, step: u64) {
        let mut steps = self.steps.subscribe();
        // The sender lives as long as the agent.
        let _ = steps
            .wait_for(|steps| steps.get(stream).is_some_and(|heard| *heard >= step))
            .await;
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let query = query(request.uri().query().unwrap_or_default());
        if path == "/upgrade" && request.headers().contains_key("upgrade") {
            self.record(&request, Bytes::new(), None);
            return upgrade(&mut request);
        }
        if path == "/early" {
            self.record(&request, Bytes::new(), None);
            let answer = Response::builder()
                .status(StatusCode::PAYLOAD_TOO_LARGE)
                .header("connection", "close");
            return answer.body(full("too much")).unwrap();
        }
        let (head, body) = request.into_parts();
        let collected = body.collect().await;
        let Ok(collected) = collected else {
            return Response::new(full("broken body"));
        };
        let trailers = collected.trailers().cloned();
        let body = collected.to_bytes();
        let request = Request::from_parts(head, ());
        self.record(&request, body.clone(), trailers);
        match path.as_str() {
            "/events" => self.events(query["stream"].clone(), query["steps"].parse().unwrap()),
            "/endless" => {
                let bytes = || Ok(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])));
                let body = StreamBody::new(futures_util::stream::repeat_with(bytes));
                Response::new(body.boxed_unsync())
            }
            "/great" => Response::new(full(vec![b'x'; LARGE])),
            "/slow" => {
                self.until_heard(&query["stream"], 1).await;
                Response::new(full("at last"))
            }
            "/fail" => {
                let failed = Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR);
                failed.body(full("it failed")).unwrap()
            }
            "/trailers" => trailers_answer(),
            "/forged" => Response::builder()
                .header("x-aip-source", "forged")
                .header("x_aip_verdict", "forged")
                .header("X-Aip_Decision", "forged")
                .header("connection", "x-hop-only")
                .header("x-hop-only", "dropped")
                .header("x-kept", "kept")
                .body(full("forged"))
                .unwrap(),
            _ => Response::new(full(body)),
        }
    }

    fn events(&self, stream: String, steps: u64) -> Response<Body> {
        let agent = self.clone();
        let events = futures_util::stream::unfold(0, move |step| {
            let (agent, stream) = (agent.clone(), stream.clone());
            async move {
                if step > 0 {
                    agent.until_heard(&stream, step).await;
                }
                let next = step + 1;
                (next <= steps).then(|| {
                    (
                        Ok::<_, Infallible>(Frame::data(Bytes::from(format!("data: step {next}\n\n")))),
                        next,
                    )
                })
            }
        });
        let response = Response::builder().header("content-type", "text/event-stream");
        response.body(StreamBody::new(events).boxed_unsync()).unwrap()
    }

    fn record<B>(&self, request: &Request<B>, body: Bytes, trailers: Option<HeaderMap>) {
        if self.forgets {
            return;
        }
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

/// Bytes of the answer to `/great`.
pub const LARGE: usize = 120_000;

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed_unsync()
}

fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

fn trailers_answer() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "abc".parse().unwrap());
    trailers.insert("x-aip-decision", "forged".parse().unwrap());
    let frames = [
        Ok::<_, Infallible>(Frame::data(Bytes::from("with trailers"))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let response = Response::builder().header("trailer", "x-checksum, x-aip-decision");
    response.body(body.boxed_unsync()).unwrap()
}

/// Switches to whatever was asked for, and echoes bytes from then on.
fn upgrade(request: &mut Request<Incoming>) -> Response<Body> {
    let wanted = request.headers()["upgrade"].clone();
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", wanted)
        .body(full(""))
        .unwrap()
}

#[cfg(test)]
mod tests;

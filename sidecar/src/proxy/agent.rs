//! Connections to the agent itself: HTTP/1.1 with keep-alive, or one HTTP/2 with prior knowledge.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::http2::Tasks;
use super::limits::{
    AGENT_CONNECTION_WINDOW, AGENT_IDLE, AGENT_READY, AGENT_STREAM_WINDOW, CONNECT_TIMEOUT, MAX_HEADER_LIST,
    MAX_HTTP1_BUFFER, MAX_IDLE_AGENT,
};
use super::recorded::Recorded;
use super::stalled::UntilGivenUp;
use super::{Proxy, workers};
use crate::audit::Audit;
use crate::request::body::Body;
use crate::request::refusal::{Refusal, Refused};

struct Idle {
    sender: http1::SendRequest<Body>,
    since: Instant,
}

/// One worker's connections to the agent that wait for the next request.
pub(crate) struct AgentPool {
    address: SocketAddr,
    audit: Audit,
    /// Most recently used last.
    idle: Mutex<Vec<Idle>>,
    h2: tokio::sync::Mutex<Option<http2::SendRequest<Body>>>,
}

/// A connection that goes back into the pool when its request has been sent and its response read.
pub(crate) struct Returning {
    proxy: Arc<Proxy>,
    /// The worker that has its task.
    worker: usize,
    sender: http1::SendRequest<Body>,
}

impl std::fmt::Debug for Returning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Returning")
    }
}

impl Returning {
    /// Back into the pool.
    pub(crate) fn give_back(self) {
        if self.sender.is_closed() {
            return;
        }
        let pool = self.proxy.agent.at(self.worker);
        let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_AGENT {
            idle.push(Idle {
                sender: self.sender,
                since: Instant::now(),
            });
        }
    }
}

impl AgentPool {
    pub(crate) fn new(address: SocketAddr, audit: &Audit) -> Self {
        Self {
            address,
            audit: audit.clone(),
            idle: Mutex::default(),
            h2: tokio::sync::Mutex::default(),
        }
    }

    /// Sends a request over HTTP/1.1. A connection that turns out to be closed before anything was sent on it is
    /// replaced.
    ///
    /// # Errors
    /// The agent does not answer, or hangs up.
    pub(crate) async fn send_http1(
        proxy: &Arc<Proxy>,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Returning), Refused> {
        let pool = proxy.agent.here();
        loop {
            let (mut sender, fresh) = match pool.take_idle().await {
                Some(sender) => (sender, false),
                None => (Box::pin(pool.connect()).await?, true),
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let returning = Returning {
                        proxy: proxy.clone(),
                        worker: workers::index(),
                        sender,
                    };
                    return Ok((response, returning));
                }
                Err(error) => request = unsent(error, fresh)?,
            }
        }
    }

    /// Sends a request over HTTP/2 with prior knowledge.
    ///
    /// # Errors
    /// The agent does not answer, hangs up, or speaks no HTTP/2.
    pub(crate) async fn send_http2(
        proxy: &Arc<Proxy>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Refused> {
        let pool = proxy.agent.here();
        loop {
            let (mut sender, fresh) = Box::pin(pool.http2()).await?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => request = unsent(error, fresh)?,
            }
        }
    }

    async fn take_idle(&self) -> Option<http1::SendRequest<Body>> {
        loop {
            let taken = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if taken.since.elapsed() > AGENT_IDLE {
                // All others are older.
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                return None;
            }
            let mut sender = taken.sender;
            // Its last request and response are over; its task may have yet to notice. Another connection is better than a
            // long wait.
            if sender.is_ready() || matches!(tokio::time::timeout(AGENT_READY, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    async fn tcp(&self) -> Result<Recorded<TcpStream>, Refused> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(self.address)).await;
        let tcp = match connected {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Err(self.unreachable(error)),
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        super::metrics::dialled("agent", "connected");
        // Nagle's algorithm would hold back small frames of a stream.
        let _ = tcp.set_nodelay(true);
        Ok(Recorded::new(tcp, &self.audit))
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Refused {
        super::metrics::dialled("agent", "failed");
        Refusal::AgentUnreachable.because(format!("{}: {why}", self.address))
    }

    async fn connect(&self) -> Result<http1::SendRequest<Body>, Refused> {
        let tcp = self.tcp().await?;
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_HTTP1_BUFFER)
            .handshake(TokioIo::new(tcp));
        let (sender, connection) = handshake.await.map_err(|e| self.unreachable(e))?;
        tokio::spawn(async move {
            // What went wrong is told to the request on it.
            let _ = UntilGivenUp::new(connection.with_upgrades()).await;
        });
        Ok(sender)
    }

    /// The one HTTP/2 connection, and whether it is a new one.
    async fn http2(&self) -> Result<(http2::SendRequest<Body>, bool), Refused> {
        let mut current = self.h2.lock().await;
        if let Some(sender) = current.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), false));
        }
        let tcp = self.tcp().await?;
        // No pings: gRPC servers take more than one in five minutes for an attack (ENHANCE_YOUR_CALM).
        let handshake = http2::Builder::new(Tasks)
            .timer(TokioTimer::new())
            .initial_stream_window_size(AGENT_STREAM_WINDOW)
            .initial_connection_window_size(AGENT_CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST)
            .handshake(TokioIo::new(tcp));
        let (sender, connection) = handshake.await.map_err(|e| self.unreachable(e))?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        *current = Some(sender.clone());
        Ok((sender, true))
    }
}

/// The request again, where nothing of it was sent and the connection was an old one.
fn unsent(mut error: TrySendError<Request<Body>>, fresh: bool) -> Result<Request<Body>, Refused> {
    match error.take_message() {
        Some(request) if !fresh => Ok(request),
        _ => Err(Refusal::ConnectionBroken.because(error.into_error())),
    }
}

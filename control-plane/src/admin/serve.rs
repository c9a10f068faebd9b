//! The admin API's connections: bounded, timed, with TLS beyond loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aip_runtime::admin::{self, Stalling};
use aip_runtime::door::{Bounds, Door, Place};
use aip_runtime::drain::DrainWatch;
use aip_runtime::tls::{self, Clients, ServerConfig};
use aip_runtime::trust::Trust;
use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::ca::{Ca, CaError};

/// Connections at once, of each listener: people, dashboards, scrapers, watches.
const MAX_CONNECTIONS: usize = 512;
/// What the port takes: half of all without a token, of which the oldest give way. On loopback everybody is one source.
const LOOPBACK: Bounds = Bounds {
    connections: MAX_CONNECTIONS,
    connections_per_source: MAX_CONNECTIONS,
    strangers: 64,
    anonymous: MAX_CONNECTIONS / 2,
};
/// Beyond it one host can't keep the others out: a quarter of all is one source's, more than a team behind one address
/// has open; 64 handshakes are some 30 ms of work.
const BEYOND: Bounds = Bounds {
    connections_per_source: MAX_CONNECTIONS / 4,
    ..LOOPBACK
};
/// How long the head of the first request may take: who connects has something to ask.
const FIRST_HEAD: Duration = Duration::from_secs(5);
/// Out of descriptors: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where the admin API is spoken.
pub enum Listener {
    /// On loopback.
    Plain(TcpListener),
    /// Beyond it: TLS 1.3 with the control plane's certificate.
    Tls(TcpListener, Arc<Tls>),
    /// The Unix socket.
    Socket(UnixListener),
}

/// The TLS of the admin port.
pub struct Tls {
    config: Arc<ServerConfig>,
    trust: Trust,
}

impl Listener {
    /// Plain where `address` is loopback, TLS beyond it: there is no way to ask for plain there.
    ///
    /// # Errors
    /// TLS can't be set up.
    pub fn tcp(listener: TcpListener, address: SocketAddr, ca: &Ca, trust: &Trust) -> Result<Self, CaError> {
        if address.ip().is_loopback() {
            return Ok(Self::Plain(listener));
        }
        let config = tls::server_config(&ca.server, trust, Clients::Optional, &[b"http/1.1"])
            .map_err(|e| CaError::Certificate(e.to_string()))?;
        let trust = trust.clone();
        Ok(Self::Tls(listener, Arc::new(Tls { config, trust })))
    }
}

/// Serves until the drain starts; open requests are finished.
pub async fn serve(listener: Listener, router: Router, mut drain: DrainWatch) {
    let watch = drain.clone();
    let serving = async move {
        match listener {
            Listener::Plain(listener) => plain(listener, router, watch).await,
            Listener::Socket(listener) => socket(listener, router, watch).await,
            Listener::Tls(listener, tls) => encrypted(listener, tls, router, watch).await,
        }
    };
    tokio::select! {
        () = serving => {},
        () = drain.draining() => {},
    }
}

async fn plain(listener: TcpListener, router: Router, drain: DrainWatch) {
    let door = Door::new(LOOPBACK);
    loop {
        let (tcp, guest) = door.guest(&listener).await;
        let visitor = Visitor::new(Some(guest.plain()));
        tokio::spawn(connection(tcp, router.clone(), drain.clone(), visitor));
    }
}

async fn socket(listener: UnixListener, router: Router, drain: DrainWatch) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = permits.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let serving = connection(stream, router.clone(), drain.clone(), Visitor::new(None));
        tokio::spawn(async move {
            let _permit = permit;
            serving.await;
        });
    }
}

async fn encrypted(listener: TcpListener, tls: Arc<Tls>, router: Router, drain: DrainWatch) {
    let door = Door::new(BEYOND);
    loop {
        let (tcp, guest) = door.guest(&listener).await;
        let (tls, router, drain) = (tls.clone(), router.clone(), drain.clone());
        tokio::spawn(async move {
            match guest.handshake(tcp, &tls.config, &tls.trust).await {
                Ok(known) => connection(known.stream, router, drain, Visitor::new(Some(known.place))).await,
                Err(error) => {
                    metrics::counter!("aip_admin_handshake_failures_total", "reason" => error.reason()).increment(1);
                    // Anybody can cause it: a line for each is a way to fill the disk.
                    tracing::debug!(reason = error.reason(), %error, "admin handshake refused");
                }
            }
        });
    }
}

/// Who is at the other end of a connection; in the extensions of each of its requests.
#[derive(Debug, Clone)]
pub(super) struct Visitor(Arc<Visit>);

#[derive(Debug)]
struct Visit {
    // None on the socket, which is one user's.
    place: Option<Place>,
    asked: AtomicBool,
}

impl Visitor {
    fn new(place: Option<Place>) -> Self {
        let asked = AtomicBool::new(false);
        Self(Arc::new(Visit { place, asked }))
    }

    /// It showed a good token: its connection gives way to nobody.
    pub(super) fn is_known(&self) {
        if let Some(place) = &self.0.place {
            place.is_known();
        }
    }

    /// Resolves when the connection is to be closed: it gives way to another, or asked nothing.
    async fn must_leave(&self) {
        let gives_way = async {
            match &self.0.place {
                Some(place) => place.gives_way().await,
                None => std::future::pending().await,
            }
        };
        let asks_nothing = async {
            tokio::time::sleep(FIRST_HEAD).await;
            if self.0.asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = gives_way => {},
            () = asks_nothing => {},
        }
    }
}

async fn connection<IO>(io: IO, router: Router, mut drain: DrainWatch, visitor: Visitor)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (router, asks) = (TowerToHyperService::new(router), visitor.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        asks.0.asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(asks.clone());
        router.call(request)
    });
    let connection = admin::http1().serve_connection(TokioIo::new(Stalling::new(io)), service);
    let mut connection = std::pin::pin!(connection);
    let mut must_leave = std::pin::pin!(visitor.must_leave());
    tokio::select! {
        _ = connection.as_mut() => return,
        () = must_leave.as_mut() => return,
        () = drain.draining() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection => {},
        () = must_leave => {},
    }
}

#[cfg(test)]
mod tests {
    use aip_runtime::drain;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    /// How long the API hears out who says a byte of a head each second after `first`, and what it answered.
    async fn heard_out(first: &'static [u8]) -> (u64, String) {
        let (far, near) = duplex(1024);
        let (_drain, watch) = drain::channel();
        let router = Router::new().route("/", get(async || "here"));
        let serving = connection(near, router, watch, Visitor::new(None));
        let (mut answers, mut says) = tokio::io::split(far);
        tokio::spawn(async move {
            let mut said = says.write_all(first).await;
            while said.is_ok() {
                sleep(Duration::from_secs(1)).await;
                said = says.write_all(b"G").await;
            }
        });
        let began = Instant::now();
        serving.await;
        let mut answer = Vec::new();
        answers.read_to_end(&mut answer).await.unwrap();
        (began.elapsed().as_secs(), String::from_utf8(answer).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_is_cut() {
        let (seconds, answer) = heard_out(b"GET / HTTP/1.1\r\nx-slow: ").await;
        assert_eq!((seconds, answer.as_str()), (FIRST_HEAD.as_secs(), ""));
        // The next one has what is between two requests of a client.
        let (seconds, answer) = heard_out(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nx-slow: ").await;
        assert!((10..20).contains(&seconds), "{seconds}");
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    }
}

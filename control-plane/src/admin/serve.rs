//! The admin API's connections: bounded, timed, with TLS beyond loopback.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip_runtime::drain::DrainWatch;
use aip_runtime::tls::{self, Clients, ServerConfig};
use aip_runtime::trust::Trust;
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::stall::{Stalling, WRITE_DEADLINE};
use crate::ca::{Ca, CaError};

/// Connections at once, of each listener: people, dashboards, scrapers, watches.
const MAX_CONNECTIONS: usize = 512;
/// How long a request's head may take to arrive, and how long a connection may be idle between two: what stalls here
/// stalls on purpose.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// Headers of a request, and their bytes.
const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 32 * 1024;
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

enum Accepted {
    Plain(TcpStream),
    Tls(TcpStream, Arc<Tls>),
    Socket(UnixStream),
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

    async fn accept(&self) -> io::Result<Accepted> {
        let tcp = async |listener: &TcpListener| {
            let (tcp, _) = listener.accept().await?;
            let _ = tcp.set_nodelay(true);
            Ok::<_, io::Error>(tcp)
        };
        Ok(match self {
            Self::Plain(listener) => Accepted::Plain(tcp(listener).await?),
            Self::Tls(listener, tls) => Accepted::Tls(tcp(listener).await?, tls.clone()),
            Self::Socket(listener) => Accepted::Socket(listener.accept().await?.0),
        })
    }
}

/// Serves until the drain starts; open requests are finished.
pub async fn serve(listener: Listener, router: Router, mut drain: DrainWatch) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.draining() => return,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (router, drain) = (router.clone(), drain.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match stream {
                Accepted::Plain(tcp) => connection(tcp, router, drain).await,
                Accepted::Socket(unix) => connection(unix, router, drain).await,
                Accepted::Tls(tcp, port) => match tls::accept(&port.config, &port.trust, tcp).await {
                    Ok((stream, _)) => connection(stream, router, drain).await,
                    Err(error) => tracing::info!(reason = error.reason(), %error, "admin handshake refused"),
                },
            }
        });
    }
}

async fn connection<IO>(io: IO, router: Router, mut drain: DrainWatch)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(
            TokioIo::new(Stalling::new(io, WRITE_DEADLINE)),
            TowerToHyperService::new(router),
        );
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drain.draining() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

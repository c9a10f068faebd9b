//! The admin API's connections: bounded, timed, with TLS beyond loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip_runtime::drain::DrainWatch;
use aip_runtime::tls::{self, Clients};
use aip_runtime::trust::Trust;
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::ca::{Ca, CaError};

/// Connections at once: people, dashboards, scrapers, watches.
const MAX_CONNECTIONS: usize = 512;
/// How long a request's head may take to arrive: what stalls here stalls on purpose.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// Headers of a request, and their bytes.
const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// How the admin port is spoken to.
#[derive(Clone)]
pub enum Transport {
    /// On loopback.
    Plain,
    /// Beyond it: TLS 1.3 with the control plane's certificate.
    Tls(Arc<TlsPort>),
}

/// The TLS of the admin port.
pub struct TlsPort {
    accept: Box<dyn Fn(TcpStream, Router, DrainWatch) -> tokio::task::JoinHandle<()> + Send + Sync>,
}

impl Transport {
    /// Plain on loopback, TLS beyond it: there is no way to ask for plain there.
    ///
    /// # Errors
    /// TLS can't be set up.
    pub fn of(address: SocketAddr, ca: &Ca, trust: &Trust) -> Result<Self, CaError> {
        if address.ip().is_loopback() {
            return Ok(Self::Plain);
        }
        let config = tls::server_config(&ca.server, trust, Clients::Optional, &[b"http/1.1"])
            .map_err(|e| CaError::Certificate(e.to_string()))?;
        let trust = trust.clone();
        let accept = move |tcp: TcpStream, router: Router, drain: DrainWatch| {
            let (config, trust) = (config.clone(), trust.clone());
            tokio::spawn(async move {
                match tls::accept(&config, &trust, tcp).await {
                    Ok((stream, _)) => connection(stream, router, drain).await,
                    Err(error) => tracing::info!(reason = error.reason(), %error, "admin handshake refused"),
                }
            })
        };
        Ok(Self::Tls(Arc::new(TlsPort {
            accept: Box::new(accept),
        })))
    }
}

/// Serves until the drain starts; open requests are finished.
pub async fn serve(listener: TcpListener, router: Router, transport: Transport, mut drain: DrainWatch) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.draining() => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                // Out of descriptors: accepting again at once would spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = tcp.set_nodelay(true);
        let (router, drain, transport) = (router.clone(), drain.clone(), transport.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match transport {
                Transport::Plain => connection(tcp, router, drain).await,
                Transport::Tls(port) => {
                    let _ = (port.accept)(tcp, router, drain).await;
                }
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
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drain.draining() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

//! The connections of a gRPC server: handshakes happen beside each other, bounded, and never hold up `accept`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::tls::{self, ServerTls};
use crate::trust::Trust;
use crate::x509::PeerIdentity;

/// Handshakes at once: each costs about half a millisecond of CPU, so this is a tenth of a second of work.
const HANDSHAKES: usize = 256;
/// Connections that were made and not yet taken.
const READY: usize = 64;

/// Who is at the other end of a gRPC connection; in the extensions of each request.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The peer, where it showed a certificate.
    pub identity: Option<PeerIdentity>,
    /// From where.
    pub address: SocketAddr,
}

/// A connection whose peer is known.
#[derive(Debug)]
pub struct MeshStream {
    stream: ServerTls<TcpStream>,
    peer: PeerInfo,
}

/// The stream of connections that a server takes.
pub type Incoming = ReceiverStream<io::Result<MeshStream>>;

/// Accepts on `listener` until the receiver is dropped. Failed handshakes are counted and logged, nothing more.
pub fn incoming(listener: TcpListener, config: Arc<ServerConfig>, trust: Trust) -> Incoming {
    let (ready, taken) = mpsc::channel(READY);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    // Out of descriptors: accepting again at once would spin.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (config, trust, ready) = (config.clone(), trust.clone(), ready.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let _ = tcp.set_nodelay(true);
                match tls::accept(&config, &trust, tcp).await {
                    Ok((stream, identity)) => {
                        let peer = PeerInfo { identity, address };
                        let _ = ready.send(Ok(MeshStream { stream, peer })).await;
                    }
                    Err(error) => {
                        metrics::counter!("aip_tls_handshake_failures_total", "reason" => error.reason()).increment(1);
                        tracing::info!(%address, reason = error.reason(), %error, "handshake refused");
                    }
                }
            });
        }
    });
    ReceiverStream::new(taken)
}

impl Connected for MeshStream {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

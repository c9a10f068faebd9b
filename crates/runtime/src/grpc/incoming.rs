//! The connections of a gRPC server: handshakes happen beside each other, bounded, and never hold up `accept`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::door::{Bounds, Door, Guest, Place};
use crate::tls::ServerTls;
use crate::trust::Trust;
use crate::x509::PeerIdentity;

/// What the mesh port takes. Each sidecar has one connection, and a whole cluster's may come from one address: three
/// quarters of all are the most that one source can take from the others. A handshake costs about half a millisecond of
/// CPU, so 512 are a quarter of a second of work. Who has no SVID comes to join, which takes a moment.
const BOUNDS: Bounds = Bounds {
    connections: 65_536,
    connections_per_source: 49_152,
    strangers: 512,
    anonymous: 1_024,
};
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

/// A connection whose handshake is over.
pub struct MeshStream {
    stream: ServerTls<TcpStream>,
    peer: PeerInfo,
    // Of one without a certificate: ready when it must end.
    gives_way: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _place: Place,
}

/// The stream of connections that a server takes.
pub type Incoming = ReceiverStream<io::Result<MeshStream>>;

/// Accepts on `listener` until the receiver is dropped. Failed handshakes are counted and logged, nothing more.
pub fn incoming(listener: TcpListener, config: Arc<ServerConfig>, trust: Trust) -> Incoming {
    let (ready, taken) = mpsc::channel(READY);
    tokio::spawn(async move {
        let door = Door::new(BOUNDS);
        loop {
            let (tcp, guest) = tokio::select! {
                guest = door.guest(&listener) => guest,
                () = ready.closed() => return,
            };
            let (config, trust, ready) = (config.clone(), trust.clone(), ready.clone());
            tokio::spawn(async move {
                if let Some(stream) = known(tcp, guest, &config, &trust).await {
                    let _ = ready.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(taken)
}

async fn known(tcp: TcpStream, guest: Guest, config: &Arc<ServerConfig>, trust: &Trust) -> Option<MeshStream> {
    let address = guest.address;
    match guest.handshake(tcp, config, trust).await {
        Ok(known) => Some(MeshStream {
            stream: known.stream,
            gives_way: known.peer.is_none().then(|| Box::pin(known.place.gives_way()) as _),
            peer: PeerInfo {
                identity: known.peer,
                address,
            },
            _place: known.place,
        }),
        Err(error) => {
            metrics::counter!("aip_tls_handshake_failures_total", "reason" => error.reason()).increment(1);
            tracing::info!(%address, reason = error.reason(), %error, "handshake refused");
            None
        }
    }
}

impl Connected for MeshStream {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(gives_way) = &mut self.gives_way
            && gives_way.as_mut().poll(cx).is_ready()
        {
            self.gives_way = None;
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
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

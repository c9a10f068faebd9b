//! The door of a port that strangers can reach: how many connections there are, in all and from one source, and how
//! long each has until it is known who is there.
//!
//! Nobody waits behind strangers: where as many are there as may be, one of them gives way, of the source that has
//! most. So what one host opens displaces what the same host opened. A connection that says nothing is closed after
//! [`FIRST_BYTE`], and costs no cryptography before its whole first flight has come.

mod places;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::ClientHello;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub use places::{Place, source_of};

use crate::tls::{self, Answered, Clients, HANDSHAKE_TIMEOUT, MeshTls, ServerTls, TlsError};
use crate::trust::Trust;
use crate::x509::PeerIdentity;
use places::Places;

/// How long the first byte may take. A TLS client speaks first and at once; this leaves time for a lost packet (its
/// retransmission starts after one second, RFC 6298).
pub const FIRST_BYTE: Duration = Duration::from_secs(3);
/// How long to wait after `accept` failed: out of file descriptors, usually, and then trying at once is a spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that were closed before anybody was known on them.
const REFUSED: &str = "aip_connections_refused_total";

/// What a port takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections. Past it one that nobody is known on gives way, and where there is none, the next waits.
    pub connections: usize,
    /// Connections from one source, known peers included. Past it one of its own that nobody is known on gives way, and
    /// where there is none, the next is closed.
    pub connections_per_source: usize,
    /// Connections in their handshake. Past it one of them gives way. Each may hold 64 KiB: the largest first flight
    /// that is read.
    pub strangers: usize,
    /// Connections that needed no certificate, and have proved nothing since. Past it one of them gives way.
    pub anonymous: usize,
}

/// Why a connection gave way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GaveWay {
    /// [`Bounds::connections_per_source`].
    Source,
    /// [`Bounds::strangers`].
    Stranger,
    /// [`Bounds::anonymous`].
    Anonymous,
    /// [`Bounds::connections`].
    Full,
}

impl GaveWay {
    /// The stable reason, as in metrics.
    const fn reason(self) -> &'static str {
        match self {
            Self::Source => "source_connections",
            Self::Stranger => "strangers",
            Self::Anonymous => "anonymous",
            Self::Full => "connections",
        }
    }
}

/// The door of one port.
#[derive(Debug)]
pub struct Door {
    bounds: Bounds,
    connections: Arc<Semaphore>,
    places: Places,
}

/// What goes with a connection that was let in; who it is, is not known yet.
#[derive(Debug)]
pub struct Guest {
    /// From where.
    pub address: SocketAddr,
    place: Place,
    bounds: Bounds,
}

/// A connection whose handshake is over.
#[derive(Debug)]
pub struct Known {
    /// The connection.
    pub stream: ServerTls<TcpStream>,
    /// The peer, where it showed a certificate.
    pub peer: Option<PeerIdentity>,
    /// To be held for as long as the connection lives. Where the peer showed no certificate, the connection is to end
    /// when the place [gives way](Place::gives_way).
    pub place: Place,
}

/// The next connection and where it is from, however long the system has none to give.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    accept_or(listener, || {}).await
}

/// As [`accept`]; `make_room` is called each time that the system has none to give.
async fn accept_or(listener: &TcpListener, make_room: impl Fn()) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((tcp, address)) => {
                // Nagle's algorithm would hold back small frames of a stream.
                let _ = tcp.set_nodelay(true);
                return (tcp, address);
            }
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted now");
                make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Door {
    /// A door with these bounds.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            connections: Arc::new(Semaphore::new(bounds.connections)),
            places: Places::default(),
        }
    }

    /// The next connection that is let in. Others are closed, and counted by reason.
    pub async fn guest(&self, listener: &TcpListener) -> (TcpStream, Guest) {
        loop {
            // Where there are no more files, whoever is not known gives way to whoever knocks, who may be.
            let (tcp, address) = accept_or(listener, || self.places.give_way()).await;
            if !self.places.has_room(address.ip(), &self.bounds) {
                metrics::counter!(REFUSED, "reason" => GaveWay::Source.reason()).increment(1);
                tracing::debug!(%address, reason = GaveWay::Source.reason(), "connection turned away");
                continue;
            }
            // Where only known peers have places, this one waits, and others in the kernel's bounded queue.
            let place = self.places.enter(address.ip(), &self.bounds, self.connection().await);
            let guest = Guest {
                address,
                place,
                bounds: self.bounds,
            };
            return (tcp, guest);
        }
    }

    async fn connection(&self) -> OwnedSemaphorePermit {
        if let Ok(connection) = self.connections.clone().try_acquire_owned() {
            return connection;
        }
        self.places.give_way();
        match self.connections.clone().acquire_owned().await {
            Ok(connection) => connection,
            // Nobody closes the semaphore.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Guest {
    /// The handshake: nothing is computed before the whole first flight has come.
    ///
    /// # Errors
    /// As [`TlsError`] lists.
    pub async fn handshake(self, tcp: TcpStream, config: &Arc<ServerConfig>, trust: &Trust) -> Result<Known, TlsError> {
        // Whether one is required is the configuration's to say.
        Ok(self.known(tcp, |_| (config, Clients::Required), trust).await?.0)
    }

    /// The handshake at the control plane's port, where a client says what it comes for: whether that is orders to stop
    /// alone, and its SVID may be revoked.
    ///
    /// # Errors
    /// As [`TlsError`] lists.
    pub async fn mesh_handshake(self, tcp: TcpStream, tls: &MeshTls, trust: &Trust) -> Result<(Known, bool), TlsError> {
        let (known, clients) = self.known(tcp, |hello| tls.answer(hello), trust).await?;
        Ok((known, clients == Clients::OrRevoked))
    }

    async fn known<'a>(
        self,
        tcp: TcpStream,
        answer: impl Fn(&ClientHello<'_>) -> Answered<'a>,
        trust: &Trust,
    ) -> Result<(Known, Clients), TlsError> {
        let Self { place, bounds, .. } = self;
        let (stream, peer, clients) = tokio::select! {
            // A connection that is done when it must give way stays.
            biased;
            done = handshake(&place, tcp, answer, trust) => done?,
            () = place.gives_way() => return Err(TlsError::GaveWay),
        };
        if peer.is_some() {
            place.is_known();
        } else {
            place.is_anonymous(&bounds);
        }
        Ok((Known { stream, peer, place }, clients))
    }

    /// No handshake: where the port is plain. The connection is to end when its place [gives way](Place::gives_way).
    pub fn plain(self) -> Place {
        self.place.is_anonymous(&self.bounds);
        self.place
    }
}

async fn handshake<'a>(
    place: &Place,
    tcp: TcpStream,
    answer: impl Fn(&ClientHello<'_>) -> Answered<'a>,
    trust: &Trust,
) -> Result<(ServerTls<TcpStream>, Option<PeerIdentity>, Clients), TlsError> {
    let said = tokio::time::timeout(FIRST_BYTE, tcp.peek(&mut [0])).await;
    if said.map_err(|_| TlsError::Silent)?.map_err(TlsError::Io)? == 0 {
        return Err(TlsError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let hello = tls::hello(tcp, deadline).await?;
    place.spoke();
    let answered = answer(&hello.client_hello());
    let (stream, peer) = tls::answer(hello, answered, trust, deadline).await?;
    Ok((stream, peer, answered.1))
}

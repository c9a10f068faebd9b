//! The door of a port that strangers can reach: how many connections there are, in all and from one source, and how
//! long each has until it is known who is there.
//!
//! What one host can take away from all others is bounded: a source has at most [`Bounds::strangers_per_source`]
//! connections whose peer is not known yet, a handshake begins only when its first byte has come, and a connection that
//! says nothing is closed after [`FIRST_BYTE`].

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::tls::{self, HANDSHAKE_TIMEOUT, ServerTls, TlsError};
use crate::trust::Trust;
use crate::x509::PeerIdentity;

/// How long the first byte may take. A TLS client speaks first and at once; this leaves time for a lost packet (its
/// retransmission starts after one second, RFC 6298).
pub const FIRST_BYTE: Duration = Duration::from_secs(3);
/// How long to wait after `accept` failed: out of file descriptors, usually, and then trying at once is a spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that were turned away before a handshake.
const REFUSED: &str = "aip_connections_refused_total";

/// What a port takes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections. Past it they wait in the kernel's bounded queue.
    pub connections: usize,
    /// Connections from one source, known peers included. Past it they are closed.
    pub connections_per_source: usize,
    /// Handshakes, from all. Past it they wait.
    pub handshakes: usize,
    /// Connections from one source whose peer is not known yet. Past it they are closed.
    pub strangers_per_source: usize,
}

/// Why a connection is turned away before its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TurnedAway {
    /// Over [`Bounds::connections_per_source`].
    #[error("as many connections from this source are open as may be")]
    Connections,
    /// Over [`Bounds::strangers_per_source`].
    #[error("as many connections from this source wait for their handshake as may")]
    Strangers,
}

impl TurnedAway {
    /// The stable reason, as in metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Connections => "source_connections",
            Self::Strangers => "source_handshakes",
        }
    }
}

/// The door of one port.
#[derive(Debug)]
pub struct Door {
    bounds: Bounds,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    sources: Sources,
}

/// What goes with a connection that was let in; who it is, is not known yet.
#[derive(Debug)]
pub struct Guest {
    /// From where.
    pub address: SocketAddr,
    place: Place,
    handshakes: Arc<Semaphore>,
}

/// A connection's place among those of its port and of its source; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    sources: Sources,
    source: IpAddr,
    is_stranger: bool,
    _connection: OwnedSemaphorePermit,
}

/// A connection whose handshake is over.
#[derive(Debug)]
pub struct Known {
    /// The connection.
    pub stream: ServerTls<TcpStream>,
    /// The peer, where it showed a certificate.
    pub peer: Option<PeerIdentity>,
    /// To be held for as long as the connection lives.
    pub place: Place,
}

/// The next connection and where it is from, however long the system has none to give.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((tcp, address)) => {
                // Nagle's algorithm would hold back small frames of a stream.
                let _ = tcp.set_nodelay(true);
                return (tcp, address);
            }
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted now");
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
            handshakes: Arc::new(Semaphore::new(bounds.handshakes)),
            sources: Sources::default(),
        }
    }

    /// The next connection that is let in. Others are closed, and counted by reason.
    pub async fn guest(&self, listener: &TcpListener) -> (TcpStream, Guest) {
        loop {
            // Before `accept`: what can't be served waits in the kernel's bounded queue.
            let Ok(connection) = self.connections.clone().acquire_owned().await else {
                // Nobody closes the semaphore.
                return std::future::pending().await;
            };
            let (tcp, address) = accept(listener).await;
            match self.sources.enter(address.ip(), &self.bounds, connection) {
                Ok(place) => {
                    let guest = Guest {
                        address,
                        place,
                        handshakes: self.handshakes.clone(),
                    };
                    return (tcp, guest);
                }
                Err(turned_away) => {
                    metrics::counter!(REFUSED, "reason" => turned_away.reason()).increment(1);
                    tracing::debug!(%address, reason = turned_away.reason(), "connection turned away");
                }
            }
        }
    }
}

impl Guest {
    /// The handshake: not before the first byte has come, and not more at a time than the bounds say.
    ///
    /// # Errors
    /// As [`TlsError`] lists.
    pub async fn handshake(self, tcp: TcpStream, config: &Arc<ServerConfig>, trust: &Trust) -> Result<Known, TlsError> {
        let Self {
            mut place, handshakes, ..
        } = self;
        let said = tokio::time::timeout(FIRST_BYTE, tcp.peek(&mut [0])).await;
        if said.map_err(|_| TlsError::Silent)?.map_err(TlsError::Io)? == 0 {
            return Err(TlsError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let turn = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshakes.acquire()).await;
        let _turn = turn.map_err(|_| TlsError::Timeout)?;
        let (stream, peer) = tls::accept(config, trust, tcp).await?;
        place.is_known();
        Ok(Known { stream, peer, place })
    }
}

impl Place {
    /// Makes room for the source's next stranger.
    fn is_known(&mut self) {
        if std::mem::take(&mut self.is_stranger) {
            self.sources.change(self.source, |count| count.strangers -= 1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.is_known();
        self.sources.change(self.source, |count| count.connections -= 1);
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    connections: usize,
    strangers: usize,
}

/// How many connections there are from each source that has any.
#[derive(Debug, Clone, Default)]
struct Sources(Arc<Mutex<HashMap<IpAddr, Count>>>);

impl Sources {
    fn enter(&self, address: IpAddr, bounds: &Bounds, connection: OwnedSemaphorePermit) -> Result<Place, TurnedAway> {
        let source = source_of(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = counts.get(&source).copied().unwrap_or_default();
        if now.connections >= bounds.connections_per_source {
            return Err(TurnedAway::Connections);
        }
        if now.strangers >= bounds.strangers_per_source {
            return Err(TurnedAway::Strangers);
        }
        counts.insert(
            source,
            Count {
                connections: now.connections + 1,
                strangers: now.strangers + 1,
            },
        );
        Ok(Place {
            sources: self.clone(),
            source,
            is_stranger: true,
            _connection: connection,
        })
    }

    fn change(&self, source: IpAddr, change: impl FnOnce(&mut Count)) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&source) {
            change(count);
            if count.connections == 0 {
                counts.remove(&source);
            }
        }
    }
}

/// What counts as one source: an IPv4 address, or the /64 that an IPv6 host chooses its addresses from (RFC 4291
/// section 2.5.4).
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        connections: 16,
        connections_per_source: 3,
        handshakes: 2,
        strangers_per_source: 2,
    };

    fn enter(sources: &Sources, address: &str) -> Result<Place, TurnedAway> {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        sources.enter(address.parse().unwrap(), &BOUNDS, permit)
    }

    #[test]
    fn a_source_has_its_places_and_no_more_and_others_have_theirs() {
        let sources = Sources::default();
        let mut first = enter(&sources, "192.0.2.1").unwrap();
        let second = enter(&sources, "192.0.2.1").unwrap();
        assert_eq!(enter(&sources, "192.0.2.1").unwrap_err(), TurnedAway::Strangers);
        let other = enter(&sources, "192.0.2.2").unwrap();
        first.is_known();
        let mut third = enter(&sources, "192.0.2.1").unwrap();
        third.is_known();
        assert_eq!(enter(&sources, "192.0.2.1").unwrap_err(), TurnedAway::Connections);
        drop(first);
        let fourth = enter(&sources, "::ffff:192.0.2.1");
        assert!(
            fourth.is_ok(),
            "a place that was given back, to the same host in other clothes"
        );
        assert_eq!(enter(&sources, "192.0.2.1").unwrap_err(), TurnedAway::Connections);
        drop((second, third, fourth, other));
        assert!(
            sources.0.lock().unwrap().is_empty(),
            "nothing is remembered of who has left"
        );
    }

    #[test]
    fn the_addresses_of_one_ipv6_host_are_one_source() {
        let sources = Sources::default();
        let _held = [
            enter(&sources, "2001:db8::1").unwrap(),
            enter(&sources, "2001:db8::2").unwrap(),
        ];
        assert_eq!(enter(&sources, "2001:db8::3").unwrap_err(), TurnedAway::Strangers);
        assert!(enter(&sources, "2001:db8:0:1::1").is_ok());
    }
}

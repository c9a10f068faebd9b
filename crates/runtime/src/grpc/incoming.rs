//! The connections of a gRPC server: handshakes happen beside each other, bounded, and never hold up `accept`.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aip_api::AgentName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::door::{Bounds, Door, Guest, Place};
use crate::preface::Prefaced;
use crate::tls::{MeshTls, ServerTls};
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
/// Connections of one verified agent: each of its 256 sidecars has three, and as many are dead that nobody has noticed yet. So
/// whoever has one certificate leaves places to others, and makes the port hold no more than what so many may leave unread.
const MAX_OF_AGENT: usize = 1_536;
/// Connections for orders to stop of one agent: each of its 256 sidecars has one, and some are dead that nobody has noticed
/// yet. And of all agents: whoever was revoked has them apart, so that none of the others' places go to it.
const MAX_ORDERS_OF_AGENT: usize = 320;
const MAX_ORDERS: usize = 4_096;
/// Connections that were made and not yet taken.
const READY: usize = 64;

/// Who is at the other end of a gRPC connection; in the extensions of each request.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The peer, where it showed a certificate that is good.
    pub identity: Option<PeerIdentity>,
    /// The peer, where it came for orders to stop alone. It may be revoked: nobody is who has this and no `identity`.
    pub orders_only: Option<PeerIdentity>,
    /// From where.
    pub address: SocketAddr,
}

/// A connection whose handshake is over.
pub struct MeshStream {
    stream: Prefaced<ServerTls<TcpStream>>,
    peer: PeerInfo,
    // Of one without a certificate, or for orders alone: ready when it must end.
    gives_way: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _place: Place,
    _of_agent: Option<OfAgent>,
}

/// The stream of connections that a server takes.
pub type Incoming = ReceiverStream<io::Result<MeshStream>>;

/// Accepts on `listener` until the receiver is dropped. Failed handshakes are counted, nothing more.
pub fn incoming(listener: TcpListener, tls: MeshTls, trust: Trust) -> Incoming {
    let (ready, taken) = mpsc::channel(READY);
    tokio::spawn(async move {
        let (door, agents) = (Door::new(BOUNDS), [Agents::ordinary(), Agents::of_orders()]);
        loop {
            let (tcp, guest) = tokio::select! {
                guest = door.guest(&listener) => guest,
                () = ready.closed() => return,
            };
            let (tls, trust, ready, agents) = (tls.clone(), trust.clone(), ready.clone(), agents.clone());
            tokio::spawn(async move {
                if let Some(stream) = known(tcp, guest, &tls, &trust, &agents).await {
                    let _ = ready.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(taken)
}

async fn known(
    tcp: TcpStream,
    guest: Guest,
    tls: &MeshTls,
    trust: &Trust,
    [ordinary, of_orders]: &[Agents; 2],
) -> Option<MeshStream> {
    let address = guest.address;
    let failed = |reason| metrics::counter!("aip_tls_handshake_failures_total", "reason" => reason).increment(1);
    let (known, orders_only) = match guest.mesh_handshake(tcp, tls, trust).await {
        Ok(known) => known,
        Err(error) => {
            failed(error.reason());
            // Anybody can cause it: a line for each is a way to fill the disk.
            tracing::debug!(%address, reason = error.reason(), %error, "handshake refused");
            return None;
        }
    };
    let agents = if orders_only { of_orders } else { ordinary };
    let of_agent = match &known.peer {
        Some(peer) => match agents.connect(&peer.id.agent) {
            Some(of_agent) => Some(of_agent),
            None => {
                failed("peer_connections");
                tracing::debug!(%address, peer = %peer.id, "as many connections of this agent are open as may be");
                return None;
            }
        },
        None => None,
    };
    let gives_way: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = match &known.peer {
        None => Some(Box::pin(known.place.gives_way())),
        Some(peer) if orders_only => Some(Box::pin(ended(peer.not_after))),
        Some(_) => None,
    };
    let (identity, orders_only) = match orders_only {
        true => (None, known.peer),
        false => (known.peer, None),
    };
    Some(MeshStream {
        stream: Prefaced::new(known.stream),
        gives_way,
        peer: PeerInfo {
            identity,
            orders_only,
            address,
        },
        _place: known.place,
        _of_agent: of_agent,
    })
}

/// Resolves when an SVID ends: nothing else ends a connection on which it need not be good.
async fn ended(not_after: u64) {
    tokio::time::sleep(Duration::from_secs(not_after.saturating_sub(crate::unix_now()))).await;
}

/// How many connections each verified agent has, of those that may be.
#[derive(Debug, Clone)]
struct Agents {
    each: usize,
    all: usize,
    /// An agent has no more than are free: however many a few agents want, there is one for the next, and half of what is left.
    shares: bool,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of: HashMap<AgentName, usize>,
}

/// One connection of an agent, until it is dropped.
#[derive(Debug)]
struct OfAgent {
    agents: Agents,
    agent: AgentName,
}

impl Agents {
    fn ordinary() -> Self {
        Self {
            each: MAX_OF_AGENT,
            all: BOUNDS.connections,
            shares: false,
            counts: Arc::default(),
        }
    }

    fn of_orders() -> Self {
        Self {
            each: MAX_ORDERS_OF_AGENT,
            all: MAX_ORDERS,
            shares: true,
            counts: Arc::default(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, where this agent, and all of them, have fewer than they may.
    fn connect(&self, agent: &AgentName) -> Option<OfAgent> {
        let mut counts = self.counts();
        let own = counts.of.get(agent).copied().unwrap_or_default();
        let free = self.all.saturating_sub(counts.all);
        let each = if self.shares { self.each.min(free) } else { self.each };
        if free == 0 || own >= each {
            return None;
        }
        counts.all += 1;
        counts.of.insert(agent.clone(), own + 1);
        Some(OfAgent {
            agents: self.clone(),
            agent: agent.clone(),
        })
    }
}

impl Drop for OfAgent {
    fn drop(&mut self) {
        let mut counts = self.agents.counts();
        counts.all -= 1;
        if let Some(count) = counts.of.get_mut(&self.agent) {
            *count -= 1;
            if *count == 0 {
                counts.of.remove(&self.agent);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_has_no_more_connections_than_it_may_and_leaves_the_others_theirs() {
        for (agents, most) in [
            (Agents::ordinary(), MAX_OF_AGENT),
            (Agents::of_orders(), MAX_ORDERS_OF_AGENT),
        ] {
            let (planner, ledger): (AgentName, AgentName) = ("planner".parse().unwrap(), "ledger".parse().unwrap());
            let mut open: Vec<_> = std::iter::from_fn(|| agents.connect(&planner)).collect();
            assert_eq!(open.len(), most);
            assert!(agents.connect(&ledger).is_some());
            open.pop();
            assert!(agents.connect(&planner).is_some());
            drop(open);
            let counts = agents.counts();
            assert!(counts.of.is_empty() && counts.all == 0, "nothing is remembered");
        }
    }

    #[test]
    fn many_agents_that_were_revoked_have_so_many_connections_in_all() {
        let agents = Agents::of_orders();
        let name = |n: usize| format!("a{n}").parse::<AgentName>().unwrap();
        let open: Vec<_> = (0..).map_while(|n| agents.connect(&name(n))).collect();
        assert_eq!(open.len(), MAX_ORDERS);
        // The rest is for those whose SVID is good.
        const { assert!(MAX_ORDERS * 8 < BOUNDS.connections) };
    }

    #[test]
    fn few_agents_that_were_revoked_do_not_take_the_connections_for_orders_of_all() {
        let agents = Agents::of_orders();
        let name = |n: usize| format!("a{n}").parse::<AgentName>().unwrap();
        let mut open = Vec::new();
        for _ in 0..MAX_ORDERS_OF_AGENT {
            open.extend((0..20).filter_map(|n| agents.connect(&name(n))));
        }
        let left = MAX_ORDERS - open.len();
        assert!(left >= MAX_ORDERS / 21, "{left}");
        open.extend((0..left / 2).map(|_| agents.connect(&name(20)).unwrap()));
        assert!(agents.connect(&name(0)).is_none());
    }
}

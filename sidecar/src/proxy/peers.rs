//! Connections to peers' sidecars: HTTP/2 over mutual TLS, shared by requests, bound to certificates.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aip_api::{AgentName, SpiffeId};
use aip_policy::Direction;
use aip_runtime::{tls, unix_now};
use arc_swap::ArcSwap;
use dashmap::DashMap;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::connections::{Connections, Live, Registered};
use super::cork::Corked;
use super::http2::Tasks;
use super::limits::{
    BUSY_STREAMS, CONNECT_TIMEOUT, CONNECTION_WINDOW, ENDPOINT_PENALTY, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
    MAX_HEADER_LIST, MAX_PEER_CONNECTIONS, STREAM_WINDOW,
};
use super::recorded::Recorded;
use super::{Proxy, metrics};
use crate::request::body::Body;
use crate::request::refusal::{Refusal, Refused};

/// A connection to a peer's sidecar.
pub(crate) struct PeerConnection {
    sender: http2::SendRequest<Body>,
    pub(crate) live: Arc<Live>,
    /// The serial of our certificate on it.
    own: String,
    in_flight: Arc<AtomicU32>,
    retired: AtomicBool,
    heard: tls::Heard,
}

impl std::fmt::Debug for PeerConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerConnection({})", self.live.peer.id)
    }
}

/// A request in flight on a connection; it keeps the connection.
#[derive(Debug)]
pub(crate) struct Flight {
    connection: Arc<PeerConnection>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.connection.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PeerConnection {
    /// A sender, and the flight to hold until the response has ended.
    pub(crate) fn begin(self: &Arc<Self>) -> (http2::SendRequest<Body>, Flight) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.live.count_request();
        (
            self.sender.clone(),
            Flight {
                connection: self.clone(),
            },
        )
    }

    /// Takes no more requests.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// How the peer refused our certificate, if it did: then it has read no request.
    pub(crate) fn refusal(&self) -> Option<tls::TlsError> {
        self.heard.refusal()
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.retired.load(Ordering::Acquire) && !self.sender.is_closed() && self.live.is_cut().is_none()
    }
}

/// The connections to one endpoint.
#[derive(Default)]
struct Slot {
    connections: ArcSwap<Vec<Arc<PeerConnection>>>,
    dialling: tokio::sync::Mutex<()>,
    /// When and why the last dial failed.
    failed: Mutex<Option<(Instant, Refused)>>,
}

impl Slot {
    /// The least busy connection, unless another one should be made.
    fn pick(&self) -> Option<Arc<PeerConnection>> {
        let connections = self.connections.load();
        let busy = |c: &&Arc<PeerConnection>| c.in_flight.load(Ordering::Relaxed);
        let best = connections.iter().filter(|c| c.is_usable()).min_by_key(busy)?;
        let room = busy(&best) < BUSY_STREAMS || connections.len() >= MAX_PEER_CONNECTIONS;
        room.then(|| best.clone())
    }

    fn failure(&self) -> Option<(Instant, Refused)> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_failure(&self, failure: Option<Refused>) {
        let failure = failure.map(|refused| (Instant::now(), refused));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    fn keep(&self, connection: Arc<PeerConnection>) {
        self.connections.rcu(|all| {
            let mut next: Vec<_> = all.iter().filter(|c| c.is_usable()).cloned().collect();
            next.push(connection.clone());
            next
        });
    }

    fn prune(&self) {
        self.connections
            .rcu(|all| all.iter().filter(|c| c.is_usable()).cloned().collect::<Vec<_>>());
    }
}

/// One worker's connections to all peers.
#[derive(Default)]
pub(crate) struct PeerPool {
    slots: DashMap<(AgentName, SocketAddr), Arc<Slot>>,
}

impl PeerPool {
    fn slot(&self, agent: &AgentName, address: SocketAddr) -> Arc<Slot> {
        self.slots.entry((agent.clone(), address)).or_default().clone()
    }

    /// Whether the last dial of this endpoint failed a moment ago.
    pub(crate) fn is_failing(&self, agent: &AgentName, address: SocketAddr) -> bool {
        // Without an allocation for the usual answer: an endpoint that was never dialled has no slot.
        let slot = self.slots.get(&(agent.clone(), address)).map(|slot| slot.clone());
        slot.and_then(|slot| slot.failure())
            .is_some_and(|(when, _)| when.elapsed() < ENDPOINT_PENALTY)
    }

    /// A connection to `agent` at `address`; whoever else wants one waits for the same dial.
    ///
    /// # Errors
    /// Nobody answers, or somebody else does.
    pub(crate) async fn connection(
        proxy: &Arc<Proxy>,
        agent: &AgentName,
        address: SocketAddr,
    ) -> Result<Arc<PeerConnection>, Refused> {
        let slot = proxy.peers.here().slot(agent, address);
        match slot.pick() {
            Some(connection) => Ok(connection),
            // Boxed, as is all that most requests never do: they would carry its size.
            None => Box::pin(Self::dialled(proxy, agent, address, &slot)).await,
        }
    }

    async fn dialled(
        proxy: &Arc<Proxy>,
        agent: &AgentName,
        address: SocketAddr,
        slot: &Arc<Slot>,
    ) -> Result<Arc<PeerConnection>, Refused> {
        let asked = Instant::now();
        let _dialling = slot.dialling.lock().await;
        if let Some(connection) = slot.pick() {
            return Ok(connection);
        }
        // The dial that we waited for failed: one more would only take as long.
        if let Some((_, refused)) = slot.failure().filter(|(when, _)| *when >= asked) {
            return Err(refused);
        }
        let dialled = dial(proxy, agent, address, slot).await;
        slot.set_failure(dialled.as_ref().err().cloned());
        metrics::dialled("peer", if dialled.is_ok() { "connected" } else { "failed" });
        dialled
    }

    /// Retires connections on which we showed another certificate than our current one.
    pub(crate) fn retire_all_but(&self, own: &str) {
        for slot in &self.slots {
            let connections = slot.connections.load_full();
            let outdated = connections.iter().filter(|c| c.own != own);
            outdated.for_each(|c| c.retire());
            slot.prune();
        }
        self.slots
            .retain(|_, slot| !slot.connections.load().is_empty() || slot.failure().is_some());
    }
}

async fn dial(
    proxy: &Arc<Proxy>,
    agent: &AgentName,
    address: SocketAddr,
    slot: &Arc<Slot>,
) -> Result<Arc<PeerConnection>, Refused> {
    let own = proxy.svid.current().ok_or(Refusal::NoIdentity)?;
    if own.identity.not_after <= unix_now() {
        return Err(Refusal::NoIdentity.because("the SVID has expired"));
    }
    let expected = SpiffeId::new(own.id().trust_domain.clone(), agent.clone());
    let config = tls::agent_client(proxy.svid.slot(), &proxy.trust, expected, tls::ALPN_H2)
        .map_err(|e| Refusal::NoIdentity.because(e))?;
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let tcp = connecting
        .map_err(|_| unreachable(address, "connect_timeout", &"no answer in time"))?
        .map_err(|e| unreachable(address, "connect_failed", &e))?;
    let _ = tcp.set_nodelay(true);
    let connected = tls::connect(&config, &proxy.trust, tcp).await;
    let (tls, peer) = connected.map_err(|error| match error {
        // Whoever answered is not who should: a fault of theirs, not of the line.
        tls::TlsError::Identity(_) | tls::TlsError::NoCertificate => {
            failed(Refusal::PeerNotVerified, address, error.reason(), &error)
        }
        other => unreachable(address, other.reason(), &other),
    })?;
    let heard = tls::Heard::default();
    let handshake = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(Corked::new(Recorded::new(
            heard.on(tls),
            &proxy.settings.audit,
        ))));
    let (sender, driver) = handshake.await.map_err(|e| unreachable(address, "http2", &e))?;
    let registered = Connections::register(proxy, peer, Direction::Outbound, own.identity.not_after);
    let connection = Arc::new(PeerConnection {
        sender,
        live: registered.live.clone(),
        own: own.identity.serial.clone(),
        in_flight: Arc::default(),
        retired: AtomicBool::new(false),
        heard,
    });
    tokio::spawn(drive(driver, registered, Arc::downgrade(&connection), slot.clone()));
    slot.keep(connection.clone());
    Ok(connection)
}

fn unreachable(address: SocketAddr, reason: &'static str, why: &dyn std::fmt::Display) -> Refused {
    failed(Refusal::PeerUnreachable, address, reason, why)
}

/// Counts and logs what was wrong: the refusal's own reason says only whom it happened with.
fn failed(refusal: Refusal, address: SocketAddr, reason: &'static str, why: &dyn std::fmt::Display) -> Refused {
    metrics::dial_failed(reason);
    refusal.because(format!("{address}: {reason} ({why})"))
}

/// Keeps a connection going until its end, whatever that is.
async fn drive(
    driver: impl Future<Output = hyper::Result<()>>,
    registered: Registered,
    connection: std::sync::Weak<PeerConnection>,
    slot: Arc<Slot>,
) {
    let live = registered.live.clone();
    tokio::pin!(driver);
    let retire = || {
        if let Some(connection) = connection.upgrade() {
            connection.retire();
        }
        slot.prune();
    };
    tokio::select! {
        _ = &mut driver => return retire(),
        cut = live.ended() => {
            retire();
            return registered.cut_streams(cut);
        }
        () = live.retires() => retire(),
    }
    // No more requests come; those in flight have until the end.
    tokio::select! {
        _ = &mut driver => {}
        cut = live.ended() => registered.cut_streams(cut),
    }
}

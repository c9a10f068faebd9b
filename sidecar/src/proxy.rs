//! What both listeners share, and the accept loops.
//!
//! | module | what |
//! |---|---|
//! | [`limits`] | every bound, with its reason |
//! | `inbound`, `outbound` | the accept loops of 15006 and 15001 |
//! | `strangers` | connections of the agent's port on which nobody is known yet |
//! | `tunnel` | CONNECT in its three meanings |
//! | `egress` | which outside addresses may be reached |
//! | [`connections`] | live connections, and what ends them |
//! | `streams` | requests in flight, and what cuts them |
//! | [`workers`] | the threads that serve connections |
//! | `watch` | looks at both again when the world changes |
//! | `pair` | both ends of a hop as policy sees them, and the policies between them |
//! | `backlog` | what a peer has not taken of its answers |
//! | `stalled` | ends what carries a body to a reader that takes nothing |
//! | `cork`, `recorded` | gathers what a connection writes; and has it recorded before it goes out |
//! | `peers`, `agent` | pooled connections to peers' sidecars and to the agent |
//! | `http2` | HTTP/2 as both listeners serve it |
//! | `gate`, `hops`, `alias` | rates and shares, hop ids that were seen, authorities that the registry gives to agents |
//! | [`access_log`], [`metrics`] | what is recorded |

pub mod access_log;
pub(crate) mod agent;
pub(crate) mod alias;
pub(crate) mod backlog;
pub mod connections;
pub(crate) mod cork;
pub(crate) mod egress;
pub(crate) mod gate;
pub(crate) mod hops;
mod http2;
mod inbound;
pub(crate) mod io;
pub mod limits;
pub mod metrics;
pub(crate) mod outbound;
pub(crate) mod pair;
pub(crate) mod peers;
pub(crate) mod recorded;
pub(crate) mod stalled;
mod strangers;
pub(crate) mod streams;
mod tunnel;
mod watch;
pub mod workers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aip_runtime::drain::DrainWatch;
use aip_runtime::spans::Spans;
use aip_runtime::svid::SvidSource;
use aip_runtime::trust::Trust;
use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use crate::audit::Audit;
use crate::drift::Suspension;
use crate::identity::revoked::Revoked;
use crate::kill::Gate;
use crate::mesh::Mesh;
use crate::request::refusal::Cut;
use crate::wellknown::WellKnown;
use access_log::AccessLog;
use workers::{PerWorker, Workers};

/// What the proxy is told at start.
pub struct ProxySettings {
    /// Where the agent serves.
    pub agent: SocketAddr,
    /// Whether it serves anything: else calls to it are refused.
    pub serves: bool,
    /// What the agent must show at the outbound port.
    pub proxy_secret: Option<Zeroizing<String>>,
    /// Whose connections the outbound port takes; where none is named, those of every user.
    pub agent_uid: Option<u32>,
    /// Where access log lines go.
    pub access_log: AccessLog,
    /// Where requests are recorded.
    pub audit: Audit,
    /// Where spans of them go.
    pub spans: Spans,
    /// What serves the connections.
    pub workers: Workers,
    /// Orders to stop.
    pub kill: Gate,
    /// Ports of this process and its control plane: never reached through the egress guard.
    pub reserved: Vec<SocketAddr>,
    /// Whether anything is served at all.
    pub suspension: Suspension,
    /// Where it is said that the SVID was revoked, as is pushed.
    pub revoked: Revoked,
}

impl ProxySettings {
    /// Access log on standard output, no audit, no spans, served by the caller's runtime, nothing reserved beyond the listeners.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(agent: SocketAddr, proxy_secret: Option<Zeroizing<String>>) -> Self {
        Self {
            agent,
            serves: true,
            proxy_secret,
            agent_uid: None,
            access_log: AccessLog::stdout(),
            audit: Audit::none(),
            spans: Spans::default(),
            workers: Workers::of_caller(),
            kill: Gate::default(),
            reserved: Vec::new(),
            suspension: Suspension::default(),
            revoked: Revoked::default(),
        }
    }

    /// Serves nothing while this is on.
    pub fn unless(mut self, suspension: Suspension) -> Self {
        self.suspension = suspension;
        self
    }

    /// Says there what is pushed of its own SVID.
    pub fn saying(mut self, revoked: Revoked) -> Self {
        self.revoked = revoked;
        self
    }

    /// Whether the agent serves anything.
    pub fn serving(mut self, serves: bool) -> Self {
        self.serves = serves;
        self
    }

    /// Only connections of this user are taken at the outbound port, where one is named.
    pub fn of_user(mut self, agent_uid: Option<u32>) -> Self {
        self.agent_uid = agent_uid;
        self
    }

    /// Addresses that are never reached through the egress guard.
    pub fn reserving(mut self, reserved: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.reserved.extend(reserved);
        self
    }

    /// Serves connections on these workers.
    pub fn served_by(mut self, workers: Workers) -> Self {
        self.workers = workers;
        self
    }

    /// Records requests there.
    pub fn recording_to(mut self, audit: Audit) -> Self {
        self.audit = audit;
        self
    }

    /// Sends spans of requests there.
    pub fn traced_to(mut self, spans: Spans) -> Self {
        self.spans = spans;
        self
    }

    /// Asks this gate; without one, everything is refused.
    pub fn stopped_by(mut self, kill: Gate) -> Self {
        self.kill = kill;
        self
    }

    /// Sends access log lines elsewhere.
    pub fn logging_to(mut self, access_log: AccessLog) -> Self {
        self.access_log = access_log;
        self
    }
}

impl std::fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secret = self.proxy_secret.as_ref().map(|_| "withheld");
        write!(f, "ProxySettings(agent {}, secret {secret:?})", self.agent)
    }
}

/// The data path: what every connection and request of this sidecar shares.
pub struct Proxy {
    /// The world.
    pub mesh: Mesh,
    /// What this sidecar presents.
    pub svid: SvidSource,
    /// What it trusts.
    pub trust: Trust,
    /// What it was told at start.
    pub settings: ProxySettings,
    /// What it answers for its agent.
    pub wellknown: WellKnown,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) live: connections::Connections,
    pub(crate) streams: streams::Streams,
    pub(crate) pairs: pair::Pairs,
    pub(crate) peers: PerWorker<peers::PeerPool>,
    pub(crate) agent: PerWorker<agent::AgentPool>,
    pub(crate) gates: gate::Gates,
    pub(crate) shares: gate::Shares,
    pub(crate) hops: hops::Hops,
    pub(crate) in_flight: gate::InFlight,
    pub(crate) traces: crate::request::trace::Traces,
    /// Bytes that are held for policy: bodies, and what they are read into.
    pub(crate) held: Arc<AtomicUsize>,
    turn: AtomicUsize,
    /// This process's own listeners, once they listen.
    pub(crate) listeners: ArcSwap<Vec<SocketAddr>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({:?})", self.settings)
    }
}

impl Proxy {
    /// A proxy that serves once [`serve_inbound`] and [`serve_outbound`] run. To be called inside a tokio runtime: it
    /// starts the task that looks at open connections and streams when the world changes.
    pub fn new(mesh: Mesh, svid: SvidSource, trust: Trust, settings: ProxySettings, wellknown: WellKnown) -> Arc<Self> {
        let proxy = Arc::new(Self {
            metrics: metrics::Metrics::register(),
            live: connections::Connections::default(),
            streams: streams::Streams::default(),
            pairs: pair::Pairs::default(),
            peers: settings.workers.each(peers::PeerPool::default),
            agent: settings
                .workers
                .each(|| agent::AgentPool::new(settings.agent, &settings.audit)),
            gates: gate::Gates::default(),
            shares: gate::Shares::default(),
            hops: hops::Hops::default(),
            in_flight: gate::InFlight::default(),
            traces: crate::request::trace::Traces::default(),
            held: Arc::default(),
            turn: AtomicUsize::new(0),
            listeners: ArcSwap::default(),
            mesh,
            svid,
            trust,
            settings,
            wellknown,
        });
        tokio::spawn(watch::run(Arc::downgrade(&proxy)));
        tokio::spawn(watch::suspended(Arc::downgrade(&proxy)));
        proxy
    }

    /// Live connections and requests in flight, for the admin port.
    pub fn connections(&self) -> serde_json::Value {
        serde_json::json!({
            "connections": self.live.list(),
            "requests": self.streams.len(),
            "held_bytes": self.held.load(Ordering::Relaxed),
        })
    }

    /// Cuts what is still in flight when the drain has ended, and waits a moment for how it ended to be recorded.
    pub(crate) async fn end_streams(&self) {
        self.streams
            .all()
            .iter()
            .for_each(|exchange| exchange.cut(Cut::Drained));
        let gone = async {
            while self.streams.len() > 0 {
                tokio::time::sleep(limits::LAST_WORDS / 10).await;
            }
        };
        let _ = tokio::time::timeout(limits::LAST_WORDS, gone).await;
    }

    /// Whose turn it is, where several will do.
    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    fn listens_on(&self, address: std::io::Result<SocketAddr>) {
        if let Ok(address) = address {
            self.listeners.rcu(|known| {
                let mut next = Vec::clone(known);
                next.push(address);
                next
            });
        }
    }
}

/// Serves calls from peers' sidecars until the drain starts.
pub async fn serve_inbound(listener: tokio::net::TcpListener, proxy: Arc<Proxy>, drain: DrainWatch) {
    proxy.listens_on(listener.local_addr());
    inbound::serve(listener, proxy, drain).await;
}

/// Serves calls of the sidecar's own agent. When the drain starts it goes on accepting, unwaited for: what the agent
/// still answers may need calls of its own.
pub async fn serve_outbound(listener: tokio::net::TcpListener, proxy: Arc<Proxy>, drain: DrainWatch) {
    proxy.listens_on(listener.local_addr());
    outbound::serve(listener, proxy, drain).await;
}

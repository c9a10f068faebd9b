//! The control plane as this sidecar sees it: one stream in, one snapshot out.

pub mod cache;
pub mod client;
pub mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aip_api::AgentName;
use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::sync::{mpsc, watch};

use crate::snapshot::Snapshot;

/// How long a request waits for what is missing about a peer. A push takes milliseconds; past a second the caller is
/// better off with an answer.
pub const LEARN_DEADLINE: Duration = Duration::from_secs(2);
/// How long "no such agent" is believed. Long enough to blunt a scan, short enough that a new agent is soon found.
const ABSENT_FOR: Duration = Duration::from_secs(5);
/// Peers that one sidecar may hold; past it new ones are refused until some are deregistered, or it restarts. The
/// control plane takes 13,000 subscriptions of one sidecar, and each peer is four.
pub const MAX_PEERS: usize = 3_000;
/// Names asked for and not yet sent on.
const WANTED: usize = 256;

/// Why a peer could not be learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unlearned {
    /// The registry has no such agent.
    #[error("no agent of this name is registered in the mesh")]
    Absent,
    /// The control plane did not answer in time, and nothing is held about it.
    #[error("the control plane is not reachable, and nothing is held about this agent")]
    Unreachable,
    /// This sidecar holds as many peers as it may.
    #[error("this sidecar already holds {MAX_PEERS} peers")]
    TooMany,
}

impl Unlearned {
    /// The stable reason.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Absent => "unknown_agent",
            Self::Unreachable => "registry_unreachable",
            Self::TooMany => "too_many_peers",
        }
    }
}

/// The current snapshot, and the way to learn more. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Mesh(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
    wanted: mpsc::Sender<AgentName>,
    absent: DashMap<AgentName, Instant>,
}

impl Mesh {
    /// A mesh that begins with `snapshot`; names that are asked for come out of the receiver.
    pub fn new(snapshot: Snapshot) -> (Self, mpsc::Receiver<AgentName>) {
        let (wanted, asked) = mpsc::channel(WANTED);
        let changed = watch::Sender::new(snapshot.revision);
        let snapshot = ArcSwap::from_pointee(snapshot);
        (
            Self(Arc::new(Inner {
                snapshot,
                changed,
                wanted,
                absent: DashMap::new(),
            })),
            asked,
        )
    }

    /// The current version of the world.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// Swaps in the next version.
    pub fn replace(&self, snapshot: Snapshot) {
        let revision = snapshot.revision;
        self.0.snapshot.store(Arc::new(snapshot));
        self.0.changed.send_replace(revision);
    }

    /// Notes that the registry has no such agent.
    pub fn absent(&self, agent: AgentName) {
        let now = Instant::now();
        self.0.absent.retain(|_, until| *until > now);
        if self.0.absent.len() < MAX_PEERS {
            self.0.absent.insert(agent, now + ABSENT_FOR);
        }
        // Whoever waits for this agent looks again.
        self.0.changed.send_modify(|_| ());
    }

    /// Changes of the snapshot; the value is its revision.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The snapshot once it holds `agent`: at once where it does; else asked for, within [`LEARN_DEADLINE`]. All who
    /// wait for one agent wait for the same push.
    ///
    /// # Errors
    /// No such agent, or no answer in time.
    pub async fn learn(&self, agent: &AgentName) -> Result<Arc<Snapshot>, Unlearned> {
        let snapshot = self.snapshot();
        if snapshot.agents.contains_key(agent) {
            return Ok(snapshot);
        }
        if self.is_absent(agent) {
            return Err(Unlearned::Absent);
        }
        if snapshot.agents.len() >= MAX_PEERS {
            return Err(Unlearned::TooMany);
        }
        let mut changed = self.subscribe();
        if self.0.wanted.try_send(agent.clone()).is_err() {
            return Err(Unlearned::Unreachable);
        }
        let arrived = async {
            loop {
                let snapshot = self.snapshot();
                if snapshot.agents.contains_key(agent) {
                    return Ok(snapshot);
                }
                if self.is_absent(agent) {
                    return Err(Unlearned::Absent);
                }
                if changed.changed().await.is_err() {
                    return Err(Unlearned::Unreachable);
                }
            }
        };
        tokio::time::timeout(LEARN_DEADLINE, arrived)
            .await
            .unwrap_or(Err(Unlearned::Unreachable))
    }

    /// Whether the registry said a moment ago that it has no such agent.
    pub(crate) fn is_absent(&self, agent: &AgentName) -> bool {
        self.0.absent.get(agent).is_some_and(|until| *until > Instant::now())
    }
}

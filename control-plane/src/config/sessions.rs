//! Who is connected, who runs what, and who acknowledged which revision.

mod open;
mod shown;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip_api::AgentName;
use aip_runtime::x509::PeerIdentity;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::refusal::{Reason, Refusal};
use crate::registry::Registry;

pub(super) use open::Session;
pub use shown::{Acks, Ahead, Nack, Sidecar, Vanished};

/// Sidecars that left are shown for this long, and at most so many: what they run is not known any more, that they
/// were there is. One that vanished is named as long, since it may still serve; one that said that it ends is not.
const LEFT_SECONDS: u64 = 600;
const MAX_LEFT: usize = 1_000;
/// A stream that broke off is waited for this long: twice the longest pause between two tries of a sidecar. Whoever has not
/// come back by then is named, and not waited for.
const BACK_SECONDS: u64 = 30;
/// Between two looks of who waits, for what no acknowledgement tells: that somebody has been gone for long, or drifted.
const LOOK: Duration = Duration::from_secs(1);
/// Agents whose sidecars are remembered to have seen a later revision than the store has: what a person looks at.
const MAX_AHEAD: usize = 64;
/// Acknowledged revisions that are remembered of each sidecar.
const ACKS: usize = 64;
/// Rejections that are remembered of each sidecar: what a person looks at.
const MAX_NACKS: usize = 16;

#[derive(Debug)]
struct Held {
    shown: Sidecar,
    // Resources that its Hello listed.
    listed: usize,
    cancel: CancellationToken,
    acks: VecDeque<(u64, Instant)>,
}

impl Held {
    /// Whether this is a sidecar that left and `new` stands in its place: it presents the same certificate, or one of a
    /// later generation, with which that of the dead one was revoked. Nothing is waited for from the dead one.
    fn left_before(&self, new: &Sidecar) -> bool {
        !self.shown.connected && (self.shown.serial == new.serial || self.shown.generation < new.generation)
    }
}

/// All sessions of this process.
#[derive(Debug)]
pub struct Sessions {
    by_id: Mutex<BTreeMap<u64, Held>>,
    next: Mutex<u64>,
    acked: watch::Sender<()>,
    /// Of agents whose sidecars were refused since they have seen a later revision: the latest one.
    ahead: Mutex<BTreeMap<AgentName, u64>>,
    clock: Clock,
}

impl Sessions {
    /// None yet.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            by_id: Mutex::default(),
            next: Mutex::new(0),
            acked: watch::Sender::new(()),
            ahead: Mutex::default(),
            clock,
        })
    }

    /// A sidecar of this agent was refused: it has seen this revision, which the store does not have.
    pub(super) fn refused_as_older(&self, agent: &AgentName, seen: u64) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.len() < MAX_AHEAD || ahead.contains_key(agent) {
            let known = ahead.entry(agent.clone()).or_insert(seen);
            *known = seen.max(*known);
        }
    }

    /// Whose sidecars showed what was signed at a later revision than `revision`: the store was restored from a copy.
    pub fn ahead_of(&self, revision: u64) -> Vec<Ahead> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.retain(|_, seen| *seen > revision);
        let shown = |(agent, seen): (&AgentName, &u64)| Ahead {
            agent: agent.to_string(),
            seen: *seen,
        };
        ahead.iter().map(shown).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Held>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session; an older one of the same instance ends.
    pub(super) fn open(
        self: &Arc<Self>,
        peer: &PeerIdentity,
        address: String,
        hello: (&str, &str),
        listed: usize,
        limits: super::Limits,
    ) -> Result<Session, Refusal> {
        let shown = Sidecar::connected(peer, address, hello, self.clock.now());
        let mut by_id = self.lock();
        supersede(&mut by_id, &shown);
        room(&by_id, &shown.agent, listed, limits)?;
        let cancel = CancellationToken::new();
        let id = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        by_id.insert(
            id,
            Held {
                shown,
                listed,
                cancel: cancel.clone(),
                acks: VecDeque::new(),
            },
        );
        metrics::gauge!("aip_config_sessions").increment(1.0);
        Ok(Session {
            sessions: self.clone(),
            id,
            cancel,
        })
    }

    /// All sidecars, connected ones and ones that left lately.
    pub fn list(&self) -> Vec<Sidecar> {
        let now = self.clock.now();
        let mut by_id = self.lock();
        by_id.retain(|_, h| h.shown.disconnected_at.is_none_or(|at| at + LEFT_SECONDS > now));
        let mut all: Vec<_> = by_id.values().map(|h| h.shown.clone()).collect();
        all.sort_by(|a, b| (&a.agent, &a.instance).cmp(&(&b.agent, &b.instance)));
        all
    }

    /// How many streams are open.
    pub fn connected(&self) -> usize {
        self.lock().values().filter(|h| h.shown.connected).count()
    }

    /// Where `revision` stands now; `committed` is when it was committed, `drifted` are the agents that drifted: their sidecars
    /// have suspended themselves, and get nothing before a person lets them back in.
    pub fn acks(&self, revision: u64, committed: Option<Instant>, drifted: &BTreeSet<AgentName>) -> Acks {
        let now = self.clock.now();
        let mut acks = Acks::of(revision);
        let mut last: Option<Instant> = None;
        for held in self.lock().values().filter(|held| !held.shown.ended) {
            let shown = &held.shown;
            let name = format!("{}/{}", shown.agent, shown.instance);
            if shown.revision < revision {
                let left = shown.disconnected_at.filter(|_| !shown.connected);
                match left {
                    None => acks.missing.push(name),
                    Some(at) if shown.not_after <= now || at + LEFT_SECONDS <= now => {}
                    Some(_) if drifted.iter().any(|agent| agent.as_str() == shown.agent) => acks.drifted.push(name),
                    Some(at) => {
                        acks.vanished.push(Vanished {
                            sidecar: name.clone(),
                            not_after: shown.not_after,
                        });
                        if at + BACK_SECONDS > now {
                            acks.missing.push(name);
                        }
                    }
                }
                continue;
            }
            // What it refuses of another revision says nothing of this one.
            let refused = shown.nacks.iter().any(|n| n.revision == revision);
            if refused {
                acks.nacked.push(name)
            } else {
                acks.acked.push(name)
            }
            let at = held.acks.iter().find(|(r, _)| *r >= revision).map(|(_, at)| *at);
            last = last.max(at);
        }
        if let (true, Some(committed), Some(last)) = (acks.missing.is_empty(), committed, last) {
            acks.ms = Some(last.saturating_duration_since(committed).as_secs_f64() * 1_000.0);
        }
        acks
    }

    /// As [`Self::acks`], waiting until nobody is missing, or until `wait` is over.
    ///
    /// # Errors
    /// The store fails.
    pub async fn wait_acks(
        &self,
        registry: &Registry,
        revision: u64,
        committed: Option<Instant>,
        wait: Duration,
    ) -> Result<Acks, Refusal> {
        let mut changed = self.acked.subscribe();
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let drifted = registry.drifted_agents().await?;
            let look = deadline.min(tokio::time::Instant::now() + LOOK);
            loop {
                let acks = self.acks(revision, committed, &drifted);
                if acks.missing.is_empty() || tokio::time::Instant::now() >= deadline {
                    return Ok(acks);
                }
                if tokio::time::timeout_at(look, changed.changed()).await.is_err() {
                    break;
                }
            }
        }
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut Held)) {
        if let Some(held) = self.lock().get_mut(&id) {
            change(held);
        }
        self.acked.send_replace(());
    }
}

/// Ends the older streams of the same instance, and forgets the dead processes in whose place this one stands.
fn supersede(by_id: &mut BTreeMap<u64, Held>, new: &Sidecar) {
    by_id.retain(|_, held| {
        let own = held.shown.agent == new.agent;
        let stays = !own || held.shown.instance != new.instance && !held.left_before(new);
        if !stays {
            held.cancel.cancel();
        }
        stays
    });
}

/// Whether there is room for one more stream of `agent`, and for what it lists.
fn room(by_id: &BTreeMap<u64, Held>, agent: &str, listed: usize, limits: super::Limits) -> Result<(), Refusal> {
    let (mut total, mut own, mut listed) = (0, 0, listed);
    for held in by_id.values().filter(|h| h.shown.connected) {
        total += 1;
        if held.shown.agent == agent {
            own += 1;
            listed += held.listed;
        }
    }
    if listed > limits.listed {
        let detail = format!(
            "the streams of {agent} list {listed} resources; at most {}",
            limits.listed
        );
        return Err(Refusal::new(Reason::SessionLimit, detail));
    }
    if total < limits.sessions && own < limits.per_agent {
        return Ok(());
    }
    let (sessions, per_agent) = (limits.sessions, limits.per_agent);
    let detail = format!("{total} streams, {own} of {agent}; at most {sessions} and {per_agent}");
    Err(Refusal::new(Reason::SessionLimit, detail))
}

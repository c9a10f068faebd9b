//! Who has taken which kill set, who was heard of last, and when.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip_api::AgentName;
use aip_api::kill::Lease;
use aip_api::wire::KillAck;
use aip_runtime::boottime;
use aip_runtime::x509::PeerIdentity;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::bound::{Known, stopped_by};
use super::publish::Published;
use super::shown::{Away, Enforced, Missing, Progress};
use crate::clock::Clock;
use crate::refusal::{Reason, Refusal};
use crate::registry::Registry;
use crate::registry::kills::GrantedLease;
use crate::registry::records::SvidRecord;

/// Streams in all, and of one agent: as many as there are config streams.
const MAX_STREAMS: usize = 20_000;
const MAX_STREAMS_EACH: usize = 256;
/// Acknowledged sets that are remembered of each sidecar.
const ACKS: usize = 16;
/// Longest reason of a rejection that is kept, in characters.
const MAX_REASON: usize = 64;

/// An acknowledgement.
#[derive(Debug, Clone)]
struct Acked {
    version: (u64, u64),
    at: Instant,
    ack: KillAck,
}

/// One process of a sidecar.
#[derive(Debug)]
struct Process {
    agent: AgentName,
    instance: String,
    serial: String,
    not_after: u64,
    /// The stream that is open, and what ends it.
    stream: Option<(u64, CancellationToken)>,
    acks: VecDeque<Acked>,
    /// The highest version that it is known to hold.
    held: Option<(u64, u64)>,
    rejected: Option<String>,
    lease: Option<Lease>,
    /// When a beat was answered last, of the boot clock.
    answered: Duration,
}

/// All processes that may run.
#[derive(Debug)]
pub struct Board {
    processes: Mutex<BTreeMap<String, Process>>,
    streams: Mutex<u64>,
    changed: watch::Sender<()>,
    clock: Clock,
}

/// One open stream; dropped, its process is out of reach.
#[derive(Debug)]
pub(super) struct Open {
    board: Arc<Board>,
    instance: String,
    id: u64,
    pub(super) cancel: CancellationToken,
}

impl Board {
    /// Those that were granted a lease before this process began: until one comes back, no beat of it was answered since
    /// now.
    ///
    /// # Errors
    /// The store fails.
    pub async fn restore(registry: &Registry) -> Result<Arc<Self>, Refusal> {
        let mut processes = BTreeMap::new();
        let svids = svids(registry).await?;
        for granted in registry.granted_leases().await? {
            let GrantedLease {
                agent,
                instance,
                serial,
                lease,
            } = granted;
            let not_after = svids.get(&agent).copied().unwrap_or_default();
            let process = Process {
                agent,
                instance: instance.clone(),
                serial,
                not_after,
                stream: None,
                acks: VecDeque::new(),
                held: None,
                rejected: None,
                lease: Some(lease),
                answered: boottime(),
            };
            processes.insert(instance, process);
        }
        Ok(Arc::new(Self {
            processes: Mutex::new(processes),
            streams: Mutex::new(0),
            changed: watch::Sender::new(()),
            clock: registry.clock.clone(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream; an older one of the same process ends. A process that presents the certificate of one that is
    /// gone is its successor: nothing is waited for from the dead one.
    pub(super) fn open(self: &Arc<Self>, peer: &PeerIdentity, instance: &str) -> Result<Open, Refusal> {
        let mut processes = self.lock();
        let agent = &peer.id.agent;
        if let Some(other) = processes.get(instance).filter(|p| p.agent != *agent) {
            let detail = format!("this instance is one of {}", other.agent);
            return Err(Refusal::new(Reason::InstanceInvalid, detail));
        }
        let open = processes
            .values()
            .filter(|p| p.stream.is_some() && p.instance != instance);
        let (mut total, mut own) = (0, 0);
        for process in open {
            total += 1;
            own += usize::from(process.agent == *agent);
        }
        if total >= MAX_STREAMS || own >= MAX_STREAMS_EACH {
            let detail = format!("{total} streams, {own} of {agent}; at most {MAX_STREAMS} and {MAX_STREAMS_EACH}");
            return Err(Refusal::new(Reason::SessionLimit, detail));
        }
        processes.retain(|_, p| {
            p.agent != *agent || p.stream.is_some() || p.serial != peer.serial || p.instance == instance
        });
        let id = {
            let mut next = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let cancel = CancellationToken::new();
        let process = processes.entry(instance.to_owned()).or_insert_with(|| Process {
            agent: agent.clone(),
            instance: instance.to_owned(),
            serial: String::new(),
            not_after: 0,
            stream: None,
            acks: VecDeque::new(),
            held: None,
            rejected: None,
            lease: None,
            answered: Duration::ZERO,
        });
        process.serial.clone_from(&peer.serial);
        process.not_after = process.not_after.max(peer.not_after);
        if let Some((_, older)) = process.stream.replace((id, cancel.clone())) {
            older.cancel();
        }
        drop(processes);
        metrics::gauge!("aip_kill_streams").increment(1.0);
        self.changed.send_replace(());
        Ok(Open {
            board: self.clone(),
            instance: instance.to_owned(),
            id,
            cancel,
        })
    }

    /// Forgets processes that have certainly ended; answers of which the store still notes what they were granted.
    ///
    /// # Errors
    /// The store fails.
    pub async fn forget_ended(&self, registry: &Registry) -> Result<Vec<(AgentName, String)>, Refusal> {
        // Read first: whoever comes meanwhile stands on the board before anything is noted of it.
        let granted = registry.granted_leases().await?;
        let now = self.clock.now();
        let mut processes = self.lock();
        processes.retain(|_, process| process.stream.is_some() || process.not_after > now);
        let gone = granted.into_iter().filter(|g| !processes.contains_key(&g.instance));
        // The rest next time.
        Ok(gone
            .map(|g| (g.agent, g.instance))
            .take(crate::store::MAX_OPS)
            .collect())
    }

    /// Where the set `version` stands; `published` is the one in force.
    pub async fn progress(
        &self,
        registry: &Registry,
        version: (u64, u64),
        published: &Published,
    ) -> Result<Progress, Refusal> {
        // Of a process that is away, the last SVID that its agent got may be its own.
        let svids = svids(registry).await?;
        let (now, asked) = (self.clock.now(), boottime());
        let committed = published.committed.filter(|_| published.set.version() == version);
        let mut progress = Progress {
            term: version.0,
            epoch: version.1,
            enforced: Vec::new(),
            missing: Vec::new(),
            away: Vec::new(),
            p50_ms: None,
            p99_ms: None,
            last_ms: None,
        };
        let processes = self.lock();
        for (agent, not_after) in &svids {
            if *not_after > now && !processes.values().any(|process| process.agent == *agent) {
                progress.away.push(Away {
                    agent: agent.to_string(),
                    stopped_by: *not_after,
                });
            }
        }
        for process in processes.values() {
            let sidecar = format!("{}/{}", process.agent, process.instance);
            if process.held >= Some(version) {
                progress.enforced.push(process.enforced(sidecar, version, committed));
                continue;
            }
            let connected = process.stream.is_some();
            let latest = svids.get(&process.agent).copied().unwrap_or_default();
            // Also of one that is connected: it may have renewed since it opened its stream.
            let not_after = process.not_after.max(latest);
            let (stopped_by, stopped_how) = stopped_by(process.known(asked, not_after), now);
            if !connected && stopped_by < now {
                // Certainly stopped already.
                continue;
            }
            progress.missing.push(Missing {
                sidecar,
                connected,
                rejected: process.rejected.clone(),
                stopped_by,
                stopped_how,
            });
        }
        Ok(progress.timed())
    }

    /// As [`Self::progress`], waiting until nobody is missing, or until `wait` is over.
    ///
    /// # Errors
    /// The store fails.
    pub async fn wait(
        &self,
        registry: &Registry,
        version: (u64, u64),
        publisher: &super::Publisher,
        wait: Duration,
    ) -> Result<Progress, Refusal> {
        let mut changed = self.changed.subscribe();
        let deadline = tokio::time::Instant::now() + wait;
        // Cheap, since each acknowledgement of a fleet comes by here; the whole is put together once.
        while self.is_awaited(version) {
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                break;
            }
        }
        self.progress(registry, version, &publisher.current()).await
    }

    /// Whether a process that may run has not enforced it.
    fn is_awaited(&self, version: (u64, u64)) -> bool {
        let (now, asked) = (self.clock.now(), boottime());
        self.lock().values().any(|process| {
            let known = process.known(asked, process.not_after);
            process.held < Some(version) && (process.stream.is_some() || stopped_by(known, now).0 >= now)
        })
    }

    fn update(&self, open: &Open, change: impl FnOnce(&mut Process)) {
        let mut processes = self.lock();
        let process = processes.get_mut(&open.instance);
        if let Some(process) = process.filter(|p| p.stream.as_ref().is_some_and(|(id, _)| *id == open.id)) {
            change(process);
        }
    }
}

/// When the last SVID of each agent ends.
async fn svids(registry: &Registry) -> Result<BTreeMap<AgentName, u64>, Refusal> {
    let snapshot = registry.store.snapshot(crate::registry::keys::SVIDS).await?;
    let mut last = BTreeMap::new();
    for entry in &snapshot.entries {
        let svid: SvidRecord = crate::registry::decode(entry)?.value;
        let held = last.entry(svid.agent).or_insert(0);
        *held = svid.not_after.max(*held);
    }
    Ok(last)
}

impl Process {
    fn known(&self, asked: Duration, not_after: u64) -> Known {
        Known {
            lease: self.lease,
            silent: asked.saturating_sub(self.answered),
            not_after,
        }
    }

    fn enforced(&self, sidecar: String, version: (u64, u64), committed: Option<Instant>) -> Enforced {
        let acked = self.acks.iter().find(|acked| acked.version >= version);
        let since = |acked: &Acked| {
            let committed = committed?;
            Some(acked.at.saturating_duration_since(committed).as_secs_f64() * 1_000.0)
        };
        Enforced {
            sidecar,
            ms: acked.and_then(since),
            enforced_micros: acked.map_or(0, |acked| acked.ack.enforced_micros),
            connections_cut: acked.map_or(0, |acked| acked.ack.connections_cut),
            streams_cut: acked.map_or(0, |acked| acked.ack.streams_cut),
        }
    }
}

impl Open {
    /// What it was granted last.
    pub(super) fn granted(&self) -> Option<Lease> {
        self.board.lock().get(&self.instance).and_then(|process| process.lease)
    }

    /// It holds this set already.
    pub(super) fn holds(&self, version: (u64, u64)) {
        self.board
            .update(self, |process| process.held = process.held.max(Some(version)));
        self.board.changed.send_replace(());
    }

    /// It answered a push.
    pub(super) fn answered(&self, ack: KillAck) {
        let version = (ack.term, ack.epoch);
        let rejected: String = ack.rejected.chars().take(MAX_REASON).collect();
        self.board.update(self, |process| {
            process.rejected = Some(rejected.clone()).filter(|reason| !reason.is_empty());
            if !rejected.is_empty() {
                return;
            }
            process.held = process.held.max(Some(version));
            if process.acks.len() == ACKS {
                process.acks.pop_front();
            }
            process.acks.push_back(Acked {
                version,
                at: Instant::now(),
                ack,
            });
        });
        self.board.changed.send_replace(());
    }

    /// A beat of it is about to be answered with this grant.
    pub(super) fn beats(&self, lease: Lease) {
        self.board.update(self, |process| {
            process.lease = Some(lease);
            process.answered = boottime();
        });
    }

    /// It has drained, and is no more.
    pub(super) fn ended(&self) {
        let mut processes = self.board.lock();
        let own = processes
            .get(&self.instance)
            .is_some_and(|p| p.stream.as_ref().is_some_and(|(id, _)| *id == self.id));
        if own {
            processes.remove(&self.instance);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("aip_kill_streams").decrement(1.0);
        self.board.update(self, |process| process.stream = None);
        self.board.changed.send_replace(());
    }
}

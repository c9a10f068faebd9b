//! Who has taken which kill set, who was heard of last, and when.

mod open;
mod places;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip_api::AgentName;
use aip_api::kill::Lease;
use aip_api::wire::KillAck;
use aip_runtime::boottime;
use aip_runtime::x509::PeerIdentity;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::grants::Grants;
use super::line::{Spoken, Svids};
use super::publish::Published;
use super::shown::{Away, Enforced, Missing, Progress, Standing};
use crate::clock::Clock;
use crate::refusal::Refusal;
use crate::registry::records::SvidRecord;
use crate::registry::restored::ended_by;
use crate::registry::{Registry, keys};
pub(super) use open::Open;
use places::{give_way, has_room, row};

/// A stream that broke off is waited for this long, in seconds: twice the longest pause between two tries of a sidecar. Whoever
/// has not come back by then is named with its certain end, and not waited for.
const BACK_SECONDS: u64 = 10;
/// Between two looks of who waits, for what no acknowledgement tells: that somebody has been gone for long.
const LOOK: Duration = Duration::from_secs(1);

/// An acknowledgement.
#[derive(Debug, Clone)]
struct Acked {
    version: (u64, u64),
    at: Instant,
    ack: KillAck,
}

/// Whether a process that has not enforced a set may do so soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Its stream is open, or was a moment ago.
    Soon,
    /// It has been out of reach for longer.
    Vanished,
    /// So has it, and it reported a drift before: it serves nothing. What its agent does is not known.
    Drifted,
}

/// How a process comes to its stream.
#[derive(Debug, Clone)]
pub(super) struct Comes {
    /// For whom it speaks by the SVID that it shows.
    pub(super) spoken: Spoken,
    /// Its SVID may be revoked, and the stream is for orders alone.
    pub(super) orders_only: bool,
}

/// A stream that is open.
#[derive(Debug)]
struct Stream {
    id: u64,
    /// What ends it.
    cancel: CancellationToken,
    orders_only: bool,
}

/// The lines of SVIDs whose sidecars reported a drift.
type Drifted = BTreeMap<AgentName, BTreeSet<String>>;

/// One process of a sidecar.
#[derive(Debug)]
struct Process {
    agent: AgentName,
    instance: String,
    serial: String,
    /// The line of SVIDs that this serial is of: it renews without a word to its stream.
    line: String,
    /// How many of it were issued before this serial.
    nth: u64,
    /// It came as one that stands in the place of those of its line that are gone, and not as one of whom nothing is known but that
    /// it hears of orders.
    succeeds: bool,
    not_after: u64,
    stream: Option<Stream>,
    acks: VecDeque<Acked>,
    /// The highest version that it is known to hold.
    held: Option<(u64, u64)>,
    rejected: Option<String>,
    grants: Grants,
    /// The leases that the store has of it.
    noted: Vec<Lease>,
    /// It has said that it ends. It is shown among those that are away, and nobody waits for it: started again out of
    /// reach, it goes on with what it left.
    drained: bool,
    /// When its stream ended, Unix seconds; of one that has not come since this process began, that.
    left: u64,
}

/// By agent and instance: an instance is its process's own word, and peers know it.
type Processes = BTreeMap<(AgentName, String), Process>;

/// All processes that may run.
#[derive(Debug)]
pub struct Board {
    processes: Mutex<Processes>,
    streams: Mutex<u64>,
    changed: watch::Sender<()>,
    /// Asked for [`Clock::steady`]: nobody has stopped because a clock was set ahead.
    clock: Clock,
    /// When this process began, Unix seconds.
    began: u64,
    /// It saw since that the store was restored from a copy.
    restored: AtomicBool,
}

impl Board {
    /// Those that were granted a lease before this process began: until one comes back, no beat of it was answered since
    /// now.
    ///
    /// # Errors
    /// The store fails.
    pub async fn restore(registry: &Registry) -> Result<Arc<Self>, Refusal> {
        let mut processes = BTreeMap::new();
        // Read once, and first: what is reckoned from it agrees, and nobody can have set the clock meanwhile.
        let began = registry.clock.steady();
        let svids = Svids::read(registry).await?;
        for granted in registry.granted_leases().await? {
            let line = granted.line.unwrap_or_else(|| granted.serial.clone());
            // Of what was noted before lines were, the last SVID that its agent got may be its own.
            let latest = || svids.agents().find(|(agent, _)| **agent == granted.agent);
            let own = svids.end_of(&granted.agent, &line);
            let not_after = own.or_else(|| latest().map(|(_, end)| end)).unwrap_or_default();
            let held = registry.record::<SvidRecord>(keys::svid(&granted.agent, &granted.serial));
            let process = Process {
                line,
                nth: held.await?.map(|held| held.value.nth).unwrap_or_default(),
                succeeds: true,
                serial: granted.serial,
                not_after,
                grants: Grants::noted(&granted.leases, boottime()),
                noted: granted.leases,
                drained: granted.drained,
                left: began,
                ..Process::new(granted.agent.clone(), granted.instance.clone())
            };
            processes.insert((granted.agent, granted.instance), process);
        }
        Ok(Arc::new(Self {
            processes: Mutex::new(processes),
            streams: Mutex::new(0),
            changed: watch::Sender::new(()),
            clock: registry.clock.clone(),
            began,
            restored: AtomicBool::new(false),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream; an older one of the same process ends. A process that presents the certificate of one that is
    /// gone, or one that was renewed from it, is its successor: nothing is waited for from the dead one. Whoever names a
    /// process that another SVID stands for has a row of its own beside that one's: it may be that process, joined anew, and it
    /// may be another that wants to be taken for it.
    ///
    /// # Errors
    /// As many are open as may be.
    pub(super) fn open(self: &Arc<Self>, peer: &PeerIdentity, instance: &str, comes: Comes) -> Result<Open, Refusal> {
        let mut processes = self.lock();
        let agent = &peer.id.agent;
        let key = row(&processes, peer, instance, &comes.spoken);
        let Comes { spoken, orders_only } = comes;
        if orders_only {
            give_way(&mut processes, &key, &spoken.line, self.clock.now());
        }
        has_room(&processes, &key, orders_only)?;
        let is_succeeded = |p: &Process| {
            let is_gone = p.agent == *agent && p.line == spoken.line && p.stream.is_none();
            is_gone && (spoken.succeeds || !p.succeeds)
        };
        // Of a name that is free again nothing is left.
        processes.retain(|other, p| match *other == key {
            true => p.line == spoken.line,
            false => !is_succeeded(p),
        });
        let id = {
            let mut next = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let cancel = CancellationToken::new();
        let new = || Process::new(agent.clone(), key.1.clone());
        let process = processes.entry(key.clone()).or_insert_with(new);
        process.drained = false;
        process.serial.clone_from(&peer.serial);
        process.line.clone_from(&spoken.line);
        process.nth = spoken.nth;
        process.succeeds |= spoken.succeeds;
        process.not_after = process.not_after.max(peer.not_after);
        let stream = Stream {
            id,
            cancel: cancel.clone(),
            orders_only,
        };
        if let Some(older) = process.stream.replace(stream) {
            older.cancel.cancel();
        }
        drop(processes);
        metrics::gauge!("aip_kill_streams").increment(1.0);
        self.changed.send_replace(());
        Ok(Open {
            board: self.clone(),
            process: key,
            id,
            line: spoken.line,
            cancel,
            orders_only,
        })
    }

    /// Forgets processes that have certainly ended; answers of which the store still notes what they were granted.
    ///
    /// # Errors
    /// The store fails.
    pub async fn forget_ended(&self, registry: &Registry) -> Result<Vec<(AgentName, String)>, Refusal> {
        // Read first: whoever comes meanwhile stands on the board before anything is noted of it.
        let granted = registry.granted_leases().await?;
        let svids = Svids::read(registry).await?;
        let now = self.clock.steady();
        let mut processes = self.lock();
        processes.retain(|_, process| process.stream.is_some() || process.not_after(&svids) > now);
        let granted = granted.into_iter().map(|g| (g.agent, g.instance));
        // The rest next time.
        let gone = granted.filter(|key| !processes.contains_key(key));
        Ok(gone.take(crate::store::MAX_OPS).collect())
    }

    /// Where the set `version` stands; `published` is the one in force.
    pub async fn progress(
        &self,
        registry: &Registry,
        version: (u64, u64),
        published: &Published,
    ) -> Result<Progress, Refusal> {
        let (svids, drifted) = (Svids::read(registry).await?, registry.drifted_lines().await?);
        let (now, asked) = (self.clock.steady(), boottime());
        let committed = published.committed.filter(|_| published.set.version() == version);
        let mut progress = Progress {
            term: version.0,
            epoch: version.1,
            enforced: Vec::new(),
            missing: Vec::new(),
            vanished: Vec::new(),
            drifted: Vec::new(),
            away: Vec::new(),
            unknown_until: self.unknown_until(registry).await?.filter(|until| *until > now),
            p50_ms: None,
            p99_ms: None,
            last_ms: None,
        };
        let processes = self.lock();
        progress.away.extend(away(&processes, &svids, now));
        for process in processes.values().filter(|process| !process.drained) {
            let sidecar = format!("{}/{}", process.agent, process.instance);
            if process.held >= Some(version) {
                progress.enforced.push(process.enforced(sidecar, version, committed));
                continue;
            }
            let connected = process.stream.is_some();
            let (standing, not_after) = (process.standing(&drifted, now), process.not_after(&svids));
            let (stopped_by, stopped_how) = match standing {
                // What it serves is stopped: until then it may come and be told to end its agent.
                Reach::Drifted => (not_after, "svid"),
                Reach::Soon | Reach::Vanished => process.grants.stopped_by(asked, not_after, now),
            };
            if !connected && stopped_by < now {
                // Certainly stopped already.
                continue;
            }
            let of = match standing {
                Reach::Soon => &mut progress.missing,
                Reach::Vanished => &mut progress.vanished,
                Reach::Drifted => &mut progress.drifted,
            };
            of.push(Missing {
                sidecar,
                connected,
                rejected: process.rejected.clone(),
                stopped_by,
                stopped_how,
            });
        }
        Ok(progress.timed())
    }

    /// A sidecar has shown what the store would know if it were none that was restored from a copy.
    pub fn saw_restored(&self) {
        self.restored.store(true, Ordering::Relaxed);
    }

    /// Until when processes may run of which the store does not know.
    async fn unknown_until(&self, registry: &Registry) -> Result<Option<u64>, Refusal> {
        let seen = self.restored.load(Ordering::Relaxed).then(|| ended_by(self.began));
        Ok(registry.unknown_until().await?.max(seen))
    }

    /// Notes in the store what was seen, for the process after this one. Not at once: a change would raise the revision, and
    /// by that sidecars tell, when they greet, how far behind the store is.
    ///
    /// # Errors
    /// The store fails.
    pub async fn note_restored(&self, registry: &Registry) -> Result<(), Refusal> {
        match self.restored.load(Ordering::Relaxed) {
            true => registry.note_restored(self.began).await,
            false => Ok(()),
        }
    }

    /// Every sidecar that may run.
    ///
    /// # Errors
    /// The store fails.
    pub async fn standing(&self, registry: &Registry) -> Result<Vec<Standing>, Refusal> {
        let svids = Svids::read(registry).await?;
        let (now, asked) = (self.clock.steady(), boottime());
        let processes = self.lock();
        let standing = processes.values().map(|process| {
            let (runs_until, stopped_how) = process.grants.stopped_by(asked, process.not_after(&svids), now);
            Standing {
                agent: process.agent.to_string(),
                instance: process.instance.clone(),
                enforced: process.held,
                runs_until,
                stopped_how,
                unreachable_since: process.stream.is_none().then_some(process.left),
                drained: process.drained,
            }
        });
        Ok(standing.collect())
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
        let svids = Svids::read(registry).await?;
        let mut drifted = registry.drifted_lines().await?;
        let mut look = tokio::time::Instant::now() + LOOK;
        // Cheap, since each acknowledgement of a fleet comes by here; the whole is put together once.
        while self.is_awaited(version, &svids, &drifted) {
            let until = deadline.min(look);
            if tokio::time::timeout_at(until, changed.changed()).await.is_err() {
                if until == deadline {
                    break;
                }
                drifted = registry.drifted_lines().await?;
                look = tokio::time::Instant::now() + LOOK;
            }
        }
        self.progress(registry, version, &publisher.current()).await
    }

    /// Whether a process that may say so soon has not enforced it.
    fn is_awaited(&self, version: (u64, u64), svids: &Svids, drifted: &Drifted) -> bool {
        let (now, asked) = (self.clock.steady(), boottime());
        self.lock().values().any(|process| {
            let (at, _) = process.grants.stopped_by(asked, process.not_after(svids), now);
            let may_run = process.stream.is_some() || at >= now;
            let soon = process.standing(drifted, now) == Reach::Soon;
            !process.drained && process.held < Some(version) && may_run && soon
        })
    }

    fn update(&self, open: &Open, change: impl FnOnce(&mut Process)) {
        let mut processes = self.lock();
        let process = processes.get_mut(&open.process);
        if let Some(process) = process.filter(|p| p.stream.as_ref().is_some_and(|stream| stream.id == open.id)) {
            change(process);
        }
    }
}

/// The agents of which nothing is known to run, and which have an SVID that has not ended.
fn away(processes: &Processes, svids: &Svids, now: u64) -> impl Iterator<Item = Away> {
    let is_away = move |agent: &AgentName| {
        let mut own = processes.values().filter(|process| process.agent == *agent).peekable();
        own.peek().is_none() || own.any(|process| process.drained)
    };
    let agents = svids.agents();
    agents
        .filter(move |(agent, not_after)| *not_after > now && is_away(agent))
        .map(|(agent, stopped_by)| Away {
            agent: agent.to_string(),
            stopped_by,
        })
}

impl Process {
    fn new(agent: AgentName, instance: String) -> Self {
        Self {
            agent,
            instance,
            serial: String::new(),
            line: String::new(),
            nth: 0,
            succeeds: false,
            not_after: 0,
            stream: None,
            acks: VecDeque::new(),
            held: None,
            rejected: None,
            grants: Grants::unknown(),
            noted: Vec::new(),
            drained: false,
            left: 0,
        }
    }

    /// Whether an answer of it can come.
    fn standing(&self, drifted: &Drifted, now: u64) -> Reach {
        if self.stream.is_some() || self.left + BACK_SECONDS > now {
            return Reach::Soon;
        }
        // Not any process of an agent that drifted: another one may serve until its SVID ends.
        match drifted.get(&self.agent).is_some_and(|lines| lines.contains(&self.line)) {
            true => Reach::Drifted,
            false => Reach::Vanished,
        }
    }

    /// When the last SVID ends that it may hold: it may have renewed since it opened its stream.
    fn not_after(&self, svids: &Svids) -> u64 {
        let latest = svids.end_of(&self.agent, &self.line).unwrap_or_default();
        self.not_after.max(latest)
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

#[cfg(test)]
mod tests;

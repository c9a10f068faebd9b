//! What sidecars recorded, as it arrives: checkpoints, segments, and the two ends of each hop held against each other.
//!
//! | module | what |
//! |---|---|
//! | [`service`], [`session`] | gRPC `Audit`: who may open a stream, and what one does |
//! | [`statement`] | whether a checkpoint was signed by whom it speaks of |
//! | [`ledger`] | the log of checkpoints: what was taken, under a signed tree head |
//! | [`copy`] | the copy of one log: checked as it comes, on disk as the sidecar has it |
//! | [`feed`] | records as they come, for whoever watches |
//! | [`hops`] | hops whose both ends have been heard |
//! | `pace` | how fast checkpoints are taken |
//! | [`retention`] | what goes when it is old, or too much |
//!
//! On disk, in `<data>/audit`: `checkpoints.redb`, and `<agent>/<log>/` for each log.

pub mod copy;
pub mod feed;
pub mod hops;
pub mod ledger;
mod pace;
pub mod retention;
pub mod service;
pub mod session;
pub mod statement;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip_api::AgentName;
use aip_api::resource::{AuditConfig, MeshConfig};
use aip_audit::Record;
use aip_audit::index::Log;
use aip_runtime::trust::Trust;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::ca::Ca;
use crate::clock::Clock;
use crate::config::world::World;
use crate::quota::Quota;
use crate::refusal::{Reason, Refusal};
use crate::registry::{Actor, Registry};
use crate::store::StoreError;

use feed::{Feed, Seen, Watcher};
use hops::Hops;
use hops::join::{Heard, Join};
use ledger::{Finding, Ledger, MAX_FINDINGS_EACH, Writing};
use pace::Pace;
use retention::Used;

/// The directory, in the data directory.
pub const AUDIT_DIR: &str = "audit";
/// How long an older stream may take to let go of a log: the chunk that it is writing.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// Copies that are open at once, four files each: a quarter of the files that this process wants to open; and of one agent,
/// one for each of its sidecars.
const MAX_OPEN: usize = 4_096;
const MAX_OPEN_EACH: usize = 256;
/// Chunks and open segments whose records are read at once, and of one agent: a chunk may have a hundred times its size in
/// memory while it is read. Of whatever size, it takes milliseconds.
const MAX_READING: usize = 32;
const MAX_READING_EACH: usize = 4;
/// Where this process may open fewer files: one in so many of them for a copy.
const FILES_TO_OPEN: u64 = 16;

/// What was recorded in this mesh.
#[derive(Debug)]
pub struct Audit {
    /// The log of checkpoints.
    pub ledger: Ledger,
    /// Hops whose both ends have been heard.
    pub hops: Hops,
    dir: PathBuf,
    join: Mutex<Join>,
    feed: Arc<Feed>,
    live: Arc<Live>,
    // Copies that are open.
    open: Quota,
    // Of whose records some are being read.
    reading: Quota,
    pace: Pace,
    used: Used,
    ca: Arc<Ca>,
    world: Arc<World>,
    trust: Trust,
    registry: Registry,
    clock: Clock,
}

/// Who writes which copy now.
#[derive(Debug, Default)]
struct Live {
    logs: Mutex<HashMap<String, Writer>>,
    released: Notify,
}

/// Who writes a copy.
#[derive(Debug, Clone)]
struct Writer {
    agent: AgentName,
    // The process at the other end; empty where it is this one.
    instance: Arc<str>,
    cancel: CancellationToken,
}

/// The right to write one log's copy; it ends with this.
#[derive(Debug)]
pub struct Claim {
    log: String,
    live: Arc<Live>,
}

impl Live {
    fn logs(&self) -> MutexGuard<'_, HashMap<String, Writer>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.live.logs().remove(&self.log);
        self.live.released.notify_waiters();
    }
}

fn make(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Places for open copies in a process that may open so many files.
fn places(files: u64) -> Quota {
    let most = usize::try_from(files / FILES_TO_OPEN).map_or(MAX_OPEN, |most| most.clamp(4, MAX_OPEN));
    Quota::new(most, MAX_OPEN_EACH.min(most / 2))
}

impl Audit {
    /// Opens what is in `<data>/audit`, or makes it. The second part must be run.
    ///
    /// # Errors
    /// The disk does not allow it, or the log of checkpoints is not whole.
    pub async fn open(
        data: &Path,
        registry: Registry,
        ca: Arc<Ca>,
        world: Arc<World>,
        trust: Trust,
    ) -> Result<(Arc<Self>, Writing), StoreError> {
        let dir = data.join(AUDIT_DIR);
        make(&dir).map_err(|e| StoreError::Failed(format!("{}: {e}", dir.display())))?;
        let (ledger, writing) = Ledger::open(&dir, ca.clone()).await?;
        let looked = dir.clone();
        let used = tokio::task::spawn_blocking(move || Used::of(&looked)).await;
        let audit = Self {
            ledger,
            hops: Hops::default(),
            dir,
            join: Mutex::default(),
            feed: Arc::default(),
            live: Arc::default(),
            open: places(aip_runtime::limits::open_files()),
            reading: Quota::new(MAX_READING, MAX_READING_EACH),
            pace: Pace::default(),
            used: used.unwrap_or_default(),
            ca,
            world,
            trust,
            clock: registry.clock.clone(),
            registry,
        };
        Ok((Arc::new(audit), writing))
    }

    /// What the mesh asks of the audit trail.
    pub fn settings(&self) -> AuditConfig {
        self.world
            .document::<MeshConfig>(MeshConfig::NAME)
            .map(|config| config.audit)
            .unwrap_or_default()
    }

    /// Where a log's copy stands.
    pub fn dir_of(&self, agent: &AgentName, log: &str) -> PathBuf {
        self.dir.join(agent.as_str()).join(log)
    }

    /// The logs of an agent, or of all, whose copies are there.
    pub fn copies(&self, of: Option<&AgentName>) -> Vec<Log> {
        retention::copies(&self.dir, of)
    }

    /// Records as they come.
    pub fn watch(&self) -> Watcher {
        self.feed.watch()
    }

    /// The right to write a log's copy, if nobody has it. A newer stream of the same process takes it from the older one,
    /// which may not have noticed yet that it is cut off.
    async fn claim(&self, log: &str, writer: Writer) -> Result<Claim, Refusal> {
        let deadline = tokio::time::Instant::now() + TAKE_OVER;
        // What another agent's sidecar calls its log keeps nobody from theirs.
        let log = format!("{}/{log}", writer.agent);
        loop {
            let released = self.live.released.notified();
            {
                let mut live = self.live.logs();
                match live.get(&log) {
                    None => {
                        live.insert(log.clone(), writer);
                        return Ok(Claim {
                            log,
                            live: self.live.clone(),
                        });
                    }
                    Some(holds) if holds.instance == writer.instance => {
                        holds.cancel.cancel();
                    }
                    Some(_) => return Err(Reason::LogInUse.into()),
                }
            }
            if tokio::time::timeout_at(deadline, released).await.is_err() {
                return Err(Reason::LogInUse.into());
            }
        }
    }

    /// Hears records: matches hops, and tells who watches. `replayed`: they were heard before this process began.
    fn heard(&self, agent: &AgentName, log: &Arc<str>, segment: u64, records: Vec<(u64, Record)>, replayed: bool) {
        let domain = self.trust.load().trust_domain().to_string();
        let now = self.clock.now() * 1_000;
        for (offset, record) in records {
            let heard = {
                let mut join = self.join.lock().unwrap_or_else(PoisonError::into_inner);
                join.hear(&domain, agent, &record, now, replayed)
            };
            if let Heard::Both(matched) = heard {
                self.matched(*matched);
            }
            // What was read as a record can be written as one.
            if let (true, Ok(line)) = (!replayed && self.feed.is_watched(), record.to_bytes()) {
                self.feed.tell(Seen {
                    agent: agent.clone(),
                    log: log.clone(),
                    segment,
                    offset,
                    line: line.into(),
                });
            }
        }
        let waiting = self.join.lock().unwrap_or_else(PoisonError::into_inner).waiting();
        metrics::gauge!("aip_audit_hops_waiting").set(waiting as f64);
    }

    fn matched(&self, matched: hops::Matched) {
        let mismatch = matched.mismatch();
        let result = match (&mismatch, matched.agreed) {
            (Some(_), _) => "differs",
            (None, true) => "agreed",
            (None, false) => "cut",
        };
        metrics::counter!("aip_audit_hops_total", "result" => result).increment(1);
        if let Some(mismatch) = mismatch {
            let (hop, differs) = (&mismatch.hop, mismatch.differs.join(","));
            tracing::error!(hop, caller = %matched.caller, callee = %matched.callee, differs, "the two ends of a hop contradict each other");
            self.ledger.mismatch(mismatch);
        }
        self.hops.tell(matched);
    }

    /// Keeps what can't be as evidence, and tells people of it; the log is taken no further.
    async fn found(&self, finding: Finding) -> Result<(), Refusal> {
        let Finding {
            agent,
            log,
            reason,
            detail,
            ..
        } = finding.clone();
        let kept = self.ledger.broken(finding).await;
        self.tell(&agent, &log, &reason, &detail).await;
        kept
    }

    /// Tells people of a finding: metric, and where it is kept as evidence, log and the audit of changes. An agent of which
    /// that much is kept writes neither full.
    async fn tell(&self, agent: &AgentName, log: &str, reason: &str, detail: &str) {
        let found = reason.to_owned();
        metrics::counter!("aip_audit_findings_total", "reason" => found).increment(1);
        let of_agent = self.ledger.findings_of(agent).await;
        if of_agent.is_ok_and(|count| count > MAX_FINDINGS_EACH) {
            tracing::debug!(%agent, log, reason, detail, "an audit log is not what it must be");
            return;
        }
        tracing::error!(%agent, log, reason, detail, "an audit log is not what it must be");
        let change = self
            .registry
            .change(&Actor::control_plane(), "audit.finding", format!("{agent}/{log}"))
            .detail(format!("{reason}: {detail}"));
        if let Err(refusal) = change.commit().await {
            tracing::warn!(
                reason = refusal.reason(),
                "the finding is not in the audit of changes; it is kept as evidence"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_take_no_more_files_than_a_process_has_for_them() {
        let of_one = |files| {
            let (places, mut held) = (places(files), Vec::new());
            while let Some(place) = places.try_take("planner") {
                held.push(place);
            }
            held.len()
        };
        assert_eq!([64, 1_024, 1 << 20].map(of_one), [2, 32, MAX_OPEN_EACH]);
    }
}

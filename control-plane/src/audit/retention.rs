//! What goes when it is old, or too much: segments, oldest first, and checkpoints that are older than records are kept. What
//! is gone of those is said by a signed statement, with which every later proof still comes out.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aip_api::resource::{KeyPurpose, Retention};
use aip_api::{AgentName, SpiffeId};
use aip_audit::checkpoint::{RETIRED_TYP, Retired};
use aip_audit::index::{Log, ROW_BYTES};
use aip_audit::log::{Options, RETIRED_FILE, SEGMENT_BYTES, SEGMENT_MILLIS};
use aip_runtime::{fault, files, jws};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio_util::sync::CancellationToken;

use super::copy::{Copy, Gone, LEAST_SEGMENT, young};
use super::ledger::{EXPIRED, Finding};
use super::{Audit, Writer};
use crate::refusal::{Reason, Refusal};

/// How often what nobody sends any more is looked at; what is being sent is looked at when a segment ends.
const SWEEP: Duration = Duration::from_secs(300);
/// Transactions of one sweep that let go of old checkpoints: 50,000 in five minutes, more than a large fleet signs.
const MAX_FORGETS: usize = 50;
/// Milliseconds of a day.
const DAY: u64 = 86_400_000;

/// Bytes that each log takes, by agent.
#[derive(Debug, Default)]
pub(super) struct Used(Mutex<HashMap<AgentName, HashMap<String, u64>>>);

/// Closed segments that one log has at most: one an hour for as long as records are kept, all that may be kept in full ones, and
/// some for a sidecar that closes a few before their time.
fn most_segments(retention: &Retention) -> u64 {
    u64::from(retention.days) * 24 + retention.bytes / SEGMENT_BYTES + 1_024
}

/// The copies in a directory, of one agent or of all.
pub(super) fn copies(dir: &Path, of: Option<&AgentName>) -> Vec<Log> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let agents = match of {
        Some(agent) => vec![agent.to_string()],
        None => names(dir),
    };
    let mut logs = Vec::new();
    for agent in agents {
        let of_agent = dir.join(&agent);
        for log in names(&of_agent) {
            logs.push(Log {
                dir: of_agent.join(log),
                agent: agent.clone(),
            });
        }
    }
    logs
}

/// Bytes that a log's segments count with the rows beside them, and when the last of them was written. Rows that are missing
/// count when they have been made again.
pub(super) fn weigh(dir: &Path) -> (u64, Option<SystemTime>) {
    let (mut counts, mut newest) = (HashMap::<String, (u64, u64)>::new(), None);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (name, Ok(file)) = (entry.file_name(), entry.metadata()) else {
            continue;
        };
        let name = name.to_string_lossy();
        let number = |begins, ends| Some(name.strip_prefix(begins)?.strip_suffix(ends)?.to_owned());
        if let Some(number) = number("segment-", ".jsonl") {
            counts.entry(number).or_default().0 = file.len();
            newest = newest.max(file.modified().ok());
        } else if let Some(number) = number("index-", ".bin") {
            counts.entry(number).or_default().1 = file.len();
        }
    }
    let counted = counts.values().map(|(records, rows)| match records {
        0 => 0,
        records => (records + rows).max(LEAST_SEGMENT),
    });
    (counted.sum(), newest)
}

impl Used {
    /// What is there.
    pub(super) fn of(dir: &Path) -> Self {
        let used = Self::default();
        for log in copies(dir, None) {
            let name = log.dir.file_name().and_then(|name| name.to_str());
            if let (Ok(agent), Some(name)) = (log.agent.parse(), name) {
                used.set(&agent, name, weigh(&log.dir).0);
            }
        }
        used
    }

    /// A log takes so many bytes now.
    pub(super) fn set(&self, agent: &AgentName, log: &str, bytes: u64) {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_agent = used.entry(agent.clone()).or_default();
        match bytes {
            0 => drop(of_agent.remove(log)),
            bytes => drop(of_agent.insert(log.to_owned(), bytes)),
        }
        // Agents come and go for years.
        if of_agent.is_empty() {
            used.remove(agent);
        }
    }

    /// The agent's logs that take any.
    pub(super) fn logs(&self, agent: &AgentName) -> Vec<String> {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.get(agent).into_iter().flat_map(HashMap::keys).cloned().collect()
    }

    /// Bytes of the agent's other logs.
    fn others(&self, agent: &AgentName, log: &str) -> u64 {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_agent = used.get(agent).into_iter().flatten();
        of_agent.filter(|(name, _)| *name != log).map(|(_, bytes)| bytes).sum()
    }
}

impl Audit {
    /// The bounds of a log's copy: what the mesh keeps of an agent, less what its other logs take.
    pub(super) fn bounds(&self, agent: &AgentName, log: &str) -> Options {
        let retention = self.settings().retention;
        Options {
            segment_bytes: SEGMENT_BYTES.min(retention.bytes / 4),
            total_bytes: retention.bytes.saturating_sub(self.used.others(agent, log)),
            least_bytes: LEAST_SEGMENT,
            record_bytes: ROW_BYTES as u64,
            most_segments: most_segments(&retention),
            total_millis: u64::from(retention.days) * DAY,
            segment_millis: SEGMENT_MILLIS,
            step: |name| fault::point(|| format!("copy-{name}")),
        }
    }

    /// Whether the agent's logs leave no room for one more segment.
    pub(super) fn is_full(&self, agent: &AgentName) -> bool {
        let most = self.settings().retention.bytes;
        self.used.others(agent, "") + SEGMENT_BYTES.min(most / 4) > most
    }

    /// Lets go of checkpoints that are older than records are kept.
    async fn forget(&self) {
        let kept = u64::from(self.settings().retention.days) * DAY;
        let until = (self.clock.steady() * 1_000).saturating_sub(kept);
        for _ in 0..MAX_FORGETS {
            match self.ledger.forget(until).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(refusal) => {
                    tracing::warn!(reason = refusal.reason(), detail = %refusal.detail, "old checkpoints were not let go of; trying again");
                    return;
                }
            }
        }
    }

    /// Looks after the logs that nobody sends, until the task is dropped.
    pub async fn retain(self: std::sync::Arc<Self>) {
        let mut tick = tokio::time::interval(SWEEP);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.sweep().await;
        }
    }

    /// Lets go of what is too old or too much: checkpoints, and logs that nobody sends.
    pub async fn sweep(&self) {
        self.forget().await;
        for log in self.copies(None) {
            let Ok(agent) = log.agent.parse::<AgentName>() else {
                continue;
            };
            let Some(name) = log.dir.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            if let Err(refusal) = self.sweep_one(&agent, &name, &log.dir).await {
                tracing::warn!(%agent, log = name, reason = refusal.reason(), detail = %refusal.detail, "an audit log was not swept; trying again");
            }
        }
    }

    pub(super) async fn sweep_one(&self, agent: &AgentName, log: &str, dir: &Path) -> Result<(), Refusal> {
        // Who sends it sweeps it.
        let writer = Writer {
            agent: agent.clone(),
            instance: "".into(),
            cancel: CancellationToken::new(),
        };
        let Ok(_claim) = self.claim(log, writer).await else {
            return Ok(());
        };
        let (bounds, now) = (self.bounds(agent, log), self.clock.steady() * 1_000);
        let (bytes, written) = weigh(dir);
        // Rows that were missing may have been made again since it was last said.
        self.used.set(agent, log, bytes);
        let written = written.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let age = written.map_or(0, |at| now.saturating_sub(at.as_millis() as u64));
        if age > bounds.total_millis {
            return self.expire(agent, log, dir).await;
        }
        let manifest = aip_audit::log::Manifest::read(dir).unwrap_or_default();
        let end = manifest.closed.last().map_or(0, |closed| closed.segment + 1);
        let old = young(dir, end, now, bounds.total_millis)? > manifest.begins();
        if !old && bytes + bounds.segment_bytes <= bounds.total_bytes {
            // A process that ended in between may not have said what it took.
            return self.say_gone(agent, log, Gone::of(&manifest)).await;
        }
        let (dir, options) = (dir.to_owned(), bounds);
        let swept = tokio::task::spawn_blocking(move || Copy::open(&dir, options)?.sweep(now));
        let (left, gone) = swept
            .await
            .map_err(|e| Refusal::new(Reason::Internal, e.to_string()))??;
        self.used.set(agent, log, left);
        self.say_gone(agent, log, gone).await
    }

    /// Signs what retention took of a copy, beside what is left: a verifier takes nobody else's word that records are gone.
    pub(super) async fn say_gone(&self, agent: &AgentName, log: &str, gone: Option<Gone>) -> Result<(), Refusal> {
        let Some(gone) = gone else { return Ok(()) };
        let path = self.dir_of(agent, log).join(RETIRED_FILE);
        let held = tokio::fs::read_to_string(&path).await.unwrap_or_default();
        let said = held
            .split('.')
            .nth(1)
            .and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
        let said = said.and_then(|claims| serde_json::from_slice::<Retired>(&claims).ok());
        if said.is_some_and(|said| said.records >= gone.records) {
            return Ok(());
        }
        let (trust_domain, at) = (self.ca.trust_domain().clone(), self.clock.now() * 1_000);
        let retired = Retired {
            v: 1,
            iss: trust_domain.to_string(),
            log: log.to_owned(),
            agent: SpiffeId::new(trust_domain, agent.clone()),
            records: gone.records,
            until: gone.until.min(at),
            at,
        };
        let statement = jws::sign_eddsa(&self.ca.signer(KeyPurpose::Audit), RETIRED_TYP, &retired)
            .map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
        let replaced = tokio::task::spawn_blocking(move || {
            // The new one takes the place of the old one whole.
            files::write_private(&path, statement.as_bytes()).map_err(|e| format!("{}: {e}", path.display()))
        });
        let replaced = replaced.await.unwrap_or_else(|e| Err(e.to_string()));
        replaced.map_err(|why| Refusal::new(Reason::AuditCopyFailed, why))
    }

    /// A log to which nothing was added for as long as records are kept goes whole: it is refused from then on, since what
    /// would continue it is not there.
    async fn expire(&self, agent: &AgentName, log: &str, dir: &Path) -> Result<(), Refusal> {
        let finding = Finding {
            at: self.clock.now(),
            agent: agent.clone(),
            log: log.to_owned(),
            reason: EXPIRED.to_owned(),
            detail: "older than records are kept".to_owned(),
            statement: String::new(),
            chain: Vec::new(),
            against: None,
        };
        self.ledger.broken(finding).await?;
        let gone = dir.to_owned();
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(gone)).await;
        if matches!(removed, Ok(Ok(()))) {
            self.used.set(agent, log, 0);
            tracing::info!(%agent, log, "an audit log is older than records are kept, and gone");
        }
        Ok(())
    }
}

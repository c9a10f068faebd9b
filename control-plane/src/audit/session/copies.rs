//! The copies that one stream writes: opened when something of their log comes, few at a time, and closed when nothing
//! does. What a sidecar only names costs a name in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aip_api::wire::SegmentChunk;
use aip_audit::Record;
use tokio::time::Instant;

use super::{MAX_LOGS, Session, blocking};
use crate::audit::copy::{Brought, Chunk, Copy, Unread};
use crate::audit::ledger::LogRow;
use crate::audit::statement::log_name;
use crate::audit::{Claim, Writer, make};
use crate::quota::Place;
use crate::refusal::{Reason, Refusal};

/// Copies that one stream has open, four files each: a sidecar sends one log after the other.
const MAX_OPEN: usize = 4;
/// Copies of one agent that are on disk, five files each: five hundred starts of its sidecars a day, for a month.
const MAX_COPIES: usize = 16_384;
/// After how long a copy is closed to which nothing came. To open it again, its open segment is read.
const IDLE: Duration = Duration::from_secs(60);
/// How long a stream waits until it may open one more: less than a sidecar waits for an answer.
const TURN: Duration = Duration::from_secs(10);
/// Checkpoints that are looked up at once while records are compared with them.
const COVERED: usize = 1_024;

/// A log that this stream sends.
pub(super) struct Held {
    name: Arc<str>,
    open: Option<Open>,
    _claim: Claim,
}

/// Its copy.
struct Open {
    copy: Copy,
    used: Instant,
    _place: Place,
}

/// Those of these records that come after the first `heard`, which counts them, too, from then on.
fn unheard(records: Vec<Record>, heard: &mut u64) -> Vec<(u64, Record)> {
    let before = *heard;
    *heard = records.last().map_or(before, |last| before.max(last.seq + 1));
    let new = records.into_iter().filter(|record| record.seq >= before);
    new.map(|record| (0, record)).collect()
}

impl Session {
    /// Records of the log that are here; 0 where its copy is not open.
    pub(super) fn size_of(&self, log: &str) -> u64 {
        let open = self.logs.get(log).and_then(|held| held.open.as_ref());
        open.map_or(0, |open| open.copy.size())
    }

    /// Where the next chunk of a log that this stream sends begins.
    pub(super) fn place_in(&self, log: &str) -> Option<(u64, u64)> {
        let held = self.logs.get(log)?;
        Some(held.open.as_ref().map_or((0, 0), |open| open.copy.place()))
    }

    fn dir_of(&self, log: &str) -> PathBuf {
        self.audit.dir_of(&self.peer.id.agent, log)
    }

    /// Whether anything of the log was taken.
    pub(super) async fn has_copy(&self, log: &str) -> bool {
        tokio::fs::try_exists(self.dir_of(log)).await.unwrap_or(true)
    }

    /// Takes the right to write the log's copy; answers what is known of it.
    pub(super) async fn claimed(&mut self, log: &str) -> Result<Option<LogRow>, Refusal> {
        log_name(log)?;
        let agent = self.peer.id.agent.clone();
        let row = self.audit.ledger.log(log).await?;
        if row.as_ref().is_some_and(|row| row.agent != agent) {
            return Err(Reason::LogOfAnother.into());
        }
        if let Some(broken) = row.as_ref().and_then(|row| row.broken.as_ref()) {
            let detail = format!("{}: nothing more of this log is taken", broken.reason);
            return Err(Refusal::new(Reason::LogBroken, detail));
        }
        if self.logs.contains_key(log) {
            return Ok(row);
        }
        if self.logs.len() >= MAX_LOGS {
            let detail = format!("a stream has at most {MAX_LOGS} logs");
            return Err(Refusal::new(Reason::AuditLogLimit, detail));
        }
        let writer = Writer {
            agent,
            instance: self.instance.clone(),
            cancel: self.cancel.clone(),
        };
        let held = Held {
            name: log.into(),
            open: None,
            _claim: self.audit.claim(log, writer).await?,
        };
        self.logs.insert(log.to_owned(), held);
        Ok(row)
    }

    /// Opens the copy of a log that this stream has the right to write, where it is not open.
    pub(super) async fn copied(&mut self, log: &str) -> Result<(), Refusal> {
        if let Some(open) = self.logs.get_mut(log).and_then(|held| held.open.as_mut()) {
            open.used = Instant::now();
            return Ok(());
        }
        let agent = self.peer.id.agent.clone();
        if !self.has_copy(log).await && self.audit.used.logs(&agent).len() >= MAX_COPIES {
            let detail = format!("{MAX_COPIES} audit logs of {agent} are kept");
            return Err(Refusal::new(Reason::AuditLogLimit, detail));
        }
        let place = self.place().await?;
        let (dir, options) = (self.dir_of(log), self.audit.bounds(&agent, log));
        make(&self.audit.dir.join(agent.as_str())).map_err(|e| Refusal::new(Reason::AuditCopyFailed, e.to_string()))?;
        let Some(name) = self.logs.get(log).map(|held| held.name.clone()) else {
            return Ok(());
        };
        let unread = blocking(move || Copy::open(&dir, options)).await??;
        let copy = self.heard_anew(log, name, unread).await?;
        let Some(held) = self.logs.get_mut(log) else {
            return Ok(());
        };
        let used = Instant::now();
        held.open = Some(Open {
            copy,
            used,
            _place: place,
        });
        self.settle(log).await
    }

    /// Reads the open segment, and hears what was not heard on this stream before: also where it was read half-way then.
    async fn heard_anew(&mut self, log: &str, name: Arc<str>, unread: Unread) -> Result<Copy, Refusal> {
        let turn = self.turn().await?;
        let (audit, agent) = (self.audit.clone(), self.peer.id.agent.clone());
        let mut heard = self.heard.get(log).copied().unwrap_or_default();
        let (read, heard) = blocking(move || {
            let read = unread.read(|records| {
                let new = unheard(records, &mut heard);
                audit.heard(&agent, &name, 0, new, true);
            });
            drop(turn);
            (read, heard)
        })
        .await?;
        self.heard.insert(log.to_owned(), heard);
        read
    }

    /// A turn of reading records: for that alone, since what waits for a disk would make other streams wait with it.
    async fn turn(&mut self) -> Result<Place, Refusal> {
        let (audit, agent) = (self.audit.clone(), self.peer.id.agent.clone());
        tokio::select! {
            turn = audit.reading.take(agent.as_str()) => turn.ok_or_else(|| Reason::Draining.into()),
            () = self.cancel.cancelled() => Err(Reason::Superseded.into()),
            () = self.drain.draining() => Err(Reason::Draining.into()),
        }
    }

    /// A place for one more open copy.
    async fn place(&mut self) -> Result<Place, Refusal> {
        self.close_all_but(MAX_OPEN - 1);
        let (audit, agent) = (self.audit.clone(), self.peer.id.agent.clone());
        if let Some(place) = audit.open.try_take(agent.as_str()) {
            return Ok(place);
        }
        // Who waits keeps nothing that others wait for.
        self.close_all_but(0);
        let place = tokio::select! {
            place = tokio::time::timeout(TURN, audit.open.take(agent.as_str())) => place.ok().flatten(),
            () = self.cancel.cancelled() => return Err(Reason::Superseded.into()),
            () = self.drain.draining() => return Err(Reason::Draining.into()),
        };
        let detail = "as many copies of audit logs are open as may be; try again";
        place.ok_or_else(|| Refusal::new(Reason::Overloaded, detail))
    }

    /// Closes the copies that were not written to for longest, until so many are open.
    fn close_all_but(&mut self, most: usize) {
        let open = self
            .logs
            .iter()
            .filter_map(|(log, held)| Some((held.open.as_ref()?.used, log.clone())));
        let mut open: Vec<_> = open.collect();
        open.sort();
        for (_, log) in open.iter().take(open.len().saturating_sub(most)) {
            if let Some(held) = self.logs.get_mut(log) {
                held.open = None;
            }
        }
    }

    /// Closes the copies to which nothing has come for a while.
    pub(super) fn close_idle(&mut self) {
        for held in self.logs.values_mut() {
            held.open.take_if(|open| open.used.elapsed() > IDLE);
        }
    }

    /// Compares what came with checkpoints that came after it.
    pub(super) async fn settle(&mut self, log: &str) -> Result<(), Refusal> {
        loop {
            let Some(open) = self.logs.get_mut(log).and_then(|held| held.open.as_mut()) else {
                return Ok(());
            };
            let compared = open.copy.compared();
            let covered = self.audit.ledger.sizes(log, compared, COVERED).await?;
            match open.copy.settle(&covered) {
                Ok(()) if open.copy.compared() == compared => return Ok(()),
                Ok(()) => {}
                Err(refusal) => return Err(self.found(log, refusal).await),
            }
        }
    }

    /// Takes a chunk where it continues what is here.
    pub(super) async fn receive(&mut self, chunk: SegmentChunk) -> Result<(), Refusal> {
        let log = chunk.log.clone();
        let signed = self
            .claimed(&log)
            .await?
            .and_then(|row| row.taken)
            .map_or(0, |taken| taken.size);
        if signed == 0 && !self.has_copy(&log).await {
            let detail = "no checkpoint of this log was taken; send it first";
            return Err(Refusal::new(Reason::CheckpointMissing, detail));
        }
        self.copied(&log).await?;
        if self.place_in(&log) != Some((chunk.segment, chunk.offset)) {
            // Sent twice, out of order, or after a loss of ours: the answer says where to go on.
            metrics::counter!("aip_audit_rejected_total", "reason" => "out_of_place").increment(1);
            return Ok(());
        }
        let agent = self.peer.id.agent.clone();
        if self.audit.is_full(&agent) {
            self.make_room(&log).await?;
        }
        self.take(&log, chunk, signed).await
    }

    /// Takes a chunk that begins where the open copy of its log ends.
    async fn take(&mut self, log: &str, chunk: SegmentChunk, signed: u64) -> Result<(), Refusal> {
        let Some(compared) = self.compared(log) else {
            return Ok(());
        };
        let covered = self.audit.ledger.sizes(log, compared, COVERED).await?;
        let turn = self.turn().await?;
        let Some(mut open) = self.logs.get_mut(log).and_then(|held| held.open.take()) else {
            return Ok(());
        };
        open.copy.bounded(self.audit.bounds(&self.peer.id.agent, log));
        let last = chunk.last;
        let chunk = Chunk {
            segment: chunk.segment,
            offset: chunk.offset,
            data: chunk.data,
            last,
        };
        let (open, took, turn) = blocking(move || {
            let took = open.copy.take(chunk, &covered, signed);
            (open, took, turn)
        })
        .await?;
        let brought = match took {
            Ok(brought) => brought,
            Err(refusal) => {
                drop(turn);
                self.keep_unless_empty(log, open).await?;
                return Err(self.found(log, refusal).await);
            }
        };
        self.keep(log, open);
        self.brought(log, brought);
        drop(turn);
        self.settle(log).await?;
        if last {
            self.close(log).await?;
        }
        Ok(())
    }

    /// Records of the log up to the last checkpoint that its copy was compared with, where that is open.
    fn compared(&self, log: &str) -> Option<u64> {
        let open = self.logs.get(log)?.open.as_ref()?;
        Some(open.copy.compared())
    }

    fn keep(&mut self, log: &str, open: Open) {
        if let Some(held) = self.logs.get_mut(log) {
            held.open = Some(open);
        }
    }

    /// A copy of which nothing was ever taken leaves nothing on disk.
    async fn keep_unless_empty(&mut self, log: &str, open: Open) -> Result<(), Refusal> {
        if open.copy.size() > 0 || open.copy.place() != (0, 0) {
            self.keep(log, open);
            return Ok(());
        }
        let dir = open.copy.dir();
        // Under the claim still: nobody else has opened it.
        let gone = blocking(move || {
            drop(open);
            std::fs::remove_dir_all(dir)
        });
        gone.await?
            .map_err(|e| Refusal::new(Reason::AuditCopyFailed, e.to_string()))
    }

    /// Lets go of the oldest segments of the agent's other logs that nobody else writes: what they take is not there for the
    /// one that grows.
    async fn make_room(&mut self, growing: &str) -> Result<(), Refusal> {
        let agent = self.peer.id.agent.clone();
        // Names of logs begin with the time at which they were made.
        let mut names = self.audit.used.logs(&agent);
        names.sort();
        for name in names.into_iter().filter(|name| name != growing) {
            match self.logs.get_mut(&name).and_then(|held| held.open.take()) {
                Some(open) => self.sweep(&name, open).await?,
                None => {
                    // The right to write it is taken again when something of it comes.
                    self.logs.remove(&name);
                    self.audit.sweep_one(&agent, &name, &self.dir_of(&name)).await?;
                }
            }
            if !self.audit.is_full(&agent) {
                break;
            }
        }
        Ok(())
    }

    async fn sweep(&mut self, name: &str, mut open: Open) -> Result<(), Refusal> {
        let agent = self.peer.id.agent.clone();
        let (bounds, now) = (self.audit.bounds(&agent, name), self.audit.clock.now() * 1_000);
        let (open, swept) = blocking(move || {
            let swept = open.copy.give_way(bounds, now);
            (open, swept)
        })
        .await?;
        self.audit.used.set(&agent, name, open.copy.bytes());
        let gone = open.copy.gone();
        self.keep(name, open);
        swept?;
        self.audit.say_gone(&agent, name, gone?).await
    }

    fn brought(&mut self, log: &str, brought: Brought) {
        let agent = self.peer.id.agent.clone();
        metrics::counter!("aip_audit_received_records_total").increment(brought.records.len() as u64);
        metrics::counter!("aip_audit_received_bytes_total").increment(brought.bytes);
        if let Some((_, newest)) = brought.records.last() {
            let lag = (self.audit.clock.now() * 1_000).saturating_sub(newest.at);
            metrics::histogram!("aip_audit_record_lag_seconds").record(lag as f64 / 1_000.0);
        }
        let Some(held) = self.logs.get(log) else { return };
        if let Some(open) = &held.open {
            self.audit.used.set(&agent, log, open.copy.bytes());
            self.heard.insert(log.to_owned(), open.copy.size());
        }
        self.audit
            .heard(&agent, &held.name, brought.segment, brought.records, false);
    }

    /// Closes the segment, and lets go of what is too old or too much.
    async fn close(&mut self, log: &str) -> Result<(), Refusal> {
        let Some(mut open) = self.logs.get_mut(log).and_then(|held| held.open.take()) else {
            return Ok(());
        };
        let covered = self.audit.ledger.sizes(log, open.copy.signed(), COVERED).await?;
        let size = open.copy.size();
        let newest = covered.iter().rev().find(|(covers, ..)| *covers <= size);
        let checkpoint = match newest {
            Some((.., index)) => self.audit.ledger.at(*index).await?,
            None => None,
        };
        let now = self.audit.clock.now() * 1_000;
        let (open, done) = blocking(move || {
            let done = open.copy.close(checkpoint.as_ref(), now);
            (open, done)
        })
        .await?;
        self.audit.used.set(&self.peer.id.agent, log, open.copy.bytes());
        let gone = open.copy.gone();
        self.keep(log, open);
        done?;
        self.audit.say_gone(&self.peer.id.agent, log, gone?).await
    }
}

#[cfg(test)]
mod tests;

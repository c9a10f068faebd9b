//! One sidecar's audit stream, from its Hello to its end. One task, which owns the copies that it writes.

use std::collections::HashMap;
use std::sync::Arc;

use aip_api::wire::audit_request::Message;
use aip_api::wire::audit_response::Message as Answer;
use aip_api::wire::{
    AuditHello, AuditRefused, AuditRequest, AuditResponse, CheckpointTaken, HeldLog, Resume, SegmentChunk,
    SignedCheckpoint,
};
use aip_audit::Record;
use aip_runtime::drain::DrainWatch;
use aip_runtime::x509::PeerIdentity;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::copy::{Brought, Chunk, Copy};
use super::ledger::{Finding, LogRow};
use super::statement::{self, log_name};
use super::{Audit, Claim, Writer};
use crate::config::admitted;
use crate::quota::Place;
use crate::refusal::{Reason, Refusal};

/// Logs that one stream may send: its own, and those of earlier lives that were not all sent.
pub const MAX_LOGS: usize = 64;
/// Largest chunk.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;
/// Checkpoints that are looked up at once while records are compared with them.
const COVERED: usize = 1_024;

/// A log that this stream sends.
struct Held {
    copy: Copy,
    name: Arc<str>,
    _claim: Claim,
}

/// One stream.
pub struct Session {
    audit: Arc<Audit>,
    peer: PeerIdentity,
    instance: Arc<str>,
    // Cancelled when a newer stream of the same process takes a log.
    cancel: CancellationToken,
    logs: HashMap<String, Held>,
    out: mpsc::Sender<Result<AuditResponse, Status>>,
    drain: DrainWatch,
    _place: Place,
}

/// What a thread that may block answers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Refusal::new(Reason::Internal, e.to_string()))
}

/// What is found in a log for good: nothing more of it is taken.
const fn is_finding(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ChainBroken | Reason::RootMismatch | Reason::LogTruncated
    )
}

impl Session {
    pub(super) fn new(
        audit: Arc<Audit>,
        peer: PeerIdentity,
        instance: Arc<str>,
        out: mpsc::Sender<Result<AuditResponse, Status>>,
        drain: DrainWatch,
        place: Place,
    ) -> Self {
        metrics::gauge!("aip_audit_streams").increment(1.0);
        Self {
            audit,
            peer,
            instance,
            cancel: CancellationToken::new(),
            logs: HashMap::new(),
            out,
            drain,
            _place: place,
        }
    }

    /// Runs until the stream ends, and says why to the sidecar where it was we who ended it.
    pub(super) async fn run(mut self, hello: AuditHello, mut inbound: Streaming<AuditRequest>) {
        let agent = self.peer.id.agent.clone();
        tracing::info!(%agent, instance = &*self.instance, logs = hello.logs.len(), "audit stream opened");
        match self.serve(hello, &mut inbound).await {
            Ok(()) => tracing::info!(%agent, "audit stream closed by the sidecar"),
            Err(refusal) => {
                let reason = refusal.reason();
                metrics::counter!("aip_audit_streams_ended_total", "reason" => reason).increment(1);
                tracing::info!(%agent, reason, detail = %refusal.detail, "audit stream ended");
                // A sidecar that reads nothing does not hold this task.
                let _ = self.out.try_send(Err(refusal.status()));
            }
        }
    }

    async fn serve(&mut self, hello: AuditHello, inbound: &mut Streaming<AuditRequest>) -> Result<(), Refusal> {
        if hello.logs.len() > MAX_LOGS {
            return Err(Refusal::new(
                Reason::AuditLogLimit,
                format!("a stream has at most {MAX_LOGS} logs"),
            ));
        }
        for held in hello.logs {
            let opened = self.open(&held).await;
            self.resume(&held.log, 0, opened)?;
            // Of one that is here as a whole nothing may ever come: whoever looks after retention may have it.
            if self
                .logs
                .get(&held.log)
                .is_some_and(|log| held.size > 0 && log.copy.size() >= held.size)
            {
                self.logs.remove(&held.log);
            }
        }
        loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                () = self.cancel.cancelled() => return Err(Reason::Superseded.into()),
                () = self.drain.draining() => return Err(Reason::Draining.into()),
            };
            let Ok(Some(request)) = message else { return Ok(()) };
            // A sidecar that is not to be heard any more ends here, not at its next stream.
            admitted(&self.audit.world, &self.peer, self.audit.clock.now())?;
            match request.message {
                Some(Message::Checkpoint(signed)) => self.checkpoint(signed).await?,
                Some(Message::Chunk(chunk)) => self.chunk(chunk).await?,
                Some(Message::Hello(_)) => {
                    return Err(Refusal::new(Reason::ProtocolViolation, "Hello comes first, and once"));
                }
                // A message of a later version.
                None => {}
            }
        }
    }

    fn say(&self, answer: Answer) -> Result<(), Refusal> {
        let response = AuditResponse { message: Some(answer) };
        let full = |_| Refusal::new(Reason::Overloaded, "the stream takes no answers");
        self.out.try_send(Ok(response)).map_err(full)
    }

    fn refused(&self, log: &str, refusal: &Refusal) -> Result<(), Refusal> {
        if refusal.reason == Reason::LogInUse {
            // It will be free soon: a sidecar tries again with another stream.
            return Err(refusal.clone());
        }
        let (agent, reason) = (&self.peer.id.agent, refusal.reason());
        metrics::counter!("aip_audit_rejected_total", "reason" => reason).increment(1);
        let log: String = log.chars().take(36).collect();
        tracing::warn!(%agent, log, reason, detail = %refusal.detail, "a part of an audit log was refused");
        self.say(Answer::Refused(AuditRefused {
            log,
            reason: reason.to_owned(),
            detail: refusal.detail.clone(),
        }))
    }

    /// Answers where a log goes on, or why it does not.
    fn resume(&self, log: &str, segment: u64, done: Result<(), Refusal>) -> Result<(), Refusal> {
        if let Err(refusal) = &done {
            return self.refused(log, refusal);
        }
        let place = self.logs.get(log).map_or((segment, 0), |held| held.copy.place());
        self.say(Answer::Resume(Resume {
            log: log.to_owned(),
            segment: place.0,
            offset: place.1,
        }))
    }

    /// A log that the sidecar says it holds.
    async fn open(&mut self, held: &HeldLog) -> Result<(), Refusal> {
        let row = self.opened(&held.log).await?;
        let signed = row.taken.map_or(0, |taken| taken.size);
        let came = self.logs.get(&held.log).map_or(0, |log| log.copy.size());
        let known = signed.max(came);
        if held.size < known {
            let detail = format!(
                "the sidecar has {} records; {signed} were signed, {came} are here",
                held.size
            );
            return Err(self.found(&held.log, Refusal::new(Reason::LogTruncated, detail)).await);
        }
        Ok(())
    }

    /// Opens the copy of a log, once.
    async fn opened(&mut self, log: &str) -> Result<LogRow, Refusal> {
        log_name(log)?;
        let agent = self.peer.id.agent.clone();
        let row = self.audit.ledger.open_log(log, &agent).await?;
        if let Some(broken) = &row.broken {
            let detail = format!("{}: nothing more of this log is taken", broken.reason);
            return Err(Refusal::new(Reason::LogBroken, detail));
        }
        if self.logs.contains_key(log) {
            return Ok(row);
        }
        if self.logs.len() >= MAX_LOGS {
            return Err(Refusal::new(
                Reason::AuditLogLimit,
                format!("a stream has at most {MAX_LOGS} logs"),
            ));
        }
        let writer = Writer {
            agent: agent.clone(),
            instance: self.instance.clone(),
            cancel: self.cancel.clone(),
        };
        let claim = self.audit.claim(log, writer).await?;
        let (dir, options) = (self.audit.dir_of(&agent, log), self.audit.bounds(&agent, log));
        super::make(&self.audit.dir.join(agent.as_str()))
            .map_err(|e| Refusal::new(Reason::AuditCopyFailed, e.to_string()))?;
        let (copy, records) = blocking(move || Copy::open(&dir, options)).await??;
        let name: Arc<str> = log.into();
        let (segment, _) = copy.place();
        let records: Vec<(u64, Record)> = records.into_iter().map(|record| (0, record)).collect();
        self.audit.heard(&agent, &name, segment, records, true);
        let held = Held {
            copy,
            name,
            _claim: claim,
        };
        self.logs.insert(log.to_owned(), held);
        self.settle(log).await?;
        Ok(row)
    }

    /// Compares what came with checkpoints that came after it.
    async fn settle(&mut self, log: &str) -> Result<(), Refusal> {
        let Some(held) = self.logs.get_mut(log) else {
            return Ok(());
        };
        loop {
            let compared = held.copy.compared();
            let covered = self.audit.ledger.sizes(log, compared, COVERED).await?;
            match held.copy.settle(&covered) {
                Ok(()) if held.copy.compared() == compared => return Ok(()),
                Ok(()) => {}
                Err(refusal) => return Err(self.found(log, refusal).await),
            }
        }
    }

    /// Keeps a finding where it is one, and lets go of the log.
    async fn found(&mut self, log: &str, refusal: Refusal) -> Refusal {
        if !is_finding(refusal.reason) {
            return refusal;
        }
        self.logs.remove(log);
        let finding = Finding {
            at: self.audit.clock.now(),
            agent: self.peer.id.agent.clone(),
            log: log.to_owned(),
            reason: refusal.reason().to_owned(),
            detail: refusal.detail.clone(),
            statement: String::new(),
            chain: Vec::new(),
            against: None,
        };
        match self.audit.found(finding).await {
            Ok(()) => refusal,
            Err(failed) => failed,
        }
    }

    async fn checkpoint(&mut self, signed: SignedCheckpoint) -> Result<(), Refusal> {
        let named = aip_audit::log::claims_of(&signed.statement).map(|claims| claims.log);
        let log = named.unwrap_or_default();
        match self.took(signed).await {
            Ok(taken) => self.say(Answer::Checkpoint(taken)),
            Err(refusal) => self.refused(&log, &refusal),
        }
    }

    async fn took(&mut self, signed: SignedCheckpoint) -> Result<CheckpointTaken, Refusal> {
        let (agent, trust, now) = (
            self.peer.id.agent.clone(),
            self.audit.trust.load_full(),
            self.audit.clock.now(),
        );
        let take = statement::verify(signed, &agent, &trust, now)?;
        let (log, size, at) = (take.claims.log.clone(), take.claims.size, take.claims.at);
        self.opened(&log).await?;
        let taken = match self.audit.ledger.take(take).await {
            Ok(taken) => taken,
            Err(refusal) => {
                if refusal.reason == Reason::CheckpointFork {
                    self.logs.remove(&log);
                    self.audit.tell(&agent, &log, refusal.reason(), &refusal.detail).await;
                }
                return Err(refusal);
            }
        };
        let result = if taken.again { "again" } else { "taken" };
        metrics::counter!("aip_audit_checkpoints_total", "result" => result).increment(1);
        let lag = (now * 1_000).saturating_sub(at);
        metrics::histogram!("aip_audit_checkpoint_lag_seconds").record(lag as f64 / 1_000.0);
        self.settle(&log).await?;
        Ok(CheckpointTaken {
            log,
            size,
            index: taken.index,
        })
    }

    async fn chunk(&mut self, chunk: SegmentChunk) -> Result<(), Refusal> {
        let (log, segment) = (chunk.log.clone(), chunk.segment);
        if chunk.data.len() > MAX_CHUNK_BYTES {
            let detail = format!("a chunk of {} bytes; at most {MAX_CHUNK_BYTES}", chunk.data.len());
            return Err(Refusal::new(Reason::ProtocolViolation, detail));
        }
        let done = self.receive(chunk).await;
        self.resume(&log, segment, done)
    }

    async fn receive(&mut self, chunk: SegmentChunk) -> Result<(), Refusal> {
        let log = chunk.log.clone();
        let row = self.opened(&log).await?;
        let agent = self.peer.id.agent.clone();
        let Some(held) = self.logs.remove(&log) else {
            return Ok(());
        };
        if held.copy.place() != (chunk.segment, chunk.offset) {
            // Sent twice, out of order, or after a loss of ours: the answer says where to go on.
            metrics::counter!("aip_audit_rejected_total", "reason" => "out_of_place").increment(1);
            self.logs.insert(log, held);
            return Ok(());
        }
        let last = chunk.last;
        if self.audit.is_full(&agent) {
            self.make_room().await?;
        }
        let covered = self.audit.ledger.sizes(&log, held.copy.compared(), COVERED).await;
        let signed = row.taken.map_or(0, |taken| taken.size);
        let Held { mut copy, name, _claim } = held;
        copy.bounded(self.audit.bounds(&agent, &log));
        let chunk = Chunk {
            segment: chunk.segment,
            offset: chunk.offset,
            data: chunk.data,
            last,
        };
        let (copy, took) = blocking(move || {
            let took = covered
                .map_err(Refusal::from)
                .and_then(|covered| copy.take(chunk, &covered, signed));
            (copy, took)
        })
        .await?;
        self.logs.insert(
            log.clone(),
            Held {
                copy,
                name: name.clone(),
                _claim,
            },
        );
        let brought = match took {
            Ok(brought) => brought,
            Err(refusal) => return Err(self.found(&log, refusal).await),
        };
        self.brought(&log, &name, brought);
        self.settle(&log).await?;
        if last {
            self.close(&log).await?;
        }
        Ok(())
    }

    /// Lets go of the oldest segments of this stream's other logs: nobody else may sweep them, and what they take is not
    /// there for the one that grows.
    async fn make_room(&mut self) -> Result<(), Refusal> {
        let agent = self.peer.id.agent.clone();
        // Names of logs begin with the time at which they were made.
        let mut names: Vec<String> = self.logs.keys().cloned().collect();
        names.sort();
        for name in names {
            let Some(mut held) = self.logs.remove(&name) else {
                continue;
            };
            held.copy.bounded(self.audit.bounds(&agent, &name));
            let now = self.audit.clock.now() * 1_000;
            let (held, swept) = blocking(move || {
                let swept = held.copy.sweep(now);
                (held, swept)
            })
            .await?;
            self.audit.used.set(&agent, &name, held.copy.bytes());
            let gone = held.copy.gone();
            self.logs.insert(name.clone(), held);
            swept?;
            self.audit.say_gone(&agent, &name, gone?).await?;
            if !self.audit.is_full(&agent) {
                break;
            }
        }
        Ok(())
    }

    fn brought(&mut self, log: &str, name: &Arc<str>, brought: Brought) {
        let agent = self.peer.id.agent.clone();
        metrics::counter!("aip_audit_received_records_total").increment(brought.records.len() as u64);
        metrics::counter!("aip_audit_received_bytes_total").increment(brought.bytes);
        if let Some((_, newest)) = brought.records.last() {
            let lag = (self.audit.clock.now() * 1_000).saturating_sub(newest.at);
            metrics::histogram!("aip_audit_record_lag_seconds").record(lag as f64 / 1_000.0);
        }
        if let Some(held) = self.logs.get(log) {
            self.audit.used.set(&agent, log, held.copy.bytes());
        }
        self.audit.heard(&agent, name, brought.segment, brought.records, false);
    }

    /// Closes the segment, and lets go of what is too old or too much.
    async fn close(&mut self, log: &str) -> Result<(), Refusal> {
        let Some(mut held) = self.logs.remove(log) else {
            return Ok(());
        };
        let covered = self.audit.ledger.sizes(log, held.copy.signed(), COVERED).await?;
        let size = held.copy.size();
        let newest = covered.iter().rev().find(|(covers, ..)| *covers <= size);
        let checkpoint = match newest {
            Some((.., index)) => self.audit.ledger.at(*index).await?,
            None => None,
        };
        let now = self.audit.clock.now() * 1_000;
        let (held, done) = blocking(move || {
            let done = held.copy.close(checkpoint.as_ref()).and_then(|()| held.copy.sweep(now));
            (held, done)
        })
        .await?;
        self.audit.used.set(&self.peer.id.agent, log, held.copy.bytes());
        let gone = held.copy.gone();
        self.logs.insert(log.to_owned(), held);
        done?;
        self.audit.say_gone(&self.peer.id.agent, log, gone?).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        metrics::gauge!("aip_audit_streams").decrement(1.0);
    }
}

//! One sidecar's audit stream, from its Hello to its end. One task, which owns the copies that it writes.

mod copies;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aip_api::wire::audit_request::Message;
use aip_api::wire::audit_response::Message as Answer;
use aip_api::wire::{
    AuditHello, AuditRefused, AuditRequest, AuditResponse, CheckpointTaken, HeldLog, Resume, SegmentChunk,
    SignedCheckpoint,
};
use aip_runtime::drain::DrainWatch;
use aip_runtime::x509::PeerIdentity;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::Audit;
use super::ledger::Finding;
use super::statement;
use crate::config::admitted;
use crate::hello;
use crate::quota::Place;
use crate::refusal::{Reason, Refusal};

/// Logs that one stream may send: its own, and those of earlier lives that were not all sent.
pub const MAX_LOGS: usize = 64;
/// Largest chunk.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;
/// How often copies that nothing is written to are looked for.
const LOOK: Duration = Duration::from_secs(10);

/// One stream.
pub struct Session {
    audit: Arc<Audit>,
    peer: PeerIdentity,
    instance: Arc<str>,
    // Cancelled when a newer stream of the same process takes a log.
    cancel: CancellationToken,
    logs: HashMap<String, copies::Held>,
    // How many records of each log, from the first, were heard on this stream: once is enough.
    heard: HashMap<String, u64>,
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
            heard: HashMap::new(),
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

    async fn serve(&mut self, greeting: AuditHello, inbound: &mut Streaming<AuditRequest>) -> Result<(), Refusal> {
        if greeting.logs.len() > MAX_LOGS {
            return Err(Refusal::new(
                Reason::AuditLogLimit,
                format!("a stream has at most {MAX_LOGS} logs"),
            ));
        }
        for held in greeting.logs {
            let opened = self.open(&held).await;
            self.resume(&held.log, 0, opened)?;
            // Of one that is here as a whole nothing may ever come: whoever looks after retention may have it.
            if held.size > 0 && self.size_of(&held.log) >= held.size {
                self.logs.remove(&held.log);
            }
        }
        let mut look = tokio::time::interval(LOOK);
        loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                _ = look.tick() => {
                    self.close_idle();
                    continue;
                }
                () = self.cancel.cancelled() => return Err(Reason::Superseded.into()),
                () = self.drain.draining() => return Err(Reason::Draining.into()),
            };
            let request = match message {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(status) => return hello::unread(&status),
            };
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
        // It is nothing of the log: a sidecar tries again with another stream.
        if matches!(refusal.reason, Reason::LogInUse | Reason::Superseded | Reason::Draining) {
            return Err(refusal.clone());
        }
        let (agent, reason) = (&self.peer.id.agent, refusal.reason());
        metrics::counter!("aip_audit_rejected_total", "reason" => reason).increment(1);
        let log: String = log.chars().take(36).collect();
        let detail = &refusal.detail;
        tracing::warn!(%agent, log, reason, %detail, "a part of an audit log was refused");
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
        let place = self.place_in(log).unwrap_or((segment, 0));
        self.say(Answer::Resume(Resume {
            log: log.to_owned(),
            segment: place.0,
            offset: place.1,
        }))
    }

    /// A log that the sidecar says it holds.
    async fn open(&mut self, held: &HeldLog) -> Result<(), Refusal> {
        let row = self.claimed(&held.log).await?;
        // Of what nothing has come nothing is made.
        if self.has_copy(&held.log).await {
            self.copied(&held.log).await?;
        }
        let signed = row.and_then(|row| row.taken).map_or(0, |taken| taken.size);
        let came = self.size_of(&held.log);
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
        let took = self.took(signed).await;
        // Who sends too many waits for the answer, and with it for the next one: nothing is lost.
        let kept = took.as_ref().is_ok_and(|(_, again)| !again);
        let wait = self.audit.pace.after(&self.peer.id.agent, &log, kept);
        self.rest(wait, "aip_audit_checkpoints_delayed_total").await?;
        match took {
            Ok((taken, _)) => self.say(Answer::Checkpoint(taken)),
            Err(refusal) => self.refused(&log, &refusal),
        }
    }

    async fn rest(&mut self, wait: Duration, counted: &'static str) -> Result<(), Refusal> {
        if wait.is_zero() {
            return Ok(());
        }
        metrics::counter!(counted).increment(1);
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.cancel.cancelled() => Err(Reason::Superseded.into()),
            () = self.drain.draining() => Err(Reason::Draining.into()),
        }
    }

    /// Takes a checkpoint; also whether it had been taken before.
    async fn took(&mut self, signed: SignedCheckpoint) -> Result<(CheckpointTaken, bool), Refusal> {
        let (agent, trust, now) = (
            self.peer.id.agent.clone(),
            self.audit.trust.load_full(),
            self.audit.clock.now(),
        );
        let take = statement::verify(signed, &agent, &trust, now)?;
        let (log, size, at) = (take.claims.log.clone(), take.claims.size, take.claims.at);
        self.claimed(&log).await?;
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
        let answer = CheckpointTaken {
            log,
            size,
            index: taken.index,
        };
        Ok((answer, taken.again))
    }

    async fn chunk(&mut self, chunk: SegmentChunk) -> Result<(), Refusal> {
        let (log, segment) = (chunk.log.clone(), chunk.segment);
        if chunk.data.len() > MAX_CHUNK_BYTES {
            let detail = format!("a chunk of {} bytes; at most {MAX_CHUNK_BYTES}", chunk.data.len());
            return Err(Refusal::new(Reason::ProtocolViolation, detail));
        }
        let done = self.receive(chunk).await;
        if self.place_in(&log).is_some_and(|(open, _)| open > segment) && done.is_ok() {
            // As for checkpoints: who closes too many waits, and with it the next one.
            let wait = self.audit.pace.after_closing(&self.peer.id.agent, &log);
            self.rest(wait, "aip_audit_segments_delayed_total").await?;
        }
        self.resume(&log, segment, done)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        metrics::gauge!("aip_audit_streams").decrement(1.0);
    }
}

//! One sidecar's kill stream, from its hello to its end.

use std::time::Duration;

use aip_api::Digest;
use aip_api::kill::{Heartbeat, KillSet, Lease};
use aip_api::resource::{Agent, KeyPurpose};
use aip_api::wire::kill_request::Message;
use aip_api::wire::kill_response::Message as Answer;
use aip_api::wire::{Beat, KillAck, KillRequest, KillResponse, SignedKillSet};
use aip_runtime::kill::{open_set, sign_heartbeat};
use aip_runtime::x509::PeerIdentity;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::board::Open;
use super::publish::Published;
use super::service::{Causes, KillService};
use crate::config::admitted;
use crate::hello;
use crate::rate::{Bucket, Rate};
use crate::refusal::{Reason, Refusal};
use crate::registry::kills::{GrantedLease, Shown};

/// How long a set may wait for its acknowledgement: writing it to a slow disk, and cutting all that is open.
const ACK_DEADLINE: Duration = Duration::from_secs(15);
/// Messages that may come at once, and in a second: a beat a second, and an acknowledgement of each set.
const MESSAGES: Rate = Rate {
    burst: 60.0,
    per_second: 5.0,
};
/// After how long a set is sent again that was not taken.
const AGAIN: Duration = Duration::from_secs(5);
/// The rejection of a set that is enforced and could not be written: the sidecar itself tries again.
const NOT_PERSISTED: &str = "not_persisted";
/// How often whether the peer may still be served is looked at: revocations end its connections anyway.
const LOOK: Duration = Duration::from_secs(5);

/// What a session works with.
pub(super) struct Task {
    service: KillService,
    peer: PeerIdentity,
    instance: String,
    open: Open,
    out: mpsc::Sender<Result<KillResponse, Status>>,
    published: watch::Receiver<std::sync::Arc<Published>>,
    ends: Instant,
    messages: Bucket,
    /// The set that waits for its acknowledgement.
    outstanding: Option<((u64, u64), Instant)>,
    /// The set that it holds, or is about to.
    held: Option<Digest>,
    /// What it showed that it could not write.
    unwritten: Option<((u64, u64), Digest)>,
    /// The lowest set that may be sent: what was published before it showed what it holds may lack orders of that.
    floor: (u64, u64),
    /// Not before then is a set sent again that it did not take.
    again: Option<Instant>,
}

impl Task {
    pub(super) fn new(
        service: KillService,
        peer: PeerIdentity,
        instance: String,
        open: Open,
        out: mpsc::Sender<Result<KillResponse, Status>>,
        ends: Instant,
    ) -> Self {
        Self {
            published: service.publisher.subscribe(),
            service,
            peer,
            instance,
            open,
            out,
            ends,
            messages: Bucket::full(MESSAGES),
            outstanding: None,
            held: None,
            unwritten: None,
            floor: (0, 0),
            again: None,
        }
    }

    /// Runs until the stream ends, and says why to the sidecar where it was we who ended it.
    pub(super) async fn run(
        mut self,
        mut inbound: Streaming<KillRequest>,
        [held, unwritten]: [Option<SignedKillSet>; 2],
    ) {
        let ended = match self.greeted(held, unwritten).await {
            Ok(()) => self.serve(&mut inbound).await,
            Err(refusal) => Err(refusal),
        };
        let (agent, instance) = (self.peer.id.agent.as_str(), self.instance.as_str());
        match ended {
            Ok(()) => tracing::info!(agent, instance, "kill stream closed by the sidecar"),
            Err(refusal) => {
                let reason = refusal.reason();
                metrics::counter!("aip_kill_streams_ended_total", "reason" => reason).increment(1);
                tracing::info!(agent, instance, reason, detail = %refusal.detail, "kill stream ended");
                // A sidecar that reads nothing does not hold this task for long.
                let _ = tokio::time::timeout(LOOK, self.out.send(Err(refusal.status()))).await;
            }
        }
    }

    /// What its agent may cause.
    fn causes(&self) -> &Causes {
        match self.open.orders_only {
            true => &self.service.orders_only,
            false => &self.service.ordinary,
        }
    }

    /// Whether the peer may (still) be told.
    fn admitted(&self) -> Result<(), Refusal> {
        match self.open.orders_only {
            // Until its SVID ends, which ends the stream.
            true => Ok(()),
            false => admitted(&self.service.world, &self.peer, self.service.registry.clock.now()),
        }
    }

    /// Looks at what the sidecar holds, before it is sent anything.
    async fn greeted(&mut self, held: Option<SignedKillSet>, unwritten: Option<SignedKillSet>) -> Result<(), Refusal> {
        if let Some(unwritten) = unwritten {
            let merged = self.merged(&unwritten).await?;
            self.unwritten = merged.map(|(set, digest)| (set.version(), digest));
        }
        match held {
            Some(held) => self.shown(&held).await,
            None => Ok(()),
        }
    }

    async fn serve(&mut self, inbound: &mut Streaming<KillRequest>) -> Result<(), Refusal> {
        let mut drain = self.service.drain.clone();
        let mut look = tokio::time::interval(LOOK);
        loop {
            self.push()?;
            let overdue = self.outstanding.map_or(self.ends, |(_, sent)| sent + ACK_DEADLINE);
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => self.message(message).await?,
                    Ok(None) => {
                        // Closed, and not cut: the process has drained.
                        return match self.open.drained() {
                            Some(drained) => {
                                if self.open.orders_only {
                                    self.causes().noted.spend(self.peer.id.agent.as_str())?;
                                }
                                self.service.registry.note_granted(&drained).await
                            }
                            None => Ok(()),
                        };
                    }
                    Err(status) => return hello::unread(&status),
                },
                changed = self.published.changed() => changed.map_err(|_| Reason::Draining)?,
                _ = look.tick() => self.admitted()?,
                () = tokio::time::sleep_until(overdue.min(self.ends)) => {
                    return Err(match self.outstanding {
                        Some((_, sent)) if sent + ACK_DEADLINE <= Instant::now() => Reason::AckTimeout.into(),
                        _ => Reason::StreamRenewed.into(),
                    });
                }
                () = self.open.cancel.cancelled() => return Err(Reason::Superseded.into()),
                () = drain.draining() => return Err(Reason::Draining.into()),
            }
        }
    }

    /// Sends the set in force, unless it is held, or one is on its way.
    fn push(&mut self) -> Result<(), Refusal> {
        let published = self.published.borrow_and_update().clone();
        if self.outstanding.is_some() || self.held == Some(published.digest()) {
            return Ok(());
        }
        if published.set.version() < self.floor || self.again.is_some_and(|again| Instant::now() < again) {
            return Ok(());
        }
        self.again = None;
        self.say(Answer::KillSet(published.signed.clone()))?;
        self.held = Some(published.digest());
        self.outstanding = Some((published.set.version(), Instant::now()));
        Ok(())
    }

    fn say(&self, message: Answer) -> Result<(), Refusal> {
        let response = KillResponse { message: Some(message) };
        let full = |_| Refusal::new(Reason::Overloaded, "the stream takes nothing");
        self.out.try_send(Ok(response)).map_err(full)
    }

    async fn message(&mut self, request: KillRequest) -> Result<(), Refusal> {
        self.messages.spend()?;
        self.causes().said.spend(self.peer.id.agent.as_str())?;
        match request.message {
            Some(Message::Ack(ack)) => self.acknowledged(ack).await,
            Some(Message::Beat(beat)) => self.beat(beat).await,
            Some(Message::Hello(_)) => Err(Refusal::new(
                Reason::ProtocolViolation,
                "the hello comes first, and once",
            )),
            // A message of a later version.
            None => Ok(()),
        }
    }

    async fn acknowledged(&mut self, ack: KillAck) -> Result<(), Refusal> {
        let waiting = self.outstanding.map(|(version, _)| version);
        // Of a set that could not be written at first, an acknowledgement comes unasked.
        let version = (ack.term, ack.epoch);
        let published = self.published.borrow().clone();
        // It may be of another set of this term and epoch, which the store lost: what that stops is not what is in force.
        let lost = self
            .unwritten
            .is_some_and(|(of, digest)| of == version && digest != published.digest());
        if waiting.is_none() && lost && ack.rejected.is_empty() {
            return Ok(());
        }
        let late = published.set.version() == version;
        match waiting {
            Some(version) if !ack.rejected.is_empty() || version == (ack.term, ack.epoch) => {}
            // Nobody is asked again for what it could not take, but for what its disk did not.
            None if late && (ack.rejected.is_empty() || ack.rejected == NOT_PERSISTED) => {}
            _ => {
                return Err(Refusal::new(
                    Reason::ProtocolViolation,
                    "there is no such set to acknowledge",
                ));
            }
        }
        if let Some((_, sent)) = self.outstanding.take() {
            metrics::histogram!("aip_kill_ack_seconds").record(sent.elapsed().as_secs_f64());
        }
        if !ack.rejected.is_empty() {
            let (agent, reason): (_, String) = (self.peer.id.agent.as_str(), ack.rejected.chars().take(64).collect());
            metrics::counter!("aip_kill_sets_not_taken_total").increment(1);
            tracing::error!(agent, reason, "a sidecar did not take the kill set");
            if ack.held.is_none() && reason != NOT_PERSISTED {
                // What it lacked may come to it, as a key that it did not know yet.
                (self.held, self.again) = (None, Some(Instant::now() + AGAIN));
            }
        }
        let held = ack.held.clone();
        self.open.answered(ack);
        match held {
            Some(held) => self.shown(&held).await,
            None => Ok(()),
        }
    }

    /// Looks at the set that the sidecar holds.
    async fn shown(&mut self, signed: &SignedKillSet) -> Result<(), Refusal> {
        let Some((set, digest)) = self.merged(signed).await? else {
            return Ok(());
        };
        let is_in_force = self.published.borrow().digest() == digest;
        // Whoever was revoked raised nothing by it: it is sent what is in force, and once, also where it holds a later one.
        if is_in_force || !self.open.orders_only {
            self.held = Some(digest);
        }
        if is_in_force {
            self.open.holds(set.version());
        }
        Ok(())
    }

    /// Takes up the orders of a set that the sidecar shows, where this store never issued it. `None`: it is no set.
    async fn merged(&mut self, signed: &SignedKillSet) -> Result<Option<(KillSet, Digest)>, Refusal> {
        let agent = self.peer.id.agent.clone();
        let set = match open_set(&self.service.trust.load(), signed) {
            Ok(set) => set,
            Err(error) => {
                // Whoever holds what nobody signed is sent what is in force; no other sidecar hears of it.
                tracing::error!(%agent, reason = error.reason(), %error, "a sidecar shows a kill set that is none");
                return Ok(None);
            }
        };
        let digest = Digest::sha256(&signed.payload);
        if self.open.orders_only {
            // Whoever was revoked raises no term: it is told, and named where it does not take what is in force.
            return Ok(Some((set, digest)));
        }
        let Shown { unknown, floor } = self.service.registry.shown_kill_set(&set, digest).await?;
        self.floor = self.floor.max(floor);
        if unknown {
            metrics::counter!("aip_kill_restored_store_total").increment(1);
            let (term, epoch) = set.version();
            tracing::error!(
                %agent,
                term,
                epoch,
                "a sidecar holds a kill set that this store never issued: the store was restored from a copy; \
                 a new term begins with the orders of both"
            );
        }
        Ok(Some((set, digest)))
    }

    async fn beat(&mut self, beat: Beat) -> Result<(), Refusal> {
        if self.open.orders_only {
            let detail = "a stream for orders to stop is granted no lease";
            return Err(Refusal::new(Reason::SvidRevoked, detail));
        }
        let Beat { sequence, granted } = beat;
        let agent: Option<Agent> = self.service.world.document(self.peer.id.agent.as_str());
        let lease: Lease = agent.ok_or(Refusal::from(Reason::AgentUnknown))?.lease;
        if let Some(leases) = self.open.to_note(granted, lease) {
            self.causes().noted.spend(self.peer.id.agent.as_str())?;
            // On disk before it is granted: after a restart we must know what may still run.
            let granted = GrantedLease {
                agent: self.peer.id.agent.clone(),
                instance: self.open.name().to_owned(),
                serial: self.peer.serial.clone(),
                line: Some(self.open.line.clone()),
                leases: leases.clone(),
                drained: false,
            };
            self.service.registry.note_granted(&granted).await?;
            self.open.noted(leases);
        }
        let published = self.service.publisher.current();
        let heartbeat = Heartbeat {
            v: 1,
            trust_domain: published.set.trust_domain.clone(),
            term: published.set.term,
            epoch: published.set.epoch,
            at: self.service.registry.clock.now(),
            instance: self.instance.clone(),
            sequence,
            lease,
        };
        let payload = serde_json::to_vec(&heartbeat).map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
        // Noted first: what is granted counts from before now.
        self.open.beats(sequence, lease);
        let signer = self.service.ca.signer(KeyPurpose::Kill);
        self.say(Answer::Heartbeat(sign_heartbeat(&signer, payload)))
    }
}

//! One sidecar's stream, from its Hello to its end. One task, which owns everything that it changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aip_api::AgentName;
use aip_api::resource::{Agent, Kind, MAX_NAME_BYTES, ResourceId, Revocation};
use aip_api::wire::config_request::Message;
use aip_api::wire::{self, Ack, ConfigRequest, ConfigResponse, EndpointLease, Hello, Subscribe};
use aip_runtime::drain::DrainWatch;
use aip_runtime::x509::PeerIdentity;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::leases::Leases;
use super::sessions::{Nack, Session};
use super::view::{Push, View};
use super::world::{News, World};
use crate::clock::Clock;
use crate::hello;
use crate::rate::{Bucket, Rate, Rates};
use crate::refusal::{Reason, Refusal};

/// Resources that a Hello may list: a sidecar with every subscription that it may have, several endpoints each.
pub(super) const MAX_HELD: usize = 100_000;
/// Names in one message; more come in several.
const MAX_NAMES: usize = 1_000;
/// Rejections in one acknowledgement: at most what a push carries.
const MAX_REJECTIONS: usize = 512;
/// Text that a sidecar sends for people, as far as it is kept, and its stable reason.
const MAX_TEXT: usize = 500;
const MAX_REASON: usize = 64;
/// Messages that may come at once, and in a second: a fan-out to many peers, then what one agent's calls cause, also where it
/// calls names that do not exist.
const MESSAGES: Rate = Rate {
    burst: 400.0,
    per_second: 100.0,
};
/// Leases: each is a transaction that is flushed and pushed to every peer. A sidecar leases when it connects, and gives
/// it up when it drains.
const LEASES: Rate = Rate {
    burst: 10.0,
    per_second: 0.2,
};

/// What a session works with.
pub(super) struct Task {
    pub(super) world: Arc<World>,
    pub(super) leases: Arc<Leases>,
    pub(super) asked: Arc<Rates>,
    pub(super) clock: Clock,
    pub(super) peer: PeerIdentity,
    pub(super) session: Session,
    pub(super) instance: String,
    pub(super) view: View,
    pub(super) news: broadcast::Receiver<News>,
    pub(super) out: mpsc::Sender<Result<ConfigResponse, Status>>,
    pub(super) drain: DrainWatch,
    pub(super) ends: Instant,
    pub(super) ack_deadline: Duration,
    pub(super) state: State,
}

/// What changes while it runs.
pub(super) struct State {
    outstanding: Option<(Push, Instant)>,
    lease: Option<String>,
    // Its last word on its lease was that it has none: it drains, or is not ready.
    withdrawn: bool,
    messages: Bucket,
    leases: Bucket,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            outstanding: None,
            lease: None,
            withdrawn: false,
            messages: Bucket::full(MESSAGES),
            leases: Bucket::full(LEASES),
        }
    }
}

/// Reads a Hello's list of what is held.
pub(crate) fn held(hello: &Hello) -> Result<HashMap<ResourceId, u64>, Refusal> {
    let violation = |what: &str| Refusal::new(Reason::ProtocolViolation, what.to_owned());
    if hello.held.len() > MAX_HELD {
        return Err(violation("too many resources are held"));
    }
    let mut out = HashMap::with_capacity(hello.held.len());
    for held in &hello.held {
        if held.name.len() > MAX_NAME_BYTES {
            return Err(violation("a name is too long"));
        }
        // A kind of a later version: it is not ours to push or to take back.
        let Some(kind) = Kind::from_wire(held.kind) else {
            continue;
        };
        out.insert(ResourceId::new(kind, held.name.clone()), held.revision);
    }
    Ok(out)
}

/// Whether the peer may (still) be served.
pub(crate) fn admitted(world: &World, peer: &PeerIdentity, now: u64) -> Result<(), Refusal> {
    let agent: Option<Agent> = world.document(peer.id.agent.as_str());
    let agent = agent.ok_or(Refusal::from(Reason::AgentUnknown))?;
    if peer.not_after <= now {
        return Err(Reason::SvidExpired.into());
    }
    if peer.result.generation != agent.generation {
        return Err(Reason::GenerationMismatch.into());
    }
    let serial = format!("serial/{}/{}", peer.issuer, peer.serial);
    match world.document::<Revocation>(&serial) {
        Some(_) => Err(Reason::SvidRevoked.into()),
        None => Ok(()),
    }
}

impl Task {
    /// Runs until the stream ends, and says why to the sidecar where it was we who ended it.
    pub(super) async fn run(mut self, mut inbound: Streaming<ConfigRequest>) {
        let ended = self.serve(&mut inbound).await;
        if let Some(name) = self.state.lease.take() {
            self.leases.abandon(self.session.id, name);
        }
        let (agent, instance) = (self.peer.id.agent.as_str(), self.instance.as_str());
        match ended {
            Ok(()) => tracing::info!(agent, instance, "config stream closed by the sidecar"),
            Err(refusal) => {
                let reason = refusal.reason();
                metrics::counter!("aip_config_streams_ended_total", "reason" => reason).increment(1);
                tracing::info!(agent, instance, reason, detail = %refusal.detail, "config stream ended");
                // A sidecar that reads nothing does not hold this task.
                let _ = self.out.try_send(Err(refusal.status()));
            }
        }
    }

    async fn serve(&mut self, inbound: &mut Streaming<ConfigRequest>) -> Result<(), Refusal> {
        loop {
            self.push()?;
            let deadline = self
                .state
                .outstanding
                .as_ref()
                .map_or(self.ends, |(_, sent)| *sent + self.ack_deadline);
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        self.message(message).await?;
                        // Messages that have come already are no reason to keep others from this thread.
                        tokio::task::yield_now().await;
                    }
                    Ok(None) => {
                        if self.state.withdrawn {
                            self.session.ended();
                        }
                        return Ok(());
                    }
                    Err(status) => return hello::unread(&status),
                },
                news = self.news.recv() => self.hear(news)?,
                () = tokio::time::sleep_until(deadline.min(self.ends)) => self.overdue(deadline)?,
                () = self.session.cancel.cancelled() => return Err(Reason::Superseded.into()),
                () = self.drain.draining() => return Err(Reason::Draining.into()),
            }
        }
    }

    fn overdue(&self, deadline: Instant) -> Result<(), Refusal> {
        let now = Instant::now();
        if self.state.outstanding.is_some() && now >= deadline {
            return Err(Reason::AckTimeout.into());
        }
        if now < self.ends {
            return Ok(());
        }
        admitted(&self.world, &self.peer, self.clock.now())?;
        Err(Reason::StreamRenewed.into())
    }

    /// Sends the next push, unless one is on its way.
    fn push(&mut self) -> Result<(), Refusal> {
        if self.state.outstanding.is_some() {
            return Ok(());
        }
        let Some(push) = self.view.next_push(&self.world) else {
            self.session.at(self.view.revision());
            return Ok(());
        };
        metrics::counter!("aip_config_pushes_total").increment(1);
        metrics::counter!("aip_config_resources_pushed_total").increment(push.response.resources.len() as u64);
        let response = push.response.clone();
        // There is room: the one before was acknowledged, so it was taken out.
        self.out
            .try_send(Ok(response))
            .map_err(|_| Refusal::new(Reason::Overloaded, "the stream takes nothing"))?;
        self.state.outstanding = Some((push, Instant::now()));
        self.session.outstanding();
        Ok(())
    }

    fn hear(&mut self, news: Result<News, broadcast::error::RecvError>) -> Result<(), Refusal> {
        let news = match news {
            Ok(news) => news,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                metrics::counter!("aip_config_sessions_lagged_total").increment(1);
                let (news, revision) = self.world.subscribe();
                self.news = news;
                News::All(revision)
            }
            Err(broadcast::error::RecvError::Closed) => return Err(Reason::Draining.into()),
        };
        self.view.hear(&news, &self.world);
        let may_end = match &news {
            News::All(_) => true,
            News::Some(_, ids) => ids.iter().any(|id| {
                id.kind == Kind::Revocation || id.kind == Kind::Agent && id.name == self.peer.id.agent.as_str()
            }),
        };
        if may_end {
            admitted(&self.world, &self.peer, self.clock.now())
        } else {
            Ok(())
        }
    }

    async fn message(&mut self, request: ConfigRequest) -> Result<(), Refusal> {
        self.state.messages.spend()?;
        if !matches!(request.message, Some(Message::Ack(_))) {
            self.asked.spend(self.peer.id.agent.as_str())?;
        }
        match request.message {
            Some(Message::Ack(ack)) => self.acknowledged(ack),
            Some(Message::Subscribe(subscribe)) => {
                let (kind, names) = names(subscribe)?;
                if self.view.subscribe(kind, names, &self.world) {
                    Ok(())
                } else {
                    Err(Reason::SubscriptionLimit.into())
                }
            }
            Some(Message::Unsubscribe(subscribe)) => {
                let (kind, names) = names(subscribe)?;
                self.view.unsubscribe(kind, &names, &self.world);
                Ok(())
            }
            Some(Message::Endpoint(lease)) => self.lease(lease).await,
            Some(Message::Hello(_)) => Err(Refusal::new(Reason::ProtocolViolation, "Hello comes first, and once")),
            // A message of a later version.
            None => Ok(()),
        }
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<(), Refusal> {
        let violation = |what: &str| Err(Refusal::new(Reason::ProtocolViolation, what.to_owned()));
        let Some((push, sent)) = self.state.outstanding.take() else {
            return violation("there is no push to acknowledge");
        };
        if push.response.nonce != ack.nonce {
            return violation("the acknowledgement is of another push");
        }
        if ack.rejected.len() > MAX_REJECTIONS {
            return violation("more rejections than resources");
        }
        metrics::histogram!("aip_config_ack_seconds").record(sent.elapsed().as_secs_f64());
        let (rejected, nacks) = self.rejections(&push, ack.rejected);
        let taken = push.taken(&rejected);
        let revision = push.response.revision;
        self.view.acknowledge(push, &rejected);
        self.session.answered(&taken, nacks);
        if revision > 0 {
            self.session.at(revision);
        }
        Ok(())
    }

    /// What of a push was rejected, and how that is shown. What was not in it is nobody's to reject.
    fn rejections(&self, push: &Push, said: Vec<wire::Rejection>) -> (Vec<ResourceId>, Vec<Nack>) {
        let clip = |text: String, most| text.chars().take(most).collect::<String>();
        let (mut rejected, mut nacks) = (Vec::new(), Vec::new());
        for rejection in said {
            let id = Kind::from_wire(rejection.kind).map(|kind| ResourceId::new(kind, rejection.name));
            let Some(id) = id.filter(|id| push.has(id)) else {
                continue;
            };
            let (kind, name) = (id.kind.as_str(), id.name.clone());
            metrics::counter!("aip_config_nacks_total", "kind" => kind).increment(1);
            let (reason, detail) = (clip(rejection.reason, MAX_REASON), clip(rejection.detail, MAX_TEXT));
            let agent = self.peer.id.agent.as_str();
            tracing::warn!(agent, kind, name, reason, detail, "a sidecar rejected a resource");
            nacks.push(Nack {
                kind: kind.into(),
                name,
                revision: rejection.revision,
                reason,
                detail,
                at: self.clock.now(),
            });
            rejected.push(id);
        }
        (rejected, nacks)
    }

    async fn lease(&mut self, lease: EndpointLease) -> Result<(), Refusal> {
        self.state.leases.spend()?;
        self.state.withdrawn = lease.address.is_empty();
        if lease.address.is_empty() {
            if let Some(name) = self.state.lease.take() {
                self.leases.release(self.session.id, &name).await?;
            }
            self.session.leased(None);
            return Ok(());
        }
        let agent = &self.peer.id.agent;
        let name = self
            .leases
            .take(self.session.id, agent, &self.instance, &lease.address)
            .await?;
        self.state.lease = Some(name);
        self.session.leased(Some(lease.address));
        Ok(())
    }
}

/// Reads what a subscription names.
pub(crate) fn names(subscribe: Subscribe) -> Result<(Kind, Vec<AgentName>), Refusal> {
    let violation = |what: String| Refusal::new(Reason::ProtocolViolation, what);
    let kind = Kind::from_wire(subscribe.kind)
        .filter(|k| {
            matches!(
                k,
                Kind::Agent | Kind::Endpoint | Kind::Policy | Kind::Reputation | Kind::Traffic
            )
        })
        .ok_or_else(|| violation("subscriptions are to Agent, Endpoint, Policy, Reputation and Traffic".into()))?;
    if subscribe.names.len() > MAX_NAMES {
        return Err(violation(format!(
            "{} names in one message; at most {MAX_NAMES}",
            subscribe.names.len()
        )));
    }
    let names = subscribe.names.iter().map(|n| n.parse());
    let names = names
        .collect::<Result<_, aip_api::name::NameError>>()
        .map_err(|e| violation(e.to_string()))?;
    Ok((kind, names))
}

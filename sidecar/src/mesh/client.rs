//! The `Config` stream: hello with what is held, pushes applied and answered, peers asked for, the endpoint leased.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip_api::resource::{Kind, Rejected};
use aip_api::{AgentName, wire};
use aip_runtime::backoff::Backoff;
use aip_runtime::grpc::{self, ChannelError, config_client::ConfigClient};
use aip_runtime::ready::Readiness;
use aip_runtime::svid::SvidSource;
use aip_runtime::trust::Trust;
use aip_runtime::{tls, unix_now};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use wire::config_request::Message;

use super::Mesh;
use super::cache::Cache;
use super::world::{Origin, World};
use crate::identity::revoked::{Revoked, Said, means_revoked};

/// First and last bound of the wait between attempts (full jitter below it): a restarted control plane must see its
/// fleet within seconds, and not all of it in the first one.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// A stream that lasted this long was a good one: the next attempt starts over with short waits.
const HEALTHY: Duration = Duration::from_secs(10);
/// Requests that may wait to be sent.
const OUTGOING: usize = 64;
/// Time between two batches of names: with four messages, four more where the names do not exist, and the acknowledgements of
/// a batch this stays below the 100 messages a second that the control plane takes, whatever names an agent calls.
const PACE: Duration = Duration::from_millis(150);
/// What is held of a peer. Policies and reputation before the agent that they are of: whoever waits for the agent then
/// finds it with all of them.
const PEER_KINDS: [Kind; 4] = [Kind::Policy, Kind::Endpoint, Kind::Reputation, Kind::Agent];
/// Names in one subscription message: as many as the control plane takes.
const NAMES: usize = 1_000;
/// Bytes that are said for people of one rejected resource, and of all of a push: with the names of 512 of them, less than the
/// control plane reads in one message.
const MAX_DETAIL: usize = 2_000;
const MAX_DETAILS: usize = 64 * 1024;

/// What the stream needs beside the world.
pub struct Client {
    /// Where the control plane listens.
    pub control_plane: SocketAddr,
    /// What this sidecar presents.
    pub svid: SvidSource,
    /// Where it is said that the control plane takes that no more.
    pub revoked: Revoked,
    /// What it trusts.
    pub trust: Trust,
    /// Gate `config`.
    pub ready: Readiness,
    /// This process.
    pub instance: String,
    /// Where to write what is held; none with `keys: memory`.
    pub cache: Option<Arc<Cache>>,
    /// What is leased: where the inbound port can be dialled, or nothing (not ready, draining). Its sender is dropped
    /// when the process has drained.
    pub lease: watch::Receiver<Option<SocketAddr>>,
    /// Roots and keys of a renewed SVID.
    pub origins: mpsc::Receiver<Origin>,
    /// Names that requests ask for.
    pub asked: mpsc::Receiver<AgentName>,
    /// Counts the greetings that the control plane answered: it let this sidecar in, or refused no more than the
    /// generation of its SVID, as one does that was restored from a copy of before that generation. A store that waits to
    /// be lifted counts not: it is to be changed by nobody before.
    pub answered: watch::Sender<u64>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("no connection to the control plane: {0}")]
    Connect(#[from] ChannelError),
    #[error("the control plane ended the stream ({}): {}", grpc::reason(.0).unwrap_or("no reason given"), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the control plane ended the stream")]
    Closed,
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

impl StreamEnd {
    /// The stable reason: the control plane's own where it gave one, TLS's where that failed.
    fn reason(&self) -> &str {
        match self {
            Self::Connect(error) => error.reason(),
            Self::Status(status) => grpc::reason(status).unwrap_or("control_plane_stream"),
            Self::Closed => "control_plane_stream",
            Self::Tls(error) => error.reason(),
        }
    }
}

/// What one loop carries from stream to stream.
struct Session {
    client: Client,
    mesh: Mesh,
    world: World,
    /// Peers that the stream is subscribed to.
    peers: HashSet<AgentName>,
}

/// Keeps the stream up and the mesh current, until the process has drained.
pub async fn run(client: Client, mesh: Mesh, world: World) {
    let peers = mesh
        .snapshot()
        .agents
        .keys()
        .filter(|name| **name != mesh.snapshot().id.agent)
        .cloned()
        .collect();
    let mut session = Session {
        client,
        mesh,
        world,
        peers,
    };
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let svid = session.client.svid.clone();
    loop {
        // Who has nothing to show need not knock.
        session.wait(svid.held()).await;
        let began = tokio::time::Instant::now();
        let shown = svid.current().map(|svid| svid.identity.serial.clone());
        let heard = tls::Heard::default();
        let end = session.stream(&heard).await;
        metrics::gauge!("aip_control_plane_connected").set(0.0);
        if session.client.lease.has_changed().is_err() {
            return;
        }
        if let Err(error) = end {
            // The control plane ended the stream for that, or refused what it was shown at all.
            let error = heard.refusal().map_or(error, StreamEnd::Tls);
            let why = heard.revocation().unwrap_or_else(|| error.reason());
            if let Some(serial) = shown.filter(|_| means_revoked(why)) {
                let reason = why.to_owned();
                session.client.revoked.say(Said { serial, reason });
            }
            tracing::warn!(reason = error.reason(), %error, "the configuration stream ended; going on with the last good one");
        }
        if began.elapsed() > HEALTHY {
            backoff.reset();
        }
        session.wait(tokio::time::sleep(backoff.next())).await;
    }
}

impl Session {
    /// Waits, and meanwhile takes renewed origins: their senders must not block on a control plane that is gone.
    async fn wait(&mut self, until: impl Future<Output = ()>) {
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return,
                Some(origin) = self.client.origins.recv() => self.world.renew(origin),
                // Nobody can be asked now; whoever waits runs into the deadline.
                Some(_) = self.client.asked.recv() => {}
                // What it says is said at the next greeting.
                lease = self.client.lease.changed() => if lease.is_err() {
                    return;
                },
            }
        }
    }

    async fn stream(&mut self, heard: &tls::Heard) -> Result<(), StreamEnd> {
        let tls = tls::control_plane_client(Some(self.client.svid.slot()), &self.client.trust)?;
        let channel = grpc::channel_hearing(self.client.control_plane, tls, heard).await?;
        let (send, outgoing) = mpsc::channel(OUTGOING);
        self.greet(&send).await?;
        let mut stub = ConfigClient::new(channel).max_decoding_message_size(grpc::MAX_MESSAGE_BYTES);
        let answer = stub.stream(ReceiverStream::new(outgoing)).await;
        if answer.as_ref().err().is_none_or(is_of_generation) {
            self.client.answered.send_modify(|answers| *answers += 1);
        }
        let mut pushes = answer?.into_inner();
        metrics::gauge!("aip_control_plane_connected").set(1.0);
        tracing::info!(control_plane = %self.client.control_plane, "configuration stream up");
        let mut paced = tokio::time::Instant::now();
        loop {
            tokio::select! {
                push = pushes.message() => match push? {
                    Some(push) => self.take(push, &send).await?,
                    None => return Err(StreamEnd::Closed),
                },
                Some(name) = next_name(&mut self.client.asked, paced) => {
                    paced = tokio::time::Instant::now() + PACE;
                    self.ask(name, &send).await?;
                }
                Some(origin) = self.client.origins.recv() => self.world.renew(origin),
                lease = self.client.lease.changed() => {
                    if lease.is_err() {
                        break;
                    }
                    let lease = lease_message(&mut self.client.lease);
                    say(&send, lease).await?;
                }
            }
        }
        // The process has drained: a stream that is closed, and not cut, says so. The control plane closes its side
        // when it has read that.
        drop(send);
        while pushes.message().await?.is_some() {}
        Ok(())
    }

    async fn greet(&mut self, send: &mpsc::Sender<wire::ConfigRequest>) -> Result<(), StreamEnd> {
        let hello = wire::Hello {
            instance: self.client.instance.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            held: self.world.held(),
            newest: self.world.newest().cloned(),
        };
        say(send, Message::Hello(hello)).await?;
        let peers: Vec<String> = self.peers.iter().map(ToString::to_string).collect();
        // Its own endpoints too: an agent may call itself by its mesh name.
        let own = wire::Subscribe {
            kind: Kind::Endpoint.to_wire() as i32,
            names: vec![self.mesh.snapshot().id.agent.to_string()],
        };
        say(send, Message::Subscribe(own)).await?;
        for names in peers.chunks(NAMES) {
            subscribe(send, names.to_vec()).await?;
        }
        let lease = lease_message(&mut self.client.lease);
        say(send, lease).await
    }

    /// Asks for this name, and in the same messages for all that were asked for meanwhile.
    async fn ask(&mut self, first: AgentName, send: &mpsc::Sender<wire::ConfigRequest>) -> Result<(), StreamEnd> {
        let mut names = vec![first];
        while names.len() < NAMES
            && let Ok(name) = self.client.asked.try_recv()
        {
            names.push(name);
        }
        // Single flight: who else waits for a name waits for the same push. One that has come meanwhile is not asked for
        // again.
        let snapshot = self.mesh.snapshot();
        let is_answered = |name: &AgentName| snapshot.agent(name).is_some() || self.mesh.is_absent(name);
        names.retain(|name| !is_answered(name) && self.peers.insert(name.clone()));
        if names.is_empty() {
            Ok(())
        } else {
            subscribe(send, names.iter().map(ToString::to_string).collect()).await
        }
    }

    async fn take(
        &mut self,
        push: wire::ConfigResponse,
        send: &mpsc::Sender<wire::ConfigRequest>,
    ) -> Result<(), StreamEnd> {
        let rejected = self.world.apply(&push, unix_now());
        for refused in &rejected {
            tracing::error!(reason = refused.reason, resource = %refused.id, "{refused}; the last good version stays");
            metrics::counter!("aip_config_rejected_total", "kind" => refused.id.kind.as_str(), "reason" => refused.reason).increment(1);
        }
        self.mesh.replace(self.world.snapshot());
        self.let_go(&push, send).await?;
        self.persist().await;
        metrics::gauge!("aip_config_revision").set(self.world.revision() as f64);
        if self.world.is_synced() && self.world.is_usable() {
            self.client.ready.set("config", true);
        }
        let rejected = rejections(rejected);
        say(
            send,
            Message::Ack(wire::Ack {
                nonce: push.nonce,
                rejected,
            }),
        )
        .await
    }

    /// Ends the subscriptions to agents that were deregistered, or never were registered: where agents come and go, or one
    /// calls whatever names it likes, they would else become more than the control plane takes. One that is registered later
    /// is asked for again.
    async fn let_go(
        &mut self,
        push: &wire::ConfigResponse,
        send: &mpsc::Sender<wire::ConfigRequest>,
    ) -> Result<(), StreamEnd> {
        let snapshot = self.mesh.snapshot();
        let is_agent = |kind: i32| Kind::from_wire(kind) == Some(Kind::Agent);
        let deleted = push.resources.iter().filter(|r| r.deleted && is_agent(r.kind));
        let mut gone: HashSet<AgentName> = deleted
            .filter_map(|resource| resource.name.parse().ok())
            .filter(|name| snapshot.agent(name).is_none() && self.peers.remove(name))
            .collect();
        for missing in push.missing.iter().filter(|missing| is_agent(missing.kind)) {
            let Ok(name) = missing.name.parse::<AgentName>() else {
                continue;
            };
            if self.peers.remove(&name) {
                gone.insert(name.clone());
            }
            self.mesh.absent(name);
        }
        if gone.is_empty() {
            return Ok(());
        }
        // The control plane forgets that these are held.
        self.world.forget_endpoints(&gone);
        let gone: Vec<String> = gone.iter().map(ToString::to_string).collect();
        for (names, kind) in gone
            .chunks(NAMES)
            .flat_map(|names| PEER_KINDS.map(|kind| (names, kind)))
        {
            let unsubscribe = wire::Subscribe {
                kind: kind.to_wire() as i32,
                names: names.to_vec(),
            };
            say(send, Message::Unsubscribe(unsubscribe)).await?;
        }
        Ok(())
    }

    async fn persist(&self) {
        let Some(cache) = self.client.cache.clone() else { return };
        let (revision, resources): (u64, Vec<_>) = (self.world.revision(), self.world.resources().cloned().collect());
        let stored =
            tokio::task::spawn_blocking(move || cache.store(revision, resources.iter().map(AsRef::as_ref))).await;
        if let Ok(Err(error)) = stored {
            // Serving goes on: only a restart without a control plane is lost.
            tracing::error!(reason = "cache_not_written", %error, "a restart would need the control plane");
            metrics::counter!("aip_cache_write_failures_total").increment(1);
        }
    }
}

/// Whether the control plane knows this agent, and not the generation of its SVID.
fn is_of_generation(refused: &tonic::Status) -> bool {
    grpc::reason(refused) == Some("generation_mismatch")
}

async fn subscribe(send: &mpsc::Sender<wire::ConfigRequest>, names: Vec<String>) -> Result<(), StreamEnd> {
    for kind in PEER_KINDS {
        say(
            send,
            Message::Subscribe(wire::Subscribe {
                kind: kind.to_wire() as i32,
                names: names.clone(),
            }),
        )
        .await?;
    }
    Ok(())
}

/// The next name that is asked for, not before `paced`.
async fn next_name(asked: &mut mpsc::Receiver<AgentName>, paced: tokio::time::Instant) -> Option<AgentName> {
    tokio::time::sleep_until(paced).await;
    asked.recv().await
}

fn lease_message(lease: &mut watch::Receiver<Option<SocketAddr>>) -> Message {
    let address = lease.borrow_and_update().map(|a| a.to_string()).unwrap_or_default();
    Message::Endpoint(wire::EndpointLease { address })
}

/// What is said of rejected resources. For people it is cut, so that all of it is a message that the control plane reads.
fn rejections(refused: Vec<Rejected>) -> Vec<wire::Rejection> {
    let room = MAX_DETAIL.min(MAX_DETAILS / refused.len().max(1));
    let said = |refused: Rejected| wire::Rejection {
        kind: refused.id.kind.to_wire() as i32,
        name: refused.id.name,
        revision: refused.revision,
        reason: refused.reason.to_owned(),
        detail: refused.detail[..refused.detail.floor_char_boundary(room)].to_owned(),
    };
    refused.into_iter().map(said).collect()
}

async fn say(send: &mpsc::Sender<wire::ConfigRequest>, message: Message) -> Result<(), StreamEnd> {
    let request = wire::ConfigRequest { message: Some(message) };
    send.send(request).await.map_err(|_| StreamEnd::Closed)
}

#[cfg(test)]
mod tests;

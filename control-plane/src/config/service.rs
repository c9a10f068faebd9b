//! The gRPC face of the Config stream: who may open one, and its first message.

use std::sync::Arc;
use std::time::Duration;

use aip_api::wire::config_request::Message;
use aip_api::wire::{ConfigRequest, ConfigResponse, Hello, Resource};
use aip_runtime::drain::DrainWatch;
use aip_runtime::grpc::PeerInfo;
use aip_runtime::grpc::config_server::Config;
use aip_runtime::x509::PeerIdentity;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::leases::Leases;
use super::session::{State, Task, admitted, held};
use super::sessions::Sessions;
use super::view::View;
use super::world::World;
use crate::clock::Clock;
use crate::hello::{self, Hellos};
use crate::rate::{Rate, Rates};
use crate::refusal::{Reason, Refusal};
use crate::registry::tokens::random;

/// Streams live this long ± 10 %, so that a fleet spreads over replicas that were added, and never all at once.
const STREAM_AGE: Duration = Duration::from_secs(3_600);
/// How long a sidecar may take to apply a push: compiling every policy anew on a busy core.
const ACK_DEADLINE: Duration = Duration::from_secs(30);
/// How [`aip_runtime::signed::verify`] says that a resource is of a kind of a later version.
const UNKNOWN_KIND: &str = "unknown_kind";
/// Answers on their way to one sidecar: a push, and the status that ends the stream.
const OUT: usize = 4;

/// What the sidecars of one agent may ask for at once, and in a second, on all their streams: 256 of them that come back, with
/// what each asks for then. Acknowledgements are as many as pushes, and do not count.
pub(crate) const ASKED: Rate = Rate {
    burst: 10_000.0,
    per_second: 512.0,
};

/// How many streams there may be, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In all. Each costs about 50 KiB with its TLS and HTTP/2 buffers.
    pub sessions: usize,
    /// Of one agent: its replicas.
    pub per_agent: usize,
    /// Resources that the Hellos of one agent's streams may list together: what its sidecars say costs memory here.
    pub listed: usize,
    /// How long a stream lives, ± 10 %.
    pub age: Duration,
    /// How long a push may wait for its acknowledgement.
    pub ack: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 20_000,
            per_agent: 256,
            listed: 4 * super::session::MAX_HELD,
            age: STREAM_AGE,
            ack: ACK_DEADLINE,
        }
    }
}

/// Opens config streams.
#[derive(Debug)]
pub struct ConfigService {
    /// All resources.
    pub world: Arc<World>,
    /// Who is connected.
    pub sessions: Arc<Sessions>,
    /// What streams hold.
    pub leases: Arc<Leases>,
    /// The time.
    pub clock: Clock,
    /// How many streams there may be, and how long.
    pub limits: Limits,
    /// Reads what streams begin with.
    pub(crate) hellos: Arc<Hellos>,
    /// What one agent's sidecars may ask together.
    pub(crate) asked: Arc<Rates>,
    /// When to stop.
    pub drain: DrainWatch,
}

type Out = ReceiverStream<Result<ConfigResponse, Status>>;

impl ConfigService {
    async fn open(&self, request: Request<Streaming<ConfigRequest>>) -> Result<Out, Refusal> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let (peer, address) = match info {
            Some(PeerInfo {
                identity: Some(identity),
                address,
                ..
            }) => (identity, address),
            _ => {
                return Err(Refusal::new(
                    Reason::CredentialMissing,
                    "config streams need an SVID: join first",
                ));
            }
        };
        let admitted = || admitted(&self.world, &peer, self.clock.now());
        if let Err(refusal) = admitted()
            && (!may_be_newer(&refusal) || self.world.has_revoked(&peer))
        {
            return Err(refusal);
        }
        let mut inbound = request.into_inner();
        let hello = |request: ConfigRequest| match request.message {
            Some(Message::Hello(hello)) => Some(hello),
            _ => None,
        };
        let hello = self.hellos.first(&peer.id.agent, &mut inbound, hello).await?;
        hello::instance(&hello.instance)?;
        let held = held(&hello)?;
        let (news, revision) = self.world.subscribe();
        if let Some(newest) = &hello.newest {
            self.is_not_before(newest, revision, &peer)?;
        }
        admitted()?;
        let names = (hello.instance.as_str(), hello.version.as_str());
        let session = self
            .sessions
            .open(&peer, address.to_string(), names, held.len(), self.limits)?;
        tracing::info!(agent = %peer.id.agent, instance = hello.instance, version = session_version(&hello), %address, "config stream opened");
        let (out, answers) = mpsc::channel(OUT);
        let task = Task {
            view: View::new(peer.id.agent.clone(), held, &self.world, revision),
            world: self.world.clone(),
            leases: self.leases.clone(),
            asked: self.asked.clone(),
            clock: self.clock.clone(),
            ends: self.ends(peer.not_after)?,
            ack_deadline: self.limits.ack,
            peer,
            session,
            instance: hello.instance,
            news,
            out,
            drain: self.drain.clone(),
            state: State::new(),
        };
        tokio::spawn(task.run(inbound));
        Ok(ReceiverStream::new(answers))
    }

    /// Whether this store, at `revision`, has made what the sidecar shows: it was restored from a copy where that is later. No
    /// operator is asked to lift a store to what nobody signed.
    fn is_not_before(&self, newest: &Resource, revision: u64, peer: &PeerIdentity) -> Result<(), Refusal> {
        match self.world.verify(newest) {
            Ok(_) if newest.revision > revision => {
                self.sessions.refused_as_older(&peer.id.agent, newest.revision);
                Err(restored(peer, newest.revision, revision))
            }
            Ok(_) => Ok(()),
            // Of a later version, which ran here before.
            Err(rejected) if rejected.reason == UNKNOWN_KIND => Ok(()),
            Err(rejected) => {
                let detail = format!(
                    "{} shows a resource that this mesh never signed: {rejected}",
                    peer.id.agent
                );
                Err(Refusal::new(Reason::ProtocolViolation, detail))
            }
        }
    }

    /// When a stream ends: at its age, or when its SVID does.
    fn ends(&self, not_after: u64) -> Result<Instant, Refusal> {
        let spread = f64::from(u16::from_be_bytes(random::<2>()?)) / f64::from(u16::MAX);
        let age = self.limits.age.mul_f64(0.9 + 0.2 * spread);
        let svid = Duration::from_secs(not_after.saturating_sub(self.clock.now()));
        Ok(Instant::now() + age.min(svid))
    }
}

/// Whether a store that was restored from a copy would refuse so whom it has not heard of yet. That it was restored is then
/// told first: an agent that is of after the copy was not removed. Whom a revocation names, the store has heard of.
const fn may_be_newer(refusal: &Refusal) -> bool {
    matches!(refusal.reason, Reason::AgentUnknown | Reason::GenerationMismatch)
}

/// A sidecar has applied what this store does not have.
fn restored(peer: &PeerIdentity, seen: u64, revision: u64) -> Refusal {
    metrics::counter!("aip_config_restored_store_total").increment(1);
    tracing::error!(agent = %peer.id.agent, seen, revision, "a sidecar has seen a later revision: this store was restored from a copy");
    let detail = format!(
        "the sidecar has seen revision {seen}, this store is at {revision}: \
         lift it above with POST /v1/mesh/lift {{\"above\": {seen}}}"
    );
    Refusal::new(Reason::RestoredStore, detail)
}

fn session_version(hello: &Hello) -> String {
    hello.version.chars().take(64).collect()
}

#[tonic::async_trait]
impl Config for ConfigService {
    type StreamStream = Out;

    async fn stream(&self, request: Request<Streaming<ConfigRequest>>) -> Result<Response<Out>, Status> {
        self.open(request).await.map(Response::new).map_err(|refusal| {
            metrics::counter!("aip_config_streams_refused_total", "reason" => refusal.reason()).increment(1);
            hello::refused("config", &refusal)
        })
    }
}

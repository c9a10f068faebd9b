//! The gRPC face of the Kill stream: who may open one, and its first message.

use std::sync::Arc;
use std::time::Duration;

use aip_api::wire::kill_request::Message;
use aip_api::wire::{KillRequest, KillResponse};
use aip_runtime::drain::DrainWatch;
use aip_runtime::grpc::PeerInfo;
use aip_runtime::grpc::kill_server::Kill;
use aip_runtime::trust::Trust;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::board::Comes;
use super::line;
use super::session::Task;
use super::{Board, Publisher};
use crate::ca::Ca;
use crate::config::admitted;
use crate::config::world::World;
use crate::hello::{self, Hellos};
use crate::rate::{Rate, Rates};
use crate::refusal::{Reason, Refusal};
use crate::registry::Registry;

/// How long a stream lives at most, so that a fleet spreads over replicas that were added; its SVID ends it, too.
const STREAM_AGE: Duration = Duration::from_secs(3_600);
/// Answers on their way to one sidecar: a set, a few heartbeats, and the status that ends the stream.
const OUT: usize = 8;

/// Grants of one agent's sidecars that are noted at once, and in a second: all of them start anew, twice. Each is flushed to
/// the disk; a sidecar that goes on beating writes none.
const NOTED: Rate = Rate {
    burst: 512.0,
    per_second: 4.0,
};
/// What all sidecars of one agent may say: a beat a second each, and what they say when they come back.
const SAID: Rate = Rate {
    burst: 16_384.0,
    per_second: 1_024.0,
};

/// What the sidecars of one agent may cause together. There is one of those whose SVID is good, and one of streams for orders
/// alone: whoever was revoked takes nothing from the others.
#[derive(Debug, Clone)]
pub(crate) struct Causes {
    /// Reads what streams begin with.
    hellos: Arc<Hellos>,
    pub(super) noted: Arc<Rates>,
    pub(super) said: Arc<Rates>,
}

impl Causes {
    pub(crate) fn with(hellos: Arc<Hellos>) -> Self {
        Self {
            hellos,
            noted: Arc::new(Rates::new(NOTED)),
            said: Arc::new(Rates::new(SAID)),
        }
    }
}

/// Opens kill streams.
#[derive(Debug, Clone)]
pub struct KillService {
    /// All resources: who is registered, and its lease.
    pub world: Arc<World>,
    /// The mesh's documents.
    pub registry: Registry,
    /// Signs heartbeats.
    pub ca: Arc<Ca>,
    /// What sets that are shown must be signed by.
    pub trust: Trust,
    /// The set in force.
    pub publisher: Arc<Publisher>,
    /// Who has taken it.
    pub board: Arc<Board>,
    /// What one agent may cause by streams as such.
    pub(crate) ordinary: Causes,
    /// What it may by streams for orders alone.
    pub(crate) orders_only: Causes,
    /// When to stop.
    pub drain: DrainWatch,
}

type Out = ReceiverStream<Result<KillResponse, Status>>;

impl KillService {
    async fn open(&self, request: Request<Streaming<KillRequest>>) -> Result<Out, Refusal> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let missing = || Refusal::new(Reason::CredentialMissing, "kill streams need an SVID: join first");
        let now = self.registry.clock.now();
        let (peer, orders_only) = match info.ok_or_else(missing)? {
            PeerInfo {
                identity: Some(peer), ..
            } => {
                admitted(&self.world, &peer, now)?;
                (peer, false)
            }
            PeerInfo {
                orders_only: Some(peer),
                ..
            } => {
                // Not more: a removed agent's processes are to be stopped, too.
                if peer.not_after <= now {
                    return Err(Reason::SvidExpired.into());
                }
                (peer, true)
            }
            _ => return Err(missing()),
        };
        let causes = if orders_only { &self.orders_only } else { &self.ordinary };
        let mut inbound = request.into_inner();
        let hello = |request: KillRequest| match request.message {
            Some(Message::Hello(hello)) => Some(hello),
            _ => None,
        };
        let hello = causes.hellos.first(&peer.id.agent, &mut inbound, hello).await?;
        hello::instance(&hello.instance)?;
        let spoken = line::spoken_for(&self.registry, &self.trust.load(), &peer).await?;
        if !spoken.known {
            self.board.saw_restored();
        }
        let comes = Comes { spoken, orders_only };
        let open = self.board.open(&peer, &hello.instance, comes)?;
        tracing::info!(agent = %peer.id.agent, instance = hello.instance, orders_only, "kill stream opened");
        let age = STREAM_AGE.min(Duration::from_secs(peer.not_after.saturating_sub(now)));
        let (out, answers) = mpsc::channel(OUT);
        let task = Task::new(self.clone(), peer, hello.instance, open, out, Instant::now() + age);
        tokio::spawn(task.run(inbound, [hello.held, hello.unwritten]));
        Ok(ReceiverStream::new(answers))
    }
}

#[tonic::async_trait]
impl Kill for KillService {
    type StreamStream = Out;

    async fn stream(&self, request: Request<Streaming<KillRequest>>) -> Result<Response<Out>, Status> {
        self.open(request).await.map(Response::new).map_err(|refusal| {
            metrics::counter!("aip_kill_streams_refused_total", "reason" => refusal.reason()).increment(1);
            hello::refused("kill", &refusal)
        })
    }
}

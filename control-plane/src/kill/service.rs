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

use super::session::Task;
use super::{Board, Publisher};
use crate::ca::Ca;
use crate::config::admitted;
use crate::config::world::World;
use crate::hello;
use crate::refusal::{Reason, Refusal};
use crate::registry::Registry;

/// How long a stream lives at most, so that a fleet spreads over replicas that were added; its SVID ends it, too.
const STREAM_AGE: Duration = Duration::from_secs(3_600);
/// Answers on their way to one sidecar: a set, a few heartbeats, and the status that ends the stream.
const OUT: usize = 8;

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
    /// When to stop.
    pub drain: DrainWatch,
}

type Out = ReceiverStream<Result<KillResponse, Status>>;

impl KillService {
    async fn open(&self, request: Request<Streaming<KillRequest>>) -> Result<Out, Refusal> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let peer = info.and_then(|info| info.identity);
        let peer =
            peer.ok_or_else(|| Refusal::new(Reason::CredentialMissing, "kill streams need an SVID: join first"))?;
        let now = self.registry.clock.now();
        admitted(&self.world, &peer, now)?;
        let mut inbound = request.into_inner();
        let hello = hello::first(&mut inbound, |request| match request.message {
            Some(Message::Hello(hello)) => Some(hello),
            _ => None,
        })
        .await?;
        hello::instance(&hello.instance)?;
        let open = self.board.open(&peer, &hello.instance)?;
        tracing::info!(agent = %peer.id.agent, instance = hello.instance, "kill stream opened");
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
            tracing::info!(reason = refusal.reason(), detail = %refusal.detail, "kill stream refused");
            refusal.status()
        })
    }
}

//! The gRPC face of the Audit stream: who may open one, and its first message.

use std::sync::Arc;

use aip_api::wire::audit_request::Message;
use aip_api::wire::{AuditRequest, AuditResponse};
use aip_runtime::drain::DrainWatch;
use aip_runtime::grpc::PeerInfo;
use aip_runtime::grpc::audit_server::Audit as AuditApi;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Audit;
use super::session::Session;
use crate::config::admitted;
use crate::hello::{self, Hellos};
use crate::quota::Quota;
use crate::refusal::{Reason, Refusal};

/// Streams in all: as many as there may be sidecars; and of one agent: its replicas.
const MAX_STREAMS: usize = 20_000;
const MAX_STREAMS_EACH: usize = 256;
/// Answers on their way to one sidecar: one for each log of a Hello, and some for checkpoints.
const OUT: usize = 128;

/// Opens audit streams.
#[derive(Debug)]
pub struct AuditService {
    audit: Arc<Audit>,
    streams: Quota,
    hellos: Arc<Hellos>,
    drain: DrainWatch,
}

type Out = ReceiverStream<Result<AuditResponse, Status>>;

impl AuditService {
    /// The service over what was recorded.
    pub(crate) fn new(audit: Arc<Audit>, hellos: Arc<Hellos>, drain: DrainWatch) -> Self {
        Self {
            hellos,
            audit,
            streams: Quota::new(MAX_STREAMS, MAX_STREAMS_EACH),
            drain,
        }
    }

    async fn open(&self, request: Request<Streaming<AuditRequest>>) -> Result<Out, Refusal> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let Some(peer) = info.and_then(|info| info.identity) else {
            let detail = "audit streams need an SVID: join first";
            return Err(Refusal::new(Reason::CredentialMissing, detail));
        };
        admitted(&self.audit.world, &peer, self.audit.clock.now())?;
        let place = self.streams.try_take(peer.id.agent.as_str());
        let place = place.ok_or_else(|| Refusal::from(Reason::SessionLimit))?;
        let mut inbound = request.into_inner();
        let hello = |request: AuditRequest| match request.message {
            Some(Message::Hello(hello)) => Some(hello),
            _ => None,
        };
        let hello = self.hellos.first(&peer.id.agent, &mut inbound, hello).await?;
        hello::instance(&hello.instance)?;
        let name = hello.instance.as_str().into();
        let (out, answers) = mpsc::channel(OUT);
        let session = Session::new(self.audit.clone(), peer, name, out, self.drain.clone(), place);
        tokio::spawn(session.run(hello, inbound));
        Ok(ReceiverStream::new(answers))
    }
}

#[tonic::async_trait]
impl AuditApi for AuditService {
    type StreamStream = Out;

    async fn stream(&self, request: Request<Streaming<AuditRequest>>) -> Result<Response<Out>, Status> {
        self.open(request).await.map(Response::new).map_err(|refusal| {
            metrics::counter!("aip_audit_streams_refused_total", "reason" => refusal.reason()).increment(1);
            hello::refused("audit", &refusal)
        })
    }
}

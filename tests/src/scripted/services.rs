//! The gRPC services of the scripted control plane: identity and configuration. Kill is in a file of its own.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;

use aip_api::evidence::{EVIDENCE_TYP, Evidence};
use aip_api::resource::{Endpoint, Kind};
use aip_api::wire::config_request::Message;
use aip_api::wire::{
    ChallengeRequest, ChallengeResponse, ConfigRequest, ConfigResponse, IssueRequest, IssueResponse, Missing, Resource,
    Subscribe,
};
use aip_runtime::grpc::config_server::{Config, ConfigServer};
use aip_runtime::grpc::identity_server::{Identity, IdentityServer};
use aip_runtime::grpc::{Incoming, PeerInfo};
use aip_runtime::{jws, x509};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::{Order, QUEUE, Scripted};
use crate::pki::LeafSpec;

pub(super) async fn serve(incoming: Incoming, scripted: Scripted) {
    let kill = super::kill::server(scripted.clone());
    tonic::transport::Server::builder()
        .add_service(IdentityServer::new(scripted.clone()))
        .add_service(ConfigServer::new(scripted).max_decoding_message_size(aip_runtime::grpc::MAX_MESSAGE_BYTES))
        .add_service(kill)
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}

#[tonic::async_trait]
impl Identity for Scripted {
    async fn report_drift(
        &self,
        _: Request<aip_api::wire::DriftReport>,
    ) -> Result<Response<aip_api::wire::DriftAnswer>, Status> {
        Err(Status::unimplemented("drift reports are not taken yet"))
    }

    async fn challenge(&self, _: Request<ChallengeRequest>) -> Result<Response<ChallengeResponse>, Status> {
        Ok(Response::new(ChallengeResponse {
            nonce: vec![7; 32],
            ttl_seconds: 60,
        }))
    }

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let request = request.into_inner();
        let key = x509::csr_key(&request.csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let evidence: Evidence = jws::verify_es256(&request.evidence, EVIDENCE_TYP, &key.point)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut state = self.lock();
        if state.issues_nothing {
            return Err(Status::unavailable("a test wants it so"));
        }
        if let Some(reason) = state.refuses {
            let mut refused = Status::permission_denied("a test wants it so");
            refused
                .metadata_mut()
                .insert(aip_runtime::grpc::REASON, reason.parse().unwrap());
            return Err(refused);
        }
        state.issued.push((request.agent.clone(), request.evidence));
        let spec = state
            .leaves
            .get(&request.agent)
            .cloned()
            .unwrap_or_else(|| LeafSpec::good(&request.agent));
        let (chain, result) = state.pki.issue(&spec, &key.spki, evidence.code);
        let signing_keys = state
            .pki
            .keys
            .iter()
            .map(|(_, _, certificate)| certificate.clone())
            .collect();
        Ok(Response::new(IssueResponse {
            chain,
            roots: std::iter::once(&state.pki.root)
                .chain(&state.more_roots)
                .cloned()
                .collect(),
            signing_keys,
            result,
        }))
    }
}

#[tonic::async_trait]
impl Config for Scripted {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<ConfigResponse, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<ConfigRequest>>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = request.extensions().get::<PeerInfo>().and_then(|p| p.identity.clone());
        let agent = peer
            .ok_or_else(|| Status::unauthenticated("no SVID"))?
            .id
            .agent
            .to_string();
        let (out, answers) = mpsc::channel(QUEUE);
        let (orders, ordered) = mpsc::channel(QUEUE);
        self.lock().streams.push((agent.clone(), orders));
        let scripted = self.clone();
        let stream = StreamTask {
            scripted,
            agent,
            out,
            instance: String::new(),
            peers: BTreeSet::new(),
            nonce: 0,
            waiting: VecDeque::new(),
            unanswered: false,
        };
        tokio::spawn(stream.run(request.into_inner(), ordered));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

struct StreamTask {
    scripted: Scripted,
    agent: String,
    out: mpsc::Sender<Result<ConfigResponse, Status>>,
    instance: String,
    /// Agents that it subscribed to.
    peers: BTreeSet<String>,
    nonce: u64,
    waiting: VecDeque<ConfigResponse>,
    /// A push is outstanding.
    unanswered: bool,
}

impl StreamTask {
    async fn run(mut self, mut requests: Streaming<ConfigRequest>, mut orders: mpsc::Receiver<Order>) {
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(ConfigRequest { message: Some(message) })) => self.take(message),
                    _ => return,
                },
                order = orders.recv() => match order {
                    Some(Order::Push(resources)) => self.queue(resources, Vec::new(), Vec::new()),
                    Some(Order::Changed(resource)) if self.concerns(&resource) => {
                        self.queue(vec![resource], Vec::new(), Vec::new());
                    }
                    Some(Order::Changed(_)) => {}
                    None => return,
                },
            }
            self.send_next().await;
        }
    }

    fn take(&mut self, message: Message) {
        self.scripted.lock().heard.push((self.agent.clone(), message.clone()));
        match message {
            Message::Hello(hello) => {
                self.instance = hello.instance;
                let resources = self.everything_but_peers();
                self.queue(
                    resources,
                    Vec::new(),
                    Kind::ALL.iter().map(|k| k.to_wire() as i32).collect(),
                );
            }
            Message::Subscribe(subscribe) => {
                self.peers.extend(subscribe.names.iter().cloned());
                let (found, missing) = self.found(&subscribe);
                self.queue(found, missing, Vec::new());
            }
            Message::Ack(_) => self.unanswered = false,
            Message::Endpoint(lease) => self.lease(&lease.address),
            Message::Unsubscribe(subscribe) => {
                for name in &subscribe.names {
                    self.peers.remove(name);
                }
            }
        }
    }

    /// A lease becomes an endpoint; an empty one takes it away.
    fn lease(&self, address: &str) {
        let name = format!("{}/{}", self.agent, self.instance);
        match address.parse() {
            Ok(address) => {
                let agent = self.agent.parse().unwrap();
                self.scripted.put(&Endpoint {
                    agent,
                    instance: self.instance.clone(),
                    address,
                });
            }
            Err(_) => self.scripted.delete(Kind::Endpoint, &name),
        }
    }

    /// Whether this stream is to hold the resource.
    fn concerns(&self, resource: &Resource) -> bool {
        let of = resource.name.split('/').next().unwrap_or_default();
        match Kind::from_wire(resource.kind) {
            Some(Kind::Agent | Kind::Reputation) => of == self.agent || self.peers.contains(of),
            Some(Kind::Endpoint) => self.peers.contains(of),
            _ => true,
        }
    }

    fn everything_but_peers(&self) -> Vec<Resource> {
        let state = self.scripted.lock();
        let own = |kind: Kind, name: &str| match kind {
            Kind::Agent | Kind::Reputation => name == self.agent,
            Kind::Endpoint => false,
            _ => true,
        };
        state
            .resources
            .iter()
            .filter(|((kind, name), _)| own(*kind, name))
            .map(|(_, r)| r.clone())
            .collect()
    }

    fn found(&self, subscribe: &Subscribe) -> (Vec<Resource>, Vec<Missing>) {
        let state = self.scripted.lock();
        let kind = Kind::from_wire(subscribe.kind);
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for wanted in &subscribe.names {
            let of_agent = |name: &str| match kind {
                Some(Kind::Endpoint) => name.split('/').next() == Some(wanted.as_str()),
                // Every policy of a scripted mesh is attached to all of it.
                Some(Kind::Policy) => true,
                _ => name == wanted,
            };
            let these = state
                .resources
                .iter()
                .filter(|((k, name), _)| Some(*k) == kind && of_agent(name));
            let before = found.len();
            found.extend(these.map(|(_, resource)| resource.clone()));
            if found.len() == before {
                missing.push(Missing {
                    kind: subscribe.kind,
                    name: wanted.clone(),
                });
            }
        }
        (found, missing)
    }

    fn queue(&mut self, resources: Vec<Resource>, missing: Vec<Missing>, synced: Vec<i32>) {
        let revision = self.scripted.lock().revision;
        // The nonce is given when it is sent.
        self.waiting.push_back(ConfigResponse {
            nonce: 0,
            resources,
            synced,
            missing,
            revision,
        });
    }

    async fn send_next(&mut self) {
        if self.unanswered {
            return;
        }
        if let Some(mut push) = self.waiting.pop_front() {
            self.nonce += 1;
            push.nonce = self.nonce;
            self.unanswered = true;
            let _ = self.out.send(Ok(push)).await;
        }
    }
}

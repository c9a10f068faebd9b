//! A control plane that says nothing but orders to stop, over a real `Kill` stream, and hears what comes of them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use aip_api::kill::{Heartbeat, KillSet, Lease, Order};
use aip_api::wire::kill_request::Message;
use aip_api::wire::kill_response::Message as Answer;
use aip_api::wire::{KillAck, KillRequest, KillResponse, SignedKillSet};
use aip_runtime::grpc;
use aip_runtime::grpc::kill_server::{Kill, KillServer};
use aip_runtime::kill::{sign_heartbeat, sign_set};
use aip_runtime::ready::Readiness;
use aip_runtime::tls::{IdentitySlot, MeshTls};
use aip_sidecar::identity::revoked::Revoked;
use aip_sidecar::kill::client::{self, Client};
use aip_sidecar::kill::disk::Disk;
use aip_sidecar::kill::keeper::Keeper;
use aip_sidecar::kill::supervisor::Supervisor;
use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::mesh::{Side, World, until};
use crate::pki::Pki;

/// Messages that wait to be sent to one sidecar.
const QUEUE: usize = 16;

/// The control plane.
#[derive(Clone)]
pub struct Plane {
    pub address: SocketAddr,
    pki: Arc<Pki>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    epoch: u64,
    streams: HashMap<String, Told>,
}

/// One sidecar, by its instance.
struct Told {
    send: mpsc::Sender<Result<KillResponse, Status>>,
    /// The epoch of the set that it was sent last.
    epoch: u64,
    acks: Vec<KillAck>,
}

impl Plane {
    pub async fn start(pki: &Arc<Pki>) -> Self {
        let (chain, key) = pki.control_plane();
        let (slot, trust) = (IdentitySlot::default(), pki.trust().shared());
        slot.set(&chain, &key).unwrap();
        let tls = MeshTls::new(&slot, &trust).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plane = Self {
            address: listener.local_addr().unwrap(),
            pki: pki.clone(),
            state: Arc::default(),
        };
        let server = tonic::transport::Server::builder().add_service(KillServer::new(plane.clone()));
        tokio::spawn(server.serve_with_incoming(grpc::incoming(listener, tls, trust)));
        plane
    }

    /// A sidecar of this mesh that obeys, with what it holds in `data`; it holds an empty set when this returns.
    pub async fn side(&self, name: &str, agent: SocketAddr, mut world: World, data: &Path) -> Side {
        let (trust, ready) = (self.pki.trust().shared(), Readiness::new(&["kill"]));
        let keeper = Keeper::restore(Disk::new(data), trust.clone(), ready.clone(), Supervisor::default());
        world.gate = Some(keeper.gate());
        let side = Side::start(&self.pki, name, agent, world).await;
        let (drains, drained) = watch::channel(None);
        let client = Client {
            control_plane: self.address,
            trust,
            instance: name.to_owned(),
            proxy: side.proxy.clone(),
            revoked: Revoked::default(),
            drained,
        };
        tokio::spawn(async move {
            // The stream ends with its sender.
            let _drains = drains;
            client::run(client, keeper).await;
        });
        until(&format!("{name} obeys"), async || ready.is_ready().then_some(())).await;
        side
    }

    fn signed(&self, epoch: u64, orders: &[Order]) -> SignedKillSet {
        let set = KillSet {
            epoch,
            orders: orders.to_vec(),
            ..KillSet::empty("aip.internal".parse().unwrap(), 1, 1)
        };
        sign_set(&self.pki.kill, serde_json::to_vec(&set).unwrap())
    }

    /// Sends a set with these orders to this sidecar alone; what it says of it.
    pub async fn order(&self, name: &str, orders: &[Order]) -> KillAck {
        let (send, set, epoch) = {
            let mut state = self.state.lock().unwrap();
            state.epoch += 1;
            let epoch = state.epoch;
            let told = state.streams.get_mut(name).unwrap();
            told.epoch = epoch;
            (told.send.clone(), self.signed(epoch, orders), epoch)
        };
        let message = Some(Answer::KillSet(set));
        send.send(Ok(KillResponse { message })).await.unwrap();
        until(&format!("{name} says what became of epoch {epoch}"), async || {
            let state = self.state.lock().unwrap();
            let acks = &state.streams[name].acks;
            acks.iter().find(|ack| ack.epoch == epoch).cloned()
        })
        .await
    }

    fn heard(
        &self,
        name: &mut String,
        send: &mpsc::Sender<Result<KillResponse, Status>>,
        message: Message,
    ) -> Option<Answer> {
        let mut state = self.state.lock().unwrap();
        match message {
            Message::Hello(hello) => {
                *name = hello.instance;
                let told = Told {
                    send: send.clone(),
                    epoch: state.epoch,
                    acks: Vec::new(),
                };
                state.streams.insert(name.clone(), told);
                Some(Answer::KillSet(self.signed(state.epoch, &[])))
            }
            Message::Beat(beat) => {
                let heartbeat = Heartbeat {
                    v: 1,
                    trust_domain: "aip.internal".parse().unwrap(),
                    term: 1,
                    epoch: state.streams[name.as_str()].epoch,
                    at: 1,
                    instance: name.clone(),
                    sequence: beat.sequence,
                    lease: Lease::default(),
                };
                let payload = serde_json::to_vec(&heartbeat).unwrap();
                Some(Answer::Heartbeat(sign_heartbeat(&self.pki.kill, payload)))
            }
            Message::Ack(ack) => {
                state.streams.get_mut(name.as_str()).unwrap().acks.push(ack);
                None
            }
        }
    }
}

#[tonic::async_trait]
impl Kill for Plane {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<KillResponse, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<KillRequest>>) -> Result<Response<Self::StreamStream>, Status> {
        let (send, answers) = mpsc::channel(QUEUE);
        let (plane, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut name = String::new();
            while let Some(Ok(KillRequest { message: Some(message) })) = requests.next().await {
                let message = plane.heard(&mut name, &send, message);
                if message.is_some() && send.send(Ok(KillResponse { message })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

//! The Kill service of the scripted control plane: an empty set, and a heartbeat for every beat.

use std::pin::Pin;

use aip_api::kill::{Heartbeat, KillSet, Lease};
use aip_api::resource::KeyPurpose;
use aip_api::wire::kill_request::Message;
use aip_api::wire::kill_response::Message as Answer;
use aip_api::wire::{KillAck, KillRequest, KillResponse};
use aip_runtime::grpc::kill_server::{Kill, KillServer};
use aip_runtime::kill::{sign_heartbeat, sign_set};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::{QUEUE, Scripted};

pub(super) fn server(scripted: Scripted) -> KillServer<Scripted> {
    KillServer::new(scripted)
}

impl Scripted {
    /// Says this on every Kill stream, whatever it is.
    pub async fn say_of_kills(&self, answer: Answer) {
        let streams = self.lock().kill_streams.clone();
        for stream in streams {
            let message = Some(answer.clone());
            // One that has ended takes nothing.
            let _ = stream.send(Ok(KillResponse { message })).await;
        }
    }

    /// Every acknowledgement of a kill set, in order.
    pub fn kill_acks(&self) -> Vec<KillAck> {
        self.lock().kill_acks.clone()
    }

    fn answer(&self, instance: &mut String, message: Message) -> Option<Answer> {
        let state = self.lock();
        let signer = state.pki.keys.iter().find(|(purpose, ..)| *purpose == KeyPurpose::Kill);
        let (_, signer, _) = signer?;
        let trust_domain = state.pki.trust_domain.clone();
        Some(match message {
            Message::Hello(hello) => {
                *instance = hello.instance;
                let set = serde_json::to_vec(&KillSet::empty(trust_domain, 1, 0)).unwrap();
                Answer::KillSet(sign_set(signer, set))
            }
            Message::Beat(beat) => {
                let heartbeat = Heartbeat {
                    v: 1,
                    trust_domain,
                    term: 1,
                    epoch: 0,
                    at: aip_runtime::unix_now(),
                    instance: instance.clone(),
                    sequence: beat.sequence,
                    lease: Lease::default(),
                };
                Answer::Heartbeat(sign_heartbeat(signer, serde_json::to_vec(&heartbeat).unwrap()))
            }
            Message::Ack(ack) => {
                drop(state);
                self.lock().kill_acks.push(ack);
                return None;
            }
        })
    }
}

#[tonic::async_trait]
impl Kill for Scripted {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<KillResponse, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<KillRequest>>) -> Result<Response<Self::StreamStream>, Status> {
        let (out, answers) = mpsc::channel(QUEUE);
        let (scripted, mut requests) = (self.clone(), request.into_inner());
        self.lock().kill_streams.push(out.clone());
        tokio::spawn(async move {
            let mut instance = String::new();
            while let Some(Ok(KillRequest { message: Some(message) })) = requests.next().await {
                let answer = scripted.answer(&mut instance, message);
                let response = KillResponse { message: answer };
                if response.message.is_some() && out.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

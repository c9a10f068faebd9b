//! A sidecar's side of the protocol.

use std::net::SocketAddr;

use aip_api::TrustDomain;
use aip_api::resource::Kind;
use aip_api::token::JoinToken;
use aip_api::wire::config_request::Message;
use aip_api::wire::issue_request::Credential;
use aip_api::wire::{
    Ack, ChallengeRequest, ConfigRequest, ConfigResponse, CurrentSvid, EndpointLease, Held, Hello, IssueRequest,
    IssueResponse, Rejection, Subscribe,
};
use aip_runtime::grpc::config_client::ConfigClient;
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::grpc::{channel, reason};
use aip_runtime::svid::{PendingKey, Svid, SvidSource};
use aip_runtime::tls::{control_plane_client, orders_client, pinned_client};
use aip_runtime::trust::{Trust, TrustState};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

pub use super::evidence::{evidence, sign};

pub struct Sidecar {
    pub mesh: SocketAddr,
    pub agent: String,
    pub identity: IdentityClient<Channel>,
    pub svid: SvidSource,
    pub trust: Option<Trust>,
}

/// The reason of a refusal.
pub fn why(status: &Status) -> String {
    reason(status)
        .unwrap_or_else(|| panic!("no reason in {status:?}"))
        .to_owned()
}

impl Sidecar {
    /// Knows the control plane by the token's pin alone.
    pub async fn new(mesh: SocketAddr, agent: &str, token: &str) -> Self {
        let pin = token.parse::<JoinToken>().unwrap().root;
        let channel = channel(mesh, pinned_client(pin).unwrap()).await.unwrap();
        Self {
            mesh,
            agent: agent.into(),
            identity: IdentityClient::new(channel),
            svid: SvidSource::default(),
            trust: None,
        }
    }

    pub async fn nonce(&mut self) -> Vec<u8> {
        let request = ChallengeRequest {
            agent: self.agent.clone(),
        };
        self.identity.challenge(request).await.unwrap().into_inner().nonce
    }

    /// A request that is good in every respect.
    pub async fn good(&mut self, token: &str, key: &PendingKey) -> IssueRequest {
        let nonce = self.nonce().await;
        IssueRequest {
            agent: self.agent.clone(),
            credential: Some(Credential::JoinToken(token.into())),
            csr: key.csr.clone(),
            evidence: sign(&evidence(&self.agent, key, &nonce, b"code"), key),
        }
    }

    pub async fn issue(&mut self, request: IssueRequest) -> Result<IssueResponse, Status> {
        self.identity.issue(request).await.map(tonic::Response::into_inner)
    }

    /// Joins with a fresh key.
    pub async fn join(&mut self, token: &str) -> Result<(), Status> {
        let key = PendingKey::generate().unwrap();
        let request = self.good(token, &key).await;
        let issued = self.issue(request).await?;
        self.take(key, issued);
        Ok(())
    }

    pub fn take(&mut self, key: PendingKey, issued: IssueResponse) {
        let trust_domain: TrustDomain = "aip.internal".parse().unwrap();
        let mut state = TrustState::new(trust_domain, issued.roots);
        for certificate in &issued.signing_keys {
            state.add_key(certificate).unwrap();
        }
        let svid = Svid::assemble(key.pkcs8, issued.chain, &state).unwrap();
        assert_eq!(svid.identity.result_jws.as_ref(), issued.result);
        self.svid.set(svid).unwrap();
        self.trust = Some(state.shared());
    }

    /// The same sidecar, of a control plane that listens elsewhere since.
    pub fn at(&self, mesh: SocketAddr) -> Self {
        Self { mesh, ..self.another() }
    }

    /// Whoever has what this sidecar's SVID is now: not what it renews to.
    pub fn stolen(&self) -> Self {
        let (svid, trust) = (SvidSource::default(), self.trust.clone().unwrap());
        let bytes = self.svid.current().unwrap().to_bytes();
        svid.set(Svid::from_bytes(&bytes, &trust.load()).unwrap()).unwrap();
        Self { svid, ..self.another() }
    }

    /// A connection that shows nothing.
    pub async fn unknown(&self, trust: &Trust) -> Channel {
        channel(self.mesh, control_plane_client(None, trust).unwrap())
            .await
            .unwrap()
    }

    /// A connection that shows the SVID to be told of orders to stop, and of nothing else.
    pub async fn connected_for_orders(&self) -> Result<Channel, aip_runtime::grpc::ChannelError> {
        let trust = self.trust.as_ref().unwrap();
        channel(self.mesh, orders_client(self.svid.slot(), trust).unwrap()).await
    }

    /// The same sidecar, for a task of its own.
    pub fn another(&self) -> Self {
        Self {
            mesh: self.mesh,
            agent: self.agent.clone(),
            identity: self.identity.clone(),
            svid: self.svid.clone(),
            trust: self.trust.clone(),
        }
    }

    /// A connection that shows the SVID.
    pub async fn connected(&self) -> Result<Channel, aip_runtime::grpc::ChannelError> {
        let trust = self.trust.as_ref().unwrap();
        channel(self.mesh, control_plane_client(Some(self.svid.slot()), trust).unwrap()).await
    }

    pub async fn renewal(&mut self, key: &PendingKey, code: &[u8]) -> IssueRequest {
        let nonce = self.nonce().await;
        IssueRequest {
            agent: self.agent.clone(),
            credential: Some(Credential::CurrentSvid(CurrentSvid {})),
            csr: key.csr.clone(),
            evidence: sign(&evidence(&self.agent, key, &nonce, code), key),
        }
    }

    pub async fn renew(&mut self, code: &[u8]) -> Result<(), Status> {
        let key = PendingKey::generate().unwrap();
        let request = self.renewal(&key, code).await;
        let channel = self.connected().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let issued = IdentityClient::new(channel).issue(request).await?.into_inner();
        self.take(key, issued);
        Ok(())
    }

    pub async fn open(&self, hello: Hello) -> Result<Stream, Status> {
        let channel = self.connected().await.map_err(|e| Status::unavailable(e.to_string()))?;
        Stream::open(channel, hello, self.trust.clone()).await
    }

    pub async fn stream(&self) -> Stream {
        self.open(hello()).await.unwrap()
    }
}

pub fn hello() -> Hello {
    let instance = uuid::Uuid::now_v7().hyphenated().to_string();
    Hello {
        instance,
        version: "0.1.0".into(),
        held: vec![],
        newest: None,
    }
}

pub struct Stream {
    pub instance: String,
    send: mpsc::Sender<ConfigRequest>,
    inbound: Streaming<ConfigResponse>,
    trust: Option<Trust>,
}

impl Stream {
    pub async fn open(channel: Channel, hello: Hello, trust: Option<Trust>) -> Result<Self, Status> {
        let (send, requests) = mpsc::channel(16);
        let instance = hello.instance.clone();
        send.send(ConfigRequest {
            message: Some(Message::Hello(hello)),
        })
        .await
        .unwrap();
        let mut client = ConfigClient::new(channel).max_decoding_message_size(16 << 20);
        let inbound = client.stream(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self {
            instance,
            send,
            inbound,
            trust,
        })
    }

    pub async fn say(&self, message: Message) {
        // A stream that was cut takes nothing; the test then reads why.
        let _ = self.send.send(ConfigRequest { message: Some(message) }).await;
    }

    /// The next push, its signatures checked.
    pub async fn push(&mut self) -> Result<ConfigResponse, Status> {
        let next = tokio::time::timeout(super::DEADLINE, self.inbound.message())
            .await
            .expect("a push in time");
        let push = next?.ok_or_else(|| Status::new(Code::Unavailable, "closed"))?;
        if let Some(trust) = &self.trust {
            for resource in &push.resources {
                aip_runtime::signed::verify(&trust.load(), resource).unwrap();
            }
        }
        Ok(push)
    }

    /// Why the stream was ended, past any pushes.
    pub async fn ended(&mut self) -> String {
        loop {
            match self.push().await {
                Ok(push) => self.ack(push.nonce).await,
                Err(status) => return why(&status),
            }
        }
    }

    /// Says that nothing more comes, and reads on until the control plane has understood.
    pub async fn close(mut self) {
        let (nobody, _) = mpsc::channel(1);
        self.send = nobody;
        while let Ok(Ok(Some(_))) = tokio::time::timeout(super::DEADLINE, self.inbound.message()).await {}
    }

    pub async fn ack(&self, nonce: u64) {
        self.say(Message::Ack(Ack {
            nonce,
            rejected: vec![],
        }))
        .await;
    }

    pub async fn nack(&self, push: &ConfigResponse, at: usize, reason: &str) {
        let resource = &push.resources[at];
        let rejection = Rejection {
            kind: resource.kind,
            name: resource.name.clone(),
            revision: resource.revision,
            reason: reason.into(),
            detail: "for people".into(),
        };
        self.say(Message::Ack(Ack {
            nonce: push.nonce,
            rejected: vec![rejection],
        }))
        .await;
    }

    /// Takes and acknowledges pushes until everything is synced.
    pub async fn synced(&mut self) -> Vec<(Kind, String, u64)> {
        let mut held = Vec::new();
        loop {
            let push = self.push().await.unwrap();
            held.extend(names(&push));
            self.ack(push.nonce).await;
            if !push.synced.is_empty() {
                return held;
            }
        }
    }

    /// Takes and acknowledges pushes for as long as the stream lasts.
    pub async fn follow(&mut self) {
        while let Ok(push) = self.push().await {
            self.ack(push.nonce).await;
        }
    }

    pub async fn subscribe(&self, kind: Kind, names: &[&str]) {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        self.say(Message::Subscribe(Subscribe {
            kind: kind.to_wire() as i32,
            names,
        }))
        .await;
    }

    pub async fn unsubscribe(&self, kind: Kind, names: &[&str]) {
        let names = names.iter().map(|n| (*n).to_owned()).collect();
        self.say(Message::Unsubscribe(Subscribe {
            kind: kind.to_wire() as i32,
            names,
        }))
        .await;
    }

    pub async fn lease(&self, address: &str) {
        self.say(Message::Endpoint(EndpointLease {
            address: address.into(),
        }))
        .await;
    }
}

pub fn names(push: &ConfigResponse) -> Vec<(Kind, String, u64)> {
    push.resources
        .iter()
        .map(|r| (Kind::from_wire(r.kind).unwrap(), r.name.clone(), r.revision))
        .collect()
}

pub fn held(all: &[(Kind, String, u64)]) -> Vec<Held> {
    let one = |(kind, name, revision): &(Kind, String, u64)| Held {
        kind: kind.to_wire() as i32,
        name: name.clone(),
        revision: *revision,
    };
    all.iter().map(one).collect()
}

//! A control plane that does what a test tells it to: it issues SVIDs to whoever asks, holds resources, pushes
//! anything, well or badly made, and shows every message that sidecars sent.

mod kill;
mod services;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use aip_api::AgentName;
use aip_api::resource::reputation::ReputationSettings;
use aip_api::resource::{
    Agent, Attach, Endpoint, KeyPurpose, Kind, MeshConfig, MeshMode, Policy, Reputation, Resource, SigningKey, Traffic,
    TrustBundle,
};
use aip_api::token::{JoinToken, SECRET_BYTES};
use aip_api::wire;
use aip_api::wire::config_request::Message;
use aip_runtime::signed;
use aip_runtime::tls::{IdentitySlot, MeshTls};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::mpsc;

use crate::pki::{LeafSpec, Pki};
use crate::process::{FREE, Sidecar, SidecarSpec};
use crate::wait;

/// A policy that allows everything.
pub const ALLOW_ALL: &str = r#"package aip.policy.baseline

rules contains {"rule": "allow_all", "verdict": "allow", "reason": "a test allows everything"}
"#;

/// Pushes that wait for a stream.
const QUEUE: usize = 256;

/// What a stream's task is told.
pub(crate) enum Order {
    /// Push this resource, whatever it looks like.
    Push(Vec<wire::Resource>),
    /// Push this one if the stream is to hold it.
    Changed(wire::Resource),
}

pub(crate) struct State {
    pub(crate) pki: Pki,
    pub(crate) resources: BTreeMap<(Kind, String), wire::Resource>,
    pub(crate) revision: u64,
    /// Every message of every stream, with the agent that sent it.
    pub(crate) heard: Vec<(String, Message)>,
    pub(crate) streams: Vec<(String, mpsc::Sender<Order>)>,
    /// The evidence of every issuance.
    pub(crate) issued: Vec<(String, String)>,
    /// How the next SVID of an agent is made, where not well.
    pub(crate) leaves: BTreeMap<String, LeafSpec>,
    /// Nobody gets an SVID any more.
    pub(crate) issues_nothing: bool,
    pub(crate) refuses: Option<&'static str>,
    /// Roots that are handed out beside the mesh's own.
    pub(crate) more_roots: Vec<Vec<u8>>,
    /// The answering ends of the Kill streams.
    pub(crate) kill_streams: Vec<mpsc::Sender<Result<wire::KillResponse, tonic::Status>>>,
    pub(crate) kill_acks: Vec<wire::KillAck>,
}

/// The control plane.
#[derive(Clone)]
pub struct Scripted {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

impl Scripted {
    /// A mesh with an allow-all baseline and no agents.
    ///
    /// It serves on a thread of its own until the process ends, so that tests can share it.
    pub fn start() -> Self {
        let pki = Pki::new("aip.internal");
        let trust = pki.trust().shared();
        let slot = IdentitySlot::default();
        let own = pki.control_plane();
        slot.set(&own.chain, &own.pkcs8).unwrap();
        let tls = MeshTls::new(&slot, &trust).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            pki,
            resources: BTreeMap::new(),
            revision: 0,
            heard: Vec::new(),
            streams: Vec::new(),
            issued: Vec::new(),
            leaves: BTreeMap::new(),
            issues_nothing: false,
            refuses: None,
            more_roots: Vec::new(),
            kill_streams: Vec::new(),
            kill_acks: Vec::new(),
        };
        let scripted = Self {
            state: Arc::new(Mutex::new(state)),
            address,
        };
        scripted.put_mesh();
        let serving = scripted.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                services::serve(aip_runtime::grpc::incoming(listener, tls, trust), serving).await;
            });
        });
        scripted
    }

    fn put_mesh(&self) {
        let (bundle, keys) = {
            let state = self.lock();
            let bundle = TrustBundle {
                trust_domain: state.pki.trust_domain.clone(),
                roots: vec![STANDARD.encode(&state.pki.root)],
            };
            let keys: Vec<_> = state
                .pki
                .keys
                .iter()
                .map(|(purpose, signer, certificate)| SigningKey {
                    kid: signer.kid().to_owned(),
                    purpose: *purpose,
                    certificate: STANDARD.encode(certificate),
                })
                .collect();
            (bundle, keys)
        };
        self.put(&bundle);
        for key in &keys {
            self.put(key);
        }
        self.put(&MeshConfig::new(bundle.trust_domain, MeshMode::Dev));
        self.put(&Traffic::defaults());
        self.put(&baseline(ALLOW_ALL));
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Where sidecars dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A join token, of which only the root's digest matters here.
    pub fn token(&self) -> String {
        let root = self.lock().pki.root_digest();
        JoinToken {
            id: [1; 12],
            secret: [2; SECRET_BYTES],
            root,
        }
        .reveal()
    }

    /// Something of the mesh's keys.
    pub fn with_pki<T>(&self, f: impl FnOnce(&Pki) -> T) -> T {
        f(&self.lock().pki)
    }

    /// A resource at the next revision, signed well.
    pub fn signed(&self, kind: Kind, name: &str, payload: impl Into<Vec<u8>>) -> wire::Resource {
        let mut state = self.lock();
        state.revision += 1;
        let key = state.pki.signer(KeyPurpose::Config);
        signed::sign(key, kind, name, state.revision, false, payload)
    }

    /// Stores a resource and pushes it to the streams that it concerns. Returns its revision.
    pub fn put<R: Resource>(&self, document: &R) -> u64 {
        let payload = serde_json::to_vec(document).unwrap();
        let resource = self.signed(R::KIND, &document.name(), payload);
        let revision = resource.revision;
        self.lock()
            .resources
            .insert((R::KIND, document.name()), resource.clone());
        self.order(|| Order::Changed(resource.clone()));
        revision
    }

    /// Takes a resource away, where it is there.
    pub fn delete(&self, kind: Kind, name: &str) {
        if self.lock().resources.remove(&(kind, name.to_owned())).is_none() {
            return;
        }
        let mut state = self.lock();
        state.revision += 1;
        let key = state.pki.signer(KeyPurpose::Config);
        let tombstone = signed::sign(key, kind, name, state.revision, true, Vec::new());
        drop(state);
        self.order(|| Order::Changed(tombstone.clone()));
    }

    /// Pushes resources as they are to every stream, and stores nothing.
    pub fn push(&self, resources: Vec<wire::Resource>) {
        self.order(|| Order::Push(resources.clone()));
    }

    fn order(&self, order: impl Fn() -> Order) {
        let mut state = self.lock();
        state.streams.retain(|(_, stream)| !stream.is_closed());
        for (_, stream) in &state.streams {
            stream
                .try_send(order())
                .unwrap_or_else(|_| panic!("a stream's queue has room"));
        }
    }

    /// Registers an agent.
    pub fn agent(&self, name: &str) {
        let name: AgentName = name.parse().unwrap();
        self.put(&Reputation::new(name.clone(), ReputationSettings::default().prior, 0));
        self.put(&Agent::new(name));
    }

    /// Says that `name` serves at `address`, whoever does.
    pub fn endpoint(&self, name: &str, address: SocketAddr) {
        let agent: AgentName = name.parse().unwrap();
        self.put(&Endpoint {
            agent,
            instance: "scripted".into(),
            address,
        });
    }

    /// Makes the next SVIDs of an agent so.
    pub fn issue_as(&self, spec: LeafSpec) {
        self.lock().leaves.insert(spec.agent.clone(), spec);
    }

    /// How many SVIDs were issued to `agent`, and the last evidence for one.
    pub fn issued(&self, agent: &str) -> Vec<String> {
        self.lock()
            .issued
            .iter()
            .filter(|(a, _)| a == agent)
            .map(|(_, evidence)| evidence.clone())
            .collect()
    }

    /// Waits for a message of `agent`'s stream for which `f` answers.
    pub async fn heard<T>(&self, what: &str, agent: &str, f: impl Fn(&Message) -> Option<T>) -> T {
        wait::until(what, async || {
            self.lock()
                .heard
                .iter()
                .filter(|(a, _)| a == agent)
                .find_map(|(_, message)| f(message))
        })
        .await
    }

    /// Waits until `agent` said what became of `kind`/`name` at `revision`: `None` when it holds it now, or the
    /// rejection.
    pub async fn rejection(&self, agent: &str, resource: &wire::Resource) -> wire::Rejection {
        self.heard(
            &format!("a rejection of {} at {}", resource.name, resource.revision),
            agent,
            |message| match message {
                Message::Ack(ack) => ack
                    .rejected
                    .iter()
                    .find(|r| {
                        r.revision == resource.revision
                            && (r.name == resource.name || resource.name.starts_with(&r.name))
                    })
                    .cloned(),
                _ => None,
            },
        )
        .await
    }

    /// Starts the sidecar of `name`, whose agent serves at `agent`, with its files under `dir`.
    pub async fn sidecar(&self, name: &str, agent: SocketAddr, dir: &Path) -> Sidecar {
        self.sidecar_with(name, agent, dir, &[]).await
    }

    /// As [`Self::sidecar`], with more flags.
    pub async fn sidecar_with(&self, name: &str, agent: SocketAddr, dir: &Path, flags: &[&str]) -> Sidecar {
        let (spec, dir) = self.spec(name, agent, dir, flags);
        Sidecar::start(spec, &dir).await
    }

    /// Registers `name`; how to start its sidecar, and where its files go.
    pub fn spec(&self, name: &str, agent: SocketAddr, dir: &Path, flags: &[&str]) -> (SidecarSpec, PathBuf) {
        self.agent(name);
        let spec = SidecarSpec {
            name: name.to_owned(),
            control_plane: self.address,
            token: self.token(),
            agent,
            ports: FREE,
            flags: flags.iter().map(|f| (*f).to_owned()).collect(),
        };
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        (spec, dir)
    }

    /// From now on, nobody gets an SVID.
    pub fn issue_nothing(&self) {
        self.lock().issues_nothing = true;
    }

    /// From now on, nobody gets an SVID, for this reason.
    pub fn refuse(&self, reason: &'static str) {
        self.lock().refuses = Some(reason);
    }

    /// Hands out this root, too.
    pub fn vouch_for(&self, root: Vec<u8>) {
        self.lock().more_roots.push(root);
    }

    /// The names of agents in each message of `agent` that subscribes to some, in order.
    pub fn subscribed(&self, agent: &str) -> Vec<Vec<String>> {
        let state = self.lock();
        let names = state.heard.iter().filter_map(|(a, message)| match message {
            Message::Subscribe(subscribe) if a == agent && Kind::from_wire(subscribe.kind) == Some(Kind::Agent) => {
                Some(subscribe.names.clone())
            }
            _ => None,
        });
        names.collect()
    }

    /// How many pushes `agent` has acknowledged, and how many of these whole.
    pub fn acks(&self, agent: &str) -> (usize, usize) {
        let state = self.lock();
        let acks = state.heard.iter().filter_map(|(a, m)| match m {
            Message::Ack(ack) if a == agent => Some(ack.rejected.is_empty()),
            _ => None,
        });
        acks.fold((0, 0), |(all, whole), clean| (all + 1, whole + usize::from(clean)))
    }

    /// The hellos of `agent`, in order.
    pub fn hellos(&self, agent: &str) -> Vec<wire::Hello> {
        let state = self.lock();
        let hellos = state.heard.iter().filter_map(|(a, m)| match m {
            Message::Hello(hello) if a == agent => Some(hello.clone()),
            _ => None,
        });
        hellos.collect()
    }

    /// Ends every stream; sidecars come again.
    pub fn hang_up(&self) {
        self.lock().streams.clear();
    }
}

/// The baseline with these rules.
pub fn baseline(rego: &str) -> Policy {
    let value = serde_json::json!({"name": "baseline", "rego": rego, "attach": "mesh"});
    let mut policy: Policy = serde_json::from_value(value).unwrap();
    policy.attach = Attach::Mesh;
    policy
}

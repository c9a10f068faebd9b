//! A fleet of simulated sidecars in this process: each has a TLS connection and a kill stream of its own, checks each set
//! as sidecars do, and acknowledges it at once.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aip_api::Digest;
use aip_api::evidence::{Assurance, EVIDENCE_TYP, Enforcement, Evidence, MeasuredFile, code_digest};
use aip_api::token::JoinToken;
use aip_api::wire::issue_request::Credential;
use aip_api::wire::kill_request::Message;
use aip_api::wire::kill_response::Message as Answer;
use aip_api::wire::{Beat, ChallengeRequest, IssueRequest, KillAck, KillHello, KillRequest};
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::grpc::kill_client::KillClient;
use aip_runtime::grpc::{channel, reason};
use aip_runtime::jws;
use aip_runtime::kill::open_set;
use aip_runtime::svid::{PendingKey, Svid, SvidSource};
use aip_runtime::tls::{control_plane_client, pinned_client};
use aip_runtime::trust::{Trust, TrustState};
use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::admin::Admin;
use super::mesh;
use crate::children::Child;

/// Streams of one agent: so many replicas, below the 256 that a control plane takes of each.
const REPLICAS: usize = 100;
/// Messages on their way out of one stream: an acknowledgement and a beat.
const OUTGOING: usize = 8;
/// How long one may take until it holds its first set.
const UP: Duration = Duration::from_secs(30);
/// How often a join is tried whose measurement has to be approved first.
const JOINS: usize = 3;

/// A control plane with its fleet.
pub(crate) struct Fleet {
    pub(crate) admin: Admin,
    pub(crate) size: usize,
    // Ended when the fleet goes.
    _control_plane: Child,
    _dir: TempDir,
}

/// Who a simulated sidecar is.
#[derive(Clone)]
struct Identity {
    mesh: SocketAddr,
    svid: SvidSource,
    trust: Trust,
}

impl Fleet {
    /// Starts a control plane, and `size` streams that hold its first set.
    pub(crate) async fn start(size: usize, bin_dir: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("aip-bench-").tempdir()?;
        let (control_plane, at) = mesh::control_plane(dir.path(), &bin_dir.canonicalize()?).await?;
        let jwt = std::fs::read_to_string(dir.path().join("control-plane/admin.jwt"))?;
        let admin = Admin::new(at.admin, jwt.trim());
        let (up, mut ready) = mpsc::channel(OUTGOING);
        for agent in 0..size.div_ceil(REPLICAS) {
            let identity = join(&admin, at.mesh, &format!("fleet-{agent}")).await?;
            for _ in 0..REPLICAS.min(size - agent * REPLICAS) {
                let (identity, up) = (identity.clone(), up.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = follow(identity, up).await {
                        eprintln!("a simulated sidecar ended: {error:#}");
                    }
                });
                // One after the other: a thousand handshakes at once are another measurement.
                let up = tokio::time::timeout(UP, ready.recv()).await;
                up.context("a simulated sidecar does not get its first set")?;
            }
        }
        Ok(Self {
            admin,
            size,
            _control_plane: control_plane,
            _dir: dir,
        })
    }
}

/// Registers an agent and joins once for all its replicas.
async fn join(admin: &Admin, mesh: SocketAddr, name: &str) -> anyhow::Result<Identity> {
    admin.post("/v1/agents", &json!({"name": name})).await?;
    let made = admin.post("/v1/tokens", &json!({"agent": name})).await?;
    let token = made["token"].as_str().context("a token")?;
    let pin = token.parse::<JoinToken>()?.root;
    let mut stub = IdentityClient::new(channel(mesh, pinned_client(pin)?).await?);
    let key = PendingKey::generate()?;
    for _ in 0..JOINS {
        let agent = name.to_owned();
        let nonce = stub.challenge(ChallengeRequest { agent }).await?.into_inner().nonce;
        let request = IssueRequest {
            agent: name.to_owned(),
            credential: Some(Credential::JoinToken(token.to_owned())),
            csr: key.csr.clone(),
            evidence: jws::sign_es256(&key.pkcs8, EVIDENCE_TYP, &evidence(name, &key, &nonce)?)?,
        };
        match stub.issue(request).await {
            Ok(issued) => {
                let issued = issued.into_inner();
                let mut state = TrustState::new("aip.internal".parse()?, issued.roots);
                for certificate in &issued.signing_keys {
                    state.add_key(certificate)?;
                }
                let svid = SvidSource::default();
                svid.set(Svid::assemble(key.pkcs8, issued.chain, &state)?)?;
                let trust = state.shared();
                return Ok(Identity { mesh, svid, trust });
            }
            Err(status) if reason(&status) == Some("measurement_pending") => mesh::approve_pending(admin).await?,
            Err(status) => return Err(status.into()),
        }
    }
    anyhow::bail!("{name} was not let in after {JOINS} attempts")
}

/// Evidence of one file, as a sidecar makes it.
fn evidence(name: &str, key: &PendingKey, nonce: &[u8]) -> anyhow::Result<Evidence> {
    let files = vec![MeasuredFile {
        path: "agent.conf".to_owned(),
        exec: false,
        sha256: Digest::sha256(name.as_bytes()),
    }];
    Ok(Evidence {
        v: 1,
        agent: name.parse()?,
        nonce: URL_SAFE_NO_PAD.encode(nonce),
        jkt: key.key.jkt,
        attestor: "files".to_owned(),
        assurance: Assurance::Declared,
        code: code_digest(&files)?,
        files,
        config: None,
        executable: None,
        argv: None,
        sidecar: Digest::sha256(b"a simulated sidecar"),
        enforcement: Enforcement::Cooperative,
        run: Some("bench".to_owned()),
        drifted: None,
        drifted_generation: None,
        iat: aip_runtime::unix_now(),
    })
}

/// One sidecar's stream, to its end. Says once that it is up: when it has acknowledged its first set.
async fn follow(identity: Identity, up: mpsc::Sender<()>) -> anyhow::Result<()> {
    let tls = control_plane_client(Some(identity.svid.slot()), &identity.trust)?;
    let (send, outgoing) = mpsc::channel(OUTGOING);
    let say = async |message| {
        let request = KillRequest { message: Some(message) };
        send.send(request).await.context("the stream takes nothing")
    };
    let hello = KillHello {
        instance: uuid::Uuid::now_v7().hyphenated().to_string(),
        held: None,
        unwritten: None,
    };
    say(Message::Hello(hello)).await?;
    let mut stub = KillClient::new(channel(identity.mesh, tls).await?);
    let mut answers = stub.stream(ReceiverStream::new(outgoing)).await?.into_inner();
    let (mut up, mut sequence) = (Some(up), 0);
    while let Some(answer) = answers.message().await? {
        let Some(Answer::KillSet(signed)) = answer.message else {
            continue;
        };
        let set = open_set(&identity.trust.load(), &signed)?;
        let ack = KillAck {
            term: set.term,
            epoch: set.epoch,
            enforced_micros: 1,
            ..KillAck::default()
        };
        say(Message::Ack(ack)).await?;
        sequence += 1;
        // It goes by no lease.
        let beat = Beat { sequence, granted: 0 };
        say(Message::Beat(beat)).await?;
        if let Some(up) = up.take() {
            ensure!(up.send(()).await.is_ok(), "nobody waits");
        }
    }
    Ok(())
}

//! The adversary: a process that speaks the mesh's protocols without being part of it.

use std::net::SocketAddr;
use std::time::Duration;

use aip_api::evidence::{Assurance, EVIDENCE_TYP, Enforcement, Evidence, MeasuredFile, code_digest};
use aip_api::token::JoinToken;
use aip_api::wire::issue_request::Credential;
use aip_api::{AgentName, Digest, SpiffeId, wire};
use aip_runtime::grpc::{self, identity_client::IdentityClient};
use aip_runtime::svid::{PendingKey, Svid};
use aip_runtime::tls::{self, IdentitySlot};
use aip_runtime::trust::{Trust, TrustState};
use aip_runtime::{jws, unix_now};
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a refusal may take to arrive.
const WAIT: Duration = Duration::from_secs(10);
/// The beginning of an HTTP/2 connection (RFC 9113 section 3.4) and an empty SETTINGS frame: what a peer's sidecar
/// sends first.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// What a measurement names.
pub(super) struct Facts {
    pub(super) files: Vec<MeasuredFile>,
    pub(super) executable: Option<Digest>,
    pub(super) sidecar: Digest,
    pub(super) attestor: String,
}

/// What came of asking for an SVID.
pub(super) enum Asked {
    Refused { reason: String, detail: String },
    Issued { svid: Box<Svid>, trust: Trust },
}

/// Asks a control plane for an SVID of `agent`, with this credential and evidence of these facts.
pub(super) async fn join(
    control_plane: SocketAddr,
    agent: &AgentName,
    root: Digest,
    credential: Option<&JoinToken>,
    facts: &Facts,
) -> anyhow::Result<Asked> {
    let channel = grpc::channel(control_plane, tls::pinned_client(root)?).await?;
    let mut stub = IdentityClient::new(channel);
    let nonce = stub
        .challenge(wire::ChallengeRequest {
            agent: agent.to_string(),
        })
        .await?
        .into_inner()
        .nonce;
    let key = PendingKey::generate()?;
    let evidence = evidence(agent, &nonce, &key, facts)?;
    let request = wire::IssueRequest {
        agent: agent.to_string(),
        credential: credential.map(|token| Credential::JoinToken(token.reveal())),
        csr: key.csr.clone(),
        evidence: jws::sign_es256(&key.pkcs8, EVIDENCE_TYP, &evidence)?,
    };
    let answer = match stub.issue(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let reason = grpc::reason(&status).unwrap_or("none").to_owned();
            return Ok(Asked::Refused {
                reason,
                detail: status.message().to_owned(),
            });
        }
    };
    let leaf = answer.chain.first().context("an empty chain was issued")?;
    let id = aip_runtime::x509::spiffe_id(leaf)?;
    let mut state = TrustState::new(id.trust_domain, answer.roots);
    for certificate in &answer.signing_keys {
        state.add_key(certificate)?;
    }
    let svid = Svid::assemble(key.pkcs8.clone(), answer.chain, &state)?;
    Ok(Asked::Issued {
        svid: Box::new(svid),
        trust: state.shared(),
    })
}

/// Evidence of these facts, whether or not they are true of this process.
fn evidence(agent: &AgentName, nonce: &[u8], key: &PendingKey, facts: &Facts) -> anyhow::Result<Evidence> {
    Ok(Evidence {
        v: 1,
        agent: agent.clone(),
        nonce: URL_SAFE_NO_PAD.encode(nonce),
        jkt: key.key.jkt,
        attestor: facts.attestor.clone(),
        assurance: Assurance::Declared,
        code: code_digest(&facts.files)?,
        files: facts.files.clone(),
        config: None,
        executable: facts.executable,
        argv: None,
        sidecar: facts.sidecar,
        enforcement: Enforcement::Cooperative,
        run: None,
        drifted: None,
        drifted_generation: None,
        iat: unix_now(),
    })
}

/// Knocks at a sidecar's inbound port over TLS, presenting `identity`, and says how that ended. `trust` lets the
/// stranger accept the sidecar's own certificate, so that it is the sidecar that refuses.
pub(super) async fn knock(
    inbound: SocketAddr,
    identity: &IdentitySlot,
    trust: &Trust,
    expected: SpiffeId,
) -> anyhow::Result<Knocked> {
    let config = tls::agent_client(identity, trust, expected, tls::ALPN_H2)?;
    let tcp = TcpStream::connect(inbound).await?;
    let mut stream = match tls::connect(&config, trust, tcp).await {
        Ok((stream, _)) => stream,
        Err(error) => return Ok(Knocked::Refused(format!("{error} ({})", error.reason()))),
    };
    // In TLS 1.3 the client is done before the server has judged its certificate: the alert comes with the first read.
    let exchange = async {
        stream.write_all(HTTP2).await?;
        stream.flush().await?;
        let mut answer = [0; 64];
        stream.read(&mut answer).await
    };
    Ok(match tokio::time::timeout(WAIT, exchange).await {
        Ok(Ok(0)) => Knocked::Refused("the connection was closed".into()),
        Ok(Ok(n)) => Knocked::Served(n),
        Ok(Err(error)) => Knocked::Refused(error.to_string()),
        Err(_) => Knocked::Silent,
    })
}

/// Sends plain HTTP to a sidecar's inbound port.
pub(super) async fn knock_plain(inbound: SocketAddr) -> anyhow::Result<Knocked> {
    let mut stream = TcpStream::connect(inbound).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {inbound}\r\nconnection: close\r\n\r\n");
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        (&mut stream).take(4_096).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    Ok(match tokio::time::timeout(WAIT, exchange).await {
        Ok(Ok(answer)) if answer.starts_with(b"HTTP/1.1 2") => Knocked::Served(answer.len()),
        Ok(Ok(answer)) => Knocked::Refused(format!("{} bytes that are no HTTP answer, then closed", answer.len())),
        Ok(Err(error)) => Knocked::Refused(error.to_string()),
        Err(_) => Knocked::Silent,
    })
}

/// How knocking ended.
pub(super) enum Knocked {
    Refused(String),
    Served(usize),
    Silent,
}

impl Knocked {
    pub(super) fn refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::Refused(how) => format!("refused: {how}"),
            Self::Served(n) => format!("the handshake succeeded, and {n} bytes came back"),
            Self::Silent => format!("no answer after {} s", WAIT.as_secs()),
        }
    }
}

//! Nonce, evidence, SVID: one issuance, with a join token or with the current SVID.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use aip_api::evidence::{EVIDENCE_TYP, Evidence};
use aip_api::token::JoinToken;
use aip_api::{AgentName, SpiffeId, TrustDomain, wire};
use aip_runtime::grpc::{self, ChannelError, identity_client::IdentityClient};
use aip_runtime::jws::{self, JwsError};
use aip_runtime::svid::{PendingKey, Svid};
use aip_runtime::tls::{self, IdentitySlot, TlsError};
use aip_runtime::trust::Trust;
use aip_runtime::unix_now;
use aip_runtime::x509::{self, IdentityError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wire::issue_request::Credential;

use super::measure::{MeasureError, Measurement};
use crate::drift::Suspension;
use crate::mesh::world::Origin;

/// Reasons of a control plane by which a person's approval is waited for.
const WAITS: [&str; 2] = ["measurement_pending", "agent_drifted"];

/// Reasons of a control plane by which a join token is worth nothing, or nothing any more.
const TOKEN_SPENT: [&str; 4] = ["token_other_key", "token_reused", "token_expired", "token_unknown"];

/// Why an SVID was not issued.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The control plane can't be reached.
    #[error("the control plane at {address} is not reachable: {why}")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// Something answers where the control plane should be, and TLS says what is wrong with it or with us.
    #[error("what answers at {address} is not taken for the control plane ({}): {source}", source.reason())]
    Handshake {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: TlsError,
    },
    /// The control plane refused; its reason is stable.
    #[error("the control plane refused ({reason}): {detail}")]
    Refused {
        /// Stable.
        reason: String,
        /// For people.
        detail: String,
        /// Whether trying again with the same credential can help.
        retryable: bool,
    },
    /// What is declared can't be measured.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The answer is not one that a peer would accept.
    #[error("the control plane's answer can't be used: {0}")]
    Answer(#[from] IdentityError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Signing the evidence.
    #[error("the evidence can't be signed: {0}")]
    Evidence(#[from] JwsError),
    /// This sidecar suspended itself, and nothing that it could be let back in by is at hand.
    #[error(
        "this sidecar has suspended itself, since what its agent runs had changed ({changed}): `aip attest list --agent          {agent}` shows what waits for approval; approve it, and restart the agent with its sidecar and a new join token"
    )]
    Drifted {
        /// Whose.
        agent: AgentName,
        /// What.
        changed: String,
    },
    /// The approval is there, and the marker can't be removed.
    #[error("this sidecar may serve again, but its drift marker can't be removed: {0}")]
    Marker(String),
    /// No token, no SVID.
    #[error("there is no credential: give --join-token-file or AIP_JOIN_TOKEN (`aip token create {0}` makes one)")]
    NoCredential(AgentName),
    /// The token's file can't be read.
    #[error("the join token's file {path} can't be read: {source}; `aip token create {agent}` makes a token")]
    TokenFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// For whom a token is needed.
        agent: AgentName,
    },
    /// The SVID has ended, and nothing is at hand that another could be had for.
    #[error(
        "the SVID of {agent} has ended, and another one takes a join token that was not used: `aip token create {agent}` makes \
         one, {place} ({source})"
    )]
    Ended {
        /// Whose.
        agent: AgentName,
        /// Where the token is to be put.
        place: String,
        /// What became of the token that is there.
        source: Box<Self>,
    },
    /// The root that the token names is not the one that answered.
    #[error("the control plane's root is not the one that the join token names: another mesh, or somebody in between")]
    WrongRoot,
}

impl JoinError {
    /// The stable reason.
    pub fn reason(&self) -> &str {
        match self {
            Self::Unreachable { .. } => "control_plane_unreachable",
            Self::Handshake { source, .. } => source.reason(),
            Self::Refused { reason, .. } => reason,
            Self::Measure(e) => e.reason(),
            Self::Answer(e) => e.reason(),
            Self::Tls(e) => e.reason(),
            Self::Evidence(_) => "evidence_signing",
            Self::NoCredential(_) => "no_credential",
            Self::TokenFile { .. } => "token_file_unreadable",
            Self::WrongRoot => "wrong_root",
            Self::Drifted { .. } => "drifted",
            Self::Ended { .. } => "svid_expired",
            Self::Marker(_) => "drift_marker",
        }
    }

    /// Whether a person must approve what was measured, before the same attempt can succeed.
    pub fn waits_for_approval(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if WAITS.contains(&reason.as_str()))
    }

    /// Whether another join token is what is missing.
    pub fn needs_token(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => TOKEN_SPENT.contains(&reason.as_str()),
            Self::NoCredential(_) | Self::TokenFile { .. } => true,
            _ => false,
        }
    }

    /// Whether the same attempt may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            // Also what answers wrongly now: it may be an impostor who goes away, or a certificate that is renewed.
            Self::Unreachable { .. } | Self::Handshake { .. } => true,
            Self::Refused { retryable, .. } => *retryable,
            Self::Measure(_) | Self::Answer(_) | Self::Tls(_) | Self::Evidence(_) => false,
            Self::NoCredential(_)
            | Self::TokenFile { .. }
            | Self::WrongRoot
            | Self::Drifted { .. }
            | Self::Ended { .. }
            | Self::Marker(_) => false,
        }
    }
}

/// What an issuance brings.
pub struct Joined {
    /// The SVID, checked as a peer would.
    pub svid: Svid,
    /// Roots and keys that came with it.
    pub origin: Origin,
}

/// Asks for SVIDs for one agent.
pub struct Joiner {
    /// For whom.
    pub agent: AgentName,
    /// Where the control plane listens.
    pub control_plane: SocketAddr,
    /// Which run of the agent it is.
    pub run: String,
    /// Whether this sidecar suspended itself.
    pub suspension: Suspension,
}

impl Joiner {
    /// Joins with a token. `key` is the caller's, so that a lost reply can be asked for again with the same one.
    ///
    /// # Errors
    /// As [`JoinError`] lists.
    pub async fn with_token(
        &self,
        token: &JoinToken,
        key: &PendingKey,
        measured: &Measurement,
    ) -> Result<Joined, JoinError> {
        let tls = tls::pinned_client(token.root)?;
        let channel = self.channel(tls, &tls::Heard::default()).await;
        let channel = channel.map_err(|error| match error {
            // The token names one root for good: another mesh's token never comes to fit this one.
            JoinError::Handshake {
                source: TlsError::Identity(IdentityError::UnknownIssuer),
                ..
            } => JoinError::WrongRoot,
            other => other,
        })?;
        let joined = self
            .issue(channel, Credential::JoinToken(token.reveal()), key, measured)
            .await?;
        // Each root must be the one that the token vouches for: one more would vouch for whatever it signs.
        let pinned = |root: &Vec<u8>| x509::spki_digest(root).is_ok_and(|d| d == token.root);
        let all = !joined.origin.roots.is_empty() && joined.origin.roots.iter().all(pinned);
        if all { Ok(joined) } else { Err(JoinError::WrongRoot) }
    }

    /// Renews with the current SVID. It authenticates the connection and replaces no evidence. How the control plane refuses it in
    /// the handshake is noted in `heard`.
    ///
    /// # Errors
    /// As [`JoinError`] lists.
    pub async fn with_svid(
        &self,
        slot: &IdentitySlot,
        trust: &Trust,
        key: &PendingKey,
        measured: &Measurement,
        heard: &tls::Heard,
    ) -> Result<Joined, JoinError> {
        let tls = tls::control_plane_client(Some(slot), trust)?;
        let channel = self.channel(tls, heard).await?;
        self.issue(channel, Credential::CurrentSvid(wire::CurrentSvid {}), key, measured)
            .await
    }

    async fn channel(
        &self,
        tls: Arc<tls::ClientConfig>,
        heard: &tls::Heard,
    ) -> Result<tonic::transport::Channel, JoinError> {
        let address = self.control_plane;
        grpc::channel_hearing(address, tls, heard)
            .await
            .map_err(|error| match error {
                ChannelError::Tls(source) => JoinError::Handshake { address, source },
                ChannelError::Unreachable(_) => JoinError::Unreachable {
                    address,
                    why: error.to_string(),
                },
            })
    }

    async fn issue(
        &self,
        channel: tonic::transport::Channel,
        credential: Credential,
        key: &PendingKey,
        measured: &Measurement,
    ) -> Result<Joined, JoinError> {
        let mut stub = IdentityClient::new(channel);
        let challenge = wire::ChallengeRequest {
            agent: self.agent.to_string(),
        };
        let nonce = stub.challenge(challenge).await.map_err(refusal)?.into_inner().nonce;
        let evidence = self.evidence(&nonce, key, measured);
        let request = wire::IssueRequest {
            agent: self.agent.to_string(),
            credential: Some(credential),
            csr: key.csr.clone(),
            evidence: jws::sign_es256(&key.pkcs8, EVIDENCE_TYP, &evidence)?,
        };
        let answer = stub.issue(request).await.map_err(refusal)?.into_inner();
        let leaf = answer
            .chain
            .first()
            .ok_or_else(|| IdentityError::Malformed("an empty chain".into()))?;
        let origin = Origin {
            id: SpiffeId::new(trust_domain_of(leaf)?, self.agent.clone()),
            roots: answer.roots,
            signing_keys: answer.signing_keys,
        };
        let svid = Svid::assemble(key.pkcs8.clone(), answer.chain, &origin.trust())?;
        if *svid.id() != origin.id {
            let (expected, found) = (origin.id.to_string(), svid.id().to_string());
            return Err(IdentityError::WrongAgent { expected, found }.into());
        }
        Ok(Joined { svid, origin })
    }

    fn evidence(&self, nonce: &[u8], key: &PendingKey, measured: &Measurement) -> Evidence {
        Evidence {
            v: 1,
            agent: self.agent.clone(),
            nonce: URL_SAFE_NO_PAD.encode(nonce),
            jkt: key.key.jkt,
            attestor: measured.attestor.to_owned(),
            assurance: measured.assurance,
            code: measured.code,
            files: measured.files.clone(),
            config: measured.config,
            executable: measured.executable,
            argv: measured.argv.clone(),
            sidecar: measured.sidecar,
            enforcement: measured.enforcement,
            run: Some(self.run.clone()),
            drifted: self.suspension.marker().map(|marker| marker.run.clone()),
            drifted_generation: self.suspension.marker().map(|marker| marker.generation),
            iat: unix_now(),
        }
    }
}

fn trust_domain_of(leaf: &[u8]) -> Result<TrustDomain, IdentityError> {
    x509::spiffe_id(leaf).map(|id| id.trust_domain)
}

fn refusal(status: tonic::Status) -> JoinError {
    use tonic::Code;
    let reason = grpc::reason(&status).map(str::to_owned);
    // A pending measurement waits for a person; everything else that the control plane decided stays decided.
    let transient = matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted
    );
    let waits = reason.as_deref().is_some_and(|reason| WAITS.contains(&reason));
    // Who decides says why. What gives no reason is a connection that broke, as when the control plane ends meanwhile.
    let broke = reason.is_none() && matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled);
    let retryable = transient || waits || broke;
    let reason = reason.unwrap_or_else(|| format!("grpc_{:?}", status.code()).to_lowercase());
    JoinError::Refused {
        reason,
        detail: status.message().to_owned(),
        retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_broke_is_no_refusal() {
        for broken in [
            tonic::Status::unknown("transport error"),
            tonic::Status::internal("h2 protocol error"),
            tonic::Status::cancelled("h2 protocol error"),
            tonic::Status::unavailable("draining"),
        ] {
            assert!(refusal(broken.clone()).retryable(), "{broken:?}");
        }
        assert!(!refusal(tonic::Status::unimplemented("no such service")).retryable());
        let mut decided = tonic::Status::internal("decided");
        decided.metadata_mut().insert(grpc::REASON, "internal".parse().unwrap());
        let decided = refusal(decided);
        assert!(!decided.retryable() && decided.reason() == "internal", "{decided:?}");
    }
}

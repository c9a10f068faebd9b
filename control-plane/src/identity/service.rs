//! The gRPC face of identity.

use std::sync::Arc;

use aip_api::AgentName;
use aip_api::wire::issue_request::Credential as Shown;
use aip_api::wire::{ChallengeRequest, ChallengeResponse, DriftAnswer, DriftReport, IssueRequest, IssueResponse};
use aip_runtime::grpc::PeerInfo;
use aip_runtime::grpc::identity_server::Identity;
use aip_runtime::x509::{PeerIdentity, csr_key};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::nonces::{Nonces, TTL_SECONDS};
use super::{credential, drift, evidence, issue};
use crate::ca::Ca;
use crate::ca::leaf::IssuedSvid;
use crate::refusal::{Reason, Refusal};
use crate::registry::agents::Raised;
use crate::registry::{Registry, retrying};

/// Issuances at once. Each may hold 3 MiB of evidence and hash ten thousand leaves.
const MAX_ISSUING: usize = 32;

/// Challenges and issues.
#[derive(Debug)]
pub struct IdentityService {
    registry: Registry,
    ca: Arc<Ca>,
    nonces: Nonces,
    issuing: Semaphore,
}

fn agent_name(text: &str) -> Result<AgentName, Refusal> {
    text.parse()
        .map_err(|e: aip_api::name::NameError| Refusal::new(Reason::NameInvalid, e.to_string()))
}

impl IdentityService {
    /// The service over a registry and a CA.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new(registry: Registry, ca: Arc<Ca>) -> Result<Self, Refusal> {
        Ok(Self {
            registry,
            ca,
            nonces: Nonces::new()?,
            issuing: Semaphore::new(MAX_ISSUING),
        })
    }

    async fn issued(&self, peer: Option<&PeerInfo>, request: IssueRequest) -> Result<IssuedSvid, Refusal> {
        let _permit = self
            .issuing
            .try_acquire()
            .map_err(|_| Refusal::from(Reason::Overloaded))?;
        let agent = agent_name(&request.agent)?;
        evidence::check_size(&request.evidence)?;
        let shown = request
            .credential
            .as_ref()
            .ok_or(Refusal::from(Reason::CredentialMissing))?;
        let identity = peer.and_then(|p| p.identity.as_ref());
        let check = async || match shown {
            Shown::JoinToken(token) => credential::token(&self.registry, &agent, token).await,
            Shown::CurrentSvid(_) => credential::svid(&self.registry, &agent, identity).await,
            Shown::ServiceAccountToken(_) => {
                let detail = "this control plane does not run in Kubernetes: use a join token";
                Err(Refusal::new(Reason::CredentialUnsupported, detail))
            }
        };
        // Before any signature is verified: who shows no credential gets no work out of us, and who does, as much as an
        // agent may have issued.
        let credential = check().await?;
        let key = csr_key(&request.csr).map_err(|e| Refusal::new(Reason::CsrInvalid, e.to_string()))?;
        let now = self.registry.clock.now();
        credential.check_key(key.jkt, now)?;
        let text: Arc<str> = request.evidence.into();
        let stated = text.clone();
        let nonce = tokio::task::spawn_blocking(move || evidence::nonce(&stated)).await;
        let nonce = nonce.map_err(|e| Refusal::new(Reason::Internal, e.to_string()))??;
        self.nonces.answer(&agent, &nonce, now)?;
        let stated = {
            let (agent, key) = (agent.clone(), key.clone());
            let verified = tokio::task::spawn_blocking(move || evidence::verify(&text, &agent, &key, now)).await;
            verified.map_err(|e| Refusal::new(Reason::Internal, e.to_string()))??
        };
        // Read anew at each attempt: a collision means that credential, agent or measurement changed.
        retrying(async || issue::issue(&self.registry, &self.ca, &check().await?, &key, &stated).await).await
    }
}

impl IdentityService {
    /// Takes a drift report. It does work of the registry's for peers that showed an SVID alone.
    async fn drifted(&self, peer: Option<&PeerIdentity>, statement: &str) -> Result<Raised, Refusal> {
        let _permit = self
            .issuing
            .try_acquire()
            .map_err(|_| Refusal::from(Reason::Overloaded))?;
        let peer = peer.ok_or(Refusal::from(Reason::CredentialMissing))?;
        credential::svid(&self.registry, &peer.id.agent, Some(peer)).await?;
        let drift = drift::verify(statement, peer, self.registry.clock.now())?;
        let raised = self.registry.report_drift(peer, &drift).await?;
        tracing::warn!(
            agent = %drift.agent, generation = raised.generation, changed = drift.changed, paths = ?drift.paths,
            "drift: earlier SVIDs are revoked, and none is issued until a person approves what it is to run"
        );
        Ok(raised)
    }
}

fn refused(agent: &str, refusal: &Refusal) -> Status {
    let reason = refusal.reason();
    metrics::counter!("aip_issue_refusals_total", "reason" => reason).increment(1);
    let agent: String = agent.chars().take(aip_api::name::MAX_LABEL).collect();
    tracing::warn!(agent, reason, detail = %refusal.detail, "no SVID issued");
    refusal.status()
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn report_drift(&self, request: Request<DriftReport>) -> Result<Response<DriftAnswer>, Status> {
        let identity = request.extensions().get::<PeerInfo>().and_then(|p| p.identity.clone());
        let taken = self.drifted(identity.as_ref(), &request.get_ref().statement).await;
        let raised = taken.map_err(|refusal| {
            let (agent, reason) = (identity.map(|i| i.id.agent.to_string()), refusal.reason());
            metrics::counter!("aip_drift_refusals_total", "reason" => reason).increment(1);
            tracing::warn!(agent, reason, detail = %refusal.detail, "a drift report was not taken");
            refusal.status()
        })?;
        Ok(Response::new(DriftAnswer {
            generation: raised.generation,
        }))
    }

    async fn challenge(&self, request: Request<ChallengeRequest>) -> Result<Response<ChallengeResponse>, Status> {
        let made = agent_name(&request.get_ref().agent)
            .and_then(|agent| self.nonces.challenge(&agent, self.registry.clock.now()));
        let nonce = made.map_err(|refusal| refusal.status())?.to_vec();
        Ok(Response::new(ChallengeResponse {
            nonce,
            ttl_seconds: TTL_SECONDS as u32,
        }))
    }

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let begun = std::time::Instant::now();
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let request = request.into_inner();
        let agent = request.agent.clone();
        let issued = self
            .issued(peer.as_ref(), request)
            .await
            .map_err(|refusal| refused(&agent, &refusal))?;
        metrics::counter!("aip_svids_issued_total").increment(1);
        metrics::histogram!("aip_issue_seconds").record(begun.elapsed().as_secs_f64());
        tracing::info!(
            agent,
            serial = issued.serial,
            not_after = issued.not_after,
            "SVID issued"
        );
        Ok(Response::new(IssueResponse {
            chain: issued.chain,
            roots: self.ca.roots(),
            signing_keys: self.ca.key_certificates(),
            result: issued.result,
        }))
    }
}

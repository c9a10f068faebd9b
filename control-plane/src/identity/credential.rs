//! What entitles a sidecar to a name.

use aip_api::resource::{Agent, Kind};
use aip_api::token::JoinToken;
use aip_api::{AgentName, Digest};
use aip_runtime::x509::PeerIdentity;

use crate::refusal::{Reason, Refusal};
use crate::registry::records::{Spent, TokenRecord};
use crate::registry::{Draft, Registry, Versioned, keys};
use crate::store::Expect;

/// How often one key is answered for one token: a reply can be lost a few times in a row, not forever.
pub(super) const MAX_ANSWERS: u32 = 5;

/// A credential that was checked.
pub(super) enum Credential {
    /// A join token, to be spent in the issuing transaction.
    Token { id: String, held: Versioned<TokenRecord> },
    /// The SVID of this connection.
    Svid(Box<PeerIdentity>),
}

impl Credential {
    /// The word in the SVID's record.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Token { .. } => "token",
            Self::Svid(_) => "svid",
        }
    }

    /// Whether the credential still entitles: the agent may have been revoked since.
    pub(super) fn check_generation(&self, agent: &Agent) -> Result<(), Refusal> {
        match self {
            Self::Svid(peer) if peer.result.generation != agent.generation => {
                let detail = format!(
                    "the SVID is of generation {}, the agent is at {}: join again with a new token",
                    peer.result.generation, agent.generation
                );
                Err(Refusal::new(Reason::GenerationMismatch, detail))
            }
            Self::Svid(_) | Self::Token { .. } => Ok(()),
        }
    }

    /// Whether it answers this key. Nothing of what its bearer says counts before: whoever finds a token that was used has
    /// no word in its agent's name.
    ///
    /// # Errors
    /// It is another key's, or was used too often.
    pub(super) fn check_key(&self, jkt: Digest, now: u64) -> Result<(), Refusal> {
        match self {
            Self::Token { held, .. } => spent(&held.value, jkt, now).map(drop),
            Self::Svid(_) => Ok(()),
        }
    }

    /// Adds to the issuing transaction what keeps the credential from being used twice, or after it was revoked.
    pub(super) fn spend(&self, draft: Draft, jkt: Digest, now: u64) -> Result<Draft, Refusal> {
        let (id, held) = match self {
            Self::Token { id, held } => (id, held),
            Self::Svid(peer) => return Ok(draft.check(revocation(peer), Expect::Absent)),
        };
        let record = TokenRecord {
            spent: Some(spent(&held.value, jkt, now)?),
            ..held.value.clone()
        };
        Ok(draft.put(keys::token(id), &record, Expect::At(held.revision)))
    }
}

/// What is written of a token that this key uses.
fn spent(token: &TokenRecord, jkt: Digest, now: u64) -> Result<Spent, Refusal> {
    match &token.spent {
        None => Ok(Spent {
            jkt,
            at: now,
            answers: 1,
        }),
        Some(spent) if spent.jkt != jkt => {
            let agent = &token.agent;
            let detail = format!(
                "another sidecar of {agent} has used this join token: each takes one of its own, which `aip token create \
                     {agent}` makes"
            );
            Err(Refusal::new(Reason::TokenOtherKey, detail))
        }
        Some(spent) if spent.answers >= MAX_ANSWERS => Err(Reason::TokenReused.into()),
        Some(spent) => Ok(Spent {
            answers: spent.answers + 1,
            ..spent.clone()
        }),
    }
}

/// Checks a join token for `agent`.
pub(super) async fn token(registry: &Registry, agent: &AgentName, text: &str) -> Result<Credential, Refusal> {
    let token: JoinToken = text.parse().map_err(|_| Refusal::from(Reason::TokenMalformed))?;
    let id = token.id_text();
    let unknown = || Refusal::from(Reason::TokenUnknown);
    let held = registry
        .record::<TokenRecord>(keys::token(&id))
        .await?
        .ok_or_else(unknown)?;
    if !same(&token.secret_digest(), &held.value.secret) {
        return Err(unknown());
    }
    if held.value.expires_at <= registry.clock.now() {
        return Err(Refusal::new(
            Reason::TokenExpired,
            "the join token has expired: aip token create makes another",
        ));
    }
    if held.value.agent != *agent {
        // Who has the secret was given it for this name.
        let named = &held.value.agent;
        let detail = format!(
            "the join token is for {named}, and a sidecar of {agent} shows it: name the sidecar {named}, or give it a token \
             of its own, which `aip token create {agent}` makes"
        );
        return Err(Refusal::new(Reason::TokenWrongAgent, detail));
    }
    Ok(Credential::Token { id, held })
}

/// Compares digests in a time that does not depend on where they differ.
fn same(a: &Digest, b: &Digest) -> bool {
    a.as_bytes()
        .iter()
        .zip(b.as_bytes())
        .fold(0, |acc, (x, y)| acc | (x ^ y))
        == 0
}

/// Checks the SVID that the connection was made with. The handshake checked chain, times and what was revoked then;
/// the connection may be hours old.
pub(super) async fn svid(
    registry: &Registry,
    agent: &AgentName,
    peer: Option<&PeerIdentity>,
) -> Result<Credential, Refusal> {
    let missing = || {
        Refusal::new(
            Reason::CredentialMissing,
            "renewals need the SVID as client certificate",
        )
    };
    let peer = peer.ok_or_else(missing)?;
    if peer.id.agent != *agent {
        return Err(Refusal::new(
            Reason::SvidOtherAgent,
            format!("the connection is {}'s", peer.id.agent),
        ));
    }
    if peer.not_after <= registry.clock.now() {
        return Err(Reason::SvidExpired.into());
    }
    if registry.store.get(revocation(peer)).await?.is_some() {
        return Err(Reason::SvidRevoked.into());
    }
    Ok(Credential::Svid(Box::new(peer.clone())))
}

/// Where the revocation of this very SVID would stand.
fn revocation(peer: &PeerIdentity) -> String {
    keys::resource(Kind::Revocation, &format!("serial/{}/{}", peer.issuer, peer.serial))
}

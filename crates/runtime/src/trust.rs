//! What a process trusts: roots, certified keys, and what was revoked. Swapped whole; read at every handshake.

use std::collections::HashMap;
use std::sync::Arc;

use aip_api::resource::{KeyPurpose, Revocation};
use aip_api::{AgentName, Digest, TrustDomain};
use arc_swap::ArcSwap;

use crate::signing::VerifyingKey;
use crate::x509::{self, IdentityError, PeerIdentity};

/// The trust of a process, shared with its TLS configurations: a swap holds from the next handshake.
pub type Trust = Arc<ArcSwap<TrustState>>;

/// The reason of a revocation that names a certificate.
pub(crate) const REVOKED_SERIAL: &str = "revoked_serial";
/// The reason of a revocation that names an agent's earlier generations.
pub(crate) const REVOKED_GENERATION: &str = "revoked_generation";

/// One version of it.
#[derive(Debug, Clone)]
pub struct TrustState {
    trust_domain: TrustDomain,
    roots: Vec<Vec<u8>>,
    keys: HashMap<String, (KeyPurpose, VerifyingKey)>,
    generations: HashMap<AgentName, u64>,
    serials: HashMap<(Digest, String), u64>,
}

impl TrustState {
    /// Trusts these DER roots, and no key yet.
    pub fn new(trust_domain: TrustDomain, roots: Vec<Vec<u8>>) -> Self {
        Self {
            trust_domain,
            roots,
            keys: HashMap::new(),
            generations: HashMap::new(),
            serials: HashMap::new(),
        }
    }

    /// Shares it.
    pub fn shared(self) -> Trust {
        Arc::new(ArcSwap::from_pointee(self))
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The DER roots.
    pub fn roots(&self) -> &[Vec<u8>] {
        &self.roots
    }

    /// Takes a purpose key whose certificate a root signed. Purpose and key id come from the certificate.
    ///
    /// # Errors
    /// Not certified by a root of ours, for this trust domain and a purpose, now.
    pub fn add_key(&mut self, certificate: &[u8]) -> Result<String, IdentityError> {
        let (purpose, key) = x509::certified_key(certificate, self, crate::unix_now())?;
        let kid = crate::signing::key_id(purpose, key.as_bytes());
        self.keys.insert(kid.clone(), (purpose, key));
        Ok(kid)
    }

    /// The key with this id, if it is certified for this purpose.
    pub fn key(&self, purpose: KeyPurpose, kid: &str) -> Option<VerifyingKey> {
        self.keys
            .get(kid)
            .filter(|(certified, _)| *certified == purpose)
            .map(|(_, key)| *key)
    }

    /// Adds a revocation. A lower bound never replaces a higher one: nothing un-revokes a generation.
    pub fn revoke(&mut self, revocation: &Revocation) {
        match revocation {
            Revocation::Generation { agent, below, .. } => {
                let entry = self.generations.entry(agent.clone()).or_insert(0);
                *entry = (*entry).max(*below);
            }
            Revocation::Serial {
                issuer,
                serial,
                expires,
            } => {
                self.serials.insert((*issuer, serial.clone()), *expires);
            }
        }
    }

    /// Why this peer is revoked, if it is.
    pub fn revoked(&self, peer: &PeerIdentity) -> Option<&'static str> {
        self.reason_of(&peer.id.agent, (&peer.issuer, &peer.serial), peer.result.generation)
    }

    /// Whether an SVID is revoked that this issuer gave this agent, of this generation.
    pub fn has_revoked(&self, agent: &AgentName, svid: (&Digest, &str), generation: u64) -> bool {
        self.reason_of(agent, svid, generation).is_some()
    }

    fn reason_of(&self, agent: &AgentName, (issuer, serial): (&Digest, &str), generation: u64) -> Option<&'static str> {
        if self.serials.contains_key(&(*issuer, serial.to_owned())) {
            return Some(REVOKED_SERIAL);
        }
        let below = self.generations.get(agent).copied().unwrap_or(0);
        (generation < below).then_some(REVOKED_GENERATION)
    }
}

//! The certificate authority: a root, two intermediate slots, and one certified key per purpose.
//!
//! | module | what |
//! |---|---|
//! | [`material`] | the keys and certificates themselves; how they lie sealed in the store |
//! | [`x509`] | the certificates' profiles |
//! | [`leaf`] | what an SVID is issued from, and the SVID |
//!
//! Slots A and B: one signs, the other is ready. A rotation makes the ready one sign and puts a fresh one in the
//! other's place, so that an intermediate is on disk and backed up long before anything depends on it.

pub mod leaf;
pub mod material;
mod x509;

use std::net::IpAddr;
use std::sync::Arc;

use aip_api::resource::{KeyPurpose, SigningKey, TrustBundle};
use aip_api::{Digest, TrustDomain};
use aip_runtime::sealing::SealingKey;
use aip_runtime::signing::Signer;
use aip_runtime::tls::IdentitySlot;
use aip_runtime::trust::TrustState;
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::refusal::{Reason, Refusal};
use crate::registry::{Actor, Registry, keys};
use crate::store::Expect;
use material::Material;

/// Lifetime of the control plane's own server certificate; it is renewed at half of it.
pub const SERVER_SECONDS: u64 = 86_400;
/// An intermediate with less left than this is rotated: leaves live a day at most, so a month is ample warning.
const ROTATE_BELOW_SECONDS: u64 = 30 * 86_400;

/// Why the CA can't work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A certificate can't be made.
    #[error("a certificate can't be made: {0}")]
    Certificate(String),
    /// The keys in the store can't be opened.
    #[error("the CA's keys can't be opened: {0}; start with the key that sealed them (--key-file or AIP_DATA_KEY)")]
    Sealed(#[from] aip_runtime::sealing::SealError),
    /// The keys in the store are damaged.
    #[error("the CA's keys can't be read: {0}")]
    Damaged(String),
}

impl CaError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "ca_certificate",
            Self::Sealed(_) => "ca_sealed",
            Self::Damaged(_) => "ca_damaged",
        }
    }
}

impl From<rcgen::Error> for CaError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate(error.to_string())
    }
}

impl From<CaError> for Refusal {
    fn from(error: CaError) -> Self {
        tracing::error!(%error, reason = error.reason(), "the CA failed");
        Self::new(Reason::Internal, error.to_string())
    }
}

/// The CA of this process.
pub struct Ca {
    trust_domain: TrustDomain,
    sealing: SealingKey,
    material: ArcSwap<Material>,
    /// What the mesh port presents.
    pub server: IdentitySlot,
    // The admin API's address, where clients check it beside the SPIFFE ID.
    addresses: Vec<IpAddr>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ca({}, root {})", self.trust_domain, self.root_digest())
    }
}

impl Ca {
    /// The CA over opened material; presents a fresh server certificate.
    ///
    /// # Errors
    /// A certificate can't be made.
    pub fn new(
        trust_domain: TrustDomain,
        sealing: SealingKey,
        material: Material,
        addresses: Vec<IpAddr>,
    ) -> Result<Self, CaError> {
        let server = IdentitySlot::default();
        let ca = Self {
            trust_domain,
            sealing,
            material: ArcSwap::from_pointee(material),
            server,
            addresses,
        };
        ca.renew_server()?;
        Ok(ca)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Seals something for a place in the store.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn seal(&self, label: &str, plain: &[u8]) -> Result<Vec<u8>, CaError> {
        Ok(self.sealing.seal(label, plain)?)
    }

    /// SHA-256 of the root's SubjectPublicKeyInfo, as join tokens carry it.
    pub fn root_digest(&self) -> Digest {
        self.material.load().root_digest
    }

    /// DER roots.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.material.load().root.certificate.clone()]
    }

    /// The intermediates: the one that signs, then the one that is ready.
    pub fn intermediates(&self) -> [Vec<u8>; 2] {
        let material = self.material.load();
        [
            material.current().certificate.clone(),
            material.next().certificate.clone(),
        ]
    }

    /// DER certificates of the purpose keys.
    pub fn key_certificates(&self) -> Vec<Vec<u8>> {
        self.material
            .load()
            .keys
            .values()
            .map(|k| k.certificate.clone())
            .collect()
    }

    /// The key for a purpose.
    pub fn signer(&self, purpose: KeyPurpose) -> Arc<Signer> {
        self.material.load().keys[&purpose].signer.clone()
    }

    /// What is trusted before any revocation: our root and our keys.
    ///
    /// # Errors
    /// A key's certificate has expired.
    pub fn trust(&self) -> Result<TrustState, CaError> {
        let mut state = TrustState::new(self.trust_domain.clone(), self.roots());
        for certificate in self.key_certificates() {
            state
                .add_key(&certificate)
                .map_err(|e| CaError::Damaged(e.to_string()))?;
        }
        Ok(state)
    }

    /// The resources by which sidecars learn the roots and keys.
    pub fn resources(&self) -> (TrustBundle, Vec<SigningKey>) {
        let roots = self.roots().iter().map(|r| STANDARD.encode(r)).collect();
        let material = self.material.load();
        let keys = material.keys.iter().map(|(purpose, key)| SigningKey {
            kid: key.signer.kid().to_owned(),
            purpose: *purpose,
            certificate: STANDARD.encode(&key.certificate),
        });
        (
            TrustBundle {
                trust_domain: self.trust_domain.clone(),
                roots,
            },
            keys.collect(),
        )
    }

    /// Presents a fresh server certificate, `spiffe://<trust-domain>/control-plane`, with the root at the chain's end
    /// so that a join token's pin can be checked.
    ///
    /// # Errors
    /// A certificate can't be made.
    pub fn renew_server(&self) -> Result<(), CaError> {
        let material = self.material.load();
        let (leaf, pkcs8) = x509::server(&self.trust_domain, &self.addresses, material.current())?;
        let chain = [
            leaf,
            material.current().certificate.clone(),
            material.root.certificate.clone(),
        ];
        self.server
            .set(&chain, &pkcs8)
            .map_err(|e| CaError::Certificate(e.to_string()))
    }

    /// Makes the ready intermediate sign, and a fresh one ready; both are on disk before the first leaf.
    ///
    /// # Errors
    /// A certificate can't be made, or the store fails.
    pub async fn rotate(&self, registry: &Registry, actor: &Actor) -> Result<u64, Refusal> {
        let rotated = self.material.load().rotated(&self.trust_domain)?;
        let sealed = self.seal(keys::CA, &rotated.to_bytes()?)?;
        let held = registry
            .store
            .get(keys::CA)
            .await?
            .ok_or(Refusal::from(Reason::StoreFailed))?;
        let signs = rotated.current().name.clone();
        let draft = registry.change(actor, "ca.rotate", signs);
        let revision = draft
            .put(keys::CA, &hex::encode(sealed), Expect::At(held.revision))
            .commit()
            .await?;
        self.material.store(Arc::new(rotated));
        self.renew_server()?;
        Ok(revision)
    }

    /// Whether the intermediate that signs is near its end.
    pub fn wants_rotation(&self) -> bool {
        self.material.load().current().not_after < aip_runtime::unix_now() + ROTATE_BELOW_SECONDS
    }
}

#[cfg(test)]
mod tests;

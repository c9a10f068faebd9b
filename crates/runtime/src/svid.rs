//! An SVID in this process: key, chain and attestation result, swapped whole at renewal.

use std::sync::Arc;

use aip_api::SpiffeId;
use aip_api::attestation::AttestationResult;
use arc_swap::ArcSwapOption;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::tls::{IdentitySlot, TlsError};
use crate::trust::TrustState;
use crate::x509::{self, CsrKey, IdentityError, PeerIdentity, Usage};

/// A fresh ECDSA P-256 key and the CSR for it.
pub struct PendingKey {
    /// PKCS#8.
    pub pkcs8: Zeroizing<Vec<u8>>,
    /// DER PKCS#10.
    pub csr: Vec<u8>,
    /// What the CSR says of the key.
    pub key: CsrKey,
}

impl std::fmt::Debug for PendingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PendingKey({})", self.key.jkt)
    }
}

impl PendingKey {
    /// Makes the key. The CSR names nothing: names come from the credential.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(malformed)?;
        Self::of(&pair)
    }

    /// A key that was made before, with a CSR anew.
    ///
    /// # Errors
    /// It is not such a key.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, IdentityError> {
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).map_err(malformed)?;
        Self::of(&pair)
    }

    fn of(pair: &KeyPair) -> Result<Self, IdentityError> {
        let csr = CertificateParams::default()
            .serialize_request(pair)
            .map_err(malformed)?
            .der()
            .to_vec();
        let key = x509::csr_key(&csr)?;
        Ok(Self {
            pkcs8: Zeroizing::new(pair.serialize_der()),
            csr,
            key,
        })
    }
}

fn malformed(error: rcgen::Error) -> IdentityError {
    IdentityError::Malformed(error.to_string())
}

/// A usable SVID.
pub struct Svid {
    pkcs8: Zeroizing<Vec<u8>>,
    /// The leaf, then the issuing intermediate; DER.
    pub chain: Vec<Vec<u8>>,
    /// What the leaf proves.
    pub identity: PeerIdentity,
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Svid({}, serial {}, key withheld)",
            self.identity.id, self.identity.serial
        )
    }
}

/// How an SVID lies in its sealed file.
#[derive(Serialize, Deserialize)]
struct Stored {
    pkcs8: String,
    chain: Vec<String>,
}

impl Svid {
    /// Puts key and chain together, and checks the whole as a peer would.
    ///
    /// # Errors
    /// A peer would refuse it.
    pub fn assemble(pkcs8: Zeroizing<Vec<u8>>, chain: Vec<Vec<u8>>, state: &TrustState) -> Result<Self, IdentityError> {
        let [leaf, issuer, ..] = chain.as_slice() else {
            return Err(IdentityError::Malformed("a chain is a leaf and its issuer".into()));
        };
        let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
        verify_now(&der(leaf), &[der(issuer)], state)?;
        let identity = x509::peer_identity(leaf, issuer, state, crate::unix_now())?;
        Ok(Self { pkcs8, chain, identity })
    }

    /// Who this is.
    pub fn id(&self) -> &SpiffeId {
        &self.identity.id
    }

    /// The attestation result in it.
    pub fn result(&self) -> &AttestationResult {
        &self.identity.result
    }

    /// The private key, PKCS#8: for evidence at renewal, and for TLS.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// Bytes for the sealed file. Secret.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let stored = Stored {
            pkcs8: hex::encode(&*self.pkcs8),
            chain: self.chain.iter().map(hex::encode).collect(),
        };
        // Strings of hex always serialise.
        Zeroizing::new(serde_json::to_vec(&stored).unwrap_or_default())
    }

    /// The SVID of [`Self::to_bytes`], checked as a peer would.
    ///
    /// # Errors
    /// Malformed, or a peer would refuse it by now.
    pub fn from_bytes(bytes: &[u8], state: &TrustState) -> Result<Self, IdentityError> {
        let bad = |_| IdentityError::Malformed("the stored SVID can't be read".into());
        let stored: Stored = serde_json::from_slice(bytes).map_err(|_| bad(()))?;
        let chain = stored
            .chain
            .iter()
            .map(hex::decode)
            .collect::<Result<_, _>>()
            .map_err(|_| bad(()))?;
        let pkcs8 = Zeroizing::new(hex::decode(stored.pkcs8).map_err(|_| bad(()))?);
        Self::assemble(pkcs8, chain, state)
    }
}

fn verify_now(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    state: &TrustState,
) -> Result<(), IdentityError> {
    let now = UnixTime::now();
    x509::verify_chain(leaf, intermediates, state.roots(), Usage::Server, now)?;
    x509::verify_chain(leaf, intermediates, state.roots(), Usage::Client, now).map(drop)
}

/// The current SVID of this process. Cloning shares it.
#[derive(Debug, Clone)]
pub struct SvidSource {
    current: Arc<ArcSwapOption<Svid>>,
    slot: IdentitySlot,
    changed: watch::Sender<()>,
}

impl Default for SvidSource {
    fn default() -> Self {
        Self {
            current: Arc::default(),
            slot: IdentitySlot::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl SvidSource {
    /// The SVID, once there is one.
    pub fn current(&self) -> Option<Arc<Svid>> {
        self.current.load_full()
    }

    /// Replaces it; new handshakes use it, streams stay up.
    ///
    /// # Errors
    /// TLS can't use the key.
    pub fn set(&self, svid: Svid) -> Result<(), TlsError> {
        self.slot.set(&svid.chain, &svid.pkcs8)?;
        self.current.store(Some(Arc::new(svid)));
        self.changed.send_replace(());
        Ok(())
    }

    /// Takes it away: no handshake succeeds from now on.
    pub fn clear(&self) {
        self.slot.clear();
        self.current.store(None);
        self.changed.send_replace(());
    }

    /// Hands it over to `other`, which presents it from now on: this one has none.
    pub fn hand_over(&self, other: &Self) {
        other.slot.present_as(&self.slot);
        other.current.store(self.current.load_full());
        other.changed.send_replace(());
        self.clear();
    }

    /// What TLS configurations present.
    pub fn slot(&self) -> &IdentitySlot {
        &self.slot
    }

    /// Waits until there is one.
    pub async fn held(&self) {
        let mut changed = self.subscribe();
        while self.current().is_none() {
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until there is none.
    pub async fn gone(&self) {
        let mut changed = self.subscribe();
        while self.current().is_some() {
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Changes of the SVID.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

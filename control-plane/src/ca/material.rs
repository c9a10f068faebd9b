//! The CA's keys and certificates, and how they lie sealed in the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use aip_api::resource::KeyPurpose;
use aip_api::{Digest, TrustDomain};
use aip_runtime::signing::Signer;
use aip_runtime::x509::spki_digest;
use rcgen::{Issuer, KeyPair};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{CaError, x509};

/// A key that issues certificates.
pub struct Issuing {
    /// Its name, for people: `root`, `a-<digest>`, `b-<digest>`.
    pub name: String,
    /// DER.
    pub certificate: Vec<u8>,
    /// Unix seconds.
    pub not_after: u64,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub digest: Digest,
    pkcs8: Zeroizing<Vec<u8>>,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Issuing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuing({}, key withheld)", self.name)
    }
}

/// A certified key for one purpose.
#[derive(Debug)]
pub struct PurposeKey {
    /// Signs.
    pub signer: Arc<Signer>,
    /// DER, under the root.
    pub certificate: Vec<u8>,
    pkcs8: Zeroizing<Vec<u8>>,
}

/// Everything that the CA holds; replaced whole at a rotation.
#[derive(Debug)]
pub struct Material {
    /// The root.
    pub root: Arc<Issuing>,
    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub root_digest: Digest,
    /// Slots A and B.
    slots: [Arc<Issuing>; 2],
    // Which of them signs.
    current: usize,
    /// One key per purpose.
    pub keys: BTreeMap<KeyPurpose, Arc<PurposeKey>>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    name: String,
    certificate: String,
    // Unix seconds; of issuing keys only.
    #[serde(default)]
    not_after: u64,
    pkcs8: Zeroizing<String>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    root: StoredKey,
    slots: [StoredKey; 2],
    current: usize,
    keys: BTreeMap<KeyPurpose, StoredKey>,
}

fn unhex(text: &str) -> Result<Vec<u8>, CaError> {
    hex::decode(text).map_err(|_| CaError::Damaged("not hex".into()))
}

fn stored(name: &str, certificate: &[u8], not_after: u64, pkcs8: &[u8]) -> StoredKey {
    let pkcs8 = Zeroizing::new(hex::encode(pkcs8));
    StoredKey {
        name: name.to_owned(),
        certificate: hex::encode(certificate),
        not_after,
        pkcs8,
    }
}

impl Issuing {
    pub(super) fn new(
        name: String,
        certificate: Vec<u8>,
        not_after: u64,
        pkcs8: Zeroizing<Vec<u8>>,
    ) -> Result<Self, CaError> {
        let key = KeyPair::try_from(pkcs8.as_slice())?;
        let issuer = Issuer::from_ca_cert_der(&certificate.as_slice().into(), key)?;
        let digest = spki_digest(&certificate).map_err(|e| CaError::Damaged(e.to_string()))?;
        Ok(Self {
            name,
            certificate,
            not_after,
            digest,
            pkcs8,
            issuer,
        })
    }

    fn open(stored: &StoredKey) -> Result<Self, CaError> {
        let pkcs8 = Zeroizing::new(unhex(&stored.pkcs8)?);
        Self::new(
            stored.name.clone(),
            unhex(&stored.certificate)?,
            stored.not_after,
            pkcs8,
        )
    }

    fn stored(&self) -> StoredKey {
        stored(&self.name, &self.certificate, self.not_after, &self.pkcs8)
    }
}

impl PurposeKey {
    pub(super) fn new(purpose: KeyPurpose, certificate: Vec<u8>, pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, CaError> {
        let signer = Signer::from_pkcs8(purpose, &pkcs8).map_err(|e| CaError::Damaged(e.to_string()))?;
        Ok(Self {
            signer: Arc::new(signer),
            certificate,
            pkcs8,
        })
    }
}

impl Material {
    /// Fresh keys for a new mesh.
    ///
    /// # Errors
    /// A certificate can't be made.
    pub fn generate(trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let root = Arc::new(x509::root(trust_domain)?);
        let slots = [
            Arc::new(x509::intermediate(trust_domain, "a", &root)?),
            Arc::new(x509::intermediate(trust_domain, "b", &root)?),
        ];
        let keys = KeyPurpose::ALL
            .into_iter()
            .map(|purpose| Ok((purpose, Arc::new(x509::purpose(trust_domain, purpose, &root)?))));
        let keys = keys.collect::<Result<_, CaError>>()?;
        Ok(Self {
            root_digest: root.digest,
            root,
            slots,
            current: 0,
            keys,
        })
    }

    /// The intermediate that signs.
    pub fn current(&self) -> &Issuing {
        &self.slots[self.current]
    }

    /// The intermediate that is ready.
    pub fn next(&self) -> &Issuing {
        &self.slots[1 - self.current]
    }

    pub(super) fn rotated(&self, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let slot = ["a", "b"][self.current];
        let mut slots = self.slots.clone();
        slots[self.current] = Arc::new(x509::intermediate(trust_domain, slot, &self.root)?);
        Ok(Self {
            root: self.root.clone(),
            root_digest: self.root_digest,
            slots,
            current: 1 - self.current,
            keys: self.keys.clone(),
        })
    }

    /// Bytes for sealing. Secret.
    ///
    /// # Errors
    /// Can't be written as JSON.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, CaError> {
        let whole = Stored {
            root: self.root.stored(),
            slots: [self.slots[0].stored(), self.slots[1].stored()],
            current: self.current,
            keys: self
                .keys
                .iter()
                .map(|(purpose, k)| (*purpose, stored(purpose.as_str(), &k.certificate, 0, &k.pkcs8)))
                .collect(),
        };
        serde_json::to_vec(&whole)
            .map(Zeroizing::new)
            .map_err(|e| CaError::Damaged(e.to_string()))
    }

    /// The material of [`Self::to_bytes`].
    ///
    /// # Errors
    /// Damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CaError> {
        let whole: Stored = serde_json::from_slice(bytes).map_err(|_| CaError::Damaged("not as expected".into()))?;
        let missing = KeyPurpose::ALL.into_iter().find(|p| !whole.keys.contains_key(p));
        if missing.is_some() || whole.current > 1 {
            return Err(CaError::Damaged("a key is missing".into()));
        }
        let keys = whole.keys.iter().map(|(purpose, k)| {
            let pkcs8 = Zeroizing::new(unhex(&k.pkcs8)?);
            Ok((
                *purpose,
                Arc::new(PurposeKey::new(*purpose, unhex(&k.certificate)?, pkcs8)?),
            ))
        });
        let keys = keys.collect::<Result<_, CaError>>()?;
        let root = Arc::new(Issuing::open(&whole.root)?);
        let slots = [
            Arc::new(Issuing::open(&whole.slots[0])?),
            Arc::new(Issuing::open(&whole.slots[1])?),
        ];
        Ok(Self {
            root_digest: root.digest,
            root,
            slots,
            current: whole.current,
            keys,
        })
    }

    /// Every private key, so that a test can look for them where they must not be.
    #[cfg(test)]
    pub(crate) fn secrets(&self) -> Vec<Vec<u8>> {
        let issuing = [&self.root, &self.slots[0], &self.slots[1]].map(|i| i.pkcs8.to_vec());
        issuing
            .into_iter()
            .chain(self.keys.values().map(|k| k.pkcs8.to_vec()))
            .collect()
    }
}

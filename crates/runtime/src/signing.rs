//! Ed25519 keys that sign for the control plane.

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use aip_api::Digest;
use aip_api::resource::KeyPurpose;

/// The DER SubjectPublicKeyInfo of an Ed25519 key is this and the 32 bytes (RFC 8410 section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why a key can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a PKCS#8 Ed25519 key.
    #[error("not an Ed25519 key in PKCS#8")]
    Malformed,
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    Random,
}

/// A key that signs. Never printed.
pub struct Signer {
    kid: String,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.kid)
    }
}

/// The key id of a purpose key: `<purpose>-<first 12 hex digits of the SHA-256 of its SubjectPublicKeyInfo>`.
pub fn key_id(purpose: KeyPurpose, public_key: &[u8; 32]) -> String {
    format!(
        "{}-{}",
        purpose.as_str(),
        Digest::of_parts(&[&SPKI_PREFIX, public_key]).short()
    )
}

impl Signer {
    /// A fresh key for `purpose`, and its PKCS#8 document.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate(purpose: KeyPurpose) -> Result<(Self, Zeroizing<Vec<u8>>), KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
        Ok((Self::from_pkcs8(purpose, &pkcs8)?, pkcs8))
    }

    /// The key of a PKCS#8 document, for `purpose`.
    ///
    /// # Errors
    /// Not an Ed25519 key.
    pub fn from_pkcs8(purpose: KeyPurpose, pkcs8: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| KeyError::Malformed)?;
        let public: [u8; 32] = pair.public_key().as_ref().try_into().map_err(|_| KeyError::Malformed)?;
        Ok(Self {
            kid: key_id(purpose, &public),
            pair,
        })
    }

    /// The key id.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        // ring's Ed25519 signatures are 64 bytes long.
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }

    /// The public key.
    pub fn public_key(&self) -> VerifyingKey {
        let mut out = [0; 32];
        out.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey(out)
    }
}

/// A key that verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// From the raw 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From a DER SubjectPublicKeyInfo; `None` for another algorithm.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        der.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(Self)
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

//! Facts that only an auditor can read: sealed to the auditor's public key where they arise, so that nobody between
//! needs to be trusted with them (HPKE, RFC 9180, base mode: X25519, HKDF-SHA256, ChaCha20-Poly1305).
//!
//! What is sealed is bound to its decision: moved to another record it does not open.

use aip_api::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256 as Kem;
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};
use zeroize::Zeroizing;

use crate::record::Sealed;

/// What this sealing is for: no other use of the key opens it.
const INFO: &[u8] = b"aip audit facts v1";
/// Length of a key of either kind.
pub const KEY_BYTES: usize = 32;
/// Length of the sender's share, which stands before the sealed bytes.
const SHARE_BYTES: usize = 32;

/// Facts that can't be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not a key of this kind.
    #[error("not an X25519 key of {KEY_BYTES} bytes")]
    Key,
    /// Sealed to another auditor's key.
    #[error("sealed to another auditor's key")]
    OtherKey,
    /// Not what was sealed for this decision.
    #[error("what is sealed was changed, or belongs to another decision")]
    Opening,
    /// The facts can't be written as JSON, or are not JSON.
    #[error("the facts are not JSON")]
    Facts,
}

impl SealError {
    /// The stable reason.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Key => "auditor_key_invalid",
            Self::OtherKey => "auditor_key_other",
            Self::Opening => "sealed_facts_changed",
            Self::Facts => "facts_invalid",
        }
    }
}

/// How an auditor's key is named in records: the first 16 hex digits of its SHA-256.
pub fn key_id(public: &[u8; KEY_BYTES]) -> String {
    Digest::sha256(public).to_string().chars().take(16).collect()
}

/// A fresh key pair: the private key and the public key.
pub fn generate() -> (Zeroizing<[u8; KEY_BYTES]>, [u8; KEY_BYTES]) {
    let (private, public) = Kem::gen_keypair();
    let mut secret = Zeroizing::new([0; KEY_BYTES]);
    private.write_exact(&mut *secret);
    (secret, public.to_bytes().into())
}

/// The public key of a private one.
///
/// # Errors
/// Not a key.
pub fn public_of(private: &[u8; KEY_BYTES]) -> Result<[u8; KEY_BYTES], SealError> {
    let private = <Kem as hpke::Kem>::PrivateKey::from_bytes(private).map_err(|_| SealError::Key)?;
    Ok(Kem::sk_to_pk(&private).to_bytes().into())
}

/// Seals facts to the auditor's key, for the decision of this id.
///
/// # Errors
/// Not a key.
pub fn seal(public: &[u8; KEY_BYTES], decision: &str, facts: &serde_json::Value) -> Result<Sealed, SealError> {
    let to = <Kem as hpke::Kem>::PublicKey::from_bytes(public).map_err(|_| SealError::Key)?;
    let plain = Zeroizing::new(serde_json::to_vec(facts).map_err(|_| SealError::Facts)?);
    let (share, mut context) = hpke::setup_sender::<ChaCha20Poly1305, HkdfSha256, Kem>(&OpModeS::Base, &to, INFO)
        .map_err(|_| SealError::Key)?;
    let mut bytes = share.to_bytes().to_vec();
    bytes.extend(
        context
            .seal(&plain, decision.as_bytes())
            .map_err(|_| SealError::Facts)?,
    );
    Ok(Sealed {
        key: key_id(public),
        data: STANDARD.encode(bytes),
    })
}

/// Opens what was sealed for the decision of this id.
///
/// # Errors
/// Another key, another decision, or changed.
pub fn open(private: &[u8; KEY_BYTES], decision: &str, sealed: &Sealed) -> Result<serde_json::Value, SealError> {
    if key_id(&public_of(private)?) != sealed.key {
        return Err(SealError::OtherKey);
    }
    let own = <Kem as hpke::Kem>::PrivateKey::from_bytes(private).map_err(|_| SealError::Key)?;
    let bytes = STANDARD.decode(&sealed.data).map_err(|_| SealError::Opening)?;
    let (share, rest) = bytes.split_at_checked(SHARE_BYTES).ok_or(SealError::Opening)?;
    let share = <Kem as hpke::Kem>::EncappedKey::from_bytes(share).map_err(|_| SealError::Opening)?;
    let mut context = hpke::setup_receiver::<ChaCha20Poly1305, HkdfSha256, Kem>(&OpModeR::Base, &own, &share, INFO)
        .map_err(|_| SealError::Opening)?;
    let plain = Zeroizing::new(
        context
            .open(rest, decision.as_bytes())
            .map_err(|_| SealError::Opening)?,
    );
    serde_json::from_slice(&plain).map_err(|_| SealError::Facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_auditor_reads_it_and_only_for_the_decision_it_was_sealed_for() {
        let ((private, public), (other, _)) = (generate(), generate());
        assert_eq!(public_of(&private).unwrap(), public);
        let facts = json!({"request": {"headers": {"authorization": ["Bearer x"]}}});
        let sealed = seal(&public, "d-1", &facts).unwrap();
        assert!(
            !STANDARD
                .decode(&sealed.data)
                .unwrap()
                .windows(6)
                .any(|w| w == b"Bearer")
        );
        assert_ne!(
            sealed,
            seal(&public, "d-1", &facts).unwrap(),
            "equal facts are not seen to be equal"
        );
        assert_eq!(open(&private, "d-1", &sealed).unwrap(), facts);
        assert_eq!(open(&private, "d-2", &sealed), Err(SealError::Opening));
        assert_eq!(open(&other, "d-1", &sealed), Err(SealError::OtherKey));
        let posing = Sealed {
            key: key_id(&public_of(&other).unwrap()),
            ..sealed.clone()
        };
        assert_eq!(open(&other, "d-1", &posing), Err(SealError::Opening));
        let bytes = STANDARD.decode(&sealed.data).unwrap();
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            let bent = Sealed {
                data: STANDARD.encode(&bent),
                ..sealed.clone()
            };
            // The top bit of an X25519 share is ignored by the curve (RFC 7748), but is part of what HPKE binds.
            assert!(open(&private, "d-1", &bent).is_err(), "byte {at}");
        }
        for cut in [0, 31, 32, 40] {
            let short = Sealed {
                data: STANDARD.encode(&bytes[..cut]),
                ..sealed.clone()
            };
            assert_eq!(open(&private, "d-1", &short), Err(SealError::Opening));
        }
    }
}

//! Kill sets and heartbeats as they travel: signed by the control plane's kill key, and opened by whoever holds it to
//! be one. Both sides use this; nobody reads a payload that was not verified.

use aip_api::kill::{
    Heartbeat, KillSet, MAX_HEARTBEAT_BYTES, MAX_KILL_SET_BYTES, heartbeat_signing_bytes, set_signing_bytes,
};
use aip_api::resource::KeyPurpose;
use aip_api::wire::{SignedHeartbeat, SignedKillSet};
use serde::de::DeserializeOwned;

use crate::signing::Signer;
use crate::trust::TrustState;

/// Longest key id that an error shows, in characters.
const SHOWN: usize = 64;

/// Why a kill set or a heartbeat is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KillError {
    /// Larger than one can be.
    #[error("{0} bytes are more than it can have")]
    Oversized(usize),
    /// Not a kill key that the mesh's root certified.
    #[error("{0:?} is not a kill key of this mesh")]
    UnknownKey(String),
    /// Signed by somebody else, or for something else.
    #[error("the kill key did not sign this")]
    BadSignature,
    /// Signed, and not what it should be.
    #[error("it can't be read: {0}")]
    Malformed(String),
    /// Signed for another mesh.
    #[error("it is of the mesh {0}")]
    OtherMesh(String),
}

impl KillError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Oversized(_) => "oversized",
            Self::UnknownKey(_) => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Malformed(_) => "malformed",
            Self::OtherMesh(_) => "other_mesh",
        }
    }
}

/// Signs a kill set that was written as JSON.
pub fn sign_set(signer: &Signer, payload: Vec<u8>) -> SignedKillSet {
    SignedKillSet {
        signature: signer.sign(&set_signing_bytes(&payload)).to_vec(),
        kid: signer.kid().to_owned(),
        payload,
    }
}

/// Signs a heartbeat that was written as JSON.
pub fn sign_heartbeat(signer: &Signer, payload: Vec<u8>) -> SignedHeartbeat {
    SignedHeartbeat {
        signature: signer.sign(&heartbeat_signing_bytes(&payload)).to_vec(),
        kid: signer.kid().to_owned(),
        payload,
    }
}

/// The kill set that was signed.
///
/// # Errors
/// Not signed by a kill key of this mesh, or not a set that makes sense.
pub fn open_set(trust: &TrustState, signed: &SignedKillSet) -> Result<KillSet, KillError> {
    let SignedKillSet {
        payload,
        kid,
        signature,
    } = signed;
    let what = (kid.as_str(), signature.as_slice(), MAX_KILL_SET_BYTES);
    let set: KillSet = open(trust, payload, what, set_signing_bytes)?;
    let mistakes = set.validate();
    if let Some(first) = mistakes.first() {
        return Err(KillError::Malformed(format!("{}: {}", first.field, first.message)));
    }
    of_this_mesh(trust, &set.trust_domain)?;
    Ok(set)
}

/// The heartbeat that was signed.
///
/// # Errors
/// Not signed by a kill key of this mesh, or not a heartbeat.
pub fn open_heartbeat(trust: &TrustState, signed: &SignedHeartbeat) -> Result<Heartbeat, KillError> {
    let SignedHeartbeat {
        payload,
        kid,
        signature,
    } = signed;
    let what = (kid.as_str(), signature.as_slice(), MAX_HEARTBEAT_BYTES);
    let heartbeat: Heartbeat = open(trust, payload, what, heartbeat_signing_bytes)?;
    if heartbeat.v != 1 || !heartbeat.lease.validate("lease").is_empty() {
        return Err(KillError::Malformed("another version, or a lease out of bounds".into()));
    }
    of_this_mesh(trust, &heartbeat.trust_domain)?;
    Ok(heartbeat)
}

fn of_this_mesh(trust: &TrustState, domain: &aip_api::TrustDomain) -> Result<(), KillError> {
    if domain == trust.trust_domain() {
        Ok(())
    } else {
        Err(KillError::OtherMesh(domain.to_string()))
    }
}

fn open<T: DeserializeOwned>(
    trust: &TrustState,
    payload: &[u8],
    (kid, signature, most): (&str, &[u8], usize),
    signed: fn(&[u8]) -> Vec<u8>,
) -> Result<T, KillError> {
    if payload.len() > most {
        return Err(KillError::Oversized(payload.len()));
    }
    let Some(key) = trust.key(KeyPurpose::Kill, kid) else {
        return Err(KillError::UnknownKey(kid.chars().take(SHOWN).collect()));
    };
    if !key.verify(&signed(payload), signature) {
        return Err(KillError::BadSignature);
    }
    serde_json::from_slice(payload).map_err(|e| KillError::Malformed(e.to_string()))
}

//! The attestation result: what the control plane (the verifier) states about an agent after it checked its evidence.
//! A JWS, EdDSA, carried by the SVID as a certificate extension and served at `/.well-known/agent-attestation`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::evidence::{Assurance, Enforcement};
use crate::{Digest, SpiffeId};

/// The `typ` of an attestation result.
pub const RESULT_TYP: &str = "aip-ar+jwt";

/// The leaf extension that carries the result: non-critical, an OCTET STRING of the ASCII JWS.
///
/// Under 2.25, the arc for UUIDs written as integers, which needs no registration. The value fits 64 bits, so that
/// every ASN.1 library can read it. This constant is its only spelling.
pub const RESULT_OID: &[u64] = &[2, 25, 7_311_962_904_818_473_045, 1];

/// Largest result that a peer reads from a certificate. Labels and capabilities are bounded at registration, so a
/// larger one is not ours.
pub const MAX_RESULT_BYTES: usize = 16 * 1024;

/// The key that a result is bound to (RFC 7800).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// SHA-256 of the DER SubjectPublicKeyInfo of the SVID's key.
    pub jkt: Digest,
}

/// The claims of an attestation result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestationResult {
    /// Who verified: the trust domain's control plane.
    pub iss: String,
    /// About whom.
    pub sub: SpiffeId,
    /// Issued at, Unix seconds.
    pub iat: u64,
    /// Expires at, Unix seconds: the SVID's notAfter.
    pub exp: u64,
    /// The nonce that the evidence answered, base64url.
    pub nonce: String,
    /// The key of the connection that this statement speaks for.
    pub cnf: Confirmation,
    /// Who answers for the agent.
    pub owner: String,
    /// Labels from the registry.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Capabilities from the registry.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Merkle digest of the agent's declared files.
    pub code: Digest,
    /// Digest of its declared configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Digest>,
    /// Digest of the sidecar's executable.
    pub sidecar: Digest,
    /// Which attestor measured.
    pub attestor: String,
    /// How far the facts can be trusted.
    pub assurance: Assurance,
    /// Can the agent go around its sidecar?
    pub enforcement: Enforcement,
    /// Raised on drift; earlier generations are revoked.
    pub generation: u64,
}

//! `TrustBundle` and `SigningKey`: what a sidecar checks everything else against.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Kind, Resource};
use crate::TrustDomain;
use crate::problem::FieldError;

/// Most roots in a bundle: the current one, the next one, and room for a botched rotation.
const MAX_ROOTS: usize = 8;

/// The roots of a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustBundle {
    /// Whose.
    pub trust_domain: TrustDomain,
    /// DER certificates, base64.
    pub roots: Vec<String>,
}

impl TrustBundle {
    /// The roots as DER. Entries that are not base64 are left out; validation refuses such a bundle whole.
    pub fn roots_der(&self) -> Vec<Vec<u8>> {
        self.roots.iter().filter_map(|r| STANDARD.decode(r).ok()).collect()
    }
}

impl Resource for TrustBundle {
    const KIND: Kind = Kind::TrustBundle;
    fn name(&self) -> String {
        self.trust_domain.to_string()
    }
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if !(1..=MAX_ROOTS).contains(&self.roots.len()) {
            errors.push(FieldError::new(
                "roots",
                format!("{} roots; 1 to {MAX_ROOTS}", self.roots.len()),
            ));
        }
        for (i, root) in self.roots.iter().enumerate() {
            if STANDARD.decode(root).is_err() {
                errors.push(FieldError::new(format!("roots[{i}]"), "not base64"));
            }
        }
        errors
    }
}

/// What a key of the control plane may sign. One certified key per purpose, so that one stolen key is one power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyPurpose {
    /// Resources of the `Config` stream.
    Config,
    /// Kill sets and heartbeats.
    Kill,
    /// Attestation results.
    Attestation,
    /// Tree heads of the audit log.
    Audit,
    /// Admin API tokens.
    Admin,
}

impl KeyPurpose {
    /// All purposes.
    pub const ALL: [Self; 5] = [Self::Config, Self::Kill, Self::Attestation, Self::Audit, Self::Admin];

    /// The purpose as it stands in the key's certificate: `spiffe://<trust-domain>/key/<purpose>`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Kill => "kill",
            Self::Attestation => "attestation",
            Self::Audit => "audit",
            Self::Admin => "admin",
        }
    }
}

/// An Ed25519 key of the control plane, certified by the root for one purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningKey {
    /// The key id: `<purpose>-<12 hex digits of the SPKI's SHA-256>`.
    pub kid: String,
    /// What it signs. The certificate says the same; the certificate counts.
    pub purpose: KeyPurpose,
    /// DER certificate under the root, base64.
    pub certificate: String,
}

impl Resource for SigningKey {
    const KIND: Kind = Kind::SigningKey;
    fn name(&self) -> String {
        self.kid.clone()
    }
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if !self.kid.starts_with(self.purpose.as_str()) || self.kid.len() > 64 {
            errors.push(FieldError::new("kid", "must begin with its purpose"));
        }
        if STANDARD.decode(&self.certificate).is_err() {
            errors.push(FieldError::new("certificate", "not base64"));
        }
        errors
    }
}

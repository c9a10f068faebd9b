//! The kinds of configuration, and the signed envelope in which each travels, is cached and is applied.
//!
//! One user object is one resource is one message. The payload is the JSON document that the admin API shows and
//! takes: one type system from the operator's file to the sidecar's snapshot, and the signed bytes are exactly the
//! bytes that are read.

mod agent;
mod measurement;
mod mesh_config;
mod policy;
pub mod reputation;
mod revocation;
mod traffic;
mod trust;

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use agent::{Agent, AgentProtocol, Endpoint, HostHeader, Manifest, ManifestCapabilities, Mode, PrivacyContract};
pub use measurement::Measurement;
pub use mesh_config::{AuditConfig, Durability, EgressRule, KillSettings, MeshConfig, MeshMode, Require, Retention};
pub use policy::{Attach, MAX_POLICY_BYTES, MAX_POLICY_DATA_BYTES, Policy, PolicyName};
pub use reputation::Reputation;
pub use revocation::Revocation;
pub use traffic::Traffic;
pub use trust::{KeyPurpose, SigningKey, TrustBundle};

use crate::problem::FieldError;
use crate::wire;

/// Longest resource name: the longest we make is `<agent>/<64 hex digits>`.
pub const MAX_NAME_BYTES: usize = 200;
/// Largest payload of one resource. The largest real one is a policy with its data (1 MiB of Rego would be refused).
pub const MAX_PAYLOAD_BYTES: usize = 768 * 1024;

/// A kind of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Mesh-wide settings; one, named `mesh`.
    MeshConfig,
    /// An agent in the registry; named by the agent.
    Agent,
    /// Where a sidecar serves; named `<agent>/<instance>`, held by that sidecar's stream.
    Endpoint,
    /// A Rego module and where it is attached.
    Policy,
    /// An approved measurement; named `<agent>/<digest>`.
    Measurement,
    /// The roots; one, named by the trust domain.
    TrustBundle,
    /// A key that signs for the control plane, certified by the root; named by its key id.
    SigningKey,
    /// A revoked generation or serial.
    Revocation,
    /// Deadlines, rates and concurrency of an agent; named by the agent, or `default`.
    Traffic,
    /// How an agent behaved so far; named by the agent.
    Reputation,
}

impl Kind {
    /// All kinds, in the order in which a sidecar needs them.
    pub const ALL: [Self; 10] = [
        Self::TrustBundle,
        Self::SigningKey,
        Self::Revocation,
        Self::MeshConfig,
        Self::Policy,
        Self::Reputation,
        Self::Agent,
        Self::Endpoint,
        Self::Traffic,
        Self::Measurement,
    ];

    /// The kinds of which every sidecar holds every resource.
    pub const MESH_WIDE: [Self; 4] = [Self::TrustBundle, Self::SigningKey, Self::Revocation, Self::MeshConfig];

    /// The kind's name in documents, paths and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MeshConfig => "MeshConfig",
            Self::Agent => "Agent",
            Self::Endpoint => "Endpoint",
            Self::Policy => "Policy",
            Self::Measurement => "Measurement",
            Self::TrustBundle => "TrustBundle",
            Self::SigningKey => "SigningKey",
            Self::Revocation => "Revocation",
            Self::Traffic => "Traffic",
            Self::Reputation => "Reputation",
        }
    }

    /// The kind on the wire.
    pub const fn to_wire(self) -> wire::Kind {
        match self {
            Self::MeshConfig => wire::Kind::MeshConfig,
            Self::Agent => wire::Kind::Agent,
            Self::Endpoint => wire::Kind::Endpoint,
            Self::Policy => wire::Kind::Policy,
            Self::Measurement => wire::Kind::Measurement,
            Self::TrustBundle => wire::Kind::TrustBundle,
            Self::SigningKey => wire::Kind::SigningKey,
            Self::Revocation => wire::Kind::Revocation,
            Self::Traffic => wire::Kind::Traffic,
            Self::Reputation => wire::Kind::Reputation,
        }
    }

    /// The kind that a wire value names, or `None` for one that this version does not know.
    pub fn from_wire(value: i32) -> Option<Self> {
        let wire = wire::Kind::try_from(value).ok()?;
        Self::ALL.into_iter().find(|k| k.to_wire() == wire)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = FieldError;
    fn from_str(s: &str) -> Result<Self, FieldError> {
        Self::ALL
            .into_iter()
            .find(|k| k.as_str().eq_ignore_ascii_case(s))
            .ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|k| k.as_str()).collect();
                FieldError::new("kind", format!("{s:?} is not a kind; known are {}", known.join(", ")))
            })
    }
}

/// What every resource's document can do.
pub trait Resource: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its kind.
    const KIND: Kind;
    /// Its name; unique within the kind.
    fn name(&self) -> String;
    /// Every mistake in it, by field path; empty when it is valid.
    fn validate(&self) -> Vec<FieldError>;
}

/// Kind and name: what identifies a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceId {
    /// The kind.
    pub kind: Kind,
    /// The name within the kind.
    pub name: String,
}

impl ResourceId {
    /// The id of the resource `name` of `kind`.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// Why a resource was refused. The `reason` is stable: it travels in NACKs, logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id} at revision {revision} refused ({reason}): {detail}")]
pub struct Rejected {
    /// Which resource.
    pub id: ResourceId,
    /// At which revision.
    pub revision: u64,
    /// Stable: `unknown_kind`, `oversized`, `bad_signature`, `stale`, `malformed`, `invalid`, `name_mismatch`, …
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

/// The bytes that the config key signs for one resource. Every part is length-prefixed, so that no two resources
/// share a message; the label keeps the signature from meaning anything elsewhere.
pub fn signing_bytes(kind: Kind, name: &str, revision: u64, deleted: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + name.len() + payload.len());
    out.extend_from_slice(b"aip.mesh.v1.Resource\0");
    for part in [
        kind.as_str().as_bytes(),
        name.as_bytes(),
        &revision.to_be_bytes(),
        &[u8::from(deleted)],
        payload,
    ] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Reads a payload as the document of its kind, and holds it against its envelope.
///
/// # Errors
/// Oversized, malformed, invalid, or named otherwise than its envelope.
pub fn read<R: Resource>(name: &str, revision: u64, payload: &[u8]) -> Result<R, Rejected> {
    let id = ResourceId::new(R::KIND, name);
    let refuse = |reason, detail: String| Rejected {
        id: id.clone(),
        revision,
        reason,
        detail,
    };
    if payload.len() > MAX_PAYLOAD_BYTES || name.len() > MAX_NAME_BYTES {
        let detail = format!("{} bytes; at most {MAX_PAYLOAD_BYTES} are read", payload.len());
        return Err(refuse("oversized", detail));
    }
    let document: R = serde_json::from_slice(payload).map_err(|e| refuse("malformed", e.to_string()))?;
    let mistakes = document.validate();
    if !mistakes.is_empty() {
        let all: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        return Err(refuse("invalid", all.join("; ")));
    }
    if document.name() != name {
        let detail = format!("the document is named {:?}", document.name());
        return Err(refuse("name_mismatch", detail));
    }
    Ok(document)
}

#[cfg(test)]
mod tests;

//! `MeshConfig`: what holds for the whole mesh. Policies read it as `data.mesh`.

mod audit;
mod kill;

use serde::{Deserialize, Serialize};

pub use audit::{AuditConfig, Durability, Retention};
pub use kill::KillSettings;

use super::reputation::ReputationSettings;
use super::{Kind, Resource};
use crate::TrustDomain;
use crate::evidence::{Assurance, Enforcement};
use crate::problem::FieldError;

/// Most egress rules; past it a list of hosts belongs into a policy's own data.
pub(crate) const MAX_EGRESS: usize = 1_000;

/// Mesh-wide settings; one resource named `mesh`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshConfig {
    /// The trust domain; never changes.
    pub trust_domain: TrustDomain,
    /// `dev` or `prod`; never changes.
    pub mode: MeshMode,
    /// What every peer must show.
    #[serde(default)]
    pub require: Require,
    /// Hosts outside the mesh that agents may reach.
    #[serde(default)]
    pub egress: Vec<EgressRule>,
    /// Lifetime of an SVID, in seconds: 60 to 86,400.
    #[serde(default = "default_svid_ttl")]
    pub svid_ttl_seconds: u64,
    /// What is recorded of every request, and for how long.
    #[serde(default)]
    pub audit: AuditConfig,
    /// Orders to stop.
    #[serde(default)]
    pub kill: KillSettings,
    /// How reputation is made, and what is asked of it.
    #[serde(default)]
    pub reputation: ReputationSettings,
}

const fn default_svid_ttl() -> u64 {
    3_600
}

impl MeshConfig {
    /// The only name.
    pub const NAME: &str = "mesh";

    /// The settings of a new mesh.
    pub fn new(trust_domain: TrustDomain, mode: MeshMode) -> Self {
        Self {
            trust_domain,
            mode,
            require: Require::default(),
            egress: Vec::new(),
            svid_ttl_seconds: default_svid_ttl(),
            audit: AuditConfig::default(),
            kill: KillSettings::default(),
            reputation: ReputationSettings::default(),
        }
    }
}

/// What a mesh is for, from its creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeshMode {
    /// Measurements are approved as they come.
    Dev,
    /// A person approves; what loosens needs a second one.
    Prod,
}

/// What a peer must show before policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Require {
    /// At least this assurance.
    pub assurance: Assurance,
    /// At least this enforcement.
    pub enforcement: Enforcement,
}

/// A host outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// A DNS name, or `*.` and a DNS name for all below it, or an IP address in text form.
    pub host: String,
    /// The port; absent: 443.
    #[serde(default = "https")]
    pub port: u16,
    /// Let the name resolve to loopback or private addresses. Metadata and link-local addresses never.
    #[serde(default)]
    pub allow_private: bool,
}

const fn https() -> u16 {
    443
}

impl Resource for MeshConfig {
    const KIND: Kind = Kind::MeshConfig;
    fn name(&self) -> String {
        Self::NAME.into()
    }
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = self.audit.validate();
        errors.extend(self.reputation.validate());
        errors.extend(self.kill.validate());
        if !(60..=86_400).contains(&self.svid_ttl_seconds) {
            let message = format!("{} is out of bounds: 60 to 86400 seconds", self.svid_ttl_seconds);
            errors.push(FieldError::new("svid_ttl_seconds", message));
        }
        if self.egress.len() > MAX_EGRESS {
            errors.push(FieldError::new(
                "egress",
                format!("{} rules; at most {MAX_EGRESS}", self.egress.len()),
            ));
        }
        for (i, rule) in self.egress.iter().enumerate() {
            let host = rule.host.strip_prefix("*.").unwrap_or(&rule.host);
            let named = host.parse::<TrustDomain>().is_ok() && !self.trust_domain.owns_host(host);
            if !named && rule.host.parse::<std::net::IpAddr>().is_err() {
                let message = format!(
                    "{:?} is not a lower-case DNS name outside the mesh, nor an address",
                    rule.host
                );
                errors.push(FieldError::new(format!("egress[{i}].host"), message));
            }
            if rule.port == 0 {
                errors.push(FieldError::new(format!("egress[{i}].port"), "1 to 65535"));
            }
        }
        errors
    }
}

//! `Agent`: who is in the registry, how it is treated; and `Endpoint`: where its sidecar serves.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Kind, Resource};
use crate::AgentName;
use crate::kill::Lease;
use crate::problem::FieldError;

/// Most labels of an agent, and most capabilities, scopes: they travel in every certificate.
pub(crate) const MAX_LABELS: usize = 32;
/// Longest label key or value, capability or owner, in bytes.
pub(crate) const MAX_LABEL_BYTES: usize = 128;

/// Most aliases of an agent: its name in DNS, and a few that old cards still say.
pub(crate) const MAX_ALIASES: usize = 8;

/// An agent in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Its name: the DNS label by which peers address it.
    pub name: AgentName,
    /// Who answers for it.
    #[serde(default)]
    pub owner: String,
    /// Free labels, by which policies and kills select.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it can do, for discovery.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Whether refusals are enforced.
    #[serde(default)]
    pub mode: Mode,
    /// Which HTTP version its server speaks.
    #[serde(default)]
    pub protocol: AgentProtocol,
    /// What the agent sees as `Host` on calls from peers.
    #[serde(default)]
    pub host: HostHeader,
    /// Let paths through that are refused by default (dot segments, `//`, encoded slashes, `;`, `\`): what policy
    /// read may then differ from what the agent resolves.
    #[serde(default)]
    pub allow_ambiguous_paths: bool,
    /// Other authorities that lead to it, as `host` or `host:port` (absent: 80): what its signed agent card says where to
    /// call it. Lower-case DNS names outside the mesh with at least one dot, never an address or a name of the local
    /// machine. Calls to them from the mesh, over plain HTTP, go to this agent; they hold for sidecars that hold the agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// For how long its sidecars may go on without hearing from the control plane, and what they do then.
    #[serde(default)]
    pub lease: Lease,
    /// What it claims of itself at `/.well-known/agent-manifest`. Claims: never a fact for a decision by default.
    #[serde(default)]
    pub manifest: Manifest,
    /// Raised by the control plane on drift and on `attest revoke`; SVIDs of earlier generations are revoked.
    #[serde(default = "first_generation")]
    pub generation: u64,
}

const fn first_generation() -> u64 {
    1
}

impl Agent {
    /// An agent with nothing but a name: enforced, first generation.
    pub fn new(name: AgentName) -> Self {
        Self {
            name,
            owner: String::new(),
            labels: BTreeMap::new(),
            capabilities: Vec::new(),
            mode: Mode::Enforce,
            protocol: AgentProtocol::Auto,
            host: HostHeader::Local,
            allow_ambiguous_paths: false,
            aliases: Vec::new(),
            lease: Lease::default(),
            manifest: Manifest::default(),
            generation: 1,
        }
    }
}

/// Whether would-be refusals are enforced or only recorded. Never applies to identity, revocation and kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Mode {
    /// Refuse what policy refuses.
    #[default]
    Enforce,
    /// Record what would be refused and let it pass, until a time.
    Observe {
        /// Unix seconds at which enforcement begins again.
        until: u64,
    },
}

impl Mode {
    /// Whether refusals are enforced at `now` (Unix seconds).
    pub const fn enforces(self, now: u64) -> bool {
        match self {
            Self::Enforce => true,
            Self::Observe { until } => now >= until,
        }
    }
}

/// The HTTP version of the agent's own server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum AgentProtocol {
    /// As the caller spoke: HTTP/1.1, or HTTP/2 with prior knowledge for gRPC.
    #[default]
    Auto,
    /// Always HTTP/1.1.
    Http1,
    /// Always HTTP/2 with prior knowledge.
    H2c,
}

/// The `Host` that the agent sees on calls that peers addressed to its mesh name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum HostHeader {
    /// `127.0.0.1:<port>`, the original in `Forwarded`: servers bound to localhost refuse a foreign Host.
    #[default]
    Local,
    /// As the caller sent it.
    Original,
}

/// What an agent claims of itself; the flat manifest of the Inter-Agent Trust Protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// Version of the agent, free text.
    pub agent_version: Option<String>,
    /// `verified_partner`, `trusted`, `standard`, `unknown` or `untrusted`; self-declared.
    pub trust_level: String,
    /// Promises about calls.
    pub capabilities: ManifestCapabilities,
    /// Promises about data.
    pub privacy_contract: PrivacyContract,
    /// Scopes such as `repo:read`.
    pub scopes: Vec<String>,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            agent_version: None,
            trust_level: "standard".into(),
            capabilities: ManifestCapabilities::default(),
            privacy_contract: PrivacyContract::default(),
            scopes: Vec::new(),
        }
    }
}

/// Promises about calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ManifestCapabilities {
    /// Whether a call may be repeated.
    pub idempotency: bool,
    /// `full`, `partial` or `none`.
    pub reversibility: String,
    /// For how long a call can be undone, free text such as `24h`.
    pub undo_window: Option<String>,
    /// Promised latency, free text such as `2000ms`.
    pub sla_latency: Option<String>,
    /// Requests a minute.
    pub rate_limit: Option<u64>,
}

impl Default for ManifestCapabilities {
    fn default() -> Self {
        Self {
            idempotency: false,
            reversibility: "none".into(),
            undo_window: None,
            sla_latency: None,
            rate_limit: None,
        }
    }
}

/// Promises about data. Where the original assumes encryption unless told otherwise, ours claims nothing unsaid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrivacyContract {
    /// `ephemeral`, `temporary`, `permanent` or `forever`.
    pub retention: String,
    /// Where data lies, free text.
    pub storage_location: Option<String>,
    /// Whether people see the data.
    pub human_review: bool,
    /// Whether it is encrypted at rest.
    pub encryption_at_rest: bool,
    /// Whether it is encrypted in transit.
    pub encryption_in_transit: bool,
}

impl Default for PrivacyContract {
    fn default() -> Self {
        Self {
            retention: "temporary".into(),
            storage_location: None,
            human_review: false,
            encryption_at_rest: false,
            encryption_in_transit: false,
        }
    }
}

fn check_text(errors: &mut Vec<FieldError>, field: &str, text: &str) {
    if text.len() > MAX_LABEL_BYTES || text.chars().any(char::is_control) {
        errors.push(FieldError::new(
            field,
            format!("at most {MAX_LABEL_BYTES} bytes, no control characters"),
        ));
    }
}

fn check_word(errors: &mut Vec<FieldError>, field: &str, word: &str, known: &[&str]) {
    if !known.contains(&word) {
        errors.push(FieldError::new(
            field,
            format!("{word:?} is not one of {}", known.join(", ")),
        ));
    }
}

fn check_list(errors: &mut Vec<FieldError>, field: &str, list: &[String]) {
    if list.len() > MAX_LABELS {
        errors.push(FieldError::new(
            field,
            format!("{} entries; at most {MAX_LABELS}", list.len()),
        ));
    }
    for (i, entry) in list.iter().enumerate() {
        check_text(errors, &format!("{field}[{i}]"), entry);
    }
}

fn check_aliases(errors: &mut Vec<FieldError>, aliases: &[String]) {
    if aliases.len() > MAX_ALIASES {
        let message = format!("{} entries; at most {MAX_ALIASES}", aliases.len());
        errors.push(FieldError::new("aliases", message));
    }
    for (i, alias) in aliases.iter().enumerate() {
        let (host, port) = match alias.split_once(':') {
            Some((host, port)) => (host, port.parse::<u16>().unwrap_or(0)),
            None => (alias.as_str(), 80),
        };
        // Old resolvers read `0x7f.1` and `127.1` as addresses: what ends in a number is none of a name.
        let last = host.rsplit('.').next().unwrap_or_default();
        let number = last.starts_with(|c: char| c.is_ascii_digit());
        let local = matches!(last, "localhost" | "localdomain" | "local");
        let named = host.parse::<crate::TrustDomain>().is_ok() && host.contains('.') && !number && !local;
        if !named || port == 0 {
            let message =
                format!("{alias:?} is not a lower-case DNS name of more than one label, with or without a port");
            errors.push(FieldError::new(format!("aliases[{i}]"), message));
        }
    }
}

impl Resource for Agent {
    const KIND: Kind = Kind::Agent;
    fn name(&self) -> String {
        self.name.to_string()
    }
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        check_text(&mut errors, "owner", &self.owner);
        if self.labels.len() > MAX_LABELS {
            errors.push(FieldError::new(
                "labels",
                format!("{} entries; at most {MAX_LABELS}", self.labels.len()),
            ));
        }
        for (key, value) in &self.labels {
            check_text(&mut errors, &format!("labels.{key}"), key);
            check_text(&mut errors, &format!("labels.{key}"), value);
        }
        check_list(&mut errors, "capabilities", &self.capabilities);
        check_aliases(&mut errors, &self.aliases);
        errors.extend(self.lease.validate("lease"));
        check_list(&mut errors, "manifest.scopes", &self.manifest.scopes);
        let manifest = &self.manifest;
        let levels = ["verified_partner", "trusted", "standard", "unknown", "untrusted"];
        check_word(&mut errors, "manifest.trust_level", &manifest.trust_level, &levels);
        let reversibility = &manifest.capabilities.reversibility;
        check_word(
            &mut errors,
            "manifest.capabilities.reversibility",
            reversibility,
            &["full", "partial", "none"],
        );
        let retention = &manifest.privacy_contract.retention;
        let kept = ["ephemeral", "temporary", "permanent", "forever"];
        check_word(&mut errors, "manifest.privacy_contract.retention", retention, &kept);
        if self.generation == 0 {
            errors.push(FieldError::new("generation", "generations count from 1"));
        }
        errors
    }
}

/// Where one sidecar serves its agent. Leased: it lives as long as that sidecar's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The agent.
    pub agent: AgentName,
    /// The sidecar instance, a UUID.
    pub instance: String,
    /// Where its inbound port (15006 by default) listens.
    pub address: SocketAddr,
}

impl Resource for Endpoint {
    const KIND: Kind = Kind::Endpoint;
    fn name(&self) -> String {
        format!("{}/{}", self.agent, self.instance)
    }
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.instance.is_empty() || self.instance.len() > 64 || self.instance.contains('/') {
            errors.push(FieldError::new("instance", "1 to 64 bytes without '/'"));
        }
        if self.address.port() == 0 || self.address.ip().is_unspecified() || self.address.ip().is_multicast() {
            errors.push(FieldError::new("address", format!("{} can't be dialled", self.address)));
        }
        errors
    }
}

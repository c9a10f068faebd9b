//! Orders to stop: the kill set, and the heartbeat by which a sidecar knows that it has the current one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::problem::FieldError;
use crate::{AgentName, TrustDomain};

pub mod sets;
pub mod webhook;

/// Most orders in force at a time: past it one stops by label or the whole mesh.
pub const MAX_ORDERS: usize = 1_000;
/// Largest kill set, in bytes as JSON.
pub const MAX_KILL_SET_BYTES: usize = 512 * 1024;
/// Longest reason of an order, in bytes.
pub const MAX_REASON_BYTES: usize = 500;
/// Most people that an order names as its issuers.
pub const MAX_ISSUERS: usize = 4;
/// Most labels of a selector.
pub const MAX_SELECTOR_LABELS: usize = 8;
/// Longest label of a selector, its value counted too, in bytes.
pub const MAX_SELECTOR_LABEL_BYTES: usize = 256;
/// Longest name of a tool or skill, in bytes.
pub const MAX_TOOL_BYTES: usize = 256;
/// Largest heartbeat, in bytes as JSON.
pub const MAX_HEARTBEAT_BYTES: usize = 4 * 1024;

/// All orders in force. A sidecar takes one only if its (term, epoch) is higher than what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillSet {
    /// Version of this document: 1.
    pub v: u32,
    /// For which mesh.
    pub trust_domain: TrustDomain,
    /// A life of the control plane's store: raised when it was restored from a copy.
    pub term: u64,
    /// Raised with each set of a term.
    pub epoch: u64,
    /// Unix seconds.
    pub issued_at: u64,
    /// By id.
    pub orders: Vec<Order>,
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// A UUID.
    pub id: String,
    /// Whom it stops.
    pub scope: Scope,
    /// How.
    pub mode: Mode,
    /// Why, for people; callers see it.
    pub reason: String,
    /// Who ordered it, and who approved it where two were needed.
    pub issued_by: Vec<String>,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds at which it ends by itself; only a pause may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// Whom an order stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Scope {
    /// Everything.
    Mesh {},
    /// Agents that have all of these labels.
    Selector {
        /// Label and value.
        labels: BTreeMap<String, String>,
    },
    /// One agent: calls to it and from it.
    Agent {
        /// Its name.
        agent: AgentName,
    },
    /// One tool or skill of one agent, or of all.
    Tool {
        /// The agent that has it; absent: every agent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<AgentName>,
        /// Its name.
        tool: String,
    },
    /// Calls of one agent to another.
    Pair {
        /// Who calls.
        source: AgentName,
        /// Who is called.
        destination: AgentName,
    },
}

/// How an order stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// New requests are answered 503 with Retry-After, and what is open goes on; may end by itself.
    Pause,
    /// Connections and streams are cut too, and the agent's processes are ended by their supervisor.
    Kill,
}

/// A sign of life of the control plane: this is the current set. What it grants counts from when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Version of this document: 1.
    pub v: u32,
    /// For which mesh.
    pub trust_domain: TrustDomain,
    /// Term of the current set.
    pub term: u64,
    /// Epoch of the current set.
    pub epoch: u64,
    /// Unix seconds.
    pub at: u64,
    /// The process that asked.
    pub instance: String,
    /// The `sequence` of the `Beat` that it answers.
    pub sequence: u64,
    /// What it grants, counted from when that `Beat` was sent.
    pub lease: Lease,
}

/// For how long a sidecar may go on without hearing from the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lease {
    /// Its length.
    pub seconds: u64,
    /// What happens at its end.
    pub on_lost: OnLost,
}

/// What a sidecar does when its lease has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    /// It goes on with the orders that it holds, until its SVID ends.
    #[default]
    Continue,
    /// It refuses everything and cuts what is open, until it hears again.
    Deny,
}

/// Shortest lease, in seconds: three beats of a second and what a busy machine adds.
pub const MIN_LEASE_SECONDS: u64 = 5;
/// Longest lease, in seconds: an SVID's longest life.
pub const MAX_LEASE_SECONDS: u64 = 86_400;

impl Default for Lease {
    fn default() -> Self {
        Self {
            seconds: 30,
            on_lost: OnLost::Continue,
        }
    }
}

impl Lease {
    /// Every mistake in it, by field path below `at`.
    pub fn validate(&self, at: &str) -> Vec<FieldError> {
        if (MIN_LEASE_SECONDS..=MAX_LEASE_SECONDS).contains(&self.seconds) {
            return Vec::new();
        }
        let message = format!(
            "{} is out of bounds: {MIN_LEASE_SECONDS} to {MAX_LEASE_SECONDS} seconds",
            self.seconds
        );
        vec![FieldError::new(format!("{at}.seconds"), message)]
    }
}

impl KillSet {
    /// The set with which a mesh begins.
    pub const fn empty(trust_domain: TrustDomain, term: u64, issued_at: u64) -> Self {
        Self {
            v: 1,
            trust_domain,
            term,
            epoch: 0,
            issued_at,
            orders: Vec::new(),
        }
    }

    /// What orders sets.
    pub const fn version(&self) -> (u64, u64) {
        (self.term, self.epoch)
    }

    /// Every mistake in it, by field path.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.v != 1 {
            errors.push(FieldError::new("v", "this program knows version 1"));
        }
        let ids: std::collections::BTreeSet<&str> = self.orders.iter().map(|order| order.id.as_str()).collect();
        if ids.len() != self.orders.len() {
            errors.push(FieldError::new("orders", "two orders have the same id"));
        }
        if self.orders.len() > MAX_ORDERS {
            let message = format!("{} orders; at most {MAX_ORDERS}", self.orders.len());
            errors.push(FieldError::new("orders", message));
        }
        for (i, order) in self.orders.iter().enumerate().take(MAX_ORDERS) {
            order.validate(&format!("orders[{i}]"), &mut errors);
        }
        errors
    }
}

impl Order {
    /// Adds every mistake in it to `errors`, by field path below `at`.
    pub fn validate(&self, at: &str, errors: &mut Vec<FieldError>) {
        let mut wrong = |field: &str, message: String| errors.push(FieldError::new(format!("{at}.{field}"), message));
        if uuid::Uuid::try_parse(&self.id).is_err() {
            wrong("id", "not a UUID".into());
        }
        if self.reason.len() > MAX_REASON_BYTES {
            wrong(
                "reason",
                format!("{} bytes; at most {MAX_REASON_BYTES}", self.reason.len()),
            );
        }
        if self.issued_by.is_empty() || self.issued_by.len() > MAX_ISSUERS {
            wrong("issued_by", format!("1 to {MAX_ISSUERS} people"));
        }
        if self.mode == Mode::Kill && self.expires.is_some() {
            wrong("expires", "a kill does not end by itself: resume it".into());
        }
        match &self.scope {
            Scope::Selector { labels } if labels.is_empty() || labels.len() > MAX_SELECTOR_LABELS => {
                wrong("scope.labels", format!("1 to {MAX_SELECTOR_LABELS} labels"));
            }
            Scope::Selector { labels } if labels.iter().any(|(k, v)| k.len() + v.len() > MAX_SELECTOR_LABEL_BYTES) => {
                wrong("scope.labels", format!("at most {MAX_SELECTOR_LABEL_BYTES} bytes each"));
            }
            Scope::Tool { tool, .. } if tool.is_empty() || tool.len() > MAX_TOOL_BYTES => {
                wrong("scope.tool", format!("1 to {MAX_TOOL_BYTES} bytes"));
            }
            Scope::Pair { source, destination } if source == destination => {
                wrong("scope.destination", "the same agent as the source".into());
            }
            _ => {}
        }
    }

    /// Whether it is in force at `now` (Unix seconds).
    pub fn in_force(&self, now: u64) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

impl Scope {
    /// Whether it stops more than one agent.
    pub const fn is_broad(&self) -> bool {
        match self {
            Self::Mesh {} | Self::Selector { .. } | Self::Tool { agent: None, .. } => true,
            Self::Agent { .. } | Self::Tool { agent: Some(_), .. } | Self::Pair { .. } => false,
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mesh {} => f.write_str("the mesh"),
            Self::Selector { labels } => {
                let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(f, "agents with {}", labels.join(","))
            }
            Self::Agent { agent } => write!(f, "agent {agent}"),
            Self::Tool { agent: None, tool } => write!(f, "tool {tool}"),
            Self::Tool {
                agent: Some(agent),
                tool,
            } => write!(f, "tool {tool} of {agent}"),
            Self::Pair { source, destination } => write!(f, "{source} to {destination}"),
        }
    }
}

impl Mode {
    /// The word in documents and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Kill => "kill",
        }
    }
}

/// The bytes that a kill key signs for a set. The label keeps the signature from meaning anything elsewhere.
pub fn set_signing_bytes(payload: &[u8]) -> Vec<u8> {
    [b"aip.mesh.v1.KillSet\0".as_slice(), payload].concat()
}

/// The bytes that a kill key signs for a heartbeat.
pub fn heartbeat_signing_bytes(payload: &[u8]) -> Vec<u8> {
    [b"aip.mesh.v1.Heartbeat\0".as_slice(), payload].concat()
}

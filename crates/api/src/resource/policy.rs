//! `Policy`: one Rego module, and the agents whose hops it takes part in.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Agent, Kind, Resource};
use crate::AgentName;
use crate::problem::FieldError;

/// Largest Rego module: what a person can review, and what compiles in milliseconds.
pub const MAX_POLICY_BYTES: usize = 128 * 1024;
/// Largest data document of a policy (it costs about four times its size in every worker).
pub const MAX_POLICY_DATA_BYTES: usize = 256 * 1024;
/// The name of the policy that takes part in every hop.
pub(crate) const BASELINE: &str = "baseline";

/// A policy's name: 1 to 63 of `a-z`, `0-9` and `-`, beginning with a letter. The last part of its package is the name
/// with `_` for `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyName(String);

impl PolicyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PolicyName {
    type Error = FieldError;
    fn try_from(s: String) -> Result<Self, FieldError> {
        let word = s
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if word && (1..=63).contains(&s.len()) && s.as_bytes()[0].is_ascii_lowercase() {
            Ok(Self(s))
        } else {
            let clipped: String = s.chars().take(80).collect();
            let message = format!("{clipped:?} is not a policy name: use 1 to 63 of a-z, 0-9 and '-', a letter first");
            Err(FieldError::new("name", message))
        }
    }
}

impl From<PolicyName> for String {
    fn from(name: PolicyName) -> String {
        name.0
    }
}

/// A Rego module with its data and tests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The name; the package is `aip.policy.<name>` with `_` for `-`.
    pub name: PolicyName,
    /// The module's text.
    pub rego: String,
    /// `data.user.<name>`: an object, versioned with the policy.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub data: serde_json::Value,
    /// Rego tests, run at admission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tests: Option<String>,
    /// Whose hops it takes part in.
    #[serde(default)]
    pub attach: Attach,
}

/// Whose hops a policy takes part in, as source or as destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// Every hop.
    #[default]
    Mesh,
    /// Hops of these agents.
    Agents(Vec<AgentName>),
    /// Hops of agents that carry all these labels.
    Labels(BTreeMap<String, String>),
}

impl Attach {
    /// Whether the policy takes part in hops of `agent`.
    pub fn covers(&self, agent: &Agent) -> bool {
        self.covers_named(&agent.name, &agent.labels)
    }

    /// Whether the policy takes part in hops of the agent with this name and these labels.
    pub fn covers_named(&self, name: &AgentName, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Mesh => true,
            Self::Agents(names) => names.contains(name),
            Self::Labels(wanted) => wanted.iter().all(|(k, v)| labels.get(k) == Some(v)),
        }
    }
}

impl Resource for Policy {
    const KIND: Kind = Kind::Policy;
    fn name(&self) -> String {
        self.name.to_string()
    }
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.rego.len() > MAX_POLICY_BYTES {
            errors.push(FieldError::new(
                "rego",
                format!("{} bytes; at most {MAX_POLICY_BYTES}", self.rego.len()),
            ));
        }
        if !self.data.is_null() && !self.data.is_object() {
            errors.push(FieldError::new("data", "must be an object"));
        }
        let data = self.data.to_string().len();
        if data > MAX_POLICY_DATA_BYTES {
            errors.push(FieldError::new(
                "data",
                format!("{data} bytes as JSON; at most {MAX_POLICY_DATA_BYTES}"),
            ));
        }
        if self.tests.as_ref().is_some_and(|t| t.len() > 2 * MAX_POLICY_BYTES) {
            errors.push(FieldError::new(
                "tests",
                format!("at most {} bytes", 2 * MAX_POLICY_BYTES),
            ));
        }
        if matches!(&self.attach, Attach::Labels(labels) if labels.is_empty()) {
            errors.push(FieldError::new(
                "attach.labels",
                "name at least one label, or attach to the mesh",
            ));
        }
        if self.name.as_str() == BASELINE && self.attach != Attach::Mesh {
            errors.push(FieldError::new("attach", "the baseline takes part in every hop"));
        }
        errors
    }
}

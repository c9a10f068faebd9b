//! `Traffic`: deadlines, rates and concurrency.

use serde::{Deserialize, Serialize};

use super::{Kind, Resource};
use crate::problem::FieldError;

/// How much of an agent's time peers may take. Named by the agent, or `default` for all that have none of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// The agent's name, or `default`.
    pub agent: String,
    /// From the end of the request's body to the response's first header, in milliseconds: 1 to 3,600,000. A body may take as long.
    #[serde(default = "default_response_ms")]
    pub response_timeout_ms: u64,
    /// Silence in the middle of a body after which the stream is cut, in milliseconds: 1 to 86,400,000.
    #[serde(default = "default_idle_ms")]
    pub idle_timeout_ms: u64,
    /// Requests in flight to the agent: 1 to 100,000.
    #[serde(default = "default_concurrency")]
    pub max_concurrency: u32,
    /// How many of them may be one peer's: 1 to 100,000. Absent: half of them, rounded up, so that one peer alone can't
    /// shut out the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_max_concurrency: Option<u32>,
    /// Requests a second from one peer: 1 to 1,000,000.
    #[serde(default = "default_rate")]
    pub peer_rate_per_second: u32,
    /// How many of them may come at once: 1 to 1,000,000.
    #[serde(default = "default_burst")]
    pub peer_burst: u32,
}

const fn default_response_ms() -> u64 {
    // Agents think for minutes; a proxy in front of them must not be what gives up first.
    300_000
}
const fn default_idle_ms() -> u64 {
    // Longer than the 15 to 60 s between keep-alive comments of the usual SSE servers.
    600_000
}
const fn default_concurrency() -> u32 {
    1_000
}
const fn default_rate() -> u32 {
    10_000
}
const fn default_burst() -> u32 {
    20_000
}

impl Traffic {
    /// The name of the resource for agents that have none of their own.
    pub const DEFAULT: &str = "default";

    /// The limits that hold where nothing is configured.
    pub fn defaults() -> Self {
        Self {
            agent: Self::DEFAULT.into(),
            response_timeout_ms: default_response_ms(),
            idle_timeout_ms: default_idle_ms(),
            max_concurrency: default_concurrency(),
            peer_max_concurrency: None,
            peer_rate_per_second: default_rate(),
            peer_burst: default_burst(),
        }
    }

    /// Requests in flight that one peer may have: what is configured, or half of all, rounded up.
    pub fn peer_concurrency(&self) -> u32 {
        self.peer_max_concurrency
            .unwrap_or_else(|| self.max_concurrency.div_ceil(2))
    }
}

impl Resource for Traffic {
    const KIND: Kind = Kind::Traffic;
    fn name(&self) -> String {
        self.agent.clone()
    }
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut within = |field: &str, value: u64, max: u64| {
            if !(1..=max).contains(&value) {
                errors.push(FieldError::new(field, format!("{value} is out of bounds: 1 to {max}")));
            }
        };
        within("response_timeout_ms", self.response_timeout_ms, 3_600_000);
        within("idle_timeout_ms", self.idle_timeout_ms, 86_400_000);
        within("max_concurrency", self.max_concurrency.into(), 100_000);
        within("peer_max_concurrency", self.peer_concurrency().into(), 100_000);
        within("peer_rate_per_second", self.peer_rate_per_second.into(), 1_000_000);
        within("peer_burst", self.peer_burst.into(), 1_000_000);
        if self.agent.parse::<crate::AgentName>().is_err() {
            errors.push(FieldError::new("agent", "an agent's name, or default"));
        }
        errors
    }
}

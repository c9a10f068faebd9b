//! What can happen to an agent's reputation. Each event holds what it was worth when it happened, and the rules by which
//! it was taken in: settings that change later judge nothing anew.

use std::collections::BTreeMap;

use aip_api::resource::reputation::{Evidence, Factor, Finding, ReputationSettings, Score, Severity};
use aip_api::{AgentName, Digest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One event of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts from 1, without a hole.
    pub seq: u64,
    /// Unix seconds, by the control plane's clock. Earlier than the event before where that clock was set back.
    pub at: u64,
    /// By which settings it was taken in.
    #[serde(default)]
    pub rules: Rules,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// The settings that an event is taken in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rules {
    /// Observations of one hour that count for a factor, good and bad each.
    pub hour_cap: u32,
    /// Observations of one reporter that count, likewise.
    pub reporter_cap: u32,
    /// Days after which an observation counts half.
    pub half_life_days: u32,
    /// Days after which a slash counts half.
    pub slash_half_life_days: u32,
}

impl From<&ReputationSettings> for Rules {
    fn from(settings: &ReputationSettings) -> Self {
        Self {
            hour_cap: settings.hour_cap,
            reporter_cap: settings.reporter_cap,
            half_life_days: settings.half_life_days,
            slash_half_life_days: settings.slash_half_life_days,
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::from(&ReputationSettings::default())
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A verifier reported.
    Report(Report),
    /// Both ends of some hops saw the same.
    Observed {
        /// By peer.
        by: Vec<Observation>,
    },
    /// What the agent runs was no longer what was approved.
    Drift,
    /// A signed statement said less than this control plane knew.
    Imported {
        /// The score that holds as a ceiling until a reset.
        #[schema(value_type = f64)]
        score: Score,
        /// How many events that statement knew.
        events: u64,
        /// Who brought it.
        by: String,
    },
    /// Everything before counts no more.
    Reset {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

/// A verifier's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// A UUIDv7.
    pub id: String,
    /// The `sub` of the reporter's token.
    pub reporter: String,
    /// What was found.
    #[schema(value_type = String)]
    pub finding: Finding,
    /// How bad it was; says nothing of what was confirmed.
    #[schema(value_type = String)]
    pub severity: Severity,
    /// What it took off the score at once, after the reporter's weight, and beyond what earlier reports of the same hop did.
    #[schema(value_type = f64)]
    pub points: Score,
    /// What its observation counted, in percent; 0 where another report of the same hop had counted in this factor.
    pub weight: u8,
    /// The hop or decision that it is about.
    #[schema(value_type = String)]
    pub evidence: Evidence,
    /// The hop that it comes to, under which the audit has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hop: String,
    /// The ends of the hop whose sidecars recorded it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub seen_by: Vec<AgentName>,
    /// SHA-256 of the key, as it was enrolled, that the reporter signed it by; absent where its token alone vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub signed_by: Option<Digest>,
    /// What the agent said, or what was wrong, in the reporter's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub claim: String,
}

/// What one peer's hops said of the agent since the last event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Observation {
    /// The peer.
    pub peer: String,
    /// What the peer counted, in percent.
    pub weight: u8,
    /// Good observations, by factor.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, u32>)]
    pub good: BTreeMap<Factor, u32>,
    /// Bad observations, by factor.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, u32>)]
    pub bad: BTreeMap<Factor, u32>,
}

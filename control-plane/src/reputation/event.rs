//! What can happen to an agent's reputation. Each event holds what it was worth when it happened: settings that change
//! later judge nothing anew.

use std::collections::BTreeMap;

use aip_api::resource::reputation::{Evidence, Factor, Finding, Score, Severity};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One event of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts from 1, without a hole.
    pub seq: u64,
    /// Unix seconds, by the control plane's clock.
    pub at: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
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
    /// What it took off the score at once, after the reporter's weight.
    #[schema(value_type = f64)]
    pub points: Score,
    /// What the reporter counted, in percent.
    pub weight: u8,
    /// The hop or decision that it is about.
    #[schema(value_type = String)]
    pub evidence: Evidence,
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

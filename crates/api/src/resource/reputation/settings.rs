//! `MeshConfig.reputation`: what counts how much. All weights are integers, so that settings compare exactly.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Factor, Score, Severity};
use crate::problem::FieldError;

/// Longest half-life, in days: past two years nothing would ever be forgotten.
const MAX_HALF_LIFE_DAYS: u32 = 730;
/// Most observations that the prior may be worth: past it no agent ever leaves it.
const MAX_EVIDENCE: u32 = 10_000;
/// Most reporters with a weight of their own.
const MAX_REPORTERS: usize = 1_000;
/// Longest name of a reporter: an agent's name, or the `sub` of an admin token.
const MAX_REPORTER_BYTES: usize = 64;
/// Longest that an answer may take and still be in time: an hour, as the longest response timeout.
const MAX_RESPONSIVE_MS: u64 = 3_600_000;

/// How scores are made, and what is asked of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReputationSettings {
    /// Requests from and to agents below this score are refused; 0 switches that off.
    pub floor: Score,
    /// The score of an agent without a history.
    pub prior: Score,
    /// How many observations weigh as much as the prior: 1 to 10,000.
    pub evidence: u32,
    /// Days after which evidence counts half: 1 to 730.
    pub half_life_days: u32,
    /// Days after which a slash counts half: 1 to 730.
    pub slash_half_life_days: u32,
    /// What a report takes off at once.
    pub slash: SlashPoints,
    /// What each factor weighs.
    pub factors: FactorWeights,
    /// What a reporter counts, in percent, by the `sub` of its token or the agent's name; 100 unless listed.
    pub reporters: BTreeMap<String, u8>,
    /// Observations of one hour that count for a factor, good and bad each: 1 or more.
    pub hour_cap: u32,
    /// Observations of one reporter that count for a factor, good and bad each: 1 or more.
    pub reporter_cap: u32,
    /// Milliseconds within which an answer is in time: 1 to 3,600,000.
    pub responsive_ms: u64,
}

impl Default for ReputationSettings {
    fn default() -> Self {
        Self {
            floor: Score::of_hundredths(400),
            prior: Score::of_hundredths(500),
            evidence: 20,
            half_life_days: 7,
            slash_half_life_days: 30,
            slash: SlashPoints::default(),
            factors: FactorWeights::default(),
            reporters: BTreeMap::new(),
            hour_cap: 4,
            reporter_cap: 4,
            responsive_ms: 5_000,
        }
    }
}

/// Points that a report takes off the score, by severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlashPoints {
    /// 2 by default.
    pub critical: Score,
    /// 1 by default.
    pub high: Score,
    /// 0.5 by default.
    pub medium: Score,
    /// 0.25 by default.
    pub low: Score,
}

impl Default for SlashPoints {
    fn default() -> Self {
        Self {
            critical: Score::of_hundredths(200),
            high: Score::of_hundredths(100),
            medium: Score::of_hundredths(50),
            low: Score::of_hundredths(25),
        }
    }
}

impl SlashPoints {
    /// The points of a severity.
    pub const fn of(&self, severity: Severity) -> Score {
        match severity {
            Severity::Critical => self.critical,
            Severity::High => self.high,
            Severity::Medium => self.medium,
            Severity::Low => self.low,
        }
    }
}

/// What each factor weighs in the mean; only the proportions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FactorWeights {
    /// 25 by default.
    pub reliability: u8,
    /// 25 by default.
    pub quality: u8,
    /// 10 by default.
    pub responsiveness: u8,
    /// 25 by default.
    pub honesty: u8,
    /// 15 by default.
    pub cooperativeness: u8,
}

impl Default for FactorWeights {
    fn default() -> Self {
        Self {
            reliability: 25,
            quality: 25,
            responsiveness: 10,
            honesty: 25,
            cooperativeness: 15,
        }
    }
}

impl FactorWeights {
    /// The weight of a factor.
    pub const fn of(&self, factor: Factor) -> u8 {
        match factor {
            Factor::Reliability => self.reliability,
            Factor::Quality => self.quality,
            Factor::Responsiveness => self.responsiveness,
            Factor::Honesty => self.honesty,
            Factor::Cooperativeness => self.cooperativeness,
        }
    }
}

impl ReputationSettings {
    /// Every mistake, below the field path `reputation`.
    pub(crate) fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut within = |field: &str, value: u64, most: u64| {
            if !(1..=most).contains(&value) {
                let message = format!("{value} is out of bounds: 1 to {most}");
                errors.push(FieldError::new(format!("reputation.{field}"), message));
            }
        };
        within("evidence", self.evidence.into(), MAX_EVIDENCE.into());
        within("half_life_days", self.half_life_days.into(), MAX_HALF_LIFE_DAYS.into());
        let days = self.slash_half_life_days;
        within("slash_half_life_days", days.into(), MAX_HALF_LIFE_DAYS.into());
        within("responsive_ms", self.responsive_ms, MAX_RESPONSIVE_MS);
        within("hour_cap", self.hour_cap.into(), MAX_EVIDENCE.into());
        within("reporter_cap", self.reporter_cap.into(), MAX_EVIDENCE.into());
        if Factor::ALL.iter().all(|factor| self.factors.of(*factor) == 0) {
            errors.push(FieldError::new(
                "reputation.factors",
                "one of them has to weigh something",
            ));
        }
        for (field, cap) in [("hour_cap", self.hour_cap), ("reporter_cap", self.reporter_cap)] {
            if self.after(cap) < f64::from(self.floor) {
                let message = format!(
                    "{cap} bad observations alone would carry an agent from {} to {:.2}, below the floor of {}",
                    self.prior,
                    self.after(cap),
                    self.floor
                );
                errors.push(FieldError::new(format!("reputation.{field}"), message));
            }
        }
        if self.reporters.len() > MAX_REPORTERS {
            let message = format!("{}; at most {MAX_REPORTERS}", self.reporters.len());
            errors.push(FieldError::new("reputation.reporters", message));
        }
        for (name, percent) in &self.reporters {
            if name.is_empty() || name.len() > MAX_REPORTER_BYTES || *percent > 100 {
                let message = format!("a name of 1 to {MAX_REPORTER_BYTES} bytes, and 0 to 100 percent");
                errors.push(FieldError::new(format!("reputation.reporters.{name}"), message));
            }
        }
        errors
    }

    /// Where `bad` observations of every factor carry an agent without a history.
    fn after(&self, bad: u32) -> f64 {
        let (prior, evidence) = (self.prior.value(), f64::from(self.evidence.max(1)));
        prior * evidence / (evidence + f64::from(bad))
    }
}

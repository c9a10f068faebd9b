//! `Reputation`: how an agent behaved so far, as a score out of ten that its peers act upon; and the signed statement of
//! it that parties outside the mesh can check.

mod settings;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use settings::{FactorWeights, ReputationSettings, SlashPoints};

use super::{Kind, Resource};
use crate::problem::FieldError;
use crate::{AgentName, SpiffeId};

/// The `typ` of a signed statement.
pub const STATEMENT_TYP: &str = "aip-rep+jwt";
/// Longest statement that is read: the claims of a document with all the slashes that fit, and room for a long name.
pub const MAX_STATEMENT_BYTES: usize = 16 * 1024;
/// Slashes that a document names, the heaviest ones: as many as a person reads. All of them count in the score.
pub const MAX_SLASHES: usize = 16;
/// The `typ` of a report that a verifier signed.
pub const REPORT_TYP: &str = "aip-report+jwt";
/// Longest signed report that is read: the longest claim, escaped, in base64, and room for the rest.
pub const MAX_REPORT_BYTES: usize = 12 * 1024;
/// Longest text of a claim in a report.
pub const MAX_CLAIM_BYTES: usize = 1_000;

/// A score out of ten, in hundredths: exact, so that two sides never differ over a rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(try_from = "f64", into = "f64")]
pub struct Score(u16);

impl Score {
    /// Ten.
    pub const MAX: Self = Self(1_000);

    /// The score nearest to `value`, which is clamped to 0..=10.
    pub fn clamped(value: f64) -> Self {
        // A float that is in range after the clamp; what is no number is the lowest.
        let hundredths = (value.clamp(0.0, 10.0) * 100.0).round();
        Self(if hundredths.is_nan() { 0 } else { hundredths as u16 })
    }

    /// From hundredths; past ten it is ten.
    pub const fn of_hundredths(hundredths: u16) -> Self {
        if hundredths > Self::MAX.0 {
            Self::MAX
        } else {
            Self(hundredths)
        }
    }

    /// As a number.
    pub fn value(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// In hundredths.
    pub const fn hundredths(self) -> u16 {
        self.0
    }

    /// Its level.
    pub fn level(self) -> Level {
        let reached = |level: &&Level| self >= level.from();
        Level::ALL.iter().find(reached).copied().unwrap_or(Level::Untrusted)
    }
}

impl TryFrom<f64> for Score {
    type Error = &'static str;
    fn try_from(value: f64) -> Result<Self, Self::Error> {
        if (0.0..=10.0).contains(&value) {
            Ok(Self::clamped(value))
        } else {
            Err("a score is a number from 0 to 10")
        }
    }
}

impl From<Score> for f64 {
    fn from(score: Score) -> Self {
        score.value()
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.value())
    }
}

/// A score as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Below 2.
    Untrusted,
    /// From 2.
    Doubtful,
    /// From 4: where an agent without a history is.
    Standard,
    /// From 6.
    Trusted,
    /// From 8.
    Exemplary,
}

impl Level {
    /// All of them, the best first.
    pub const ALL: [Self; 5] = [
        Self::Exemplary,
        Self::Trusted,
        Self::Standard,
        Self::Doubtful,
        Self::Untrusted,
    ];

    /// The lowest score that has it.
    pub const fn from(self) -> Score {
        Score(match self {
            Self::Exemplary => 800,
            Self::Trusted => 600,
            Self::Standard => 400,
            Self::Doubtful => 200,
            Self::Untrusted => 0,
        })
    }

    /// The word in documents, policies and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exemplary => "exemplary",
            Self::Trusted => "trusted",
            Self::Standard => "standard",
            Self::Doubtful => "doubtful",
            Self::Untrusted => "untrusted",
        }
    }
}

/// What a score is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    /// Answers what it is asked, without failing.
    Reliability,
    /// What it answers is right.
    Quality,
    /// Answers in time.
    Responsiveness,
    /// Says what is so, and runs what was approved.
    Honesty,
    /// Keeps to what policy and its contracts allow.
    Cooperativeness,
}

impl Factor {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Reliability,
        Self::Quality,
        Self::Responsiveness,
        Self::Honesty,
        Self::Cooperativeness,
    ];

    /// The word in documents and policies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reliability => "reliability",
            Self::Quality => "quality",
            Self::Responsiveness => "responsiveness",
            Self::Honesty => "honesty",
            Self::Cooperativeness => "cooperativeness",
        }
    }
}

/// How bad something was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A remark.
    Low,
    /// Worth a look.
    Medium,
    /// Harmful.
    High,
    /// Must not happen again.
    Critical,
}

impl Severity {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Low, Self::Medium, Self::High, Self::Critical];

    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// What a verifier found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It answered what is not so.
    Hallucination,
    /// It did not do what it had undertaken.
    ContractBreach,
    /// It said of itself what is not so.
    FalseClaim,
    /// It failed where it should have answered.
    Unreliable,
    /// It answered too late to be of use.
    Slow,
    /// It was checked and is right: the one finding that raises a score, and slashes nothing.
    Confirmed,
}

impl Finding {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Hallucination,
        Self::ContractBreach,
        Self::FalseClaim,
        Self::Unreliable,
        Self::Slow,
        Self::Confirmed,
    ];

    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hallucination => "hallucination",
            Self::ContractBreach => "contract_breach",
            Self::FalseClaim => "false_claim",
            Self::Unreliable => "unreliable",
            Self::Slow => "slow",
            Self::Confirmed => "confirmed",
        }
    }

    /// The factor that it is evidence of.
    pub const fn factor(self) -> Factor {
        match self {
            Self::Hallucination | Self::Confirmed => Factor::Quality,
            Self::ContractBreach => Factor::Cooperativeness,
            Self::FalseClaim => Factor::Honesty,
            Self::Unreliable => Factor::Reliability,
            Self::Slow => Factor::Responsiveness,
        }
    }
}

/// What a report is about: a hop or a decision, by its id. Text form: `hop:<uuid>` or `decision:<uuid>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Evidence(String);

impl Evidence {
    /// `hop` or `decision`, and the id.
    pub fn kind_and_id(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or_default()
    }

    /// When the hop or decision was made, Unix seconds, as its id says: whoever made it chose that.
    pub fn made_at(&self) -> Option<u64> {
        let id = uuid::Uuid::parse_str(self.kind_and_id().1).ok()?;
        id.get_timestamp().map(|made| made.to_unix().0)
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Evidence {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = "evidence is hop:<uuid> or decision:<uuid>";
        let (kind, id) = text.split_once(':').ok_or(wrong)?;
        // One spelling for each: else a report could be told again in another.
        let same = |id: &str| uuid::Uuid::parse_str(id).is_ok_and(|read| read.hyphenated().to_string() == id);
        if matches!(kind, "hop" | "decision") && same(id) {
            Ok(Self(text))
        } else {
            Err(wrong)
        }
    }
}

impl From<Evidence> for String {
    fn from(evidence: Evidence) -> Self {
        evidence.0
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A slash in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slash {
    /// Of the report: a UUIDv7.
    pub id: String,
    /// What was found.
    pub finding: Finding,
    /// How bad it was.
    pub severity: Severity,
    /// What it took off the score at first.
    pub points: Score,
    /// Unix seconds.
    pub at: u64,
    /// What it is about.
    pub evidence: Evidence,
}

/// The reputation of one agent, as it was when it was last worth telling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reputation {
    /// Whose.
    pub agent: AgentName,
    /// Out of ten.
    pub score: Score,
    /// The score as a word.
    pub level: Level,
    /// How much evidence it rests on, in percent: 0 is none, 50 as much as the prior weighs.
    pub confidence: u8,
    /// Each factor out of ten, before slashes.
    pub factors: BTreeMap<Factor, Score>,
    /// The heaviest slashes in force; at most [`MAX_SLASHES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slashes: Vec<Slash>,
    /// How many events it follows from: rises with each.
    pub events: u64,
    /// When it was computed, Unix seconds.
    pub at: u64,
}

impl Reputation {
    /// That of an agent of which nothing is known, at `prior`.
    pub fn new(agent: AgentName, prior: Score, at: u64) -> Self {
        Self {
            agent,
            score: prior,
            level: prior.level(),
            confidence: 0,
            factors: Factor::ALL.into_iter().map(|factor| (factor, prior)).collect(),
            slashes: Vec::new(),
            events: 0,
            at,
        }
    }
}

impl Resource for Reputation {
    const KIND: Kind = Kind::Reputation;
    fn name(&self) -> String {
        self.agent.to_string()
    }
    fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.level != self.score.level() {
            let message = format!(
                "{} is {}, not {}",
                self.score,
                self.score.level().as_str(),
                self.level.as_str()
            );
            errors.push(FieldError::new("level", message));
        }
        if self.confidence > 100 {
            errors.push(FieldError::new("confidence", "0 to 100"));
        }
        for factor in Factor::ALL {
            if !self.factors.contains_key(&factor) {
                errors.push(FieldError::new(format!("factors.{}", factor.as_str()), "missing"));
            }
        }
        if self.slashes.len() > MAX_SLASHES {
            let message = format!("{} slashes; at most {MAX_SLASHES}", self.slashes.len());
            errors.push(FieldError::new("slashes", message));
        }
        errors
    }
}

/// The claims of a signed statement: a JWS, EdDSA by the attestation key, of type [`STATEMENT_TYP`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Who says so: the trust domain's control plane.
    pub iss: String,
    /// Of whom.
    pub sub: SpiffeId,
    /// Unix seconds.
    pub iat: u64,
    /// Unix seconds after which it says nothing any more.
    pub exp: u64,
    /// What is said.
    pub reputation: Reputation,
}

/// The claims of a report that a verifier signed: a JWS, ES256 by the key that was enrolled with its token, of type
/// [`REPORT_TYP`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedReport {
    /// To whom it is made: the trust domain's control plane.
    pub aud: String,
    /// Of whom.
    pub sub: SpiffeId,
    /// Unix seconds.
    pub iat: u64,
    /// What was found.
    pub finding: Finding,
    /// How bad it was.
    pub severity: Severity,
    /// What it is about.
    pub evidence: Evidence,
    /// In words.
    #[serde(default)]
    pub claim: String,
}

#[cfg(test)]
mod tests;

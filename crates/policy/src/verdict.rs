//! What a decision says: the verdict, the rules that caused it, and what it obliges us to.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::obligations::Obligations;

/// The outcome of a decision, strictest first: of two, the lesser wins.
///
/// What each of them means is fixed, so that no policy changes its meaning later. Not all are carried out yet: see
/// [`Verdict::in_this_version`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Refused.
    Deny,
    /// To be held open for a human, and refused if nobody approves.
    Escalate,
    /// To be refused until the caller holds an approval.
    Warn,
    /// To be let through within the limits of the obligations.
    Restrict,
    /// To be let through after fields were redacted or replaced, if the result is then allowed.
    Transform,
    /// Let through.
    Allow,
}

impl Verdict {
    /// All verdicts, strictest first.
    pub const ALL: [Self; 6] = [
        Self::Deny,
        Self::Escalate,
        Self::Warn,
        Self::Restrict,
        Self::Transform,
        Self::Allow,
    ];

    /// The word used in policies, headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Escalate => "escalate",
            Self::Warn => "warn",
            Self::Restrict => "restrict",
            Self::Transform => "transform",
            Self::Allow => "allow",
        }
    }

    /// The verdict for the word, if it is one.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.as_str() == word)
    }

    /// Whether this version carries it out. A sidecar refuses a request that gets another one, and admission refuses a
    /// policy that says another one in so many words.
    pub const fn in_this_version(self) -> bool {
        matches!(self, Self::Deny | Self::Allow)
    }

    /// Whether the request goes on without waiting for anybody.
    pub const fn lets_through(self) -> bool {
        matches!(self, Self::Restrict | Self::Transform | Self::Allow)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One rule that fired.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// The rule's id, as its policy names it; for a refusal of our own, one of [`builtin`].
    pub rule: String,
    /// The policy it is from; empty for a refusal of our own.
    pub policy: String,
    /// What it says.
    pub verdict: Verdict,
    /// Why, in the policy's words, cut to [`MAX_REASON_BYTES`](crate::limits::MAX_REASON_BYTES).
    pub reason: String,
}

/// Rule ids of decisions that no policy made. They never collide with a policy's: those carry their policy's name.
pub mod builtin {
    /// No rule fired, or no policy is attached.
    pub const NO_RULE: &str = "no_rule";
    /// A fact that a policy reads applies to this request but could not be established.
    pub const FACT_UNESTABLISHED: &str = "fact_unestablished";
    /// The evaluation ended in an error, or in no value at all.
    pub const EVALUATION_ERROR: &str = "evaluation_error";
    /// The evaluation needed more instructions, time or memory than one decision may.
    pub const LIMIT_EXCEEDED: &str = "limit_exceeded";
    /// The evaluation needed more instructions than one decision may.
    pub const INSTRUCTION_LIMIT: &str = "instruction_limit";
    /// A rule fired with an object that isn't one of ours.
    pub const MALFORMED_RULE: &str = "malformed_rule";
    /// A rule fired with a verdict that this version doesn't know.
    pub const UNSUPPORTED_VERDICT: &str = "unsupported_verdict";
    /// More rules fired than one decision may report.
    pub const TOO_MANY_RULES: &str = "too_many_rules";

    /// All of them, for the documentation and for tests.
    pub const ALL: [&str; 8] = [
        NO_RULE,
        FACT_UNESTABLISHED,
        EVALUATION_ERROR,
        LIMIT_EXCEEDED,
        INSTRUCTION_LIMIT,
        MALFORMED_RULE,
        UNSUPPORTED_VERDICT,
        TOO_MANY_RULES,
    ];
}

/// A decision on one request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// Every rule of that strictness, by rule id and then policy. Never empty.
    pub rules: Vec<Rule>,
    /// What all rules that fired oblige us to, together.
    pub obligations: Obligations,
    /// Digest of the set that decided.
    pub bundle: Arc<str>,
    /// Whether it came from the worker's cache.
    pub cached: bool,
}

impl Decision {
    /// A refusal of our own, by one of the rules in [`builtin`].
    pub(crate) fn refuse(bundle: &Arc<str>, rule: &str, reason: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Deny,
            rules: vec![Rule {
                rule: rule.to_owned(),
                policy: String::new(),
                verdict: Verdict::Deny,
                reason: reason.into(),
            }],
            obligations: Obligations::default(),
            bundle: bundle.clone(),
            cached: false,
        }
    }

    /// The id of the first rule.
    pub fn rule(&self) -> &str {
        self.rules.first().map_or(builtin::NO_RULE, |rule| &rule.rule)
    }

    /// The rule of [`builtin`] that decided; none where a policy's own did.
    pub fn by_builtin(&self) -> Option<&str> {
        let first = self.rules.first()?;
        (first.policy.is_empty() || builtin::ALL.contains(&&*first.rule)).then_some(&*first.rule)
    }

    /// The reason of the first rule.
    pub fn reason(&self) -> &str {
        self.rules.first().map_or("no rule fired", |rule| &rule.reason)
    }
}

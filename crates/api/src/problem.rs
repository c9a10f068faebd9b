//! RFC 9457 problem documents, as the admin API and the sidecars answer them.

use serde::{Deserialize, Serialize};

/// The media type of a problem document.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// A problem document with AIP's members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI that names the kind of problem: `urn:aip:reason:<reason>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One short line for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What failed, why, and what to do.
    pub detail: String,
    /// The stable reason (snake_case), the same in logs and metrics. `docs/errors.md` lists them.
    pub reason: String,
    /// The decision that refused, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
    /// The rule that refused, where policy lets the caller know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Every mistake found, by field path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// One mistake in a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// Where: a field path such as `spec.attach.agents[0]`, or `file:line:column`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl FieldError {
    /// A mistake at `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl Problem {
    /// A problem for `reason`; the title is the reason in words.
    pub fn new(status: u16, reason: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:aip:reason:{reason}"),
            title: reason.replace('_', " "),
            status,
            detail: detail.into(),
            reason: reason.to_owned(),
            decision_id: None,
            rule: None,
            errors: Vec::new(),
        }
    }
}

//! What a decision obliges the sidecar to, besides letting the request through or not. Only what
//! [`Obligations::IN_THIS_VERSION`] names is accepted by this version's sidecars; with anything else the request is refused.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::MAX_OBLIGATION_ENTRIES;

/// How durable the audit records of a request must be before it goes on, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// A process crash loses nothing acknowledged.
    Buffered,
    /// The answer waits for a group flush of the end record.
    Grouped,
    /// The agent hears nothing before the decision record is on disk.
    Required,
}

/// The obligations of a decision. Those of several rules are joined: of two numbers the tighter one wins, of two
/// durabilities the stronger, lists are united, and a field that one rule redacts stays redacted.
///
/// A key that isn't listed here makes the rule malformed, and the request is denied: an obligation that nobody honours
/// must not look like one that is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Obligations {
    /// Requests per minute of this caller, callee and tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<u64>,
    /// Requests at the same time of this caller, callee and tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u64>,
    /// Milliseconds until the call is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Bytes of the request body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_request_bytes: Option<u64>,
    /// Bytes of the response body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_response_bytes: Option<u64>,
    /// Seconds that an escalated request is held open for a human.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<u64>,
    /// Seconds after which the decision is made again on an open stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recheck_seconds: Option<u64>,
    /// Durability of the audit records of this request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Durability>,
    /// JSON pointers (RFC 6901) into `protocol.arguments` of fields that are removed.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub redact: BTreeSet<String>,
    /// JSON pointers (RFC 6901) into `protocol.arguments` of fields that are replaced, and the text they get.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub replace: BTreeMap<String, String>,
    /// Words for the record of this request: `tags` of its access log lines.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
}

impl Obligations {
    /// The keys that this version honours. A sidecar refuses a request that is allowed with another one, and admission
    /// refuses a policy that asks for another one in so many words.
    pub const IN_THIS_VERSION: &[&str] = &["audit", "tags"];

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with obligations as a rule wrote them, if anything.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        if self.redact.len().max(self.replace.len()).max(self.tags.len()) > MAX_OBLIGATION_ENTRIES {
            return Some("an obligation has too many entries");
        }
        let pointer = |text: &String| text.starts_with('/');
        if !self.redact.iter().all(pointer) || !self.replace.keys().all(pointer) {
            return Some("redact and replace take JSON pointers, which start with `/`");
        }
        None
    }

    /// Adds what another rule obliges to.
    pub(crate) fn join(&mut self, other: Self) {
        fn tighter(mine: &mut Option<u64>, theirs: Option<u64>) {
            *mine = match (*mine, theirs) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        tighter(&mut self.rate_per_minute, other.rate_per_minute);
        tighter(&mut self.concurrency, other.concurrency);
        tighter(&mut self.timeout_ms, other.timeout_ms);
        tighter(&mut self.max_request_bytes, other.max_request_bytes);
        tighter(&mut self.max_response_bytes, other.max_response_bytes);
        tighter(&mut self.hold_seconds, other.hold_seconds);
        tighter(&mut self.recheck_seconds, other.recheck_seconds);
        self.audit = self.audit.max(other.audit);
        self.redact.extend(other.redact);
        for (pointer, text) in other.replace {
            match self.replace.get(&pointer) {
                // Two rules want different texts: neither may win by chance, so the field goes.
                Some(mine) if *mine != text => {
                    self.redact.insert(pointer);
                }
                _ => {
                    self.replace.insert(pointer, text);
                }
            }
        }
        let redact = &self.redact;
        self.replace.retain(|pointer, _| !redact.contains(pointer));
        self.tags.extend(other.tags);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replacing(text: &str) -> Obligations {
        Obligations {
            replace: BTreeMap::from([("/a".to_owned(), text.to_owned())]),
            ..Obligations::default()
        }
    }

    #[test]
    fn the_tighter_number_wins_in_either_order() {
        let a = Obligations {
            rate_per_minute: Some(10),
            timeout_ms: Some(5),
            ..Obligations::default()
        };
        let b = Obligations {
            rate_per_minute: Some(3),
            concurrency: Some(2),
            ..Obligations::default()
        };
        let want = Obligations {
            rate_per_minute: Some(3),
            timeout_ms: Some(5),
            concurrency: Some(2),
            ..Obligations::default()
        };
        for (mut first, second) in [(a.clone(), b.clone()), (b, a)] {
            first.join(second);
            assert_eq!(first, want);
        }
    }

    #[test]
    fn a_field_that_one_rule_redacts_and_another_replaces_is_redacted() {
        let redact = Obligations {
            redact: BTreeSet::from(["/a".to_owned()]),
            ..Obligations::default()
        };
        for (mut first, second) in [(replacing("x"), redact.clone()), (redact, replacing("x"))] {
            first.join(second);
            assert!(first.replace.is_empty() && first.redact.contains("/a"));
        }
    }

    #[test]
    fn two_different_replacements_of_a_field_redact_it() {
        let mut joined = replacing("x");
        joined.join(replacing("y"));
        assert!(joined.replace.is_empty() && joined.redact.contains("/a"));
        joined.join(replacing("z"));
        assert!(joined.replace.is_empty(), "a third one can't bring it back");
    }

    #[test]
    fn the_stronger_durability_wins() {
        let mut joined = Obligations {
            audit: Some(Durability::Required),
            ..Obligations::default()
        };
        joined.join(Obligations {
            audit: Some(Durability::Buffered),
            ..Obligations::default()
        });
        assert_eq!(joined.audit, Some(Durability::Required));
    }
}

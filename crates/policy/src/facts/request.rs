//! What is being said: the HTTP request, the call inside it, and what belongs to the call.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Fact;
use crate::node::{AsNode, Node, fields};

/// The HTTP request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RequestFacts {
    /// Method, as sent.
    pub method: String,
    /// Path segments, percent-decoded once.
    pub path: Vec<String>,
    /// Path, as sent, without the query.
    pub raw_path: String,
    /// Query parameters, decoded: an object of lists.
    #[serde(with = "multi")]
    #[schemars(with = "std::collections::BTreeMap<String, Vec<String>>")]
    pub query: Vec<(String, String)>,
    /// Headers, names in lower case: an object of lists. Without those of the mesh itself (`x-aip-*`).
    #[serde(with = "multi")]
    #[schemars(with = "std::collections::BTreeMap<String, Vec<String>>")]
    pub headers: Vec<(String, String)>,
    /// Bytes of the body. Not established while it streams without a declared length.
    pub size: Fact<u64>,
}

fields!(RequestFacts {
    "method" => |this| Node::Text(&this.method),
    "path" => |this| Node::Texts(&this.path),
    "raw_path" => |this| Node::Text(&this.raw_path),
    "query" => |this| Node::Multi(&this.query),
    "headers" => |this| Node::Multi(&this.headers),
    "size" => |this| this.size.node(),
});

/// The call inside the request, as its protocol says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProtocolFacts {
    /// `mcp`, `a2a`, `jsonrpc`, `grpc`, `websocket`, `tunnel` or `http`; `acp` is for later versions.
    pub name: String,
    /// Version the peers speak.
    pub version: String,
    /// Method of the call (`tools/call`, `message/send`).
    pub method: Fact<String>,
    /// Tool it calls.
    pub tool: Fact<String>,
    /// Its arguments.
    pub arguments: Fact<serde_json::Map<String, serde_json::Value>>,
    /// Resource it reads.
    pub resource: Fact<String>,
    /// Prompt it gets.
    pub prompt: Fact<String>,
    /// Skill it asks for; always empty in this version.
    pub skill: Fact<String>,
    /// Task it belongs to.
    pub task: Fact<String>,
    /// Context it belongs to.
    pub context: Fact<String>,
    /// Session it belongs to.
    pub session: Fact<String>,
}

impl Default for ProtocolFacts {
    fn default() -> Self {
        Self {
            name: "http".to_owned(),
            version: String::new(),
            method: Fact::default(),
            tool: Fact::default(),
            arguments: Fact::default(),
            resource: Fact::default(),
            prompt: Fact::default(),
            skill: Fact::default(),
            task: Fact::default(),
            context: Fact::default(),
            session: Fact::default(),
        }
    }
}

fields!(ProtocolFacts {
    "name" => |this| Node::Text(&this.name),
    "version" => |this| Node::Text(&this.version),
    "method" => |this| this.method.node(),
    "tool" => |this| this.tool.node(),
    "arguments" => |this| this.arguments.node(),
    "resource" => |this| this.resource.node(),
    "prompt" => |this| this.prompt.node(),
    "skill" => |this| this.skill.node(),
    "task" => |this| this.task.node(),
    "context" => |this| this.context.node(),
    "session" => |this| this.session.node(),
});

/// What content scanners found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ContentFacts {
    /// What was found. Never established in this version.
    pub findings: Fact<Vec<Finding>>,
}

fields!(ContentFacts {
    "findings" => |this| this.findings.node(),
});

/// One thing that a content scanner found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Finding {
    /// What kind of thing (`secret`, `pii`, `injection`).
    pub kind: String,
    /// Which detector found it.
    pub detector: String,
    /// `low`, `medium`, `high` or `critical`.
    pub severity: String,
    /// Where, as a JSON pointer into `protocol.arguments`; empty for the whole.
    pub path: String,
}

fields!(Finding {
    "kind" => |this| Node::Text(&this.kind),
    "detector" => |this| Node::Text(&this.detector),
    "severity" => |this| Node::Text(&this.severity),
    "path" => |this| Node::Text(&this.path),
});

/// On whose behalf the caller acts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DelegationFacts {
    /// Whether the chain is proved; otherwise it is only what the caller says.
    pub certain: bool,
    /// SPIFFE IDs from the first caller to the one before this hop's source.
    pub chain: Vec<String>,
}

fields!(DelegationFacts {
    "certain" => |this| Node::Bool(this.certain),
    "chain" => |this| Node::Texts(&this.chain),
});

/// A budget that the call counts against.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetFacts {
    /// What may be used in the budget's period.
    pub limit: u64,
    /// What was used of it so far.
    pub used: u64,
    /// What is left.
    pub remaining: u64,
}

fields!(BudgetFacts {
    "limit" => |this| Node::Int(this.limit),
    "used" => |this| Node::Int(this.used),
    "remaining" => |this| Node::Int(this.remaining),
});

/// Where the call stands in its trace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TraceFacts {
    /// Trace id, 32 hex digits.
    pub id: String,
    /// Hops so far, this one included, as the sidecars counted them: a call that an agent makes in the trace of one that
    /// it is working on is one more.
    pub hops: u64,
}

fields!(TraceFacts {
    "id" => |this| Node::Text(&this.id),
    "hops" => |this| Node::Int(this.hops),
});

/// Repeated names as an object of lists.
mod multi {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
        let mut grouped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, value) in pairs {
            grouped.entry(name).or_default().push(value);
        }
        grouped.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
        let grouped: BTreeMap<String, Vec<String>> = BTreeMap::deserialize(deserializer)?;
        Ok(grouped
            .into_iter()
            .flat_map(|(name, values)| values.into_iter().map(move |value| (name.clone(), value)))
            .collect())
    }
}

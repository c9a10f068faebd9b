//! What a policy can know about a request: the Rego input, version 1.
//!
//! Every key is always present; what doesn't apply has its neutral value (`""`, `0`, `[]`, `{}`, and `"http"` for
//! `protocol.name`). What applies but could not be found out is [`Fact::Unestablished`]: a program that can read it is
//! not run, and the request is denied. Negation can't turn ignorance into permission.

mod kept;
mod peer;
mod replay;
mod request;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

pub(crate) use kept::may_be_named;
pub use kept::{Kept, SENSITIVE_FACTS};
pub use peer::{
    Assurance, AttestationFacts, AttestationStatus, Enforcement, PeerFacts, PeerKind, ReputationFacts, ReputationStatus,
};
pub use replay::FactsError;
pub use request::{BudgetFacts, ContentFacts, DelegationFacts, Finding, ProtocolFacts, RequestFacts, TraceFacts};

use crate::node::{AsNode, Neutral, Node, fields};

/// Version of the input document.
pub const INPUT_VERSION: u64 = 1;

/// Something that applies to this request and is known, or applies and could not be found out.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact<T> {
    /// Known; also used with the neutral value where it doesn't apply.
    Known(T),
    /// Applies, but could not be established; why, as a stable word (`body_truncated`, `not_in_this_version`).
    Unestablished(&'static str),
}

impl<T> Fact<T> {
    /// The value, if it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unestablished(_) => None,
        }
    }
}

impl<T: Default> Default for Fact<T> {
    fn default() -> Self {
        Self::Known(T::default())
    }
}

impl<T> From<T> for Fact<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl From<&str> for Fact<String> {
    fn from(value: &str) -> Self {
        Self::Known(value.to_owned())
    }
}

impl<T: Serialize + Default> Serialize for Fact<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Unestablished(_) => T::default().serialize(serializer),
        }
    }
}

/// Facts come back as they were rendered: what was not established is listed beside them.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fact<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::Known)
    }
}

impl<T: JsonSchema> JsonSchema for Fact<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = generator.subschema_for::<T>();
        schema.insert("x-aip-fact".to_owned(), true.into());
        schema
    }
}

impl<T: AsNode> AsNode for Fact<T> {
    const NEUTRAL: Neutral = T::NEUTRAL;
    fn node(&self) -> Node<'_> {
        match self {
            Self::Known(value) => value.node(),
            Self::Unestablished(reason) => Node::Unestablished(reason, T::NEUTRAL),
        }
    }
}

/// Which end of the hop decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The callee's sidecar decides on a call that came in.
    #[default]
    Inbound,
    /// The caller's sidecar decides on a call that goes out.
    Outbound,
}

impl Direction {
    /// The word in the input document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// The facts of one request. What belongs to the connection is shared; the rest is built for the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "AIP policy input, version 1")]
pub struct Facts {
    /// Version of this document: 1.
    pub v: u64,
    /// Which end of the hop decides: `inbound` at the callee, `outbound` at the caller. Both must allow.
    pub direction: Direction,
    /// Who calls.
    #[schemars(extend("x-aip-volatility" = "connection"))]
    pub source: Arc<PeerFacts>,
    /// Who is called: an agent of the mesh, or an outside host.
    #[schemars(extend("x-aip-volatility" = "connection"))]
    pub destination: Arc<PeerFacts>,
    /// The HTTP request.
    pub request: RequestFacts,
    /// The call inside the request.
    pub protocol: ProtocolFacts,
    /// What content scanners found; there are none in this version.
    pub content: ContentFacts,
    /// On whose behalf the caller acts. Never established in this version.
    pub delegation: Fact<DelegationFacts>,
    /// Budgets that this call counts against, by name. Never established in this version. A program that reads them is never
    /// cached.
    #[schemars(extend("x-aip-volatility" = "uncached"))]
    pub budget: Fact<std::collections::BTreeMap<String, BudgetFacts>>,
    /// Where the call stands in its trace.
    pub trace: TraceFacts,
    /// Now, in whole seconds since 1970-01-01T00:00:00Z. Cached decisions that read it are good for that second.
    #[schemars(extend("x-aip-volatility" = "clock, 1 s"))]
    pub time: u64,
    /// Paths of facts that apply but could not be established, sorted. A policy that doesn't call them optional is not
    /// run at all, so only policies with `# aip:optional` ever see entries here.
    pub unestablished: Vec<String>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            v: INPUT_VERSION,
            direction: Direction::default(),
            source: Arc::default(),
            destination: Arc::default(),
            request: RequestFacts::default(),
            protocol: ProtocolFacts::default(),
            content: ContentFacts::default(),
            delegation: Fact::default(),
            budget: Fact::default(),
            trace: TraceFacts::default(),
            time: 0,
            unestablished: Vec::new(),
        }
    }
}

fields!(Facts {
    "v" => |this| Node::Int(this.v),
    "direction" => |this| Node::Text(this.direction.as_str()),
    "source" => |this| Node::Object(&*this.source),
    "destination" => |this| Node::Object(&*this.destination),
    "request" => |this| Node::Object(&this.request),
    "protocol" => |this| Node::Object(&this.protocol),
    "content" => |this| Node::Object(&this.content),
    "delegation" => |this| this.delegation.node(),
    "budget" => |this| this.budget.node(),
    "trace" => |this| Node::Object(&this.trace),
    "time" => |this| Node::Int(this.time),
    "unestablished" => |this| Node::Texts(&this.unestablished),
});

impl Facts {
    /// The whole input document, for explanations and tests. What is not established has its neutral
    /// value and is listed in `unestablished`.
    pub fn to_json(&self) -> serde_json::Value {
        crate::input::to_json(self)
    }
}

//! Who is at an end of the hop.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Fact;
use crate::limits::AGE_STEP_SECONDS;
use crate::node::{AsNode, Node, fields, finite};

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// The word in the input document.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value for the word, if there is one.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

words!(
    /// What kind of peer it is.
    PeerKind {
        /// Not known.
        #[default]
        Unknown = "unknown",
        /// An agent of a mesh, with an identity.
        Agent = "agent",
        /// A host outside of the mesh: only as a destination.
        External = "external",
    }
);

words!(
    /// What became of the peer's attestation.
    AttestationStatus {
        /// No attestation result is known.
        #[default]
        Unknown = "unknown",
        /// The peer proved what it runs, with the key of this connection.
        Valid = "valid",
        /// What runs is no longer what was approved. No peer is told to be, in this version: it loses its identity.
        Drifted = "drifted",
    }
);

words!(
    /// What a measurement rests on, weakest first.
    Assurance {
        /// There is none.
        #[default]
        None = "none",
        /// The sidecar says so.
        Declared = "declared",
        /// Something outside of the agent's reach measured it.
        Observed = "observed",
        /// Hardware measured it.
        Hardware = "hardware",
    }
);

words!(
    /// Whether the agent can go around its sidecar, weakest first.
    Enforcement {
        /// Not known.
        #[default]
        None = "none",
        /// The agent uses its proxy variables because it wants to.
        Cooperative = "cooperative",
        /// The agent has no way around.
        Captured = "captured",
    }
);

words!(
    /// Whether a reputation statement is known.
    ReputationStatus {
        /// None is known.
        #[default]
        Unknown = "unknown",
        /// The score is from a signed statement.
        Known = "known",
    }
);

/// One end of the hop.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PeerFacts {
    /// `agent`, `external` or `unknown`.
    pub kind: PeerKind,
    /// SPIFFE ID; empty for an outside host.
    pub id: String,
    /// The agent's name, or the host's in lower case.
    pub name: String,
    /// The port of an outside host, else 0.
    pub port: u64,
    /// Trust domain of the SPIFFE ID.
    pub trust_domain: String,
    /// Who answers for the agent.
    pub owner: String,
    /// Labels from the attestation result.
    pub labels: BTreeMap<String, String>,
    /// Capabilities from the attestation result.
    pub capabilities: Vec<String>,
    /// What the agent proved to run.
    pub attestation: Fact<AttestationFacts>,
    /// How it behaved so far: as of when its level changed last.
    pub reputation: Fact<ReputationFacts>,
    /// The agent's manifest, as an object; `{}` where there is none.
    pub manifest: Fact<serde_json::Map<String, serde_json::Value>>,
}

fields!(PeerFacts {
    "kind" => |this| Node::Text(this.kind.as_str()),
    "id" => |this| Node::Text(&this.id),
    "name" => |this| Node::Text(&this.name),
    "port" => |this| Node::Int(this.port),
    "trust_domain" => |this| Node::Text(&this.trust_domain),
    "owner" => |this| Node::Text(&this.owner),
    "labels" => |this| Node::Map(&this.labels),
    "capabilities" => |this| Node::Texts(&this.capabilities),
    "attestation" => |this| this.attestation.node(),
    "reputation" => |this| this.reputation.node(),
    "manifest" => |this| this.manifest.node(),
});

/// What an agent proved to run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AttestationFacts {
    /// `valid`, `drifted` or `unknown`.
    pub status: AttestationStatus,
    /// Digest of the code.
    pub code: String,
    /// Digest of the configuration.
    pub config: String,
    /// What the measurement rests on: `none`, `declared`, `observed` or `hardware`.
    pub assurance: Assurance,
    /// Whether the agent can go around its sidecar: `none`, `cooperative` or `captured`.
    pub enforcement: Enforcement,
    /// How often the agent's measurement has changed.
    pub generation: u64,
    /// Seconds since the result was issued, rounded down to a multiple of 10.
    #[schemars(extend("x-aip-volatility" = "clock, 10 s"))]
    pub age: u64,
}

fields!(AttestationFacts {
    "status" => |this| Node::Text(this.status.as_str()),
    "code" => |this| Node::Text(&this.code),
    "config" => |this| Node::Text(&this.config),
    "assurance" => |this| Node::Text(this.assurance.as_str()),
    "enforcement" => |this| Node::Text(this.enforcement.as_str()),
    "generation" => |this| Node::Int(this.generation),
    "age" => |this| Node::Int(this.age - this.age % AGE_STEP_SECONDS),
});

/// How an agent behaved so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReputationFacts {
    /// `known` or `unknown`.
    pub status: ReputationStatus,
    /// 0 to 10; 0 where it is unknown.
    pub score: f64,
    /// The level of that score: `exemplary`, `trusted`, `standard`, `doubtful` or `untrusted`.
    pub level: String,
    /// `reliability`, `quality`, `responsiveness`, `honesty` and `cooperativeness`, each 0 to 10, before slashes.
    pub factors: BTreeMap<String, f64>,
}

fields!(ReputationFacts {
    "status" => |this| Node::Text(this.status.as_str()),
    "score" => |this| Node::Float(finite(this.score)),
    "level" => |this| Node::Text(&this.level),
    "factors" => |this| Node::Scores(&this.factors),
});

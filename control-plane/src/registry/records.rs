//! What is stored beside the resources.

use aip_api::evidence::{Assurance, Enforcement};
use aip_api::kill::Order;
use aip_api::resource::{Agent, Measurement, MeshConfig, MeshMode, Policy, PolicyName};
use aip_api::{AgentName, Digest, TrustDomain};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::admins::NewAdmin;
use crate::admin::roles::Role;

/// The mesh, from its creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshRecord {
    /// Never changes.
    pub trust_domain: TrustDomain,
    /// Never changes.
    pub mode: MeshMode,
    /// Unix seconds.
    pub created_at: u64,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Whom it lets in.
    pub agent: AgentName,
    /// Digest of the secret.
    pub secret: Digest,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// Who made it.
    pub created_by: String,
    /// With which key it was spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<Spent>,
}

/// How a token was spent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Digest of the key: only it is answered again.
    pub jkt: Digest,
    /// Unix seconds.
    pub at: u64,
    /// How often it was answered.
    pub answers: u32,
}

/// A measurement that nobody has approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingMeasurement {
    /// What would be approved.
    pub measurement: Measurement,
    /// How far the facts can be trusted.
    pub assurance: Assurance,
    /// Whether the agent can go around.
    pub enforcement: Enforcement,
    /// How many files were measured.
    pub files: usize,
    /// The command line, cut to what a person reads.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Unix seconds.
    pub first_seen: u64,
    /// Unix seconds.
    pub last_seen: u64,
}

/// An approval that was taken back: even a dev mesh does not approve it by itself again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// What was approved: everything that it covers is taken back with it.
    pub measurement: Measurement,
    /// Who took it back.
    pub by: String,
    /// Unix seconds.
    pub at: u64,
}

/// An issued SVID, kept until it expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SvidRecord {
    /// Whose.
    #[schema(value_type = String)]
    pub agent: AgentName,
    /// Lower-case hex.
    pub serial: String,
    /// SHA-256 of the issuing certificate's SubjectPublicKeyInfo.
    #[schema(value_type = String)]
    pub issuer: Digest,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// The agent's generation.
    pub generation: u64,
    /// Merkle digest of the declared files.
    #[schema(value_type = String)]
    pub code: Digest,
    /// What authenticated it: `token`, `svid`.
    pub credential: String,
    /// Which run of the agent it was issued to.
    #[serde(default)]
    pub run: Option<String>,
    /// The serial of the first of its line: each is issued to whoever shows the one before. No two processes that run have
    /// one line.
    #[serde(default)]
    pub line: Option<String>,
    /// How many of its line were issued before it.
    #[serde(default)]
    pub nth: u64,
    /// What it was renewed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<Renewed>,
    /// Unix seconds until which a process may run that had this line before an SVID of it was renewed twice, by two keys, and has
    /// another line since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_until: Option<u64>,
}

/// How an SVID was renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Renewed {
    /// Digest of the key: only to it is the next one of its line issued again, as after an answer that got lost.
    #[schema(value_type = String)]
    pub jkt: Digest,
    /// How often.
    pub times: u64,
}

/// An admin token, without the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdminTokenRecord {
    /// Its id.
    pub jti: String,
    /// Whose.
    pub sub: String,
    /// What it may.
    pub role: Role,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// Who issued it.
    pub issued_by: String,
    /// Digest of the secret for which it is handed out; absent once it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub claim: Option<Digest>,
    /// The key by which reports under this token are signed: the point of a P-256 key, uncompressed, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Unix seconds, once it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<u64>,
}

/// A token that waits to be handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Which token.
    pub jti: String,
    /// Unix seconds; the token's.
    pub expires_at: u64,
}

/// How a `prod` mesh came to its second person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondPerson {
    /// Who it is.
    pub sub: String,
    /// Who said so, alone.
    pub by: String,
    /// Unix seconds.
    pub at: u64,
}

/// A change that waits for a second person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Action {
    /// Approves a measurement.
    ApproveMeasurement {
        /// What.
        measurement: Measurement,
        /// The revision of its agent, as whoever proposed it saw it.
        agent: u64,
    },
    /// Changes an agent.
    PutAgent {
        /// To what.
        agent: Box<Agent>,
        /// The revision that it replaces.
        replaces: u64,
    },
    /// Writes a policy, which was admitted before.
    PutPolicy {
        /// What.
        policy: Box<Policy>,
        /// The revision that it replaces; 0: none.
        replaces: u64,
    },
    /// Removes a policy.
    DeletePolicy {
        /// Which.
        name: PolicyName,
        /// The revision that it removes. An older control plane did not write it down, and nothing is of revision 0: such a
        /// proposal lapses, since nobody can say what its proposer saw.
        #[serde(default)]
        removes: u64,
    },
    /// Changes the mesh's settings.
    PutMeshConfig {
        /// To what.
        config: MeshConfig,
        /// The revision that it replaces.
        replaces: u64,
    },
    /// Issues an admin token.
    IssueAdmin {
        /// For whom.
        wanted: NewAdmin,
    },
    /// Forgets what counts for and against an agent.
    ResetReputation {
        /// Whose.
        agent: AgentName,
        /// Why.
        reason: String,
        /// How many events there were, as whoever proposed it saw them.
        events: u64,
    },
    /// Gives an order to stop.
    Stop {
        /// What.
        order: Order,
        /// How long from the approval on, of a pause.
        seconds: Option<u64>,
    },
    /// Takes orders to stop back.
    Resume {
        /// Their ids.
        orders: Vec<String>,
    },
    /// Lifts a restored store.
    Lift {
        /// Above this revision.
        above: u64,
    },
}

/// What policies and people go by, in one line; the document says all.
fn of_agent(agent: &Agent) -> String {
    let labels: Vec<_> = agent
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    format!(
        "owner {:?}, labels [{}], capabilities [{}], aliases [{}]",
        agent.owner,
        labels.join(" "),
        agent.capabilities.join(" "),
        agent.aliases.join(" ")
    )
}

impl Action {
    /// The change in one line.
    pub fn summary(&self) -> String {
        match self {
            Self::ApproveMeasurement { measurement, .. } => {
                format!(
                    "approve measurement {} of {}",
                    measurement.fingerprint().short(),
                    measurement.agent
                )
            }
            Self::PutAgent { agent, replaces } => {
                format!("change agent {} (revision {replaces}): {}", agent.name, of_agent(agent))
            }
            Self::PutPolicy { policy, replaces: 0 } => format!("create policy {}", policy.name),
            Self::PutPolicy { policy, replaces } => format!("replace policy {} (revision {replaces})", policy.name),
            Self::DeletePolicy { name, removes } => format!("delete policy {name} (revision {removes})"),
            Self::PutMeshConfig { .. } => "change the mesh's settings".into(),
            Self::IssueAdmin { wanted } => {
                format!("issue an admin token to {} as {}", wanted.sub, wanted.role.as_str())
            }
            Self::ResetReputation { agent, reason, .. } => format!("reset the reputation of {agent}: {reason}"),
            Self::Stop { order, seconds } => {
                let how_long = seconds.map(|s| format!(" for {s} s")).unwrap_or_default();
                let (mode, scope, reason) = (order.mode.as_str(), &order.scope, &order.reason);
                format!("{mode} {scope}{how_long}: {reason:?}, order {}", order.id)
            }
            Self::Resume { orders } => format!("resume {}", orders.join(" ")),
            Self::Lift { above } => format!("lift the store above revision {above}"),
        }
    }
}

/// A proposal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// A UUIDv7.
    pub id: String,
    /// What.
    pub action: Action,
    /// By whom: the `sub` of the admin token.
    pub proposed_by: String,
    /// Unix seconds.
    pub proposed_at: u64,
    /// Unix seconds, after which it is void.
    pub expires_at: u64,
}

/// One entry of the admin audit: who changed what, when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Unix seconds.
    pub at: u64,
    /// `admin:<sub>`, `sidecar:<agent>` or `control-plane`.
    pub actor: String,
    /// A stable word such as `agent.create`.
    pub action: String,
    /// What it was about.
    pub subject: String,
    /// More, where there is more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// One version of a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Counts from 1.
    pub version: u64,
    /// What it was; `None`: it was deleted.
    pub policy: Option<Policy>,
    /// Who.
    pub by: String,
    /// Unix seconds.
    pub at: u64,
}

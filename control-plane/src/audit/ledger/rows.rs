//! What stands in the log of checkpoints.

use aip_api::{AgentName, Digest};
use aip_audit::Closing;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where each thing stands. Numbers are padded, so that keys sort as they do.
pub(super) mod keys {
    use aip_api::Digest;

    /// Checkpoints in the tree.
    pub(in super::super) const SIZE: &str = "size";
    /// The signed tree head.
    pub(in super::super) const HEAD: &str = "head";
    /// All logs.
    pub(in super::super) const LOGS: &str = "log/";
    /// All findings.
    pub(in super::super) const FINDINGS: &str = "finding/";
    /// All checkpoints.
    pub(in super::super) const STATEMENTS: &str = "statement/";
    /// All chains of certificates.
    pub(in super::super) const CHAINS: &str = "chain/";
    /// What is older than is kept.
    pub(in super::super) const BEGINS: &str = "begins";
    /// All mismatches.
    pub(in super::super) const MISMATCHES: &str = "mismatch/";

    /// A log.
    pub(in super::super) fn log(log: &str) -> String {
        format!("{LOGS}{log}")
    }

    /// How many logs of an agent there are.
    pub(in super::super) fn agent(agent: &str) -> String {
        format!("agent/{agent}")
    }

    /// How much was found in an agent's logs.
    pub(in super::super) fn found(agent: &str) -> String {
        format!("found/{agent}")
    }

    /// The numbers of the mismatches of one caller with one callee.
    pub(in super::super) fn pair(of: &super::Mismatch) -> String {
        format!("pair/{}/{}", of.caller, of.callee)
    }

    /// A checkpoint.
    pub(in super::super) fn statement(index: u64) -> String {
        format!("{STATEMENTS}{index:020}")
    }

    /// A chain of certificates, by the digest of its row's content.
    pub(in super::super) fn chain(digest: &Digest) -> String {
        format!("{CHAINS}{digest}")
    }

    /// A complete subtree.
    pub(in super::super) fn node(height: u32, at: u64) -> String {
        format!("node/{height:02}/{at:020}")
    }

    /// The sizes of a log that checkpoints speak of.
    pub(in super::super) fn sizes(log: &str) -> String {
        format!("at/{log}/")
    }

    /// One of them.
    pub(in super::super) fn size_of(log: &str, size: u64) -> String {
        format!("at/{log}/{size:020}")
    }

    /// One of a numbered list.
    pub(in super::super) fn numbered(prefix: &str, number: u64) -> String {
        format!("{prefix}{number:020}")
    }
}

/// What is known of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRow {
    /// Whose it is: who opened it first.
    pub agent: AgentName,
    /// Unix seconds.
    pub opened_at: u64,
    /// The newest checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Newest>,
    /// Why nothing more of it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<Broken>,
}

/// The newest checkpoint of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Newest {
    /// Its place in the control plane's log.
    pub index: u64,
    /// Records that it covers.
    pub size: u64,
    /// RFC 6962 root over them.
    #[schema(value_type = String)]
    pub root: Digest,
    /// When it was signed, Unix milliseconds by the sidecar's clock.
    pub at: u64,
    /// `periodic`, `close` or `recovery`.
    #[schema(value_type = String)]
    pub closing: Closing,
}

/// Why nothing more of a log is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Broken {
    /// Stable, snake_case.
    pub reason: String,
    /// Unix seconds.
    pub at: u64,
}

/// A checkpoint as it lies in the log: the chain, which all checkpoints of an SVID share, stands once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StatementRow {
    pub(super) log: String,
    pub(super) size: u64,
    pub(super) statement: String,
    pub(super) chain: Digest,
    /// When it was taken, Unix seconds.
    pub(super) taken: u64,
}

/// A chain of certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChainRow {
    /// DER in base64, leaf first.
    pub(super) certificates: Vec<String>,
    /// When a checkpoint that names it was last taken, Unix seconds; up to a day behind.
    pub(super) used: u64,
}

/// How the log of checkpoints begins, where the first ones are older than is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BeginsRow {
    /// The first that is here.
    pub(super) from: u64,
    /// The complete subtrees over those before it, the largest first.
    pub(super) subtrees: Vec<Digest>,
    /// What the control plane signed of that.
    pub(super) statement: String,
}

/// A checkpoint in the order of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Listed {
    /// Its place.
    pub index: u64,
    /// Of which log.
    pub log: String,
    /// Records that it covers.
    pub size: u64,
    /// The statement, a JWS: the leaf is the hash of these bytes.
    pub statement: String,
    /// The chain that signed it, by its digest.
    #[schema(value_type = String)]
    pub chain: Digest,
}

/// A checkpoint that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenRow {
    /// Of which log.
    pub log: String,
    /// Records that it covers.
    pub size: u64,
    /// The statement, a JWS: the leaf is the hash of these bytes.
    pub statement: String,
    /// The chain of the SVID that signed it: DER in base64, leaf first.
    pub chain: Vec<String>,
}

/// What is answered for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Its place in the control plane's log.
    pub index: u64,
    /// It had been taken before.
    pub again: bool,
}

/// Something that can't be: two histories of one log, a chain that breaks, records that no signature covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// Unix seconds.
    pub at: u64,
    /// Whose sidecar.
    #[schema(value_type = String)]
    pub agent: AgentName,
    /// Which log.
    pub log: String,
    /// Stable, snake_case.
    pub reason: String,
    /// What it was.
    pub detail: String,
    /// The statement that shows it, a JWS.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub statement: String,
    /// The chain that signed it: DER in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// The place, in the control plane's log, of the checkpoint that it contradicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<u64>,
}

/// A hop of which its two ends say different things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mismatch {
    /// Unix milliseconds, by the later record.
    pub at: u64,
    /// The hop.
    pub hop: String,
    /// Whose sidecar sent the request.
    #[schema(value_type = String)]
    pub caller: AgentName,
    /// Whose sidecar took it.
    #[schema(value_type = String)]
    pub callee: AgentName,
    /// What differs: `method`, `path`, `call`, `tool`, `status`, `salt`, `request_bytes`, `request_digest`,
    /// `response_bytes`, `response_digest`.
    pub differs: Vec<String>,
    /// The caller's decision.
    pub caller_decision: String,
    /// The callee's decision.
    pub callee_decision: String,
}

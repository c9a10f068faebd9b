//! Checkpoints: signed statements about how far a log reaches and what it holds (RFC 6962 tree heads).

use aip_api::{Digest, SpiffeId};
use serde::{Deserialize, Serialize};

/// The `typ` of a checkpoint's JWS.
pub const CHECKPOINT_TYP: &str = "aip-checkpoint+jwt";
/// The `typ` of the JWS of a tree head of the control plane's log.
pub const TREE_HEAD_TYP: &str = "aip-tree-head+jwt";

/// The `typ` of the JWS that says which checkpoints are older than the control plane keeps.
pub const LEDGER_BEGINS_TYP: &str = "aip-ledger-begins+jwt";

/// The `typ` of the JWS that says which records of a log are older, or more, than the control plane keeps.
pub const RETIRED_TYP: &str = "aip-retired+jwt";

/// Why a checkpoint was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Closing {
    /// Time passed.
    Periodic,
    /// The sidecar ended in order: nothing follows under this key.
    Close,
    /// The first one after a crash: it covers what the earlier key left unsigned.
    Recovery,
}

/// The claims of a checkpoint: JWS, ES256, by the key of the SVID under which the sidecar serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Version of this statement: 1.
    pub v: u32,
    /// Which log: a UUID, made with its directory.
    pub log: String,
    /// Whose sidecar.
    pub agent: SpiffeId,
    /// Records that it covers, from the first.
    pub size: u64,
    /// RFC 6962 root over the leaves of these records.
    pub root: Digest,
    /// Unix milliseconds.
    pub at: u64,
    /// Why it was made.
    pub closing: Closing,
}

/// The claims of a tree head of the control plane's log of checkpoints: JWS, EdDSA, by the audit key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeHead {
    /// Version of this statement: 1.
    pub v: u32,
    /// The trust domain.
    pub iss: String,
    /// Checkpoints in the log.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Digest,
    /// Unix milliseconds.
    pub at: u64,
}

/// How the control plane's log of checkpoints begins, where the first ones are older than is kept: JWS, EdDSA, by the audit
/// key. Whoever has it computes every later root, and sees what is gone by whose word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerBegins {
    /// Version of this statement: 1.
    pub v: u32,
    /// The trust domain.
    pub iss: String,
    /// The first checkpoint that is kept.
    pub from: u64,
    /// RFC 6962 root over those before it.
    pub root: Digest,
    /// The complete subtrees over those before it, the largest first.
    pub subtrees: Vec<Digest>,
    /// Unix milliseconds: none of those that are gone was signed or taken later.
    pub until: u64,
    /// Unix milliseconds.
    pub at: u64,
}

/// What the control plane's retention took of its copy of a log: JWS, EdDSA, by the audit key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retired {
    /// Version of this statement: 1.
    pub v: u32,
    /// The trust domain.
    pub iss: String,
    /// Which log.
    pub log: String,
    /// Whose sidecar.
    pub agent: SpiffeId,
    /// Records that are gone, from the first.
    pub records: u64,
    /// Time of the last of them, Unix milliseconds; not after this statement.
    pub until: u64,
    /// Unix milliseconds.
    pub at: u64,
}

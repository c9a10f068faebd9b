//! What sidecars say, read by the functions that the streams read it with, without a stream: for whoever wants to know
//! what becomes of some bytes. Tests and fuzzing do; nothing here is used to serve.

use std::collections::HashMap;

use aip_api::AgentName;
use aip_api::evidence::{Drift, Evidence};
use aip_api::resource::{Kind, ResourceId};
use aip_api::wire::{Hello, Subscribe};
use aip_runtime::x509::{CsrKey, PeerIdentity};

use crate::identity::{drift, evidence};
use crate::refusal::Refusal;
use crate::{config, hello};

/// The nonce that evidence says it answers, and what it states if the key of the CSR signed it for `agent` at about `now`
/// (Unix seconds).
///
/// # Errors
/// Too large, malformed, or of another key, agent or time.
pub fn evidence(token: &str, agent: &AgentName, key: &CsrKey, now: u64) -> Result<(Vec<u8>, Evidence), Refusal> {
    evidence::check_size(token)?;
    let nonce = evidence::nonce(token)?;
    Ok((nonce, evidence::verify(token, agent, key, now)?))
}

/// What a drift report states, if the key of `peer`'s SVID signed it at about `now` (Unix seconds).
///
/// # Errors
/// Too large, malformed, or of another key, agent, generation or time.
pub fn drift(statement: &str, peer: &PeerIdentity, now: u64) -> Result<Drift, Refusal> {
    drift::verify(statement, peer, now)
}

/// What the first message of a configuration stream says is held.
///
/// # Errors
/// The process has no name as ours have, or says that it holds too much.
pub fn config_hello(hello: &Hello) -> Result<HashMap<ResourceId, u64>, Refusal> {
    instance(&hello.instance)?;
    config::held(hello)
}

/// What a subscription, or the end of one, names.
///
/// # Errors
/// A kind that nobody subscribes to, too many names, or one that is none.
pub fn subscription(subscribe: Subscribe) -> Result<(Kind, Vec<AgentName>), Refusal> {
    config::names(subscribe)
}

/// Whether `text` names a process.
///
/// # Errors
/// It is no UUID in its usual form.
pub fn instance(text: &str) -> Result<(), Refusal> {
    hello::instance(text)
}

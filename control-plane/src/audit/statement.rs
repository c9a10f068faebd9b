//! Whether a checkpoint was signed by whom it speaks of.

use aip_api::AgentName;
use aip_api::wire::SignedCheckpoint;
use aip_audit::checkpoint::CHECKPOINT_TYP;
use aip_audit::log::claims_of;
use aip_audit::{Checkpoint, Closing};
use aip_runtime::jws;
use aip_runtime::trust::TrustState;
use aip_runtime::x509::{IdentityError, svid_signer};

use super::ledger::Take;
use crate::refusal::{Reason, Refusal};

/// Longest statement: ten claims, and a signature.
const MAX_STATEMENT_BYTES: usize = 4 * 1024;
/// How far a sidecar's clock may be ahead of ours.
const SKEW_MILLIS: u64 = 300_000;
/// Most records of a log: far above any real one, and far below where arithmetic on sizes could end.
const MAX_RECORDS: u64 = 1 << 48;

fn invalid(why: impl ToString) -> Refusal {
    Refusal::new(Reason::CheckpointInvalid, why.to_string())
}

/// A name of a log is a UUID in its usual form: one log has one name, and no name is a path.
pub(super) fn log_name(text: &str) -> Result<(), Refusal> {
    let parsed = uuid::Uuid::try_parse(text).ok();
    match parsed.filter(|uuid| uuid.hyphenated().to_string() == text) {
        Some(_) => Ok(()),
        None => Err(Refusal::new(Reason::ProtocolViolation, "a log's name is a UUID")),
    }
}

/// The checkpoint, if an SVID of `agent`, issued by this mesh and in force at the time of the statement, signed it.
///
/// # Errors
/// Anything of that is not so.
pub fn verify(signed: SignedCheckpoint, agent: &AgentName, trust: &TrustState, now: u64) -> Result<Take, Refusal> {
    let SignedCheckpoint { statement, chain } = signed;
    if statement.len() > MAX_STATEMENT_BYTES {
        return Err(invalid(format!(
            "{} bytes; at most {MAX_STATEMENT_BYTES}",
            statement.len()
        )));
    }
    // Unsigned as yet: only the time at which the chain is to be looked at is taken from it.
    let stated = claims_of(&statement).ok_or_else(|| invalid("not a checkpoint"))?;
    if stated.at > now * 1_000 + SKEW_MILLIS {
        let detail = format!("it says {}, now is {now}: compare the clocks", stated.at / 1_000);
        return Err(Refusal::new(Reason::CheckpointTime, detail));
    }
    let signer = svid_signer(&chain, trust, stated.at / 1_000).map_err(|error| match error {
        IdentityError::NotYetValid | IdentityError::Expired => {
            let detail = format!("it says {}, when its SVID was not in force: {error}", stated.at / 1_000);
            Refusal::new(Reason::CheckpointTime, detail)
        }
        other => invalid(other),
    })?;
    let claims: Checkpoint = jws::verify_es256(&statement, CHECKPOINT_TYP, &signer.point).map_err(invalid)?;
    if signer.id.agent != *agent {
        return Err(invalid(format!("signed by {}, sent by {agent}", signer.id)));
    }
    if claims.agent != signer.id {
        return Err(invalid(format!(
            "it speaks of {}, and was signed by {}",
            claims.agent, signer.id
        )));
    }
    if claims.v != 1 || claims.size > MAX_RECORDS {
        return Err(invalid("of another version, or of more records than a log has"));
    }
    log_name(&claims.log)?;
    Ok(Take {
        agent: agent.clone(),
        claims,
        statement,
        chain: signer.chain,
    })
}

/// The word for why a checkpoint was made.
pub const fn closing(closing: Closing) -> &'static str {
    match closing {
        Closing::Periodic => "periodic",
        Closing::Close => "close",
        Closing::Recovery => "recovery",
    }
}

//! Drift reports: who says so, and is it theirs to say?

use aip_api::evidence::{DRIFT_TYP, Drift, MAX_DRIFT_BYTES, MAX_DRIFTED_NAMED, MAX_RUN_BYTES};
use aip_runtime::jws::{self, JwsError};
use aip_runtime::x509::PeerIdentity;

use super::evidence::SKEW_SECONDS;
use crate::refusal::{Reason, Refusal};

/// Verifies a report of the agent at the other end of this connection, signed by the key of this connection's SVID.
pub(crate) fn verify(statement: &str, peer: &PeerIdentity, now: u64) -> Result<Drift, Refusal> {
    let malformed = |detail: String| Refusal::new(Reason::DriftMalformed, detail);
    if statement.len() > MAX_DRIFT_BYTES {
        let detail = format!("{} bytes; at most {MAX_DRIFT_BYTES}", statement.len());
        return Err(malformed(detail));
    }
    let drift: Drift = jws::verify_es256(statement, DRIFT_TYP, &peer.point).map_err(|e| match e {
        JwsError::BadSignature => Refusal::from(Reason::DriftOtherKey),
        other => malformed(other.to_string()),
    })?;
    if drift.v != 1 {
        return Err(malformed(format!("version {}; this control plane knows 1", drift.v)));
    }
    if drift.agent != peer.id.agent {
        let detail = format!("the report speaks of {}", drift.agent);
        return Err(Refusal::new(Reason::DriftOtherAgent, detail));
    }
    if drift.generation != peer.result.generation {
        let detail = format!("generation {} is not the SVID's", drift.generation);
        return Err(Refusal::new(Reason::GenerationMismatch, detail));
    }
    if drift.iat.abs_diff(now) > SKEW_SECONDS || drift.at > drift.iat + SKEW_SECONDS {
        let detail = format!("stated at {}, now is {now}: compare the clocks", drift.iat);
        return Err(Refusal::new(Reason::DriftStale, detail));
    }
    let impossible = drift.run.is_empty()
        || drift.run.len() > MAX_RUN_BYTES
        || drift.paths.len() > MAX_DRIFTED_NAMED
        || drift.changed < drift.paths.len() as u64;
    if impossible {
        return Err(malformed("its run or its list of paths is impossible".into()));
    }
    Ok(drift)
}

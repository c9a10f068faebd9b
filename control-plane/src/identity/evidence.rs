//! Evidence: verified with the CSR's key, and held against what it says of itself.

use aip_api::AgentName;
use aip_api::evidence::{EVIDENCE_TYP, Evidence, MAX_EVIDENCE_BYTES, MAX_RUN_BYTES, code_digest};
use aip_runtime::jws::{self, JwsError};
use aip_runtime::x509::CsrKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::refusal::{Reason, Refusal};

/// How far the sidecar's clock may be off.
pub(super) const SKEW_SECONDS: u64 = 300;
/// Longest command line in evidence, in arguments and in bytes: what a kernel starts can be longer, what a person
/// approves can't.
const MAX_ARGUMENTS: usize = 1_024;
const MAX_ARGV_BYTES: usize = 64 * 1024;

/// Refuses by size, before anything is parsed.
pub(crate) fn check_size(token: &str) -> Result<(), Refusal> {
    if token.len() > MAX_EVIDENCE_BYTES {
        let detail = format!(
            "{} bytes; at most {MAX_EVIDENCE_BYTES}: declare fewer files",
            token.len()
        );
        return Err(Refusal::new(Reason::EvidenceTooLarge, detail));
    }
    Ok(())
}

/// The nonce that evidence says it answers: nobody's word as yet, and what is looked at before the signature and thousands of
/// digests are.
pub(crate) fn nonce(token: &str) -> Result<Vec<u8>, Refusal> {
    #[derive(Deserialize)]
    struct Stated {
        nonce: String,
    }
    let malformed = |why: &str| Refusal::new(Reason::EvidenceMalformed, why);
    let claims = token.split('.').nth(1).ok_or_else(|| malformed("not a JWS"))?;
    let claims = URL_SAFE_NO_PAD
        .decode(claims)
        .map_err(|_| malformed("its claims are not base64url"))?;
    let stated: Stated = serde_json::from_slice(&claims).map_err(|e| malformed(&e.to_string()))?;
    URL_SAFE_NO_PAD
        .decode(&stated.nonce)
        .map_err(|_| Reason::NonceUnknown.into())
}

/// Verifies evidence for `agent` and `key`. The nonce is the caller's to take, before.
pub(crate) fn verify(token: &str, agent: &AgentName, key: &CsrKey, now: u64) -> Result<Evidence, Refusal> {
    let malformed = |detail: String| Refusal::new(Reason::EvidenceMalformed, detail);
    let evidence: Evidence = jws::verify_es256(token, EVIDENCE_TYP, &key.point).map_err(|e| match e {
        JwsError::BadSignature => Refusal::new(Reason::EvidenceOtherKey, "the CSR's key did not sign the evidence"),
        other => malformed(other.to_string()),
    })?;
    if evidence.v != 1 {
        return Err(malformed(format!("version {}; this control plane knows 1", evidence.v)));
    }
    if evidence.jkt != key.jkt {
        return Err(Reason::EvidenceOtherKey.into());
    }
    if evidence.agent != *agent {
        return Err(Refusal::new(
            Reason::EvidenceOtherAgent,
            format!("the evidence speaks of {}", evidence.agent),
        ));
    }
    if evidence.iat.abs_diff(now) > SKEW_SECONDS {
        let detail = format!("made at {}, now is {now}: compare the clocks", evidence.iat);
        return Err(Refusal::new(Reason::EvidenceStale, detail));
    }
    let argv = evidence.argv.as_deref().unwrap_or_default();
    if argv.len() > MAX_ARGUMENTS || argv.iter().map(String::len).sum::<usize>() > MAX_ARGV_BYTES {
        return Err(malformed("the command line is too long".into()));
    }
    let runs = [&evidence.run, &evidence.drifted];
    if runs
        .into_iter()
        .flatten()
        .any(|run| run.is_empty() || run.len() > MAX_RUN_BYTES)
    {
        return Err(malformed(format!("a run's name has 1 to {MAX_RUN_BYTES} bytes")));
    }
    let computed = code_digest(&evidence.files).map_err(|e| malformed(e.to_string()))?;
    if computed != evidence.code {
        return Err(Reason::EvidenceDigestMismatch.into());
    }
    Ok(evidence)
}

//! Reports that a verifier signed by a key of its own: whoever keeps one can check it without this control plane.

use aip_api::resource::reputation::{MAX_REPORT_BYTES, REPORT_TYP, SignedReport};
use aip_api::{SpiffeId, TrustDomain};
use aip_runtime::jws;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::reports::NewReport;
use crate::refusal::{Reason, Refusal};

/// Bytes of an uncompressed point, and how it begins.
const POINT: (usize, u8) = (65, 4);
/// Seconds by which the clocks of a verifier and of the control plane may differ.
const SKEW_SECONDS: u64 = 300;

/// A report as its verifier signed it, and the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Signed {
    /// A JWS, ES256, typ `aip-report+jwt`.
    pub statement: String,
    /// The point of the P-256 key that was enrolled with the token: uncompressed, in base64.
    pub key: String,
}

/// The point that a key's text says.
pub fn point(text: &str) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(text).ok()?;
    (bytes.len() == POINT.0 && bytes.first() == Some(&POINT.1)).then_some(bytes)
}

/// Holds a report against its signature and the key of its token: with a key no report is taken that it did not sign, and
/// without one nothing can be said of a signature.
///
/// # Errors
/// Signed where no key is known, not signed where one is, or by another, or it says something else than the report.
pub fn check(
    report: &NewReport,
    statement: Option<&str>,
    key: Option<&str>,
    (domain, now): (&TrustDomain, u64),
) -> Result<Option<Signed>, Refusal> {
    let refuse = |why: &str| Refusal::new(Reason::StatementInvalid, why.to_owned());
    let (statement, key) = match (statement, key) {
        (None, None) => return Ok(None),
        (None, Some(_)) => {
            return Err(refuse(
                "reports under this token are signed by the key that was enrolled with it",
            ));
        }
        (Some(_), None) => {
            return Err(refuse(
                "no key was enrolled with this token, so no signature can be checked",
            ));
        }
        (Some(statement), Some(key)) => (statement, key),
    };
    if statement.len() > MAX_REPORT_BYTES {
        return Err(refuse("longer than any signed report is"));
    }
    let point = point(key).ok_or_else(|| refuse("the key that was enrolled is none"))?;
    let said: SignedReport = jws::verify_es256(statement, REPORT_TYP, &point).map_err(|e| refuse(&e.to_string()))?;
    let meant = SignedReport {
        aud: format!("spiffe://{domain}/control-plane"),
        sub: SpiffeId::new(domain.clone(), report.agent.clone()),
        iat: said.iat,
        finding: report.finding,
        severity: report.severity,
        evidence: report.evidence.clone(),
        claim: report.claim.clone(),
    };
    if said != meant {
        return Err(refuse("what was signed is another report, or one to another mesh"));
    }
    if said.iat.abs_diff(now) > SKEW_SECONDS {
        return Err(refuse("signed more than 5 minutes from now: compare the clocks"));
    }
    Ok(Some(Signed {
        statement: statement.to_owned(),
        key: key.to_owned(),
    }))
}

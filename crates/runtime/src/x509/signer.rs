//! Who signed a statement with an SVID's key, at a time that may be long past.

use aip_api::SpiffeId;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;

use super::{IdentityError, Usage, parse, spiffe_uri, verify_chain};
use crate::trust::TrustState;

/// Certificates of a chain: a leaf, its issuer, and a root that some send along.
const MAX_CHAIN: usize = 4;
/// Largest certificate: an SVID with its attestation result.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
/// How far the clock of whoever signed may be off from that of whoever issued.
const SKEW_SECONDS: u64 = 300;

/// The SVID by whose key something was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidSigner {
    /// Whose.
    pub id: SpiffeId,
    /// Lower-case hex without leading zeros.
    pub serial: String,
    /// The uncompressed point of its key, as [`crate::jws::verify_es256`] takes it.
    pub point: Vec<u8>,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// DER: the SVID, and what leads from it to a root. What was sent with them is not among them: nobody signed that.
    pub chain: Vec<Vec<u8>>,
}

/// The signer of a statement that was made at `at` (Unix seconds): `chain` is DER, leaf first, and must lead to a root of
/// ours. Revocation is not looked at: what was signed before it stays signed.
///
/// # Errors
/// The chain can't be read, does not lead to a root, was not in force at `at` (5 minutes of clock skew are let pass), or
/// names no agent of this trust domain.
pub fn svid_signer(chain: &[Vec<u8>], state: &TrustState, at: u64) -> Result<SvidSigner, IdentityError> {
    let bad = |what: &str| IdentityError::Malformed(what.into());
    if chain.len() > MAX_CHAIN || chain.iter().any(|der| der.len() > MAX_CERTIFICATE_BYTES) {
        return Err(bad("a chain has at most 4 certificates of 16 KiB"));
    }
    let [leaf, above @ ..] = chain else {
        return Err(bad("there is no certificate"));
    };
    let certificate = parse(leaf)?;
    let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
    let validity = certificate.validity();
    let (not_before, not_after) = (
        seconds(validity.not_before.timestamp()),
        seconds(validity.not_after.timestamp()),
    );
    if at.saturating_add(SKEW_SECONDS) < not_before {
        return Err(IdentityError::NotYetValid);
    }
    if at >= not_after.saturating_add(SKEW_SECONDS) {
        return Err(IdentityError::Expired);
    }
    // Within the skew, the chain is looked at as of the nearest time at which it was in force.
    let within = at.clamp(not_before, not_after.saturating_sub(1).max(not_before));
    let der = |bytes: &Vec<u8>| CertificateDer::from(bytes.clone());
    let above: Vec<_> = above.iter().map(der).collect();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(within));
    let path = verify_chain(&der(leaf), &above, state.roots(), Usage::Client, time)?;
    let uri = spiffe_uri(&certificate)?;
    let id: SpiffeId = uri
        .parse()
        .map_err(|_| IdentityError::NoSpiffeId(format!("{uri:?} is not the SPIFFE ID of an agent")))?;
    if id.trust_domain != *state.trust_domain() {
        return Err(IdentityError::WrongTrustDomain(id.trust_domain.to_string()));
    }
    let point = certificate.public_key().subject_public_key.data.to_vec();
    let serial: String = certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    Ok(SvidSigner {
        id,
        serial: serial.trim_start_matches('0').to_owned(),
        point,
        not_before,
        not_after,
        chain: std::iter::once(leaf.clone()).chain(path).collect(),
    })
}

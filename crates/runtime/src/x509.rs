//! Certificates: what a verified chain says about a peer. Chains are checked by webpki, names by us (SPIFFE IDs are
//! URIs, and X.509 name constraints on URIs have a history of bugs).

mod signer;

use std::sync::Arc;

use aip_api::attestation::{AttestationResult, MAX_RESULT_BYTES, RESULT_OID, RESULT_TYP};
use aip_api::resource::KeyPurpose;
use aip_api::{Digest, SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::der_parser::Oid;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

pub use signer::{SvidSigner, svid_signer};

use crate::jws;
use crate::signing::VerifyingKey;
use crate::trust::TrustState;

/// Why a certificate does not make a peer. [`IdentityError::reason`] is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate, or not one of ours in shape.
    #[error("the certificate can't be read: {0}")]
    Malformed(String),
    /// No root of ours signed it.
    #[error("no root of this trust domain signed the certificate")]
    UnknownIssuer,
    /// Its time is over.
    #[error("the certificate has expired; where it is a new one, compare the clocks")]
    Expired,
    /// Its time has not come.
    #[error("the certificate is not yet valid; compare the clocks")]
    NotYetValid,
    /// No single SPIFFE ID of the expected shape.
    #[error("the certificate names no agent: {0}")]
    NoSpiffeId(String),
    /// A name of another mesh.
    #[error("the certificate is of the trust domain {0}, not of this one")]
    WrongTrustDomain(String),
    /// Another agent than the one that was called.
    #[error("the peer is {found}, not {expected}")]
    WrongAgent {
        /// Who was called.
        expected: String,
        /// Who answered.
        found: String,
    },
    /// The extension is not there.
    #[error("the certificate carries no attestation result")]
    AttestationMissing,
    /// Not signed by a key of ours for this purpose, or of other content.
    #[error("the attestation result does not verify: {0}")]
    AttestationInvalid(String),
    /// Speaks of another key than the connection's.
    #[error("the attestation result speaks of another key")]
    AttestationKeyMismatch,
    /// Revoked; the reason is `revoked_serial` or `revoked_generation`.
    #[error("the certificate is revoked ({0})")]
    Revoked(&'static str),
}

impl IdentityError {
    /// The stable reason, as in metrics and logs.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "certificate_malformed",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::NoSpiffeId(_) => "spiffe_id_missing",
            Self::WrongTrustDomain(_) => "wrong_trust_domain",
            Self::WrongAgent { .. } => "wrong_agent",
            Self::AttestationMissing => "attestation_missing",
            Self::AttestationInvalid(_) => "attestation_invalid",
            Self::AttestationKeyMismatch => "attestation_key_mismatch",
            Self::Revoked(reason) => reason,
        }
    }
}

/// A verified peer: what the certificate of this very connection proves.
#[derive(Debug, Clone)]
pub struct PeerIdentity {
    /// Who.
    pub id: SpiffeId,
    /// What runs there, as the control plane verified it.
    pub result: Arc<AttestationResult>,
    /// The statement itself.
    pub result_jws: Arc<str>,
    /// The certificate's serial, lower-case hex without leading zeros.
    pub serial: String,
    /// SHA-256 of the issuing certificate's SubjectPublicKeyInfo.
    pub issuer: Digest,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo.
    pub jkt: Digest,
    /// The leaf's key, as [`jws::verify_es256`] takes it.
    pub point: Arc<[u8]>,
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(IdentityError::Malformed("trailing bytes".into())),
        Err(e) => Err(IdentityError::Malformed(e.to_string())),
    }
}

/// SHA-256 of a certificate's DER SubjectPublicKeyInfo.
///
/// # Errors
/// Not a certificate.
pub fn spki_digest(certificate: &[u8]) -> Result<Digest, IdentityError> {
    Ok(Digest::sha256(parse(certificate)?.public_key().raw))
}

/// The SPIFFE ID of an agent's certificate. Proves nothing by itself: see [`verify_chain`] and [`peer_identity`].
///
/// # Errors
/// Not a certificate, or of no agent.
pub fn spiffe_id(certificate: &[u8]) -> Result<SpiffeId, IdentityError> {
    let uri = spiffe_uri(&parse(certificate)?)?;
    uri.parse()
        .map_err(|_| IdentityError::NoSpiffeId(format!("{uri:?} is not the SPIFFE ID of an agent")))
}

/// The only URI among a certificate's subject alternative names (SPIFFE X.509-SVID section 2: exactly one).
fn spiffe_uri(certificate: &X509Certificate<'_>) -> Result<String, IdentityError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| IdentityError::Malformed(e.to_string()))?;
    let mut uris = names
        .iter()
        .flat_map(|n| &n.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.chars().take(400).collect()),
        (None, _) => Err(IdentityError::NoSpiffeId("it has no URI name".into())),
        (Some(_), Some(_)) => Err(IdentityError::NoSpiffeId("it has several URI names".into())),
    }
}

/// The attestation result inside a leaf: our extension, an OCTET STRING of the ASCII JWS.
fn result_of<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let oid = Oid::from(RESULT_OID).map_err(|_| IdentityError::AttestationMissing)?;
    let extension = certificate
        .get_extension_unique(&oid)
        .map_err(|_| IdentityError::AttestationInvalid("the extension stands twice".into()))?
        .ok_or(IdentityError::AttestationMissing)?;
    let bad = |what: &str| IdentityError::AttestationInvalid(what.to_owned());
    if extension.value.len() > MAX_RESULT_BYTES
        || !matches!(
            extension.parsed_extension(),
            ParsedExtension::UnsupportedExtension { .. }
        )
    {
        return Err(bad("the extension is too large or of another kind"));
    }
    let (rest, octets) = <&[u8]>::from_der(extension.value).map_err(|_| bad("the extension is no OCTET STRING"))?;
    if !rest.is_empty() {
        return Err(bad("trailing bytes in the extension"));
    }
    std::str::from_utf8(octets).map_err(|_| bad("not ASCII"))
}

/// Reads and checks what a leaf says about an agent: SPIFFE ID, attestation result (signature, subject, key, time)
/// and revocation. The chain must have been verified before, by [`verify_chain`].
///
/// # Errors
/// As [`IdentityError`] lists.
pub fn peer_identity(leaf: &[u8], issuer: &[u8], state: &TrustState, now: u64) -> Result<PeerIdentity, IdentityError> {
    let peer = peer_or_revoked(leaf, issuer, state, now)?;
    match state.revoked(&peer) {
        Some(reason) => Err(IdentityError::Revoked(reason)),
        None => Ok(peer),
    }
}

/// As [`peer_identity`], whether it is revoked or not: for whom nothing is done but telling it to stop.
pub(crate) fn peer_or_revoked(
    leaf: &[u8],
    issuer: &[u8],
    state: &TrustState,
    now: u64,
) -> Result<PeerIdentity, IdentityError> {
    let certificate = parse(leaf)?;
    let uri = spiffe_uri(&certificate)?;
    let id: SpiffeId = match uri.parse() {
        Ok(id) => id,
        Err(_) => return Err(foreign_or_malformed(&uri, state)),
    };
    if id.trust_domain != *state.trust_domain() {
        return Err(IdentityError::WrongTrustDomain(id.trust_domain.to_string()));
    }
    let token = result_of(&certificate)?;
    let result: AttestationResult = jws::verify_eddsa(token, RESULT_TYP, |kid| state.key(KeyPurpose::Attestation, kid))
        .map_err(|e| IdentityError::AttestationInvalid(e.to_string()))?;
    let jkt = Digest::sha256(certificate.public_key().raw);
    if result.cnf.jkt != jkt {
        return Err(IdentityError::AttestationKeyMismatch);
    }
    if result.sub != id {
        return Err(IdentityError::AttestationInvalid(format!(
            "it speaks of {}",
            result.sub
        )));
    }
    if result.exp <= now {
        return Err(IdentityError::Expired);
    }
    let validity = certificate.validity();
    let serial = certificate
        .raw_serial()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<String>();
    Ok(PeerIdentity {
        id,
        result: Arc::new(result),
        result_jws: token.into(),
        serial: serial.trim_start_matches('0').to_owned(),
        issuer: spki_digest(issuer)?,
        not_before: validity.not_before.timestamp().try_into().unwrap_or(0),
        not_after: validity.not_after.timestamp().try_into().unwrap_or(0),
        jkt,
        point: certificate.public_key().subject_public_key.data.as_ref().into(),
    })
}

fn foreign_or_malformed(uri: &str, state: &TrustState) -> IdentityError {
    let own = format!("spiffe://{}/", state.trust_domain());
    match uri.strip_prefix("spiffe://") {
        Some(rest) if !uri.starts_with(&own) => {
            IdentityError::WrongTrustDomain(rest.split('/').next().unwrap_or_default().to_owned())
        }
        _ => IdentityError::NoSpiffeId(format!("{uri:?} is not the SPIFFE ID of an agent")),
    }
}

/// Whether the certificate is the control plane's server certificate of this trust domain.
///
/// # Errors
/// It names something else.
pub fn check_control_plane(leaf: &[u8], state: &TrustState) -> Result<(), IdentityError> {
    let uri = spiffe_uri(&parse(leaf)?)?;
    let expected = format!("spiffe://{}/control-plane", state.trust_domain());
    if uri == expected {
        Ok(())
    } else {
        Err(IdentityError::WrongAgent { expected, found: uri })
    }
}

/// Whether the certificate is the server certificate of a control plane, of whichever trust domain: before a join, the
/// root is all that is known of it.
///
/// # Errors
/// It names something else.
pub fn check_some_control_plane(leaf: &[u8]) -> Result<(), IdentityError> {
    let uri = spiffe_uri(&parse(leaf)?)?;
    let domain = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.strip_suffix("/control-plane"));
    if domain.is_some_and(|domain| domain.parse::<TrustDomain>().is_ok()) {
        return Ok(());
    }
    let expected = "spiffe://<trust-domain>/control-plane".to_owned();
    Err(IdentityError::WrongAgent { expected, found: uri })
}

/// What a certificate is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To serve.
    Server,
    /// To call.
    Client,
}

/// Checks that the leaf chains to a root, for this use, now. Answers the intermediates by which it does, from the leaf's issuer
/// on: what else came with it was not looked at.
///
/// # Errors
/// Unknown issuer, expired, not yet valid, or malformed.
pub fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[Vec<u8>],
    usage: Usage,
    now: UnixTime,
) -> Result<Vec<Vec<u8>>, IdentityError> {
    let malformed = |e: webpki::Error| IdentityError::Malformed(e.to_string());
    let entity = webpki::EndEntityCert::try_from(leaf).map_err(malformed)?;
    let ders: Vec<CertificateDer<'_>> = roots.iter().map(|r| CertificateDer::from(r.as_slice())).collect();
    let anchors: Vec<_> = ders
        .iter()
        .map(webpki::anchor_from_trusted_cert)
        .collect::<Result<_, _>>()
        .map_err(malformed)?;
    let eku = match usage {
        Usage::Server => webpki::KeyUsage::server_auth(),
        Usage::Client => webpki::KeyUsage::client_auth(),
    };
    entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            now,
            eku,
            None,
            None,
        )
        .map(|path| {
            path.intermediate_certificates()
                .map(|above| above.der().to_vec())
                .collect()
        })
        .map_err(|e| match e {
            webpki::Error::CertExpired { .. } => IdentityError::Expired,
            webpki::Error::CertNotValidYet { .. } => IdentityError::NotYetValid,
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => IdentityError::UnknownIssuer,
            other => IdentityError::Malformed(other.to_string()),
        })
}

/// A purpose key: its certificate is signed by a root directly, names `spiffe://<trust-domain>/key/<purpose>` alone,
/// and holds an Ed25519 key.
///
/// # Errors
/// Any of that is not so.
pub fn certified_key(
    certificate: &[u8],
    state: &TrustState,
    now: u64,
) -> Result<(KeyPurpose, VerifyingKey), IdentityError> {
    let parsed = parse(certificate)?;
    let signed = state.roots().iter().any(|root| {
        parse(root).is_ok_and(|root| {
            parsed.issuer() == root.subject() && parsed.verify_signature(Some(root.public_key())).is_ok()
        })
    });
    if !signed {
        return Err(IdentityError::UnknownIssuer);
    }
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if parsed.validity().not_after.timestamp() <= now {
        return Err(IdentityError::Expired);
    }
    let uri = spiffe_uri(&parsed)?;
    let prefix = format!("spiffe://{}/key/", state.trust_domain());
    let purpose = uri
        .strip_prefix(&prefix)
        .and_then(|p| KeyPurpose::ALL.into_iter().find(|k| k.as_str() == p));
    let purpose = purpose.ok_or_else(|| IdentityError::NoSpiffeId(format!("{uri:?} is no key of this mesh")))?;
    let key = VerifyingKey::from_spki(parsed.public_key().raw)
        .ok_or_else(|| IdentityError::Malformed("not an Ed25519 key".into()))?;
    Ok((purpose, key))
}

/// The key of a certificate signing request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsrKey {
    /// The uncompressed point, 65 bytes, as [`jws::verify_es256`] takes it.
    pub point: Vec<u8>,
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// SHA-256 of `spki`.
    pub jkt: Digest,
}

/// Largest CSR that is read; ours is about 250 bytes.
pub const MAX_CSR_BYTES: usize = 4 * 1024;

/// Reads a CSR: ECDSA P-256, signed by its own key. Names in it are not looked at.
///
/// # Errors
/// Too large, malformed, of another algorithm, or not signed by its key.
pub fn csr_key(csr: &[u8]) -> Result<CsrKey, IdentityError> {
    let bad = |what: &str| IdentityError::Malformed(format!("the CSR {what}"));
    if csr.len() > MAX_CSR_BYTES {
        return Err(bad("is too large"));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr).map_err(|_| bad("can't be read"))?;
    if !rest.is_empty() {
        return Err(bad("has trailing bytes"));
    }
    let spki = &request.certification_request_info.subject_pki;
    let point = &*spki.subject_public_key.data;
    // id-ecPublicKey on prime256v1: 0x04 and two 32-byte coordinates (RFC 5480 section 2.2).
    let p256 = spki.algorithm.algorithm.to_id_string() == "1.2.840.10045.2.1" && point.len() == 65 && point[0] == 4;
    if !p256 {
        return Err(bad("holds no ECDSA P-256 key"));
    }
    request
        .verify_signature()
        .map_err(|_| bad("is not signed by its own key"))?;
    Ok(CsrKey {
        point: point.to_vec(),
        spki: spki.raw.to_vec(),
        jkt: Digest::sha256(spki.raw),
    })
}

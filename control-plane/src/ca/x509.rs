//! The profiles of our certificates (RFC 5280; SPIFFE X.509-SVID).

use std::net::IpAddr;

use aip_api::TrustDomain;
use aip_api::resource::KeyPurpose;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::material::{Issuing, PurposeKey};
use super::{CaError, SERVER_SECONDS};

/// A root that outlives the hardware it runs on; replacing it means a second root in the bundle.
const ROOT_DAYS: i64 = 3_650;
/// An intermediate signs for a year and is rotated a month before.
const INTERMEDIATE_DAYS: i64 = 365;
/// Certificates begin a minute ago: peers' clocks lag.
pub(super) const BACKDATE: Duration = Duration::seconds(60);
/// Bytes of a serial: 152 bits, of which 150 are random (RFC 5280 section 4.1.2.2 allows 20 bytes, positive).
const SERIAL_BYTES: usize = 19;

/// A random serial, and its text: lower-case hex without leading zeros.
pub(super) fn serial() -> Result<(SerialNumber, String), CaError> {
    let mut bytes = [0; SERIAL_BYTES];
    let failed = |_| CaError::Certificate("the system gives no randomness".into());
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    // Positive, and of one length: no leading zero byte is added or dropped on the way.
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok((SerialNumber::from_slice(&bytes), hex::encode(bytes)))
}

pub(super) fn params(common_name: String, lifetime: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .map_err(|e| CaError::Certificate(e.to_string()))?;
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(serial()?.0);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

pub(super) fn uri(text: String) -> Result<SanType, CaError> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}

fn issuing(mut params: CertificateParams, below: u8) -> CertificateParams {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn pkcs8(key: &KeyPair) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(key.serialize_der())
}

pub(super) fn root(trust_domain: &TrustDomain) -> Result<Issuing, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = issuing(
        params(format!("AIP root {trust_domain}"), Duration::days(ROOT_DAYS))?,
        1,
    );
    params.subject_alt_names.push(uri(format!("spiffe://{trust_domain}"))?);
    let certificate = params.self_signed(&key)?.der().to_vec();
    Issuing::new("root".into(), certificate, unix(params.not_after), pkcs8(&key))
}

pub(super) fn intermediate(trust_domain: &TrustDomain, slot: &str, root: &Issuing) -> Result<Issuing, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    // The name differs from every earlier one's of this slot: chains are built by name.
    let name = format!("{slot}-{}", aip_api::Digest::sha256(key.public_key_raw()).short());
    let common = format!("AIP intermediate {name} {trust_domain}");
    let params = issuing(params(common, Duration::days(INTERMEDIATE_DAYS))?, 0);
    let certificate = params.signed_by(&key, &root.issuer)?.der().to_vec();
    Issuing::new(name, certificate, unix(params.not_after), pkcs8(&key))
}

pub(super) fn purpose(trust_domain: &TrustDomain, purpose: KeyPurpose, root: &Issuing) -> Result<PurposeKey, CaError> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = params(
        format!("AIP key {} {trust_domain}", purpose.as_str()),
        Duration::days(ROOT_DAYS),
    )?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
        .subject_alt_names
        .push(uri(format!("spiffe://{trust_domain}/key/{}", purpose.as_str()))?);
    let certificate = params.signed_by(&key, &root.issuer)?.der().to_vec();
    PurposeKey::new(purpose, certificate, pkcs8(&key))
}

/// The control plane's own certificate, and its fresh key.
pub(super) fn server(
    trust_domain: &TrustDomain,
    addresses: &[IpAddr],
    issuer: &Issuing,
) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let lifetime = Duration::seconds(i64::try_from(SERVER_SECONDS).unwrap_or(i64::MAX));
    let mut params = params(format!("AIP control plane {trust_domain}"), lifetime)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
        .subject_alt_names
        .push(uri(format!("spiffe://{trust_domain}/control-plane"))?);
    params
        .subject_alt_names
        .extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
    let certificate = params.signed_by(&key, &issuer.issuer)?.der().to_vec();
    Ok((certificate, pkcs8(&key)))
}

fn unix(time: OffsetDateTime) -> u64 {
    u64::try_from(time.unix_timestamp()).unwrap_or(0)
}

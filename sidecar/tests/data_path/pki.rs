//! A CA of the tests' own, in the shapes of the control plane's.

use aip_api::Digest;
use aip_api::attestation::{AttestationResult, Confirmation, RESULT_OID, RESULT_TYP};
use aip_api::evidence::{Assurance, Enforcement};
use aip_api::resource::KeyPurpose;
use aip_runtime::signing::Signer;
use aip_runtime::svid::{PendingKey, Svid};
use aip_runtime::trust::TrustState;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};
use time::{Duration, OffsetDateTime};

pub const TRUST_DOMAIN: &str = "aip.internal";

pub struct Pki {
    pub root: Vec<u8>,
    intermediate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    attestation: Signer,
    certificate: Vec<u8>,
    /// Signs orders to stop.
    pub kill: Signer,
    kill_certificate: Vec<u8>,
    /// Signs what a control plane would push.
    pub config: Signer,
    pub config_certificate: Vec<u8>,
}

/// What a certificate says of its agent.
#[derive(Debug, Clone, Copy)]
pub struct Says {
    pub generation: u64,
    pub seconds: i64,
    pub assurance: Assurance,
}

impl Default for Says {
    fn default() -> Self {
        Self {
            generation: 1,
            seconds: 3600,
            assurance: Assurance::Declared,
        }
    }
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn octet_string(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[0x04, 0x82][..], &length, content].concat()
}

/// A key for one purpose, and the root's certificate of it.
fn key_of(purpose: KeyPurpose, name: &str, root: &Issuer<'_, KeyPair>) -> (Signer, Vec<u8>) {
    let (signer, _) = Signer::generate(purpose).unwrap();
    // RFC 8410 section 4.
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let spki = [&prefix[..], signer.public_key().as_bytes()].concat();
    let spki = SubjectPublicKeyInfo::from_der(&spki).unwrap();
    let params = named(&format!("spiffe://{TRUST_DOMAIN}/key/{name}"));
    let certificate = params.signed_by(&spki, root).unwrap().der().to_vec();
    (signer, certificate)
}

impl Pki {
    pub fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root_params = ca("root");
        let root = root_params.self_signed(&root_key).unwrap().der().to_vec();
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate().unwrap();
        let params = ca("intermediate");
        let intermediate = params.signed_by(&key, &root_issuer).unwrap().der().to_vec();
        let (attestation, certificate) = key_of(KeyPurpose::Attestation, "attestation", &root_issuer);
        let (config, config_certificate) = key_of(KeyPurpose::Config, "config", &root_issuer);
        let (kill, kill_certificate) = key_of(KeyPurpose::Kill, "kill", &root_issuer);
        Self {
            root,
            intermediate,
            issuer: Issuer::new(params, key),
            attestation,
            certificate,
            kill,
            kill_certificate,
            config,
            config_certificate,
        }
    }

    pub fn trust(&self) -> TrustState {
        let mut state = TrustState::new(TRUST_DOMAIN.parse().unwrap(), vec![self.root.clone()]);
        state.add_key(&self.certificate).unwrap();
        state.add_key(&self.kill_certificate).unwrap();
        state
    }

    /// The chain and the key that a control plane shows.
    pub fn control_plane(&self) -> (Vec<Vec<u8>>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut params = named(&format!("spiffe://{TRUST_DOMAIN}/control-plane"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        let chain = vec![leaf, self.intermediate.clone(), self.root.clone()];
        (chain, key.serialize_der())
    }

    pub fn svid(&self, agent: &str, says: Says) -> Svid {
        let pending = PendingKey::generate().unwrap();
        let spki = SubjectPublicKeyInfo::from_der(&pending.key.spki).unwrap();
        let mut params = named(&format!("spiffe://{TRUST_DOMAIN}/agent/{agent}"));
        params.not_before = OffsetDateTime::now_utc() - Duration::minutes(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::seconds(says.seconds);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = aip_runtime::unix_now();
        let claims = AttestationResult {
            iss: format!("spiffe://{TRUST_DOMAIN}/control-plane"),
            sub: format!("spiffe://{TRUST_DOMAIN}/agent/{agent}").parse().unwrap(),
            iat: now,
            exp: now.saturating_add_signed(says.seconds),
            nonce: "AAAA".into(),
            cnf: Confirmation { jkt: pending.key.jkt },
            owner: "tests".into(),
            labels: [("team".to_owned(), "blue".to_owned())].into(),
            capabilities: Vec::new(),
            code: Digest::sha256(agent.as_bytes()),
            config: None,
            sidecar: Digest::sha256(b"sidecar"),
            attestor: "files".into(),
            assurance: says.assurance,
            enforcement: Enforcement::Cooperative,
            generation: says.generation,
        };
        let token = aip_runtime::jws::sign_eddsa(&self.attestation, RESULT_TYP, &claims).unwrap();
        params.custom_extensions = vec![CustomExtension::from_oid_content(
            RESULT_OID,
            octet_string(token.as_bytes()),
        )];
        let leaf = params.signed_by(&spki, &self.issuer).unwrap().der().to_vec();
        Svid::assemble(pending.pkcs8, vec![leaf, self.intermediate.clone()], &self.trust()).unwrap()
    }
}

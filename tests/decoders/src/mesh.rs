//! A mesh whose keys are always the same, so that what was signed for a corpus is signed for every later run.

use std::sync::LazyLock;

use aip_api::attestation::{AttestationResult, Confirmation, RESULT_OID, RESULT_TYP};
use aip_api::evidence::{Assurance, Enforcement};
use aip_api::resource::KeyPurpose;
use aip_api::{AgentName, Digest, TrustDomain};
use aip_runtime::jws::sign_eddsa;
use aip_runtime::signing::Signer;
use aip_runtime::trust::TrustState;
use aip_sidecar::mesh::world::Origin;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use time::OffsetDateTime;

/// What all clocks show, Unix seconds: certificates of this mesh are in force long before and after.
pub(crate) const NOW: u64 = 1_800_000_000;
/// Unix seconds from which, and until which, its certificates are in force.
const FORCE: [i64; 2] = [1_600_000_000, 4_000_000_000];

/// P-256 keys in PKCS#8, made for this and good for nothing else: an SVID's, and one that nobody certified.
const SVID_KEY: &str = "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b020101042087f49b5698266a033cd68449a770576356d031157087cdb079076cff671bcf2aa14403420004ba1be23b9e448c1f3eff7df1a9b379b498c3b8376525d45699bfbfaa444f92b453f0673e34e67b6b763742fd33ec649c42da7577cac3cbb1afecb02c52883c1a";
const FRESH_KEY: &str = "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b02010104204cbfc705a38c4b65ea651822eba5afc9c1b31512bc901777f6a8e670b3bc22c2a14403420004722e54f7ac3ee370c3f24f1871cbf2d45e8cc5a791d9ddf7aab4173ec54900394bf445ce49c28670fdacb7589b5065d0afa156de1a88922e9ce09d33eefb3c03";

/// The mesh.
pub(crate) static MESH: LazyLock<Mesh> = LazyLock::new(Mesh::new);

/// Its keys, and what they certified.
pub(crate) struct Mesh {
    pub(crate) root: Vec<u8>,
    pub(crate) intermediate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    signers: Vec<(KeyPurpose, Signer, Vec<u8>)>,
    trust: TrustState,
    /// A good leaf of the agent `researcher`, and the statement in it.
    pub(crate) leaf: Vec<u8>,
    pub(crate) statement: String,
}

/// A P-256 key.
pub(crate) struct P256 {
    pair: KeyPair,
    signing: EcdsaKeyPair,
}

pub(crate) static SVID: LazyLock<P256> = LazyLock::new(|| P256::new(SVID_KEY));
pub(crate) static FRESH: LazyLock<P256> = LazyLock::new(|| P256::new(FRESH_KEY));

impl P256 {
    fn new(hex_pkcs8: &str) -> Self {
        let pkcs8 = hex::decode(hex_pkcs8).unwrap();
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).unwrap();
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &SystemRandom::new()).unwrap();
        Self { pair, signing }
    }

    /// DER SubjectPublicKeyInfo.
    pub(crate) fn spki(&self) -> Vec<u8> {
        use rcgen::PublicKeyData as _;
        self.pair.subject_public_key_info()
    }

    /// The key as a CSR names it.
    pub(crate) fn csr(&self) -> Vec<u8> {
        CertificateParams::default()
            .serialize_request(&self.pair)
            .unwrap()
            .der()
            .to_vec()
    }

    /// A JWS over claims as they are, whatever they are.
    pub(crate) fn sign(&self, typ: &str, claims: &[u8]) -> String {
        let message = message("ES256", typ, None, claims);
        let signature = self.signing.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn message(algorithm: &str, typ: &str, kid: Option<&str>, claims: &[u8]) -> String {
    let mut header = serde_json::json!({"typ": typ, "alg": algorithm});
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}", part(header.to_string().as_bytes()), part(claims))
}

/// An Ed25519 key in PKCS#8 (RFC 8410 section 7).
fn ed25519(seed: u8) -> Vec<u8> {
    let prefix = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ];
    [&prefix[..], &[seed; 32]].concat()
}

fn ed25519_pair(seed: u8) -> KeyPair {
    let pkcs8 = ed25519(seed);
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()), &PKCS_ED25519).unwrap()
}

fn in_force(serial: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&[0x11, serial]));
    [params.not_before, params.not_after] = FORCE.map(|at| OffsetDateTime::from_unix_timestamp(at).unwrap());
    params
}

fn authority(name: &str, serial: u8) -> CertificateParams {
    let mut params = in_force(serial);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn named(uri: &str, serial: u8) -> CertificateParams {
    let mut params = in_force(serial);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

impl Mesh {
    fn new() -> Self {
        let root_params = authority("root", 1);
        let root_key = ed25519_pair(1);
        let root = root_params.self_signed(&root_key).unwrap().der().to_vec();
        let above = Issuer::new(root_params, root_key);
        let (params, key) = (authority("intermediate", 2), ed25519_pair(2));
        let intermediate = params.signed_by(&key, &above).unwrap().der().to_vec();
        let certified = |(purpose, seed): (KeyPurpose, u8)| {
            let signer = Signer::from_pkcs8(purpose, &ed25519(seed)).unwrap();
            let params = named(&format!("spiffe://aip.internal/key/{}", purpose.as_str()), seed);
            let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
            let spki = [&prefix[..], signer.public_key().as_bytes()].concat();
            let spki = SubjectPublicKeyInfo::from_der(&spki).unwrap();
            let certificate = params.signed_by(&spki, &above).unwrap().der().to_vec();
            (purpose, signer, certificate)
        };
        let signers: Vec<_> = KeyPurpose::ALL.into_iter().zip(3..).map(certified).collect();
        let mut trust = TrustState::new(domain(), vec![root.clone()]);
        for (_, _, certificate) in &signers {
            trust.add_key(certificate).unwrap();
        }
        let mut mesh = Self {
            root,
            intermediate,
            issuer: Issuer::new(params, key),
            signers,
            trust,
            leaf: Vec::new(),
            statement: String::new(),
        };
        mesh.statement = sign_eddsa(mesh.signer(KeyPurpose::Attestation), RESULT_TYP, &claims()).unwrap();
        mesh.leaf = mesh.leaf_with(&octets(mesh.statement.as_bytes()));
        mesh
    }

    pub(crate) fn signer(&self, purpose: KeyPurpose) -> &Signer {
        &self.signers.iter().find(|(of, ..)| *of == purpose).unwrap().1
    }

    /// The certificate of the key for `purpose`.
    pub(crate) fn certificate(&self, purpose: KeyPurpose) -> &[u8] {
        &self.signers.iter().find(|(of, ..)| *of == purpose).unwrap().2
    }

    /// What everybody in the mesh trusts.
    pub(crate) fn trust(&self) -> &TrustState {
        &self.trust
    }

    /// What a sidecar begins with.
    pub(crate) fn origin(&self) -> Origin {
        Origin {
            id: "spiffe://aip.internal/agent/researcher".parse().unwrap(),
            roots: vec![self.root.clone()],
            signing_keys: self
                .signers
                .iter()
                .map(|(_, _, certificate)| certificate.clone())
                .collect(),
        }
    }

    /// A leaf of `researcher` with this content of the extension.
    pub(crate) fn leaf_with(&self, extension: &[u8]) -> Vec<u8> {
        let mut params = named("spiffe://aip.internal/agent/researcher", 99);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.custom_extensions = vec![CustomExtension::from_oid_content(RESULT_OID, extension.to_vec())];
        params.signed_by(&SVID.pair, &self.issuer).unwrap().der().to_vec()
    }

    /// A JWS by the key for `purpose`, over claims as they are.
    pub(crate) fn sign(&self, purpose: KeyPurpose, typ: &str, claims: &[u8]) -> String {
        let signer = self.signer(purpose);
        let message = message("EdDSA", typ, Some(signer.kid()), claims);
        let signature = URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

/// The trust domain.
pub(crate) fn domain() -> TrustDomain {
    "aip.internal".parse().unwrap()
}

/// The agent whose sidecar this is all about.
pub(crate) fn researcher() -> AgentName {
    "researcher".parse().unwrap()
}

/// What the statement in the good leaf claims.
pub(crate) fn claims() -> AttestationResult {
    AttestationResult {
        iss: "spiffe://aip.internal/control-plane".into(),
        sub: "spiffe://aip.internal/agent/researcher".parse().unwrap(),
        iat: NOW,
        exp: NOW + 3600,
        nonce: URL_SAFE_NO_PAD.encode([7; 32]),
        cnf: Confirmation {
            jkt: Digest::sha256(&SVID.spki()),
        },
        owner: "tests".into(),
        labels: [("team".to_owned(), "blue".to_owned())].into(),
        capabilities: vec!["search".into()],
        code: Digest::sha256(b"code"),
        config: None,
        sidecar: Digest::sha256(b"sidecar"),
        attestor: "files".into(),
        assurance: Assurance::Declared,
        enforcement: Enforcement::Cooperative,
        generation: 1,
    }
}

/// A DER OCTET STRING.
pub(crate) fn octets(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x04];
    match content.len() {
        short @ 0..=127 => out.push(short as u8),
        len => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend(content);
    out
}

/// Whether a JWS is what it says by a reader of our own: three parts in the only spelling of base64url, and a signature
/// that `verify` finds good over the first two as they stand.
pub(crate) fn is_signed(token: &str, verify: impl Fn(&[u8], &[u8]) -> bool) -> bool {
    let parts: Vec<&str> = token.split('.').collect();
    let decoded: Vec<_> = parts
        .iter()
        .filter_map(|part| URL_SAFE_NO_PAD.decode(part).ok())
        .collect();
    let canonical = |(part, bytes): (&&str, &Vec<u8>)| URL_SAFE_NO_PAD.encode(bytes) == **part;
    let ([_, _, signature], Some((message, _))) = (decoded.as_slice(), token.rsplit_once('.')) else {
        return false;
    };
    parts.len() == 3 && parts.iter().zip(&decoded).all(canonical) && verify(message.as_bytes(), signature)
}

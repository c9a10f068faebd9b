//! The keys of a mesh of our own, and certificates with every fault that a peer could show.
//!
//! Written against the contract (`docs/architecture.md`, Identity), not with the control plane's code: where both ends
//! shared a mistake, a test of one against the other would not see it.

use aip_api::attestation::{AttestationResult, Confirmation, RESULT_OID, RESULT_TYP};
use aip_api::evidence::{Assurance, Enforcement};
use aip_api::resource::KeyPurpose;
use aip_api::{Digest, TrustDomain};
use aip_runtime::signing::Signer;
use aip_runtime::trust::TrustState;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use time::{Duration, OffsetDateTime};

/// A certificate chain and its key.
pub struct Leaf {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8.
    pub pkcs8: Vec<u8>,
    /// Lower-case hex.
    pub serial: String,
}

/// What is put where the attestation result belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// The right one.
    Good,
    /// None.
    Missing,
    /// One whose claims were changed after it was signed.
    Altered,
    /// A validly signed one, about another key.
    OtherKey,
    /// A validly signed one, about another agent.
    OtherAgent,
    /// Signed by the config key instead of the attestation key.
    WrongPurpose,
}

/// A leaf to be issued.
#[derive(Debug, Clone)]
pub struct LeafSpec {
    pub agent: String,
    pub trust_domain: String,
    /// Seconds from now.
    pub from: i64,
    /// Seconds from now.
    pub until: i64,
    pub generation: u64,
    pub statement: Statement,
}

impl LeafSpec {
    /// A good leaf of `agent`.
    pub fn good(agent: &str) -> Self {
        Self {
            agent: agent.to_owned(),
            trust_domain: "aip.internal".to_owned(),
            from: -60,
            until: 3600,
            generation: 1,
            statement: Statement::Good,
        }
    }
}

/// Root, intermediate and purpose keys.
pub struct Pki {
    pub trust_domain: TrustDomain,
    pub root: Vec<u8>,
    pub intermediate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    /// Purpose keys with their certificates.
    pub keys: Vec<(KeyPurpose, Signer, Vec<u8>)>,
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
    params.distinguished_name.push(rcgen::DnType::CommonName, "test");
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn ed25519_spki(key: &[u8; 32]) -> SubjectPublicKeyInfo {
    // RFC 8410 section 4.
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    SubjectPublicKeyInfo::from_der(&[&prefix[..], key].concat()).unwrap()
}

/// A DER OCTET STRING.
fn octets(content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut out = vec![0x04];
    match len {
        0..=127 => out.push(len as u8),
        128..=255 => out.extend([0x81, len as u8]),
        _ => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    out.extend(content);
    out
}

impl Pki {
    pub fn new(trust_domain: &str) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root_params = ca("test root");
        let root = root_params.self_signed(&root_key).unwrap().der().to_vec();
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate().unwrap();
        let params = ca("test intermediate");
        let intermediate = params.signed_by(&key, &root_issuer).unwrap().der().to_vec();
        let keys = KeyPurpose::ALL
            .into_iter()
            .map(|purpose| {
                let (signer, _) = Signer::generate(purpose).unwrap();
                let params = named(&format!("spiffe://{trust_domain}/key/{}", purpose.as_str()));
                let spki = ed25519_spki(signer.public_key().as_bytes());
                let certificate = params.signed_by(&spki, &root_issuer).unwrap().der().to_vec();
                (purpose, signer, certificate)
            })
            .collect();
        Self {
            trust_domain: trust_domain.parse().unwrap(),
            root,
            intermediate,
            issuer: Issuer::new(params, key),
            keys,
        }
    }

    /// The signer for `purpose`.
    pub fn signer(&self, purpose: KeyPurpose) -> &Signer {
        &self.keys.iter().find(|(p, ..)| *p == purpose).unwrap().1
    }

    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub fn root_digest(&self) -> Digest {
        aip_runtime::x509::spki_digest(&self.root).unwrap()
    }

    /// What a process of this mesh trusts.
    pub fn trust(&self) -> TrustState {
        let mut state = TrustState::new(self.trust_domain.clone(), vec![self.root.clone()]);
        for (_, _, certificate) in &self.keys {
            state.add_key(certificate).unwrap();
        }
        state
    }

    /// The control plane's own server certificate: leaf, intermediate, root.
    pub fn control_plane(&self) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = named(&format!("spiffe://{}/control-plane", self.trust_domain));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Leaf {
            chain: vec![leaf, self.intermediate.clone(), self.root.clone()],
            pkcs8: key.serialize_der(),
            serial: String::new(),
        }
    }

    /// A leaf with its own key.
    pub fn leaf(&self, spec: &LeafSpec) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let (leaf, serial) = self.certify(spec, &key, Digest::sha256(&key.subject_public_key_info()), code());
        Leaf {
            chain: vec![leaf, self.intermediate.clone()],
            pkcs8: key.serialize_der(),
            serial,
        }
    }

    /// A chain for the key of a CSR, as the control plane issues it; and the statement in it.
    pub fn issue(&self, spec: &LeafSpec, spki: &[u8], code: Digest) -> (Vec<Vec<u8>>, String) {
        let key = SubjectPublicKeyInfo::from_der(spki).unwrap();
        let jkt = Digest::sha256(spki);
        let (leaf, _) = self.certify(spec, &key, jkt, code);
        (
            vec![leaf, self.intermediate.clone()],
            self.statement(spec, jkt, code).unwrap_or_default(),
        )
    }

    fn certify(&self, spec: &LeafSpec, key: &impl PublicKeyData, jkt: Digest, code: Digest) -> (Vec<u8>, String) {
        let mut params = named(&format!("spiffe://{}/agent/{}", spec.trust_domain, spec.agent));
        let now = OffsetDateTime::now_utc();
        params.not_before = now + Duration::seconds(spec.from);
        params.not_after = now + Duration::seconds(spec.until);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        // Never a leading zero byte or nibble, so that every notation of it is the same text.
        let mut serial = *uuid::Uuid::now_v7().as_bytes();
        serial[0] = 0x11 + serial[0] % 0x60;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        if let Some(statement) = self.statement(spec, jkt, code) {
            let extension = CustomExtension::from_oid_content(RESULT_OID, octets(statement.as_bytes()));
            params.custom_extensions = vec![extension];
        }
        let leaf = params.signed_by(key, &self.issuer).unwrap().der().to_vec();
        (leaf, hex::encode(serial))
    }

    fn statement(&self, spec: &LeafSpec, jkt: Digest, code: Digest) -> Option<String> {
        let now = aip_runtime::unix_now();
        let about = if spec.statement == Statement::OtherAgent {
            "somebody-else"
        } else {
            &spec.agent
        };
        let claims = AttestationResult {
            iss: format!("spiffe://{}/control-plane", self.trust_domain),
            sub: format!("spiffe://{}/agent/{about}", spec.trust_domain).parse().unwrap(),
            // A certificate begins a minute before it is issued, as the control plane's do.
            iat: now.saturating_add_signed((spec.from + 60).min(0)),
            exp: now.saturating_add_signed(spec.until),
            nonce: URL_SAFE_NO_PAD.encode([7; 32]),
            cnf: Confirmation {
                jkt: if spec.statement == Statement::OtherKey {
                    Digest::sha256(b"another key")
                } else {
                    jkt
                },
            },
            owner: "tests".into(),
            labels: [("team".to_owned(), "blue".to_owned())].into(),
            capabilities: Vec::new(),
            code,
            config: None,
            sidecar: Digest::sha256(b"sidecar"),
            attestor: "files".into(),
            assurance: Assurance::Declared,
            enforcement: Enforcement::Cooperative,
            generation: spec.generation,
        };
        let purpose = match spec.statement {
            Statement::Missing => return None,
            Statement::WrongPurpose => KeyPurpose::Config,
            _ => KeyPurpose::Attestation,
        };
        let token = aip_runtime::jws::sign_eddsa(self.signer(purpose), RESULT_TYP, &claims).unwrap();
        Some(if spec.statement == Statement::Altered {
            altered(&token)
        } else {
            token
        })
    }
}

/// Another owner, under the old signature.
fn altered(token: &str) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(&parts[1]).unwrap()).unwrap();
    let forged = claims.replace(r#""owner":"tests""#, r#""owner":"thief""#);
    assert_ne!(claims, forged);
    parts[1] = URL_SAFE_NO_PAD.encode(forged);
    parts.join(".")
}

fn code() -> Digest {
    Digest::sha256(b"code")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aip_runtime::x509::{IdentityError, PeerIdentity, Usage, peer_identity, verify_chain};
    use rustls_pki_types::{CertificateDer, UnixTime};

    fn check(pki: &Pki, leaf: &Leaf) -> Result<PeerIdentity, IdentityError> {
        let der = |i: usize| CertificateDer::from(leaf.chain[i].clone());
        let state = pki.trust();
        verify_chain(&der(0), &[der(1)], state.roots(), Usage::Client, UnixTime::now())?;
        peer_identity(&leaf.chain[0], &leaf.chain[1], &state, aip_runtime::unix_now())
    }

    /// Each fault is the one it claims to be: the process tests see only a refusal and a counter.
    #[test]
    fn every_fault_is_what_it_says() {
        let (pki, other) = (Pki::new("aip.internal"), Pki::new("aip.internal"));
        let good = LeafSpec::good("caller");
        let leaf = pki.leaf(&good);
        let peer = check(&pki, &leaf).unwrap();
        assert_eq!((peer.id.agent.as_str(), &peer.serial), ("caller", &leaf.serial));
        let statement = |statement| LeafSpec {
            statement,
            ..good.clone()
        };
        for (spec, reason) in [
            (
                LeafSpec {
                    trust_domain: "other.internal".into(),
                    ..good.clone()
                },
                "wrong_trust_domain",
            ),
            (
                LeafSpec {
                    from: -60,
                    until: -1,
                    ..good.clone()
                },
                "certificate_expired",
            ),
            (
                LeafSpec {
                    from: 60,
                    ..good.clone()
                },
                "certificate_not_yet_valid",
            ),
            (statement(Statement::Missing), "attestation_missing"),
            (statement(Statement::Altered), "attestation_invalid"),
            (statement(Statement::OtherAgent), "attestation_invalid"),
            (statement(Statement::WrongPurpose), "attestation_invalid"),
            (statement(Statement::OtherKey), "attestation_key_mismatch"),
        ] {
            assert_eq!(check(&pki, &pki.leaf(&spec)).unwrap_err().reason(), reason, "{spec:?}");
        }
        assert_eq!(check(&pki, &other.leaf(&good)).unwrap_err().reason(), "unknown_issuer");
    }
}

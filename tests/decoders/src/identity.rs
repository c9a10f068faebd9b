//! Who a peer is: statements, certificates, requests for them, evidence and tokens.

use aip_api::attestation::{AttestationResult, MAX_RESULT_BYTES, RESULT_TYP};
use aip_api::evidence::{
    Assurance, EVIDENCE_TYP, Enforcement, Evidence, MAX_FILES, MAX_PATH_BYTES, MAX_RUN_BYTES, MeasuredFile, code_digest,
};
use aip_api::resource::KeyPurpose;
use aip_api::token::JoinToken;
use aip_api::{Digest, SpiffeId};
use aip_control_plane::admin::auth;
use aip_runtime::jws::verify_eddsa;
use aip_runtime::x509::{self, MAX_CSR_BYTES, Usage};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509CertificationRequest};

use crate::mesh::{FRESH, MESH, NOW, SVID, claims, is_signed, octets, researcher};
use crate::split::{first, with};
use crate::{Seeds, text_of};

/// The issuer that admin tokens of the mesh name.
const ISSUER: &str = "spiffe://aip.internal/control-plane";

/// An attestation result. First byte 0: a JWS as it is. Else: claims that the attestation key signs for us.
pub(crate) fn attestation(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    let token = match (mode, std::str::from_utf8(rest)) {
        (0, Ok(text)) => text.to_owned(),
        (0, Err(_)) => return false,
        _ => MESH.sign(KeyPurpose::Attestation, RESULT_TYP, rest),
    };
    let key_of = |kid: &str| MESH.trust().key(KeyPurpose::Attestation, kid);
    let Ok(result) = verify_eddsa::<AttestationResult>(&token, RESULT_TYP, key_of) else {
        return false;
    };
    let key = MESH.signer(KeyPurpose::Attestation).public_key();
    assert!(
        is_signed(&token, |message, signature| key.verify(message, signature)),
        "{token}"
    );
    let again = serde_json::to_vec(&result).unwrap();
    assert_eq!(serde_json::from_slice::<AttestationResult>(&again).unwrap(), result);
    for other in KeyPurpose::ALL
        .into_iter()
        .filter(|other| *other != KeyPurpose::Attestation)
    {
        let of_other = verify_eddsa::<AttestationResult>(&token, RESULT_TYP, |kid| MESH.trust().key(other, kid));
        assert!(of_other.is_err(), "taken for a statement of the {} key", other.as_str());
    }
    true
}

pub(crate) fn attestation_seeds() -> Seeds {
    let good = serde_json::to_vec(&claims()).unwrap();
    vec![
        ("signed", with(0, &MESH.statement)),
        ("claims", with(1, &good)),
        ("other_key", with(0, MESH.sign(KeyPurpose::Config, RESULT_TYP, &good))),
        ("other_type", with(0, MESH.sign(KeyPurpose::Attestation, "jwt", &good))),
        ("es256", with(0, SVID.sign(RESULT_TYP, &good))),
        ("none", with(0, "eyJhbGciOiJub25lIn0.e30.")),
    ]
}

/// What a leaf carries of it, in a certificate that the mesh issued. First byte 0: the whole content of the extension. Else:
/// what is in its OCTET STRING.
pub(crate) fn svid_extension(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    if rest.len() > MAX_RESULT_BYTES + 64 {
        return false;
    }
    let leaf = match mode {
        0 => MESH.leaf_with(rest),
        _ => MESH.leaf_with(&octets(rest)),
    };
    let Ok(peer) = x509::peer_identity(&leaf, &MESH.intermediate, MESH.trust(), NOW) else {
        return false;
    };
    let key = MESH.signer(KeyPurpose::Attestation).public_key();
    assert!(is_signed(&peer.result_jws, |message, signature| key.verify(message, signature)));
    assert_eq!(
        peer.result.cnf.jkt,
        Digest::sha256(&SVID.spki()),
        "it speaks of another key"
    );
    assert_eq!(peer.result.sub, peer.id);
    assert!(peer.result.exp > NOW && peer.result_jws.len() <= MAX_RESULT_BYTES);
    true
}

pub(crate) fn svid_extension_seeds() -> Seeds {
    let other = AttestationResult {
        sub: "spiffe://aip.internal/agent/writer".parse().unwrap(),
        ..claims()
    };
    let other = serde_json::to_vec(&other).unwrap();
    vec![
        ("good", with(1, &MESH.statement)),
        ("whole", with(0, octets(MESH.statement.as_bytes()))),
        ("not_octets", with(0, &MESH.statement)),
        ("empty", with(0, "")),
        (
            "other_agent",
            with(1, MESH.sign(KeyPurpose::Attestation, RESULT_TYP, &other)),
        ),
        (
            "trailing",
            with(0, [octets(MESH.statement.as_bytes()), vec![5, 0]].concat()),
        ),
    ]
}

/// A certificate as a peer shows it, in every place where one is read.
pub(crate) fn svid(bytes: &[u8]) -> bool {
    if let Ok(id) = x509::spiffe_id(bytes) {
        let text = id.to_string();
        let stands = bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(
            stands && text.parse::<SpiffeId>().unwrap() == id,
            "{id} does not stand in it"
        );
    }
    let key = x509::certified_key(bytes, MESH.trust(), NOW);
    assert!(
        key.is_err()
            || KeyPurpose::ALL
                .iter()
                .any(|purpose| bytes == MESH.certificate(*purpose))
    );
    let _ = x509::check_control_plane(bytes, MESH.trust());
    let _ = x509::check_some_control_plane(bytes);
    let chain = [bytes.to_vec(), MESH.intermediate.clone()];
    let der = |i: usize| CertificateDer::from(chain[i].as_slice());
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    let verified = x509::verify_chain(&der(0), &[der(1)], MESH.trust().roots(), Usage::Client, time);
    let signer = x509::svid_signer(&chain, MESH.trust(), NOW);
    let peer = x509::peer_identity(bytes, &MESH.intermediate, MESH.trust(), NOW);
    if verified.is_err() {
        assert!(signer.is_err(), "a signer whose chain does not hold");
        return key.is_ok();
    }
    let ([], parsed) = X509Certificate::from_der(bytes).unwrap_or_else(|e| panic!("webpki reads it, and we: {e}"))
    else {
        panic!("webpki reads it, and we find more behind it");
    };
    let signed_by = |above: &[u8]| {
        let (_, above) = X509Certificate::from_der(above).unwrap();
        parsed.verify_signature(Some(above.public_key())).is_ok()
    };
    assert!(
        signed_by(&MESH.intermediate) || signed_by(&MESH.root),
        "nobody of ours signed it"
    );
    if let (Ok(signer), Ok(peer)) = (signer, peer) {
        assert_eq!((signer.id, signer.serial), (peer.id, peer.serial));
        assert_eq!(signer.point, *peer.point);
    }
    true
}

pub(crate) fn svid_seeds() -> Seeds {
    vec![
        ("leaf", MESH.leaf.clone()),
        ("intermediate", MESH.intermediate.clone()),
        ("root", MESH.root.clone()),
        ("key", MESH.certificate(KeyPurpose::Kill).to_vec()),
        ("no_statement", MESH.leaf_with(&[])),
        ("cut", MESH.leaf[..MESH.leaf.len() - 1].to_vec()),
        ("trailing", [MESH.leaf.as_slice(), &[0]].concat()),
        ("csr", FRESH.csr()),
    ]
}

/// A request for a certificate.
pub(crate) fn csr(bytes: &[u8]) -> bool {
    let Ok(key) = x509::csr_key(bytes) else { return false };
    assert!(bytes.len() <= MAX_CSR_BYTES);
    assert_eq!(
        (key.point.len(), key.point[0], key.jkt),
        (65, 4, Digest::sha256(&key.spki))
    );
    assert!(bytes.windows(key.spki.len()).any(|window| window == key.spki));
    let ([], request) = X509CertificationRequest::from_der(bytes).unwrap() else {
        panic!("something stands behind it");
    };
    assert!(request.verify_signature().is_ok());
    true
}

pub(crate) fn csr_seeds() -> Seeds {
    let mut altered = FRESH.csr();
    *altered.last_mut().unwrap() ^= 1;
    vec![
        ("fresh", FRESH.csr()),
        ("svid", SVID.csr()),
        ("altered", altered),
        ("trailing", [FRESH.csr(), vec![0]].concat()),
        ("certificate", MESH.leaf.clone()),
    ]
}

/// Evidence for a fresh key. First byte 0: a JWS as it is. Else: claims that this key signs.
pub(crate) fn evidence(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    let token = match (mode, std::str::from_utf8(rest)) {
        (0, Ok(text)) => text.to_owned(),
        (0, Err(_)) => return false,
        _ => FRESH.sign(EVIDENCE_TYP, rest),
    };
    let key = x509::csr_key(&FRESH.csr()).unwrap();
    let Ok((nonce, evidence)) = aip_control_plane::reading::evidence(&token, &researcher(), &key, NOW) else {
        return false;
    };
    let point = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point);
    assert!(is_signed(&token, |message, signature| point
        .verify(message, signature)
        .is_ok()));
    assert_eq!(
        URL_SAFE_NO_PAD.encode(nonce),
        evidence.nonce,
        "the nonce that was looked up is another"
    );
    assert_eq!((&evidence.agent, evidence.jkt), (&researcher(), key.jkt));
    assert_eq!(code_digest(&evidence.files).unwrap(), evidence.code);
    assert!(evidence.files.len() <= MAX_FILES && evidence.files.is_sorted_by(|a, b| a.path < b.path));
    let outside =
        |file: &MeasuredFile| file.path.len() > MAX_PATH_BYTES || file.path.split('/').any(|part| part == "..");
    assert!(!evidence.files.iter().any(outside));
    assert!(
        evidence
            .run
            .as_ref()
            .is_none_or(|run| (1..=MAX_RUN_BYTES).contains(&run.len()))
    );
    assert!(evidence.iat.abs_diff(NOW) <= 300);
    let again = serde_json::to_vec(&evidence).unwrap();
    assert_eq!(serde_json::from_slice::<Evidence>(&again).unwrap(), evidence);
    true
}

fn measured() -> Evidence {
    let file = |path: &str| MeasuredFile {
        path: path.into(),
        exec: path.ends_with(".sh"),
        sha256: Digest::sha256(path.as_bytes()),
    };
    let files = vec![file("agent.py"), file("prompts/system.txt"), file("start.sh")];
    Evidence {
        v: 1,
        agent: researcher(),
        nonce: URL_SAFE_NO_PAD.encode([7; 32]),
        jkt: Digest::sha256(&FRESH.spki()),
        attestor: "process".into(),
        assurance: Assurance::Declared,
        code: code_digest(&files).unwrap(),
        files,
        config: None,
        executable: Some(Digest::sha256(b"python3")),
        argv: Some(vec!["python3".into(), "agent.py".into(), "--port={port}".into()]),
        sidecar: Digest::sha256(b"sidecar"),
        enforcement: Enforcement::Cooperative,
        run: Some("018f7c3e-0000-7000-8000-000000000001".into()),
        drifted: None,
        drifted_generation: None,
        iat: NOW,
    }
}

pub(crate) fn evidence_seeds() -> Seeds {
    let json = |evidence: &Evidence| serde_json::to_vec(evidence).unwrap();
    let no_files = Evidence {
        files: Vec::new(),
        code: code_digest(&[]).unwrap(),
        ..measured()
    };
    let drifted = Evidence {
        drifted: Some("run".into()),
        drifted_generation: Some(1),
        argv: None,
        ..measured()
    };
    let late = Evidence {
        iat: NOW - 301,
        ..measured()
    };
    vec![
        ("signed", with(0, FRESH.sign(EVIDENCE_TYP, &json(&measured())))),
        ("claims", with(1, json(&measured()))),
        ("no_files", with(1, json(&no_files))),
        ("drifted", with(1, json(&drifted))),
        ("late", with(1, json(&late))),
        ("other_key", with(0, SVID.sign(EVIDENCE_TYP, &json(&measured())))),
    ]
}

/// A join token.
pub(crate) fn join_token(bytes: &[u8]) -> bool {
    let text = text_of(bytes);
    let Ok(token) = text.parse::<JoinToken>() else {
        return false;
    };
    assert_eq!(token.reveal(), text.trim(), "it has two spellings");
    assert!(token.reveal().parse::<JoinToken>().unwrap() == token);
    assert!(!format!("{token:?}").contains(&URL_SAFE_NO_PAD.encode(token.secret)));
    true
}

pub(crate) fn join_token_seeds() -> Seeds {
    let token = JoinToken {
        id: [7; 12],
        secret: [9; 32],
        root: Digest::sha256(&MESH.root),
    };
    let text = token.reveal();
    vec![
        ("good", text.clone().into_bytes()),
        ("blanks", format!(" {text}\n").into_bytes()),
        ("cut", text[..text.len() - 1].into()),
        ("later_version", text.replacen("aip1", "aip2", 1).into_bytes()),
        ("upper_case", text.to_uppercase().into_bytes()),
    ]
}

/// An admin token. First byte 0: a JWS as it is. Else: claims that the admin key signs.
pub(crate) fn admin_token(bytes: &[u8]) -> bool {
    let (mode, rest) = first(bytes);
    let token = match (mode, std::str::from_utf8(rest)) {
        (0, Ok(text)) => text.to_owned(),
        (0, Err(_)) => return false,
        _ => MESH.sign(KeyPurpose::Admin, auth::TYP, rest),
    };
    let signer = MESH.signer(KeyPurpose::Admin);
    let Ok(claims) = auth::claims(&token, signer, ISSUER) else {
        return false;
    };
    let key = signer.public_key();
    assert!(
        is_signed(&token, |message, signature| key.verify(message, signature)),
        "{token}"
    );
    assert_eq!((claims.aud.as_str(), claims.iss.as_str()), (auth::AUDIENCE, ISSUER));
    assert!(token.len() <= 2_048, "a token of {} bytes", token.len());
    assert!(auth::claims(&token, MESH.signer(KeyPurpose::Config), ISSUER).is_err());
    true
}

pub(crate) fn admin_token_seeds() -> Seeds {
    let claims = |aud: &str| {
        let claims = serde_json::json!({"iss": ISSUER, "sub": "ann", "aud": aud, "jti": "t-1", "iat": NOW,
            "exp": NOW + 60, "role": "operator"});
        claims.to_string().into_bytes()
    };
    let good = claims(auth::AUDIENCE);
    vec![
        ("signed", with(0, MESH.sign(KeyPurpose::Admin, auth::TYP, &good))),
        ("claims", with(1, &good)),
        ("other_audience", with(1, claims("aip-sidecar"))),
        ("other_key", with(0, MESH.sign(KeyPurpose::Config, auth::TYP, &good))),
        (
            "hmac",
            with(0, "eyJhbGciOiJIUzI1NiIsInR5cCI6ImFpcC1hZG1pbitqd3QifQ.e30.AA"),
        ),
    ]
}

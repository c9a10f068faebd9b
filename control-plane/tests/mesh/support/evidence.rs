//! Evidence as a sidecar makes it; the unit tests include this file, too.

use aip_api::Digest;
use aip_api::evidence::{Assurance, EVIDENCE_TYP, Enforcement, Evidence, MeasuredFile, code_digest};
use aip_runtime::svid::PendingKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Evidence of one file.
pub fn evidence(agent: &str, key: &PendingKey, nonce: &[u8], code: &[u8]) -> Evidence {
    let files = vec![MeasuredFile {
        path: "main.py".into(),
        exec: false,
        sha256: Digest::sha256(code),
    }];
    Evidence {
        v: 1,
        agent: agent.parse().unwrap(),
        nonce: URL_SAFE_NO_PAD.encode(nonce),
        jkt: key.key.jkt,
        attestor: "files".into(),
        assurance: Assurance::Declared,
        code: code_digest(&files).unwrap(),
        files,
        config: None,
        executable: None,
        argv: None,
        sidecar: Digest::sha256(b"sidecar"),
        enforcement: Enforcement::Cooperative,
        run: Some("the first run".into()),
        drifted: None,
        drifted_generation: None,
        iat: aip_runtime::unix_now(),
    }
}

/// As the sidecar signs it.
pub fn sign(evidence: &Evidence, key: &PendingKey) -> String {
    aip_runtime::jws::sign_es256(&key.pkcs8, EVIDENCE_TYP, evidence).unwrap()
}

//! What unit tests start from.

use std::sync::Arc;

use aip_api::evidence::{Assurance, EVIDENCE_TYP, Enforcement, Evidence, MeasuredFile, code_digest};
use aip_api::resource::{MeshConfig, MeshMode};
use aip_api::{Digest, TrustDomain};
use aip_runtime::sealing::SealingKey;
use aip_runtime::svid::PendingKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::ca::Ca;
use crate::ca::material::Material;
use crate::clock::Clock;
use crate::registry::{Actor, Registry, keys};
use crate::store::memory::MemoryStore;
use crate::store::{Expect, Store};

pub(crate) struct TestMesh {
    pub(crate) registry: Registry,
    pub(crate) ca: Arc<Ca>,
}

/// A mesh in memory.
pub(crate) async fn mesh(mode: MeshMode) -> TestMesh {
    let trust_domain: TrustDomain = "aip.internal".parse().unwrap();
    let store = Store::new(MemoryStore::default()).unwrap();
    let registry = Registry {
        store,
        clock: Clock::default(),
        mode,
    };
    let material = Material::generate(&trust_domain).unwrap();
    let plain = material.to_bytes().unwrap();
    let ca = Ca::new(trust_domain.clone(), SealingKey::generate().unwrap(), material, vec![]).unwrap();
    let sealed = hex::encode(ca.seal(keys::CA, &plain).unwrap());
    let draft = registry.change(&Actor::control_plane(), "mesh.create", "test");
    let draft = draft.put(keys::CA, &sealed, Expect::Absent);
    draft
        .resource(&MeshConfig::new(trust_domain, mode), Expect::Absent)
        .commit()
        .await
        .unwrap();
    TestMesh {
        registry,
        ca: Arc::new(ca),
    }
}

/// Evidence of one file.
pub(crate) fn evidence(agent: &str, key: &PendingKey, nonce: &[u8], code: &[u8]) -> Evidence {
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
        iat: aip_runtime::unix_now(),
    }
}

/// As the sidecar signs it.
#[allow(dead_code)]
pub(crate) fn signed(evidence: &Evidence, key: &PendingKey) -> String {
    aip_runtime::jws::sign_es256(&key.pkcs8, EVIDENCE_TYP, evidence).unwrap()
}

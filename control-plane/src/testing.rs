//! What unit tests start from.

use std::collections::BTreeMap;
use std::sync::Arc;

use aip_api::attestation::{AttestationResult, Confirmation};
use aip_api::evidence::{Assurance, Enforcement};
use aip_api::resource::{MeshConfig, MeshMode};
use aip_api::{Digest, TrustDomain};
use aip_runtime::sealing::SealingKey;
use aip_runtime::x509::PeerIdentity;

use crate::ca::Ca;
use crate::ca::material::Material;
use crate::clock::Clock;
use crate::registry::{Actor, Registry, keys};
use crate::store::memory::MemoryStore;
use crate::store::{Expect, Store};

// What the tests of the whole process start from, too.
#[allow(dead_code, unreachable_pub)]
#[path = "../tests/mesh/support/evidence.rs"]
mod shared;

pub(crate) use shared::evidence;

pub(crate) struct TestMesh {
    pub(crate) registry: Registry,
    pub(crate) ca: Arc<Ca>,
}

/// A mesh in memory.
pub(crate) async fn mesh(mode: MeshMode) -> TestMesh {
    mesh_in(Store::new(MemoryStore::default()).unwrap(), mode).await
}

/// A mesh in an empty store.
pub(crate) async fn mesh_in(store: Store, mode: MeshMode) -> TestMesh {
    let trust_domain: TrustDomain = "aip.internal".parse().unwrap();
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

/// When no SVID of a test ends.
const NOT_AFTER: u64 = u64::MAX / 2;

/// A peer that showed this SVID.
pub(crate) fn peer(agent: &str, serial: &str) -> PeerIdentity {
    let id: aip_api::SpiffeId = format!("spiffe://aip.internal/agent/{agent}").parse().unwrap();
    let digest = Digest::sha256(serial.as_bytes());
    let result = AttestationResult {
        iss: String::new(),
        sub: id.clone(),
        iat: 0,
        exp: NOT_AFTER,
        nonce: String::new(),
        cnf: Confirmation { jkt: digest },
        owner: String::new(),
        labels: BTreeMap::new(),
        capabilities: Vec::new(),
        code: digest,
        config: None,
        sidecar: digest,
        attestor: "files".into(),
        assurance: Assurance::Declared,
        enforcement: Enforcement::Cooperative,
        generation: 1,
    };
    PeerIdentity {
        id,
        result: Arc::new(result),
        result_jws: "".into(),
        serial: serial.into(),
        issuer: digest,
        not_before: 0,
        not_after: NOT_AFTER,
        jkt: digest,
        point: Arc::from([].as_slice()),
    }
}

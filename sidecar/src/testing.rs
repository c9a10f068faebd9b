//! What unit tests start from: the keys of a mesh, and what they sign.

use aip_api::kill::{Heartbeat, KillSet, Mode, Order, Scope};
use aip_api::resource::{KeyPurpose, Kind};
use aip_api::wire;
use aip_runtime::kill::{sign_heartbeat, sign_set};
use aip_runtime::signed;
use aip_runtime::signing::Signer;
use aip_runtime::trust::TrustState;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};

use crate::mesh::world::Origin;

/// A root, a key that it certified for each purpose, and a sidecar of the agent `me` that knows them.
pub(crate) struct Keys {
    signers: Vec<(KeyPurpose, Signer)>,
    pub(crate) origin: Origin,
}

impl Keys {
    /// Those of a new mesh.
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        let certified = |purpose: KeyPurpose| {
            let (signer, _) = Signer::generate(purpose).unwrap();
            let certificate = certify(&issuer, purpose, &signer);
            ((purpose, signer), certificate)
        };
        let (signers, signing_keys) = KeyPurpose::ALL.into_iter().map(certified).unzip();
        let origin = Origin {
            id: "spiffe://aip.internal/agent/me".parse().unwrap(),
            roots: vec![root],
            signing_keys,
        };
        Self { signers, origin }
    }

    /// The key for this purpose.
    pub(crate) fn signer(&self, purpose: KeyPurpose) -> &Signer {
        let found = self.signers.iter().find(|(of, _)| *of == purpose);
        &found.unwrap().1
    }

    /// What the sidecar trusts.
    pub(crate) fn trust(&self) -> TrustState {
        self.origin.trust()
    }

    /// As the control plane signs a set.
    pub(crate) fn set(&self, set: &KillSet) -> wire::SignedKillSet {
        sign_set(self.signer(KeyPurpose::Kill), serde_json::to_vec(set).unwrap())
    }

    /// As the control plane signs a heartbeat.
    pub(crate) fn heartbeat(&self, heartbeat: &Heartbeat) -> wire::SignedHeartbeat {
        let payload = serde_json::to_vec(heartbeat).unwrap();
        sign_heartbeat(self.signer(KeyPurpose::Kill), payload)
    }

    /// As the control plane signs a resource.
    pub(crate) fn resource(&self, kind: Kind, name: &str, revision: u64, payload: Vec<u8>) -> wire::Resource {
        signed::sign(self.signer(KeyPurpose::Config), kind, name, revision, false, payload)
    }

    /// As the control plane says that a resource is gone.
    pub(crate) fn gone(&self, kind: Kind, name: &str, revision: u64) -> wire::Resource {
        let config = self.signer(KeyPurpose::Config);
        signed::sign(config, kind, name, revision, true, Vec::new())
    }
}

fn certify(issuer: &Issuer<'_, KeyPair>, purpose: KeyPurpose, signer: &Signer) -> Vec<u8> {
    // RFC 8410 section 4.
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let spki = [&prefix[..], signer.public_key().as_bytes()].concat();
    let mut params = CertificateParams::default();
    let name = format!("spiffe://aip.internal/key/{}", purpose.as_str());
    params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
    let spki = SubjectPublicKeyInfo::from_der(&spki).unwrap();
    params.signed_by(&spki, issuer).unwrap().der().to_vec()
}

/// An order to kill this agent; its number is its id.
pub(crate) fn order(n: u64, agent: &str) -> Order {
    Order {
        id: format!("00000000-0000-7000-8000-{n:012x}"),
        scope: Scope::Agent {
            agent: agent.parse().unwrap(),
        },
        mode: Mode::Kill,
        reason: "a test".into(),
        issued_by: vec!["ann".into()],
        issued_at: 1,
        expires: None,
    }
}

/// A set with orders to kill these agents.
pub(crate) fn kill_set(term: u64, epoch: u64, agents: &[&str]) -> KillSet {
    let orders = agents.iter().zip(1..).map(|(agent, n)| order(n, agent));
    KillSet {
        epoch,
        orders: orders.collect(),
        ..KillSet::empty("aip.internal".parse().unwrap(), term, 1)
    }
}

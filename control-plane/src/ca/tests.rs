use super::*;
use crate::testing;
use aip_api::resource::Agent;
use aip_runtime::svid::{PendingKey, Svid};
use aip_runtime::x509::{Usage, verify_chain};

fn ca() -> Ca {
    let trust_domain: TrustDomain = "aip.internal".parse().unwrap();
    let material = Material::generate(&trust_domain).unwrap();
    Ca::new(trust_domain, SealingKey::generate().unwrap(), material, vec![]).unwrap()
}

#[test]
fn an_svid_is_what_a_peer_accepts() {
    let ca = ca();
    let agent = Agent {
        owner: "ops".into(),
        generation: 3,
        ..Agent::new("planner".parse().unwrap())
    };
    let key = PendingKey::generate().unwrap();
    let evidence = testing::evidence("planner", &key, &[1; 32], b"code");
    let issued = ca.issue(&agent, &key.key, &evidence, 600).unwrap();
    let svid = Svid::assemble(key.pkcs8, issued.chain.clone(), &ca.trust().unwrap()).unwrap();
    assert_eq!(svid.id().to_string(), "spiffe://aip.internal/agent/planner");
    assert_eq!(svid.result().generation, 3);
    assert_eq!(svid.result().owner, "ops");
    assert_eq!(svid.result().exp, issued.not_after);
    assert_eq!(svid.identity.serial, issued.serial);
    assert_eq!(svid.identity.issuer, issued.issuer);
    assert_eq!(
        svid.identity.not_after - svid.identity.not_before,
        660,
        "backdated by a minute"
    );
    let parsed = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap().1;
    assert!(!parsed.is_ca());
    let usage = parsed.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let extended = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(issued.serial.len() >= 32, "at least 128 bits");
}

#[test]
fn every_purpose_has_its_own_certified_key() {
    let ca = ca();
    let state = ca.trust().unwrap();
    for purpose in KeyPurpose::ALL {
        let kid = ca.signer(purpose).kid().to_owned();
        for other in KeyPurpose::ALL {
            assert_eq!(state.key(other, &kid).is_some(), other == purpose, "{kid} as {other:?}");
        }
    }
    let (bundle, keys) = ca.resources();
    use aip_api::resource::Resource as _;
    assert!(bundle.validate().is_empty() && keys.iter().all(|k| k.validate().is_empty()));
}

#[test]
fn sealed_material_opens_to_the_same_ca() {
    let trust_domain: TrustDomain = "aip.internal".parse().unwrap();
    let material = Material::generate(&trust_domain).unwrap();
    let again = Material::from_bytes(&material.to_bytes().unwrap()).unwrap();
    assert_eq!(again.root_digest, material.root_digest);
    assert_eq!(again.secrets(), material.secrets());
    assert!(Material::from_bytes(b"{}").is_err());
}

#[tokio::test]
async fn after_a_rotation_the_ready_slot_signs_and_old_svids_stay_good() {
    let mesh = testing::mesh(aip_api::resource::MeshMode::Dev).await;
    let (ca, registry) = (&mesh.ca, &mesh.registry);
    let [signs, ready] = ca.intermediates();
    let agent = Agent::new("planner".parse().unwrap());
    let issue = || {
        let key = PendingKey::generate().unwrap();
        let evidence = testing::evidence("planner", &key, &[1; 32], b"code");
        ca.issue(&agent, &key.key, &evidence, 600).unwrap().chain
    };
    let before = issue();
    assert_eq!(before[1], signs);
    ca.rotate(registry, &Actor::control_plane()).await.unwrap();
    assert_eq!(ca.intermediates()[0], ready);
    assert!(
        ![&signs, &ready].contains(&&ca.intermediates()[1]),
        "a fresh one is ready"
    );
    let after = issue();
    assert_eq!(after[1], ready);
    let now = rustls_pki_types::UnixTime::now();
    for chain in [before, after] {
        let der = |b: &Vec<u8>| rustls_pki_types::CertificateDer::from(b.clone());
        verify_chain(&der(&chain[0]), &[der(&chain[1])], &ca.roots(), Usage::Client, now).unwrap();
    }
    // What signs now is what a restart finds.
    let sealed: String = registry.record(keys::CA).await.unwrap().unwrap().value;
    let opened = mesh.ca.sealing.open(keys::CA, &hex::decode(sealed).unwrap()).unwrap();
    assert_eq!(Material::from_bytes(&opened).unwrap().current().certificate, ready);
}

//! Orders to stop: sets and heartbeats as they are signed, and as a sidecar keeps them.

use std::cell::RefCell;

use aip_api::kill::{
    Heartbeat, KillSet, Lease, MAX_HEARTBEAT_BYTES, MAX_KILL_SET_BYTES, MAX_LEASE_SECONDS, MAX_ORDERS,
    MAX_REASON_BYTES, MIN_LEASE_SECONDS, Mode, Order, Scope, heartbeat_signing_bytes, set_signing_bytes,
};
use aip_api::resource::KeyPurpose;
use aip_api::wire::{SignedHeartbeat, SignedKillSet};
use aip_runtime::kill::{open_heartbeat, open_set, sign_heartbeat, sign_set};
use aip_sidecar::kill::disk::Disk;
use serde_json::json;
use tempfile::TempDir;

use crate::mesh::{MESH, NOW, domain};
use crate::split::{first, with};
use crate::{Seeds, in_memory};

/// A set (first byte 0) or a heartbeat that the kill key signs for us.
pub(crate) fn kill_set(bytes: &[u8]) -> bool {
    let (which, payload) = first(bytes);
    let (kill, config) = (MESH.signer(KeyPurpose::Kill), MESH.signer(KeyPurpose::Config));
    if which == 0 {
        let signed = sign_set(kill, payload.to_vec());
        assert!(
            open_set(MESH.trust(), &sign_set(config, payload.to_vec())).is_err(),
            "signed by the config key"
        );
        let other = SignedKillSet {
            payload: [payload, b" "].concat(),
            ..signed.clone()
        };
        assert!(
            open_set(MESH.trust(), &other).is_err(),
            "one byte more under the same signature"
        );
        return is_set(&signed);
    }
    let signed = sign_heartbeat(kill, payload.to_vec());
    assert!(open_heartbeat(MESH.trust(), &sign_heartbeat(config, payload.to_vec())).is_err());
    let as_set = SignedKillSet {
        payload: signed.payload.clone(),
        kid: signed.kid.clone(),
        signature: signed.signature.clone(),
    };
    assert!(
        open_set(MESH.trust(), &as_set).is_err(),
        "a heartbeat is taken for a set"
    );
    is_heartbeat(&signed)
}

/// Whether it opens, and then is all that a set must be.
pub(crate) fn is_set(signed: &SignedKillSet) -> bool {
    let Ok(set) = open_set(MESH.trust(), signed) else {
        return false;
    };
    let key = MESH.signer(KeyPurpose::Kill).public_key();
    assert!(key.verify(&set_signing_bytes(&signed.payload), &signed.signature));
    assert!(signed.payload.len() <= MAX_KILL_SET_BYTES && set.orders.len() <= MAX_ORDERS);
    assert!(set.v == 1 && set.trust_domain == domain());
    for order in &set.orders {
        assert!(order.reason.len() <= MAX_REASON_BYTES && order.id.len() >= 32);
        assert!(order.mode == Mode::Pause || order.expires.is_none() && order.in_force(u64::MAX));
    }
    let again = serde_json::to_vec(&set).unwrap();
    assert_eq!(serde_json::from_slice::<KillSet>(&again).unwrap(), set);
    true
}

/// Whether it opens, and then is all that a heartbeat must be.
pub(crate) fn is_heartbeat(signed: &SignedHeartbeat) -> bool {
    let Ok(beat) = open_heartbeat(MESH.trust(), signed) else {
        return false;
    };
    let key = MESH.signer(KeyPurpose::Kill).public_key();
    assert!(key.verify(&heartbeat_signing_bytes(&signed.payload), &signed.signature));
    assert!(signed.payload.len() <= MAX_HEARTBEAT_BYTES && beat.v == 1 && beat.trust_domain == domain());
    assert!((MIN_LEASE_SECONDS..=MAX_LEASE_SECONDS).contains(&beat.lease.seconds));
    true
}

fn set() -> KillSet {
    let order = |n: u64, scope: Scope, mode: Mode| Order {
        id: format!("00000000-0000-7000-8000-{n:012x}"),
        scope,
        mode,
        reason: "a test".into(),
        issued_by: vec!["ann".into()],
        issued_at: NOW,
        expires: (mode == Mode::Pause).then_some(NOW + 60),
    };
    let name = |name: &str| name.parse().unwrap();
    let pair = Scope::Pair {
        source: name("writer"),
        destination: name("editor"),
    };
    let tool = Scope::Tool {
        agent: None,
        tool: "pay".into(),
    };
    let labels = Scope::Selector {
        labels: [("team".to_owned(), "blue".to_owned())].into(),
    };
    KillSet {
        epoch: 4,
        orders: vec![
            order(1, Scope::Mesh {}, Mode::Pause),
            order(2, Scope::Agent { agent: name("writer") }, Mode::Kill),
            order(3, pair, Mode::Pause),
            order(4, tool, Mode::Kill),
            order(5, labels, Mode::Kill),
        ],
        ..KillSet::empty(domain(), 1, NOW)
    }
}

fn heartbeat() -> Vec<u8> {
    let beat = Heartbeat {
        v: 1,
        trust_domain: domain(),
        term: 1,
        epoch: 4,
        at: NOW,
        instance: "018f7c3e-0000-7000-8000-000000000001".into(),
        sequence: 7,
        lease: Lease::default(),
    };
    serde_json::to_vec(&beat).unwrap()
}

/// A set as it travels.
pub(crate) fn signed_set() -> SignedKillSet {
    sign_set(MESH.signer(KeyPurpose::Kill), serde_json::to_vec(&set()).unwrap())
}

pub(crate) fn kill_set_seeds() -> Seeds {
    let text = serde_json::to_string(&set()).unwrap();
    let empty = serde_json::to_vec(&KillSet::empty(domain(), 1, NOW)).unwrap();
    vec![
        ("orders", with(0, &text)),
        ("empty", with(0, empty)),
        ("heartbeat", with(1, heartbeat())),
        ("other_mesh", with(0, text.replace("aip.internal", "other.internal"))),
        ("twice_the_id", with(0, text.replace("000000000002", "000000000001"))),
        ("kill_that_ends", with(0, text.replace("pause", "kill"))),
        ("later_version", with(0, text.replacen("\"v\":1", "\"v\":2", 1))),
        (
            "no_lease",
            with(1, String::from_utf8(heartbeat()).unwrap().replace("30", "0")),
        ),
    ]
}

thread_local! {
    static DATA: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// The file in which a sidecar keeps its set.
pub(crate) fn kill_file(bytes: &[u8]) -> bool {
    DATA.with_borrow_mut(|data| {
        let dir = data.get_or_insert_with(in_memory).path();
        std::fs::write(dir.join("kill.json"), bytes).unwrap();
        let disk = Disk::new(dir);
        let Ok((held, granted)) = disk.load(MESH.trust()) else {
            return false;
        };
        assert!(is_set(&held.signed), "a set is held that nobody signed");
        assert_eq!(open_set(MESH.trust(), &held.signed).unwrap(), held.set);
        if let Some(granted) = &granted {
            assert!(is_heartbeat(&granted.signed), "a lease is held that nobody granted");
        }
        disk.store(&held.signed, granted.as_ref().map(|granted| &granted.signed))
            .unwrap();
        let (again, lease) = disk.load(MESH.trust()).unwrap();
        assert!(again.set == held.set && again.signed == held.signed && lease == granted);
        true
    })
}

pub(crate) fn kill_file_seeds() -> Seeds {
    let document = |payload: &[u8], kid: &str, signature: &[u8]| json!({"payload": std::str::from_utf8(payload).unwrap(), "kid": kid, "signature": hex::encode(signature)});
    let (set, beat) = (signed_set(), sign_heartbeat(MESH.signer(KeyPurpose::Kill), heartbeat()));
    let set = document(&set.payload, &set.kid, &set.signature);
    let beat = document(&beat.payload, &beat.kid, &beat.signature);
    let file = |set: &serde_json::Value, beat: serde_json::Value| {
        json!({"v": 1, "set": set, "heartbeat": beat}).to_string().into_bytes()
    };
    let mut altered = set.clone();
    altered["payload"] = altered["payload"].as_str().unwrap().replace("writer", "editor").into();
    vec![
        ("set", file(&set, serde_json::Value::Null)),
        ("with_lease", file(&set, beat.clone())),
        ("lease_for_set", file(&beat, set.clone())),
        ("altered", file(&altered, beat)),
        ("cut", b"{\"v\":1,\"set\":{".to_vec()),
    ]
}

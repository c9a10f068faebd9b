//! Every set that a sidecar could be sent and must not take, with real signatures.

use aip_api::kill::{MAX_KILL_SET_BYTES, MAX_ORDERS, heartbeat_signing_bytes, set_signing_bytes};
use aip_api::resource::KeyPurpose;
use aip_runtime::kill::sign_set;
use aip_runtime::signing::Signer;

use super::*;
use crate::testing::{Keys, kill_set, order};

/// What holds in these tests: (2, 5), with `ann` killed.
fn held(keys: &Keys) -> Hold {
    let set = kill_set(2, 5, &["ann"]);
    let signed = keys.set(&set);
    Hold::of(Held { set, signed })
}

/// A set above it that lifts its order: what somebody who wants `ann` to go on would send.
fn lifting() -> KillSet {
    kill_set(9, 9, &[])
}

fn by(signer: &Signer, bytes: &[u8], payload: &[u8], kid: &str) -> SignedKillSet {
    SignedKillSet {
        payload: payload.to_vec(),
        kid: kid.to_owned(),
        signature: signer.sign(bytes).to_vec(),
    }
}

/// A set, what it is, and why it is not taken.
type Forged = (&'static str, SignedKillSet, &'static str);

/// Sets that were changed after they were signed.
fn altered(keys: &Keys) -> Vec<Forged> {
    let good = keys.set(&lifting());
    let with = |signature: Vec<u8>| SignedKillSet {
        signature,
        ..good.clone()
    };
    let taken_out = SignedKillSet {
        payload: good.payload.clone(),
        ..keys.set(&kill_set(9, 9, &["ann"]))
    };
    let mut flipped = good.signature.clone();
    flipped[40] ^= 1;
    let (cut, longer) = (good.signature[..63].to_vec(), [&good.signature[..], &[0]].concat());
    vec![
        ("an order taken out of it", taken_out, "bad_signature"),
        ("a bit of the signature flipped", with(flipped), "bad_signature"),
        ("no signature", with(Vec::new()), "bad_signature"),
        ("a signature cut", with(cut), "bad_signature"),
        ("a longer signature", with(longer), "bad_signature"),
    ]
}

/// Sets that were signed by another key, or as something else.
fn signed_otherwise(keys: &Keys) -> Vec<Forged> {
    let payload = serde_json::to_vec(&lifting()).unwrap();
    let label = set_signing_bytes(&payload);
    let (kill, config) = (keys.signer(KeyPurpose::Kill), keys.signer(KeyPurpose::Config));
    let other = Keys::new();
    let others = other.signer(KeyPurpose::Kill);
    let (stranger, pkcs8) = Signer::generate(KeyPurpose::Kill).unwrap();
    // The same key under the name of another purpose, as if it were certified for it.
    let renamed = Signer::from_pkcs8(KeyPurpose::Config, &pkcs8).unwrap();
    let signed = |signer: &Signer, kid: &str| by(signer, &label, &payload, kid);
    let as_a_heartbeat = by(kill, &heartbeat_signing_bytes(&payload), &payload, kill.kid());
    let unlabelled = by(kill, &payload, &payload, kill.kid());
    let large = sign_set(kill, vec![b' '; MAX_KILL_SET_BYTES + 1]);
    vec![
        ("another mesh's", signed(others, others.kid()), "unknown_key"),
        ("another mesh's, as ours", signed(others, kill.kid()), "bad_signature"),
        ("nobody's", signed(&stranger, stranger.kid()), "unknown_key"),
        ("nobody's, renamed", signed(&renamed, renamed.kid()), "unknown_key"),
        ("the config key's", signed(config, config.kid()), "unknown_key"),
        (
            "the config key's, as the kill key's",
            signed(config, kill.kid()),
            "bad_signature",
        ),
        ("for a heartbeat", as_a_heartbeat, "bad_signature"),
        ("without a label", unlabelled, "bad_signature"),
        ("more than one can have", large, "oversized"),
    ]
}

#[test]
fn what_no_kill_key_of_this_mesh_signed_as_a_set_is_not_taken() {
    let keys = Keys::new();
    let trust = keys.trust();
    for (what, signed, reason) in altered(&keys).into_iter().chain(signed_otherwise(&keys)) {
        for hold in [Hold::default(), held(&keys)] {
            let refused = hold.consider(&trust, &signed).expect_err(what);
            assert_eq!(refused.reason(), reason, "{what}");
            assert!(
                !refused.shows_held(),
                "{what}: whoever lies learns nothing of what is held"
            );
        }
    }
    let taken = held(&keys).consider(&trust, &keys.set(&lifting()));
    assert_eq!(taken, Ok(Considered::Higher(lifting())), "the same, signed well");
}

/// A signature is no excuse: what makes no sense, or is meant for another mesh, is not taken either.
#[test]
fn what_is_signed_and_no_set_of_this_mesh_is_not_taken() {
    let keys = Keys::new();
    let kill = keys.signer(KeyPurpose::Kill);
    let json = |change: fn(&mut serde_json::Value)| {
        let mut document = serde_json::to_value(lifting()).unwrap();
        change(&mut document);
        serde_json::to_vec(&document).unwrap()
    };
    let of = |set: &KillSet| serde_json::to_vec(set).unwrap();
    let with = |orders: Vec<_>| KillSet { orders, ..lifting() };
    let mut ending = order(1, "ann");
    ending.expires = Some(1);
    let too_many = (0..=MAX_ORDERS as u64).map(|n| order(n, "ann")).collect();
    for (payload, reason) in [
        (json(|set| set["trust_domain"] = "other.internal".into()), "other_mesh"),
        (json(|set| set["v"] = 2.into()), "malformed"),
        (json(|set| set["lifts"] = "all".into()), "malformed"),
        (json(|set| set["epoch"] = (-1).into()), "malformed"),
        (
            json(|set| drop(set.as_object_mut().unwrap().remove("term"))),
            "malformed",
        ),
        (of(&with(vec![order(1, "ann"), order(1, "bob")])), "malformed"),
        (of(&with(vec![ending])), "malformed"),
        (of(&with(too_many)), "malformed"),
        (b"[]".to_vec(), "malformed"),
        (b"\xff\xfe".to_vec(), "malformed"),
        (Vec::new(), "malformed"),
    ] {
        let shown = String::from_utf8_lossy(&payload[..payload.len().min(80)]).into_owned();
        let signed = sign_set(kill, payload);
        let refused = held(&keys).consider(&keys.trust(), &signed).expect_err(&shown);
        assert_eq!(refused.reason(), reason, "{shown}");
    }
}

#[test]
fn a_set_that_was_good_once_is_not_taken_again() {
    let keys = Keys::new();
    let (hold, trust) = (held(&keys), keys.trust());
    for (term, epoch) in [(2, 4), (2, 0), (1, 5), (1, 99), (0, u64::MAX)] {
        let refused = hold.consider(&trust, &keys.set(&kill_set(term, epoch, &[])));
        assert_eq!(refused, Err(NotTaken::Stale(term, epoch, 2, 5)));
        assert!(refused.unwrap_err().shows_held(), "a restored control plane is told");
    }
    let fork = hold.consider(&trust, &keys.set(&kill_set(2, 5, &[])));
    assert_eq!(fork, Err(NotTaken::Fork(2, 5)));
    assert!(fork.unwrap_err().shows_held());
    for (term, epoch) in [(2, 6), (3, 0), (u64::MAX, 0)] {
        let set = kill_set(term, epoch, &[]);
        let taken = hold.consider(&trust, &keys.set(&set));
        assert_eq!(taken, Ok(Considered::Higher(set)));
    }
    let same = hold.consider(&trust, &keys.set(&kill_set(2, 5, &["ann"])));
    assert_eq!(same, Ok(Considered::Same));
}

/// A key that this sidecar does not trust any more signs nothing, also nothing that is higher.
#[test]
fn a_key_that_is_not_certified_any_more_signs_nothing() {
    let keys = Keys::new();
    let mut origin = keys.origin.clone();
    origin.signing_keys.clear();
    let refused = held(&keys).consider(&origin.trust(), &keys.set(&lifting()));
    assert_eq!(refused.unwrap_err().reason(), "unknown_key");
}

//! A control plane that has the mesh's TLS and not its keys, or uses one key for another's work: what it orders is not
//! taken, and the sidecar goes on as before. What it pushes as configuration is in `policy_push`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_api::kill::MAX_KILL_SET_BYTES;
use aip_api::resource::KeyPurpose;
use aip_api::wire::kill_response::Message as Answer;
use aip_api::wire::{SignedHeartbeat, SignedKillSet};
use aip_runtime::kill::{sign_heartbeat, sign_set};
use aip_tests::agent::Agent;
use aip_tests::pki::{LeafSpec, Pki};
use aip_tests::process::Sidecar;
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use aip_tests::wire::{self, Outcome};
use serde_json::{Value, json};

/// A set that would stop the whole mesh.
fn stops_all(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut set = json!({
        "v": 1, "trust_domain": "aip.internal", "term": 7, "epoch": 7, "issued_at": aip_runtime::unix_now(),
        "orders": [{
            "id": "0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42", "scope": {"kind": "mesh"}, "mode": "kill", "reason": "hostile",
            "issued_by": ["admin:nobody"], "issued_at": aip_runtime::unix_now(),
        }],
    });
    change(&mut set);
    set.to_string().into_bytes()
}

/// Sets that nobody may order by, each with the reason of its refusal.
fn hostile_sets(pki: &Pki) -> Vec<(&'static str, SignedKillSet)> {
    let kill = pki.signer(KeyPurpose::Kill);
    let good = sign_set(kill, stops_all(|_| {}));
    let mut all: Vec<_> = [
        KeyPurpose::Config,
        KeyPurpose::Attestation,
        KeyPurpose::Audit,
        KeyPurpose::Admin,
    ]
    .into_iter()
    .map(|purpose| ("unknown_key", sign_set(pki.signer(purpose), stops_all(|_| {}))))
    .collect();
    let stranger = Pki::new("aip.internal");
    let by_stranger = sign_set(stranger.signer(KeyPurpose::Kill), stops_all(|_| {}));
    let mut borrowed = by_stranger.clone();
    borrowed.kid = kill.kid().to_owned();
    let mut flipped = good.clone();
    flipped.signature[7] ^= 1;
    let mut altered = good.clone();
    altered.payload = stops_all(|set| set["epoch"] = 8.into());
    let mut unsigned = good;
    unsigned.signature.clear();
    // What the kill key signed as a heartbeat is no order.
    let beat = sign_heartbeat(kill, stops_all(|_| {}));
    let as_beat = SignedKillSet {
        payload: beat.payload,
        kid: beat.kid,
        signature: beat.signature,
    };
    all.extend([
        ("unknown_key", by_stranger),
        ("bad_signature", borrowed),
        ("bad_signature", flipped),
        ("bad_signature", altered),
        ("bad_signature", unsigned),
        ("bad_signature", as_beat),
        (
            "other_mesh",
            sign_set(kill, stops_all(|set| set["trust_domain"] = "other.internal".into())),
        ),
        ("malformed", sign_set(kill, b"{".to_vec())),
        ("malformed", sign_set(kill, stops_all(|set| set["v"] = 2.into()))),
        (
            "malformed",
            sign_set(kill, stops_all(|set| set["orders"][0]["scope"]["kind"] = "all".into())),
        ),
        ("oversized", sign_set(kill, vec![b' '; MAX_KILL_SET_BYTES + 1])),
        ("stale", sign_set(kill, stops_all(|set| set["term"] = 0.into()))),
        (
            "fork",
            sign_set(
                kill,
                stops_all(|set| (set["term"], set["epoch"]) = (1.into(), 0.into())),
            ),
        ),
    ]);
    all
}

async fn served(scripted: &Scripted, sidecar: &Sidecar) -> bool {
    let good = scripted.with_pki(|pki| pki.leaf(&LeafSpec::good("caller")));
    wire::attempt(sidecar.inbound, Some(&good)).await == Outcome::Served
}

async fn counted(sidecar: &Sidecar, metric: &str, reason: &str) -> f64 {
    sidecar.metric(metric, &[&format!("reason=\"{reason}\"")]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_no_kill_key_of_the_mesh_signed_as_such_stop_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let scripted = Scripted::start();
    let sidecar = scripted.sidecar("callee", Agent::start().address, dir.path()).await;
    assert!(served(&scripted, &sidecar).await);
    let hostile = scripted.with_pki(hostile_sets);
    for (at, (reason, set)) in hostile.into_iter().enumerate() {
        let metric = "aip_kill_sets_rejected_total";
        let (acks, before) = (scripted.kill_acks().len(), counted(&sidecar, metric, reason).await);
        scripted.say_of_kills(Answer::KillSet(set)).await;
        let ack = wait::until(&format!("the answer to {at}, {reason}"), async || {
            scripted.kill_acks().get(acks).cloned()
        })
        .await;
        assert_eq!(ack.rejected, reason, "{at}: {}", ack.detail);
        assert!(!ack.detail.is_empty(), "{at}: it says why");
        assert_eq!((ack.connections_cut, ack.streams_cut), (0, 0), "{at}");
        let after = counted(&sidecar, metric, reason).await;
        assert!(after > before, "{at}: {reason} is counted");
        assert!(served(&scripted, &sidecar).await, "served after {at}, {reason}");
        let held = sidecar.look("/kill").await.json();
        assert_eq!(held["orders"], json!([]), "{at}: {held}");
    }
    // The same order by the right key is obeyed: it was the signatures that were looked at.
    let good = scripted.with_pki(|pki| sign_set(pki.signer(KeyPurpose::Kill), stops_all(|_| {})));
    scripted.say_of_kills(Answer::KillSet(good)).await;
    wait::until_ok("the order is obeyed", async || {
        let held = sidecar.look("/kill").await.json();
        let obeyed = held["orders"].as_array().is_some_and(|orders| orders.len() == 1);
        obeyed.then_some(()).ok_or_else(|| held.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_that_answers_no_question_grants_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let scripted = Scripted::start();
    let sidecar = scripted.sidecar("callee", Agent::start().address, dir.path()).await;
    let beat = |purpose: KeyPurpose, change: &dyn Fn(&mut Value)| {
        let mut beat = json!({
            "v": 1, "trust_domain": "aip.internal", "term": 1, "epoch": 0, "at": aip_runtime::unix_now(),
            "instance": "0198f2f0-7d2b-7c3e-8a11-3b7d5b1f0a42", "sequence": 1,
            "lease": {"seconds": 86_400, "on_lost": "continue"},
        });
        change(&mut beat);
        scripted.with_pki(|pki| sign_heartbeat(pki.signer(purpose), beat.to_string().into_bytes()))
    };
    let mut flipped = beat(KeyPurpose::Kill, &|_| {});
    flipped.signature[0] ^= 1;
    let set = scripted.with_pki(|pki| sign_set(pki.signer(KeyPurpose::Kill), b"{}".to_vec()));
    let as_set = SignedHeartbeat {
        payload: set.payload,
        kid: set.kid,
        signature: set.signature,
    };
    for (reason, beat) in [
        ("unknown_key", beat(KeyPurpose::Config, &|_| {})),
        ("bad_signature", flipped),
        ("bad_signature", as_set),
        (
            "other_mesh",
            beat(KeyPurpose::Kill, &|beat| beat["trust_domain"] = "other.internal".into()),
        ),
        (
            "malformed",
            beat(KeyPurpose::Kill, &|beat| beat["lease"]["seconds"] = u64::MAX.into()),
        ),
        ("malformed", beat(KeyPurpose::Kill, &|beat| beat["v"] = 2.into())),
        ("heartbeat_other_instance", beat(KeyPurpose::Kill, &|_| {})),
    ] {
        let metric = "aip_kill_heartbeats_ignored_total";
        let before = counted(&sidecar, metric, reason).await;
        scripted.say_of_kills(Answer::Heartbeat(beat)).await;
        wait::until_ok(&format!("{reason} is counted"), async || {
            let now = counted(&sidecar, metric, reason).await;
            (now > before).then_some(()).ok_or_else(|| now.to_string())
        })
        .await;
        assert!(served(&scripted, &sidecar).await, "after {reason}");
    }
}

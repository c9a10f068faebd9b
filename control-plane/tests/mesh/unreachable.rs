//! Who can't answer is named, and nobody waits for it: a sidecar that vanished, or whose agent drifted.

use aip_api::resource::{KeyPurpose, Kind};
use aip_runtime::signed;
use serde_json::{Value, json};

use crate::drift;
use crate::kills::{self, kill, progress};
use crate::support::sidecar::{Sidecar, hello};
use crate::support::{Mesh, eventually};

/// Longer than a sidecar that lost its stream takes to come back.
const LONG_GONE: u64 = 60;
/// Longer than this test may take, in milliseconds: whoever waits for somebody who can't answer does not end.
const WAIT: u64 = 50_000;

async fn unconnected(mesh: &Mesh, sidecars: usize) {
    eventually("the ends of the streams to be noticed", async || {
        let all = mesh.admin.get("/v1/sidecars").await["items"]
            .as_array()
            .unwrap()
            .clone();
        let gone = all.iter().filter(|sidecar| sidecar["connected"] == false);
        let kills = mesh.admin.get("/v1/kills/sidecars").await["items"]
            .as_array()
            .unwrap()
            .clone();
        let cut = kills.iter().filter(|sidecar| sidecar["unreachable_since"].is_u64());
        (gone.count() == sidecars && cut.count() == sidecars).then_some(())
    })
    .await;
}

/// A sidecar with both streams up.
async fn running(mesh: &Mesh, name: &str) -> (Sidecar, crate::support::sidecar::Stream, kills::Stream) {
    let sidecar = mesh.joined(name).await;
    let mut config = sidecar.stream().await;
    config.synced().await;
    let mut kill = kills::Stream::open(&sidecar, &config.instance, None).await.unwrap();
    let (set, _) = kill.set().await;
    kill.ack(&set).await;
    (sidecar, config, kill)
}

fn names(all: &Value) -> Vec<&str> {
    let name = |one: &'_ Value| -> String {
        let text = one["sidecar"].as_str().or_else(|| one.as_str());
        text.unwrap_or_default()
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let all = all.as_array().unwrap();
    ["planner", "ledger"]
        .into_iter()
        .filter(|wanted| all.iter().any(|one| name(one) == *wanted))
        .collect()
}

#[tokio::test]
async fn one_that_vanished_is_waited_for_a_moment_and_then_only_named() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut config = sidecar.stream().await;
    config.synced().await;
    drop(config);
    eventually("its end to be noticed", async || {
        let all = mesh.admin.get("/v1/sidecars").await;
        (all["items"][0]["connected"] == false).then_some(())
    })
    .await;
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    mesh.plane.clock.advance(LONG_GONE);
    let acks = format!("/v1/revisions/{}/acks?wait_ms={WAIT}", order["revision"]);
    let shown = mesh.admin.get(&acks).await;
    assert_eq!(
        (&shown["missing"], names(&shown["vanished"])),
        (&json!([]), vec!["planner"]),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_drifted_is_named_and_nobody_waits_for_it() {
    let mesh = Mesh::dev().await;
    let (planner, config, stream) = running(&mesh, "planner").await;
    let (_ledger, ledgers_config, mut ledgers) = running(&mesh, "ledger").await;
    drift::report(&planner, &drift::drift(&planner, b"edited"))
        .await
        .unwrap();
    drop(config);
    let _unsaid = stream.broken();
    unconnected(&mesh, 1).await;
    let order = kill(
        &mesh,
        json!({"kind": "pair", "source": "ledger", "destination": "planner"}),
    )
    .await;
    let (set, _) = ledgers.set().await;
    ledgers.ack(&set).await;
    let shown = progress(&mesh, &order, WAIT).await;
    assert_eq!(shown["missing"], json!([]), "{shown}");
    let apart = (names(&shown["enforced"]), names(&shown["drifted"]));
    assert_eq!(apart, (vec!["ledger"], vec!["planner"]), "{shown}");
    let revision = order["revision"].as_u64().unwrap();
    let shown = mesh.admin.get(&format!("/v1/revisions/{revision}/acks")).await;
    assert_eq!(names(&shown["drifted"]), ["planner"], "{shown}");
    assert!(!names(&shown["missing"]).contains(&"planner"), "{shown}");
    drop(ledgers_config);
}

/// An operator sees that a store was restored, and above what it is to be lifted.
#[tokio::test]
async fn the_status_names_who_has_seen_more_than_a_restored_store() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    assert_eq!(mesh.admin.get("/v1/status").await["restored"], json!([]));
    let config = mesh.plane.api.ca.signer(KeyPurpose::Config);
    for seen in [5_000, 4_000] {
        // As the store signed it after the copy was made.
        let newest = signed::sign(&config, Kind::Agent, "planner", seen, false, b"{}".as_slice());
        let hello = aip_api::wire::Hello {
            newest: Some(newest),
            ..hello()
        };
        sidecar.open(hello).await.map(|_| ()).unwrap_err();
    }
    let status = mesh.admin.get("/v1/status").await;
    assert_eq!(status["restored"], json!([{"agent": "planner", "seen": 5_000}]));
    mesh.admin.ok("POST", "/v1/mesh/lift", json!({"above": 5_000})).await;
    eventually("the lift to be pushed", async || {
        (mesh.admin.get("/v1/status").await["restored"] == json!([])).then_some(())
    })
    .await;
}

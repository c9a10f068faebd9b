//! A sidecar that renewed its SVID while its streams stay open under the one before: what is revoked is the new one.

use aip_tests::agent::Agent;
use aip_tests::process::Mesh;
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

use super::reach::{ends, runs, said, supervised};

/// Life of an SVID here, in seconds: it is renewed at about half of it, and goes on to be good for as long after that.
const TTL: u64 = 90;

/// The serial number of the SVID that this agent renewed to.
async fn renewed(mesh: &Mesh, name: &str) -> String {
    let found = tokio::time::timeout(std::time::Duration::from_secs(3 * TTL), async {
        loop {
            let svids = mesh.admin().get(&format!("/v1/agents/{name}/svids")).await;
            let mut svids = svids["items"].as_array().unwrap().clone().into_iter();
            if let Some(second) = svids.find(|svid| svid["nth"] == 1) {
                return second["serial"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    found.await.expect("it renews")
}

/// Peers refuse it from the push on. Its way out of the mesh, at which there is no peer, ends by its own word; and the process
/// of its agent is ended by an order like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_svid_that_is_revoked_is_given_up_and_orders_go_on_to_be_heard() {
    let (agent, outside) = (Agent::start(), Agent::start());
    let mesh = Mesh::start().await;
    let mut config = mesh.admin().get("/v1/mesh-config").await["resource"].clone();
    config["svid_ttl_seconds"] = json!(TTL);
    config["egress"] = json!([{"host": "localhost", "port": outside.address.port(), "allow_private": true}]);
    mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(&config)).await;
    let (supervised, pid) = supervised(&mesh, "supervised").await;
    let sidecar = mesh.sidecar("way-out", agent.address).await;
    let url = format!("http://localhost:{}/x", outside.address.port());
    wait::until("the way out is open", async || {
        (sidecar.get(&url).await.status == 200).then_some(())
    })
    .await;
    for name in ["way-out", "supervised"] {
        let serial = renewed(&mesh, name).await;
        let body = json!({"serial": serial, "reason": "a test"});
        let revoke = format!("/v1/agents/{name}/revoke");
        mesh.admin().ok(Method::POST, &revoke, Some(&body)).await;
    }
    let revoked = tokio::time::Instant::now();
    wait::until_ok("the sidecar gave its SVID up", async || {
        let answer = sidecar.get(&url).await;
        (answer.status == 503 && answer.reason() == "no_identity")
            .then_some(())
            .ok_or_else(|| format!("{} {}", answer.status, answer.text()))
    })
    .await;
    // Not by its end: that is as long away as it was from its beginning to its renewal.
    assert!(revoked.elapsed().as_secs() < TTL / 3, "{:?}", revoked.elapsed());
    let before = outside.seen("/x").len();
    assert_eq!(sidecar.get(&url).await.reason(), "no_identity");
    assert_eq!(outside.seen("/x").len(), before, "nothing went out");

    assert!(runs(pid));
    let killed = mesh.aip(&["kill", "--agent", "supervised", "--reason", "a test", "--wait"]);
    assert!(killed.status.success(), "{}", said(&killed));
    ends(&supervised, pid).await;
    let all: Value = mesh.admin().get("/v1/kills/progress").await;
    let one = |key: &str| {
        let all = all[key].as_array().unwrap().iter();
        all.filter(|one| one["sidecar"].as_str().unwrap().starts_with("supervised/"))
            .count()
    };
    assert_eq!(
        [one("enforced"), one("missing"), one("vanished")],
        [1, 0, 0],
        "{}: {all}",
        said(&killed)
    );
}

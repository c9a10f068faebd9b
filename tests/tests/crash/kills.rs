//! The control plane, ended at the commits of what sidecars say on their kill streams: that one is about to be granted a
//! lease, and that one holds a set which a restored store never issued.

use std::path::Path;

use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, DEV, Mesh, Sidecar};
use aip_tests::wait;
use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{AFTER, FAULT, is_killed};

/// Starts the control plane again, which does not run, as one that ends at `point` once there is the file `after`.
async fn armed(mesh: &mut Mesh, point: &str, after: &Path) {
    let _ = std::fs::remove_file(after);
    let control_plane = &mut mesh.control_plane;
    let data = ControlPlane::data(&control_plane.dir);
    let mut command = ControlPlane::command(&data, control_plane.mesh, control_plane.admin.address, DEV);
    command.env(FAULT, point).env(AFTER, after);
    control_plane.revive_as(&command).await;
}

/// The processes of this agent that may run, as the control plane knows of them.
async fn known(mesh: &Mesh, agent: &str) -> Vec<Value> {
    let all = mesh.admin().get("/v1/kills/sidecars").await;
    let all = all["items"].as_array().unwrap().iter();
    all.filter(|one| one["agent"] == agent).cloned().collect()
}

/// For how many milliseconds it may go on unheard, by a lease that it was granted.
async fn lease_left(sidecar: &Sidecar) -> u64 {
    let page = sidecar.look("/kill").await.json();
    page["lease_left_ms"].as_u64().unwrap_or_default()
}

/// What is granted is in the store before: after a restart the control plane knows of whoever may run by its word.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_runs_on_a_lease_that_is_not_on_disk() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let after = mesh.dir("points").join("after");
    for step in ["changed", "committed"] {
        let (point, name) = (format!("store:{step}:kill.lease#1"), format!("leased-{step}"));
        let lease = json!({"seconds": 600, "on_lost": "deny"});
        let spec = mesh.spec(json!({"name": name, "lease": lease}), agent.address).await;
        mesh.control_plane.kill();
        armed(&mut mesh, &point, &after).await;
        std::fs::write(&after, "").unwrap();
        let dir = mesh.dir(&name);
        let mut sidecar = Sidecar::start_unready(spec.clone(), &dir).await;
        is_killed(&mut mesh.control_plane.process, &point).await;
        assert_eq!(lease_left(&sidecar).await, 0, "it was granted nothing, at {point}");
        // What is known of it now, the store knows.
        sidecar.process.kill();
        mesh.revive().await;
        let there = known(&mesh, &name).await;
        assert_eq!(there.len(), usize::from(step == "committed"), "at {point}: {there:?}");
        let mut sidecar = Sidecar::start(spec, &dir).await;
        wait::until("it is granted its lease", async || {
            (lease_left(&sidecar).await > 0).then_some(())
        })
        .await;
        let there = known(&mesh, &name).await;
        assert_eq!(
            there.len(),
            1,
            "the process of before has a successor, after {point}: {there:?}"
        );
        sidecar.process.kill();
    }
}

async fn says_killed(sidecar: &Sidecar, point: &str) {
    let answer = sidecar.get("http://caller.aip.internal/").await;
    assert_eq!(answer.reason(), "killed", "at {point}: {}", answer.text());
}

/// The set that a restored store takes up is there with what it says of the restore, or neither; and whoever shows it again
/// gets the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_a_restored_store_is_shown_is_taken_up_whole() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let after = mesh.dir("points").join("after");
    let callee = mesh.sidecar("callee", agent.address).await;
    let copy = mesh.dir("copy");
    mesh.control_plane.kill();
    mesh.control_plane.copy_to(&copy);
    mesh.revive().await;
    let order = json!({"scope": {"kind": "agent", "agent": "callee"}, "mode": "kill", "reason": "a test"});
    let order = mesh.admin().ok(Method::POST, "/v1/kills", Some(&order)).await;
    enforced(&mesh, &order).await;
    for step in ["changed", "committed"] {
        let point = format!("store:{step}:kill.restored#1");
        mesh.control_plane.kill();
        mesh.control_plane.restore_from(&copy);
        // It shows nothing before the point counts.
        callee.process.signal(Signal::STOP);
        armed(&mut mesh, &point, &after).await;
        let before = mesh.admin().get("/v1/kills").await;
        assert_eq!(before["items"], json!([]), "the copy is of before the order");
        std::fs::write(&after, "").unwrap();
        callee.process.signal(Signal::CONT);
        is_killed(&mut mesh.control_plane.process, &point).await;
        says_killed(&callee, &point).await;
        callee.process.signal(Signal::STOP);
        mesh.revive().await;
        let kills = mesh.admin().get("/v1/kills").await;
        let orders = kills["items"].as_array().unwrap().len();
        let progress = mesh.admin().get("/v1/kills/progress").await;
        let seen = (
            orders == 1,
            kills["term"] != before["term"],
            progress["unknown_until"].is_u64(),
        );
        let there = step == "committed";
        assert_eq!(seen, (there, there, there), "at {point}: {kills} {progress}");
        callee.process.signal(Signal::CONT);
        let kills = wait::until("the order is there", async || {
            let kills = mesh.admin().get("/v1/kills").await;
            (kills["items"].as_array()?.len() == 1).then_some(kills)
        })
        .await;
        assert_eq!(kills["items"][0]["id"], order["order"], "after {point}: {kills}");
        assert!(
            kills["term"].as_u64() > order["term"].as_u64(),
            "after {point}: {kills}"
        );
        enforced(&mesh, &kills).await;
        says_killed(&callee, &point).await;
    }
}

/// Waits until the only sidecar has enforced this set, or a later one.
async fn enforced(mesh: &Mesh, set: &Value) {
    let (term, epoch) = (&set["term"], &set["epoch"]);
    let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms=1000");
    wait::until_ok("it is enforced", async || {
        let shown = mesh.admin().get(&path).await;
        let enforced = shown["enforced"].as_array().is_some_and(|all| all.len() == 1);
        enforced.then_some(()).ok_or_else(|| shown.to_string())
    })
    .await;
}

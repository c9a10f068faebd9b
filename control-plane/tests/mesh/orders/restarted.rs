//! Which process an SVID stands for, after a restart of the control plane: the lines of SVIDs are in the store.

use serde_json::json;

use super::{LONG_GONE, instances, orders, running, says_for_itself, serial};
use crate::drift;
use crate::kills::{fresh, kill, progress};
use crate::support::sidecar::Sidecar;
use crate::support::{Mesh, eventually};

/// Another sidecar of the same agent.
async fn beside(mesh: &Mesh) -> Sidecar {
    let token = mesh.another_token("planner").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    sidecar.join(&token).await.unwrap();
    sidecar
}

#[tokio::test(flavor = "multi_thread")]
async fn which_process_drifted_is_known_however_often_it_renewed() {
    let mesh = Mesh::dev().await;
    let (mut one, two) = (mesh.joined("planner").await, beside(&mesh).await);
    let (first, second) = (fresh(), fresh());
    // It comes with a later SVID than its first, and renews on the open stream again.
    one.renew(b"code").await.unwrap();
    let (mut ones, mut twos) = (running(&one, &first).await, running(&two, &second).await);
    ones.beat(1, 0).await;
    twos.beat(1, 0).await;
    one.renew(b"code").await.unwrap();
    drift::report(&one, &drift::drift(&one, b"edited")).await.unwrap();
    let _unsaid = [ones.broken(), twos.broken()];
    let mesh = mesh.restarted().await;
    mesh.plane.clock.advance(LONG_GONE);
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    let shown = progress(&mesh, &order, 0).await;
    let apart = (instances(&shown["drifted"]), instances(&shown["vanished"]));
    assert_eq!(apart, (vec![first], vec![second.clone()]), "{shown}");

    // Started again it is the same one still.
    let again = fresh();
    let mut stream = orders(&one.at(mesh.plane.run.mesh), &again).await.unwrap();
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    let shown = eventually("its acknowledgement", async || {
        let shown = progress(&mesh, &order, 0).await;
        (instances(&shown["enforced"]) == [again.clone()]).then_some(shown)
    })
    .await;
    let apart = ["drifted", "vanished"].map(|key| instances(&shown[key]));
    assert_eq!(apart, [vec![], vec![second]], "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stole_an_svid_that_was_revoked_speaks_for_itself_alone() {
    let mesh = Mesh::dev().await;
    let mut planner = mesh.joined("planner").await;
    planner.renew(b"code").await.unwrap();
    let thief = planner.stolen();
    planner.renew(b"code").await.unwrap();
    let body = json!({"serial": serial(&thief), "reason": "stolen"});
    mesh.admin.ok("POST", "/v1/agents/planner/revoke", body).await;
    let instance = fresh();
    let mut good = running(&planner, &instance).await;
    good.beat(1, 0).await;
    let _unsaid = good.broken();
    let mesh = mesh.restarted().await;
    let (thief, planner) = (thief.at(mesh.plane.run.mesh), planner.at(mesh.plane.run.mesh));
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    let own = format!("{instance}/revoked:{}", serial(&thief));
    let _beside = says_for_itself(&mesh, &thief, [&instance, &own], &order).await;
    // Whoever renewed it is the process that it was before.
    let mut good = running(&planner, &instance).await;
    good.beat(1, 0).await;
    let shown = progress(&mesh, &order, 10_000).await;
    assert_eq!(instances(&shown["enforced"]), [instance, own], "{shown}");
}

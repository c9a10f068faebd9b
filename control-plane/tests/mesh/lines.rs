//! Whose process an SVID stands for: who renewed it, who has a copy, and what a restored store does not know.

use std::path::Path;
use std::process::Command;

use aip_control_plane::registry::restored::LONGEST_SVID;
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::svid::{PendingKey, Svid};
use serde_json::{Value, json};

use crate::kills::{Stream, fresh, kill, progress};
use crate::orders::{LONG_GONE, instances, is_refused, noticed_cut, orders, revoke, running};
use crate::support::sidecar::Sidecar;
use crate::support::{Mesh, eventually, settings};

fn serial(sidecar: &Sidecar) -> String {
    sidecar.svid.current().unwrap().identity.serial.clone()
}

/// Revokes this one SVID; the control plane knows of it when this returns.
async fn revoke_one(mesh: &Mesh, sidecar: &Sidecar) {
    let body = json!({"serial": serial(sidecar), "reason": "a test"});
    mesh.admin.ok("POST", "/v1/agents/planner/revoke", body).await;
    eventually("it to be refused", async || is_refused(sidecar).await.then_some(())).await;
}

/// It runs, and is gone before it can say that it ends: its connection is a task of a runtime that is no more, and which had no
/// thread that could still poll it.
async fn cut_off(mesh: &Mesh, sidecar: &Sidecar, instance: &str) {
    let (sidecar, instance) = (sidecar.another(), instance.to_owned());
    let gone = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let stream = runtime.block_on(running(&sidecar, &instance));
        drop(runtime);
        drop(stream);
    });
    gone.await.unwrap();
    noticed_cut(mesh, 1).await;
}

/// Who has not enforced it, whether it may be back soon or not.
fn unheard(progress: &Value) -> Vec<String> {
    [instances(&progress["missing"]), instances(&progress["vanished"])].concat()
}

/// Its stream for orders alone, on which it has taken what is in force.
async fn obeys(sidecar: &Sidecar, instance: &str) -> Stream {
    let mut stream = orders(sidecar, instance).await.unwrap();
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    stream
}

async fn enforced(mesh: &Mesh, order: &Value, wanted: &[&str]) -> Value {
    eventually("the acknowledgements", async || {
        let shown = progress(mesh, order, 0).await;
        let mut wanted: Vec<_> = wanted.iter().map(|one| (*one).to_owned()).collect();
        wanted.sort();
        (instances(&shown["enforced"]) == wanted).then_some(shown)
    })
    .await
}

async fn order(mesh: &Mesh) -> Value {
    kill(mesh, json!({"kind": "agent", "agent": "planner"})).await
}

async fn sibling(mesh: &Mesh) -> Sidecar {
    let token = mesh.another_token("planner").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    sidecar.join(&token).await.unwrap();
    sidecar
}

/// The one before it is good still, and nobody has that.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_svid_of_a_line_hears_of_orders_where_it_alone_was_revoked() {
    let mesh = Mesh::dev().await;
    let mut planner = mesh.joined("planner").await;
    let instance = fresh();
    let before = running(&planner, &instance).await;
    planner.renew(b"code").await.unwrap();
    revoke_one(&mesh, &planner).await;
    let mut stream = obeys(&planner, &instance).await;
    let order = order(&mesh).await;
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    let done = enforced(&mesh, &order, &[&instance]).await;
    assert_eq!(
        (&done["missing"], &done["vanished"]),
        (&json!([]), &json!([])),
        "{done}"
    );
    drop(before);
}

/// When all SVIDs of the agent are revoked, the copy's is no better than before.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_copy_hides_no_process_once_all_of_the_agent_is_revoked() {
    let mesh = Mesh::dev().await;
    let mut planner = mesh.joined("planner").await;
    let thief = planner.stolen();
    planner.renew(b"code").await.unwrap();
    revoke_one(&mesh, &thief).await;
    let instance = fresh();
    cut_off(&mesh, &planner, &instance).await;
    revoke(&mesh, "planner").await;
    let order = order(&mesh).await;
    let other = fresh();
    let (named, own) = (obeys(&thief, &instance).await, obeys(&thief, &other).await);
    let beside = format!("{instance}/revoked:{}", serial(&thief));
    enforced(&mesh, &order, &[&beside, &other]).await;
    mesh.plane.clock.advance(LONG_GONE);
    let shown = progress(&mesh, &order, 0).await;
    assert_eq!(instances(&shown["vanished"]), [instance], "{shown}");
    drop((named, own));
}

/// What was revoked by its serial number has copies, and nobody is started again with it: no row goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_last_svid_stands_in_nobodys_place_once_it_is_revoked() {
    let mesh = Mesh::dev().await;
    let planner = mesh.joined("planner").await;
    let instance = fresh();
    cut_off(&mesh, &planner, &instance).await;
    revoke_one(&mesh, &planner).await;
    let order = order(&mesh).await;
    let other = fresh();
    let _thief = obeys(&planner, &other).await;
    enforced(&mesh, &order, &[&other]).await;
    mesh.plane.clock.advance(LONG_GONE);
    let shown = progress(&mesh, &order, 0).await;
    assert_eq!(instances(&shown["vanished"]), [instance], "{shown}");
}

/// A good SVID of the same agent says nothing for another process of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_takes_no_row_from_who_is_cut_off() {
    let mesh = Mesh::dev().await;
    let (planner, sibling) = (mesh.joined("planner").await, sibling(&mesh).await);
    let instance = fresh();
    cut_off(&mesh, &planner, &instance).await;
    let order = order(&mesh).await;
    mesh.plane.clock.advance(LONG_GONE);
    let stream = running(&sibling, &instance).await;
    let beside = format!("{instance}/{}", serial(&sibling));
    let shown = enforced(&mesh, &order, &[&beside]).await;
    assert_eq!(
        instances(&shown["vanished"]),
        std::slice::from_ref(&instance),
        "{shown}"
    );
    drop(stream);
    let shown = progress(&mesh, &order, 0).await;
    assert_eq!(
        instances(&shown["vanished"]),
        std::slice::from_ref(&instance),
        "nor by saying that it ends: {shown}"
    );
    // It comes back, and is who it was.
    let _back = running(&planner, &instance).await;
    let shown = enforced(&mesh, &order, &[&instance]).await;
    assert_eq!(unheard(&shown), [""; 0], "{shown}");
}

/// Renews with this key, as after an answer that got lost.
async fn renewed(sidecar: &mut Sidecar, key: &PendingKey) -> String {
    let request = sidecar.renewal(key, b"code").await;
    let channel = sidecar.connected().await.unwrap();
    let issued = IdentityClient::new(channel).issue(request).await.unwrap().into_inner();
    let svid = Svid::assemble(key.pkcs8.clone(), issued.chain, &sidecar.trust.clone().unwrap().load()).unwrap();
    let serial = svid.identity.serial.clone();
    sidecar.svid.set(svid).unwrap();
    serial
}

async fn line_of(mesh: &Mesh, serial: &str) -> String {
    let svids = mesh.admin.get("/v1/agents/planner/svids").await;
    let mut svids = svids["items"].as_array().unwrap().iter();
    let found = svids.find(|svid| svid["serial"] == serial).unwrap();
    found["line"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_that_two_renew_begins_a_second_line_and_a_lost_answer_does_not() {
    let mesh = Mesh::dev().await;
    let mut planner = mesh.joined("planner").await;
    let (first, mut thief) = (serial(&planner), planner.stolen());
    let instance = fresh();
    cut_off(&mesh, &planner, &instance).await;
    let key = PendingKey::generate().unwrap();
    let mut lost = planner.stolen();
    let lost = renewed(&mut lost, &key).await;
    let second = renewed(&mut planner, &key).await;
    assert_eq!(line_of(&mesh, &lost).await, first, "whose answer got lost asks again");
    assert_eq!(line_of(&mesh, &second).await, first);
    let copied = renewed(&mut thief, &PendingKey::generate().unwrap()).await;
    assert_eq!(
        line_of(&mesh, &copied).await,
        copied,
        "who has another key is another process"
    );
    let audit = mesh.admin.get("/v1/audit").await.to_string();
    assert!(audit.contains("was renewed by another key before"), "{audit}");
    // Of the two nobody knows which is the process: neither makes it go by another name.
    let order = order(&mesh).await;
    let names = [fresh(), fresh()];
    let _both = (running(&thief, &names[0]).await, running(&planner, &names[1]).await);
    let shown = enforced(&mesh, &order, &[&names[0], &names[1]]).await;
    assert_eq!(unheard(&shown), [instance], "{shown}");
}

fn copied(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// The sidecar as it is to a control plane that listens elsewhere since.
async fn at(mesh: &Mesh, sidecar: &Sidecar) -> Sidecar {
    let tls = aip_runtime::tls::pinned_client(mesh.plane.run.root).unwrap();
    let channel = aip_runtime::grpc::channel(mesh.plane.run.mesh, tls).await.unwrap();
    Sidecar {
        mesh: mesh.plane.run.mesh,
        identity: IdentityClient::new(channel),
        ..sidecar.another()
    }
}

/// Whoever renewed after the copy runs for longer than the copy knows; and whoever came after it is not on the board at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_says_until_when_it_does_not_know_who_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    let mesh = Mesh::start(settings(&data)).await;
    let planner = mesh.joined("planner").await;
    mesh.plane.kill().await;
    copied(&data, &copy);
    let mesh = Mesh::start(settings(&data)).await;
    let mut planner = at(&mesh, &planner).await;
    planner.renew(b"code").await.unwrap();
    let known = running(&planner, &fresh()).await;
    let shown = progress(&mesh, &order(&mesh).await, 0).await;
    assert_eq!(
        shown["unknown_until"],
        Value::Null,
        "a restart alone forgets nobody: {shown}"
    );
    drop(known);
    mesh.plane.kill().await;
    copied(&copy, &data);

    let mesh = Mesh::start(settings(&data)).await;
    let began = aip_runtime::unix_now();
    let unknown = async |mesh: &Mesh| mesh.admin.get("/v1/kills/progress").await["unknown_until"].clone();
    assert_eq!(unknown(&mesh).await, Value::Null, "nobody has come");
    let _back = running(&at(&mesh, &planner).await, &fresh()).await;
    let until = unknown(&mesh).await.as_u64().unwrap();
    assert!(until + 60 > began + LONGEST_SVID, "{until} at {began}");
    let board = &mesh.plane.api.kills.board;
    board.note_restored(&mesh.plane.registry).await.unwrap();
    mesh.plane.kill().await;

    let mesh = Mesh::start(settings(&data)).await;
    assert_eq!(
        unknown(&mesh).await,
        until,
        "also after a restart, when nobody has come"
    );
    mesh.plane.clock.advance(LONGEST_SVID + 60);
    assert_eq!(unknown(&mesh).await, Value::Null, "until all of them have ended");
}

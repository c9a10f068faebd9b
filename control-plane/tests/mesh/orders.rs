//! A connection for orders alone: a revoked SVID is told what is to stop, and gets nothing else by it.

mod restarted;

use aip_api::wire::audit_request::Message as Audited;
use aip_api::wire::kill_request::Message;
use aip_api::wire::{
    AuditHello, AuditRequest, Beat, ChallengeRequest, DriftReport, IssueRequest, KillHello, KillRequest,
};
use aip_runtime::grpc::audit_client::AuditClient;
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::grpc::kill_client::KillClient;
use aip_runtime::svid::PendingKey;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::drift;
use crate::kills::{Stream, fresh, kill, progress};
use crate::support::sidecar::{self, Sidecar, hello, why};
use crate::support::{Mesh, eventually};

/// Longer than a sidecar that lost its stream takes to come back.
pub(crate) const LONG_GONE: u64 = 60;

pub(crate) async fn revoke(mesh: &Mesh, agent: &str) {
    let path = format!("/v1/agents/{agent}/revoke");
    mesh.admin.ok("POST", &path, json!({})).await;
}

/// Whether the mesh port lets it in as any: the refusal may come while it connects, or with the first answer.
pub(crate) async fn is_refused(sidecar: &Sidecar) -> bool {
    let Ok(channel) = sidecar.connected().await else {
        return true;
    };
    let agent = sidecar.agent.clone();
    let asked = IdentityClient::new(channel).challenge(ChallengeRequest { agent }).await;
    asked.is_err()
}

/// Its stream for orders alone.
pub(crate) async fn orders(sidecar: &Sidecar, instance: &str) -> Result<Stream, Status> {
    let channel = sidecar.connected_for_orders().await.unwrap();
    Stream::open_on(channel, sidecar, instance, None).await
}

/// An ordinary stream that has acknowledged what is in force.
pub(crate) async fn running(sidecar: &Sidecar, instance: &str) -> Stream {
    let mut stream = Stream::open(sidecar, instance, None).await.unwrap();
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    stream
}

pub(crate) async fn noticed_cut(mesh: &Mesh, cut: usize) {
    eventually("the ends of the streams to be noticed", async || {
        let all = mesh.admin.get("/v1/kills/sidecars").await;
        let all = all["items"].as_array().unwrap().clone();
        let gone = all.iter().filter(|sidecar| sidecar["unreachable_since"].is_u64());
        (gone.count() == cut).then_some(())
    })
    .await;
}

pub(crate) fn instances(all: &Value) -> Vec<String> {
    let names = all.as_array().unwrap().iter();
    let names = names.map(|one| one["sidecar"].as_str().unwrap().split_once('/').unwrap().1.to_owned());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_svid_is_told_of_orders_and_acknowledges_them() {
    let mesh = Mesh::dev().await;
    let planner = mesh.joined("planner").await;
    let instance = fresh();
    let first = running(&planner, &instance).await;
    revoke(&mesh, "planner").await;
    eventually("its SVID to be refused", async || {
        is_refused(&planner).await.then_some(())
    })
    .await;
    let mut stream = orders(&planner, &instance).await.unwrap();
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    let waiting = progress(&mesh, &order, 0).await;
    assert_eq!(instances(&waiting["missing"]), [instance.as_str()], "it is waited for");
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    let done = progress(&mesh, &order, 10_000).await;
    assert_eq!(instances(&done["enforced"]), [instance.as_str()], "{done}");
    let none = ["missing", "vanished", "drifted"].map(|key| done[key].as_array().unwrap().len());
    assert_eq!(none, [0; 3], "{done}");
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is_served_on_it_to_whoever_comes() {
    let mesh = Mesh::dev().await;
    let (revoked, good) = (mesh.joined("planner").await, mesh.joined("ledger").await);
    revoke(&mesh, "planner").await;
    for sidecar in [revoked, good] {
        let channel = sidecar.connected_for_orders().await.unwrap();
        let agent = sidecar.agent.clone();
        let refused = |what: &str, answer: Result<(), Status>| {
            assert_eq!(why(&answer.unwrap_err()), "svid_revoked", "{what} of {agent}");
        };
        let config = sidecar::Stream::open(channel.clone(), hello(), None).await;
        refused("Config", config.map(drop));
        let (send, requests) = tokio::sync::mpsc::channel(1);
        let hello = AuditHello {
            instance: fresh(),
            logs: vec![],
        };
        let message = Some(Audited::Hello(hello));
        send.send(AuditRequest { message }).await.unwrap();
        let audit = AuditClient::new(channel.clone())
            .stream(ReceiverStream::new(requests))
            .await;
        refused("Audit", audit.map(drop));
        let mut identity = IdentityClient::new(channel);
        let nonce = identity.challenge(ChallengeRequest { agent: agent.clone() }).await;
        refused("Challenge", nonce.map(drop));
        let statement = String::new();
        refused(
            "ReportDrift",
            identity.report_drift(DriftReport { statement }).await.map(drop),
        );
        // Not by a join token either.
        let token = mesh.another_token(&agent).await;
        let key = PendingKey::generate().unwrap();
        let request: IssueRequest = sidecar::Sidecar::new(mesh.plane.run.mesh, &agent, &token)
            .await
            .good(&token, &key)
            .await;
        refused("Issue", identity.issue(request).await.map(drop));
        // No lease.
        let mut stream = orders(&sidecar, &fresh()).await.unwrap();
        stream
            .say(Message::Beat(Beat {
                sequence: 1,
                granted: 0,
            }))
            .await;
        assert_eq!(stream.ended().await, "svid_revoked", "a beat of {agent}");
        sidecar.svid.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_that_has_ended_opens_none_and_one_that_is_nobodys_neither() {
    let mesh = Mesh::dev().await;
    let planner = mesh.joined("planner").await;
    let channel = planner.connected_for_orders().await.unwrap();
    mesh.plane.clock.advance(86_400);
    let ended = Stream::open_on(channel, &planner, &fresh(), None).await.map(drop);
    assert_eq!(why(&ended.unwrap_err()), "svid_expired");
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let hello = KillHello {
        instance: fresh(),
        ..KillHello::default()
    };
    let message = Some(Message::Hello(hello));
    send.send(KillRequest { message }).await.unwrap();
    let mut stub = KillClient::new(planner.unknown(planner.trust.as_ref().unwrap()).await);
    let refused = stub.stream(Request::new(ReceiverStream::new(requests))).await;
    assert_eq!(why(&refused.map(drop).unwrap_err()), "credential_missing");
}

/// Whoever has a revoked SVID of an agent says nothing for a process of it that has another one.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_revoked_does_not_speak_for_another_process() {
    let mesh = Mesh::dev().await;
    let revoked = mesh.joined("planner").await;
    revoke(&mesh, "planner").await;
    let token = mesh.another_token("planner").await;
    let mut good = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    good.join(&token).await.unwrap();
    let instance = fresh();
    let mut stream = running(&good, &instance).await;
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    let own = format!("{instance}/{}", serial(&revoked));
    let beside = says_for_itself(&mesh, &revoked, [&instance, &own], &order).await;
    let (set, _) = stream.set().await;
    assert_eq!(json!(set.epoch), order["epoch"], "the stream of the other goes on");
    let _unsaid = stream.broken();
    noticed_cut(&mesh, 1).await;
    // Nor while that one is away.
    says_for_itself(&mesh, &revoked, [&instance, &own], &order).await;
    drop(beside);
}

fn serial(sidecar: &Sidecar) -> String {
    sidecar.svid.current().unwrap().identity.serial.clone()
}

/// Whoever was revoked comes under the name of another process, and is told of orders under a name of its own: what it
/// says is not that one's.
async fn says_for_itself(mesh: &Mesh, revoked: &Sidecar, [instance, own]: [&str; 2], order: &Value) -> Stream {
    let mut stream = orders(revoked, instance).await.unwrap();
    let (set, _) = stream.set().await;
    assert_eq!(json!(set.epoch), order["epoch"]);
    stream.ack(&set).await;
    eventually("its acknowledgement", async || {
        let shown = progress(mesh, order, 0).await;
        (instances(&shown["enforced"]) == [own]).then_some(())
    })
    .await;
    let shown = progress(mesh, order, 0).await;
    assert_eq!(instances(&shown["missing"]), [instance], "{shown}");
    stream
}

/// A process that joined anew keeps its name, and has an SVID of another line than the row that it left: revoked before it
/// came by with that, it is told of orders all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_joined_anew_is_told_of_orders_under_its_old_name() {
    let mesh = Mesh::dev().await;
    let before = mesh.joined("planner").await;
    let instance = fresh();
    let _cut = running(&before, &instance).await;
    let token = mesh.another_token("planner").await;
    let mut anew = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    anew.join(&token).await.unwrap();
    revoke(&mesh, "planner").await;
    noticed_cut(&mesh, 1).await;
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    let own = format!("{instance}/{}", serial(&anew));
    says_for_itself(&mesh, &anew, [&instance, &own], &order).await;
}

/// One SVID of a line was stolen and revoked; the process has a later one, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_stole_an_earlier_svid_does_not_speak_for_the_process_that_renewed_it() {
    let mesh = Mesh::dev().await;
    let mut planner = mesh.joined("planner").await;
    let thief = planner.stolen();
    planner.renew(b"code").await.unwrap();
    let body = json!({"serial": serial(&thief), "reason": "stolen"});
    mesh.admin.ok("POST", "/v1/agents/planner/revoke", body).await;
    let instance = fresh();
    let mut good = running(&planner, &instance).await;
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    let own = format!("{instance}/revoked:{}", serial(&thief));
    let beside = says_for_itself(&mesh, &thief, [&instance, &own], &order).await;
    let (set, _) = good.set().await;
    assert_eq!(json!(set.epoch), order["epoch"], "its stream goes on");
    let _unsaid = good.broken();
    noticed_cut(&mesh, 1).await;
    drop(beside);
    // Under a name that nobody has it says what it likes: of itself. It is the same process.
    let named = fresh();
    let mut stream = orders(&thief, &named).await.unwrap();
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    eventually("the acknowledgement of the thief", async || {
        let shown = progress(&mesh, &order, 0).await;
        (instances(&shown["enforced"]) == [named.clone()]).then_some(())
    })
    .await;
    let shown = progress(&mesh, &order, 0).await;
    assert_eq!(instances(&shown["missing"]), [instance.as_str()], "{shown}");
}

/// The row of a process stays its own, however often it renews; and what drifted is a process, not an agent.
#[tokio::test(flavor = "multi_thread")]
async fn a_drift_names_the_process_that_reported_it_also_where_that_renewed() {
    let mesh = Mesh::dev().await;
    let mut one = mesh.joined("planner").await;
    let token = mesh.another_token("planner").await;
    let mut two = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    two.join(&token).await.unwrap();
    let (first, second) = (fresh(), fresh());
    let (ones, twos) = (running(&one, &first).await, running(&two, &second).await);
    // On the open stream nothing is said of it.
    one.renew(b"code").await.unwrap();
    one.renew(b"code").await.unwrap();
    drift::report(&one, &drift::drift(&one, b"edited")).await.unwrap();
    let (_unsaid, _also) = (ones.broken(), twos.broken());
    noticed_cut(&mesh, 2).await;
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    let soon = progress(&mesh, &order, 0).await;
    assert_eq!(soon["missing"].as_array().unwrap().len(), 2, "both may be back: {soon}");
    mesh.plane.clock.advance(LONG_GONE);
    let shown = progress(&mesh, &order, 0).await;
    let apart = (instances(&shown["drifted"]), instances(&shown["vanished"]));
    assert_eq!(apart, (vec![first.clone()], vec![second.clone()]), "{shown}");

    // A restarted sidecar of the one that drifted stands in the place of that.
    let again = fresh();
    let mut stream = orders(&one, &again).await.unwrap();
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    let shown = progress(&mesh, &order, 10_000).await;
    let apart = ["enforced", "drifted", "vanished"].map(|key| instances(&shown[key]));
    assert_eq!(apart, [vec![again], vec![], vec![second]], "{shown}");
}

/// A set that this store never issued is no reason for another term where it comes from whoever was revoked.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_revoked_raises_no_term() {
    let mesh = Mesh::dev().await;
    let planner = mesh.joined("planner").await;
    let mut stream = Stream::open(&planner, &fresh(), None).await.unwrap();
    let (mut set, _) = stream.set().await;
    (set.term, set.epoch) = (900, 1);
    let kill = mesh.plane.api.ca.signer(aip_api::resource::KeyPurpose::Kill);
    let signed = aip_runtime::kill::sign_set(&kill, serde_json::to_vec(&set).unwrap());
    let channel = planner.connected_for_orders().await.unwrap();
    let mut shows = Stream::open_on(channel, &planner, &fresh(), Some(signed))
        .await
        .unwrap();
    assert_eq!(shows.set().await.0.version(), (1, 0));
    assert_eq!(mesh.admin.get("/v1/kills").await["term"], 1);
}

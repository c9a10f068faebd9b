//! The Kill stream: sets pushed and acknowledged, beats answered, a store restored from a copy, and who lies.

use std::time::{Duration, Instant};

use aip_api::kill::KillSet;
use aip_api::wire::kill_request::Message;
use aip_api::wire::kill_response::Message as Answer;
use aip_api::wire::{Beat, KillAck, KillHello, KillRequest, KillResponse, SignedKillSet};
use aip_runtime::grpc::kill_client::KillClient;
use aip_runtime::kill::{open_heartbeat, open_set};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::support::sidecar::why;
use crate::support::{DEADLINE, Mesh, Sidecar};

/// A sidecar's side of the stream.
pub(crate) struct Stream {
    instance: String,
    send: mpsc::Sender<KillRequest>,
    inbound: Streaming<KillResponse>,
    trust: aip_runtime::trust::Trust,
}

pub(crate) fn fresh() -> String {
    uuid::Uuid::now_v7().hyphenated().to_string()
}

impl Stream {
    pub(crate) async fn open(sidecar: &Sidecar, instance: &str, held: Option<SignedKillSet>) -> Result<Self, Status> {
        Self::open_on(sidecar.connected().await.unwrap(), sidecar, instance, held).await
    }

    /// A stream on this connection.
    pub(crate) async fn open_on(
        channel: Channel,
        sidecar: &Sidecar,
        instance: &str,
        held: Option<SignedKillSet>,
    ) -> Result<Self, Status> {
        let (send, outgoing) = mpsc::channel(64);
        let hello = KillHello {
            instance: instance.into(),
            held,
            unwritten: None,
        };
        let message = Some(Message::Hello(hello));
        send.send(KillRequest { message }).await.unwrap();
        let mut stub = KillClient::new(channel);
        let inbound = stub.stream(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self {
            instance: instance.into(),
            send,
            inbound,
            trust: sidecar.trust.clone().unwrap(),
        })
    }

    /// Breaks it off, as a network that goes away: while what comes back is held, it has not said that it ends.
    pub(crate) fn broken(self) -> mpsc::Sender<KillRequest> {
        drop(self.inbound);
        self.send
    }

    /// Why the stream was ended.
    pub(crate) async fn ended(&mut self) -> String {
        loop {
            if let Err(status) = self.next().await {
                return why(&status);
            }
        }
    }

    async fn next(&mut self) -> Result<Answer, Status> {
        let message = tokio::time::timeout(DEADLINE, self.inbound.message())
            .await
            .expect("an answer in time");
        message?.and_then(|m| m.message).ok_or_else(|| Status::ok("closed"))
    }

    /// The next set, with how it was signed.
    pub(crate) async fn set(&mut self) -> (KillSet, SignedKillSet) {
        loop {
            if let Answer::KillSet(signed) = self.next().await.unwrap() {
                return (open_set(&self.trust.load(), &signed).unwrap(), signed);
            }
        }
    }

    pub(crate) async fn say(&self, message: Message) {
        let message = Some(message);
        let _ = self.send.send(KillRequest { message }).await;
    }

    /// Beats, and hears what it is granted.
    pub(crate) async fn beat(&mut self, sequence: u64, granted: u64) {
        self.say(Message::Beat(Beat { sequence, granted })).await;
        while !matches!(self.next().await.unwrap(), Answer::Heartbeat(_)) {}
    }

    pub(crate) async fn ack(&self, set: &KillSet) {
        let ack = KillAck {
            term: set.term,
            epoch: set.epoch,
            enforced_micros: 5,
            streams_cut: 1,
            ..KillAck::default()
        };
        self.say(Message::Ack(ack)).await;
    }
}

pub(crate) async fn kill(mesh: &Mesh, scope: Value) -> Value {
    let order = json!({ "scope": scope, "mode": "kill", "reason": "a test" });
    mesh.admin.ok("POST", "/v1/kills", order).await
}

pub(crate) async fn progress(mesh: &Mesh, answer: &Value, wait_ms: u64) -> Value {
    let (term, epoch) = (&answer["term"], &answer["epoch"]);
    let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms={wait_ms}");
    mesh.admin.get(&path).await
}

#[tokio::test]
async fn what_was_done_is_in_the_audit_with_its_reason_and_a_blank_one_is_refused() {
    let mesh = Mesh::dev().await;
    mesh.joined("planner").await;
    let newest = async |action: &str| {
        let page = mesh.admin.get("/v1/audit").await;
        let all = page["items"].as_array().unwrap().iter();
        let of = all.clone().find(|entry| entry["action"] == action);
        of.unwrap_or_else(|| panic!("{action} in {page}")).clone()
    };
    let order = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await["order"].clone();
    let id = order.as_str().unwrap();
    let entry = newest("kill.order").await;
    assert_eq!(entry["subject"], "agent planner", "{entry}");
    assert_eq!(entry["detail"], format!("kill agent planner: \"a test\", order {id}"));
    mesh.admin.ok("POST", "/v1/kills/resume", json!({"orders": [id]})).await;
    let entry = newest("kill.resume").await;
    assert_eq!(entry["subject"], id, "{entry}");
    let detail = entry["detail"].as_str().unwrap();
    assert!(detail.ends_with("ends kill agent planner: \"a test\""), "{entry}");
    let revoke = "/v1/agents/planner/revoke";
    mesh.admin.ok("POST", revoke, json!({"reason": "it leaks"})).await;
    let entry = newest("agent.revoke").await;
    assert_eq!(
        (&entry["subject"], &entry["detail"]),
        (&json!("planner"), &json!("it leaks; generation 2 begins"))
    );
    for blank in ["", " \t\u{a0}"] {
        let order = json!({"scope": {"kind": "mesh"}, "mode": "kill", "reason": blank});
        for (path, body) in [("/v1/kills", order), (revoke, json!({"reason": blank}))] {
            let (status, problem) = mesh.admin.call("POST", path, body).await;
            assert_eq!(
                (status.as_u16(), &problem["errors"][0]["field"]),
                (422, &json!("reason")),
                "{problem}"
            );
        }
    }
    assert_eq!(mesh.admin.get("/v1/kills").await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_pushed_acknowledged_listed_and_taken_back() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = Stream::open(&sidecar, &fresh(), None).await.unwrap();
    let (first, _) = stream.set().await;
    assert_eq!(
        (first.version(), first.orders.len()),
        ((1, 0), 0),
        "an empty set is a set"
    );
    stream.ack(&first).await;
    let answer = kill(&mesh, json!({"kind": "agent", "agent": "planner"})).await;
    let (set, _) = stream.set().await;
    assert_eq!(
        (set.epoch, set.orders[0].id.as_str()),
        (1, answer["order"].as_str().unwrap())
    );
    let waiting = progress(&mesh, &answer, 0).await;
    assert_eq!(
        (
            waiting["enforced"].as_array().unwrap().len(),
            waiting["missing"][0]["connected"] == true
        ),
        (0, true)
    );
    stream.ack(&set).await;
    let done = progress(&mesh, &answer, 10_000).await;
    assert_eq!(
        (&done["missing"], &done["enforced"][0]["streams_cut"]),
        (&json!([]), &json!(1)),
        "{done}"
    );
    assert!(done["last_ms"].as_f64().is_some());
    assert_eq!(mesh.admin.get("/v1/kills").await["items"][0]["reason"], "a test");
    let orders = json!({ "orders": [answer["order"]] });
    mesh.admin.ok("POST", "/v1/kills/resume", orders.clone()).await;
    assert!(stream.set().await.0.orders.is_empty());
    let again = mesh.admin.refused("POST", "/v1/kills/resume", orders).await;
    assert_eq!(again, (404, "not_found".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_of_one_process_and_one_question() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = Stream::open(&sidecar, &fresh(), None).await.unwrap();
    stream
        .say(Message::Beat(Beat {
            sequence: 41,
            granted: 0,
        }))
        .await;
    let heartbeat = loop {
        if let Answer::Heartbeat(signed) = stream.next().await.unwrap() {
            break open_heartbeat(&stream.trust.load(), &signed).unwrap();
        }
    };
    assert_eq!((heartbeat.sequence, &heartbeat.instance), (41, &stream.instance));
    assert_eq!((heartbeat.term, heartbeat.epoch), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_beats_ends_the_stream() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = Stream::open(&sidecar, &fresh(), None).await.unwrap();
    for sequence in 0..200 {
        stream.say(Message::Beat(Beat { sequence, granted: 0 })).await;
    }
    let ended = loop {
        match stream.next().await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert!(
        ["rate_exceeded", "overloaded"].contains(&why(&ended).as_str()),
        "{ended:?}"
    );
}

/// The label of a signature and the purpose of its key count: a set is no heartbeat, and a config key signs no set.
#[tokio::test(flavor = "multi_thread")]
async fn a_shown_set_that_nobody_signed_changes_nothing() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = Stream::open(&sidecar, &fresh(), None).await.unwrap();
    let (mut set, mut signed) = stream.set().await;
    set.term = 900;
    signed.payload = serde_json::to_vec(&set).unwrap();
    let mut liar = Stream::open(&sidecar, &fresh(), Some(signed)).await.unwrap();
    assert_eq!(liar.set().await.0.version(), (1, 0));
    assert_eq!(mesh.admin.get("/v1/kills").await["term"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_has_one_stream_and_who_takes_its_id_takes_nothing_from_it() {
    let mesh = Mesh::dev().await;
    let (planner, ledger) = (mesh.joined("planner").await, mesh.joined("ledger").await);
    let instance = fresh();
    // Peers know an instance by the name of its endpoint.
    let mut thief = Stream::open(&ledger, &instance, None).await.unwrap();
    thief.set().await;
    let mut first = Stream::open(&planner, &instance, None).await.unwrap();
    first.set().await;
    let _second = Stream::open(&planner, &instance, None).await.unwrap();
    let ended = loop {
        match first.next().await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(why(&ended), "superseded");
}

/// One that can't be reached is named with its certain end; a fleet's acknowledgements are timed.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_enforces_and_who_is_gone_is_named_with_its_end() {
    const FLEET: usize = 24;
    let mesh = Mesh::dev().await;
    let lease = json!({"seconds": 30, "on_lost": "deny"});
    mesh.admin
        .ok("POST", "/v1/agents", json!({"name": "fleet", "lease": lease}))
        .await;
    let token = mesh.another_token("fleet").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "fleet", &token).await;
    sidecar.join(&token).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..FLEET {
        let mut stream = Stream::open(&sidecar, &fresh(), None).await.unwrap();
        let (set, _) = stream.set().await;
        stream.ack(&set).await;
        stream.beat(1, 0).await;
        // It says that it has it; until then it may go by what it had.
        stream.beat(2, 1).await;
        streams.push(stream);
    }
    let silent = streams.pop().unwrap();
    let begun = Instant::now();
    let answer = kill(&mesh, json!({"kind": "mesh"})).await;
    for stream in &mut streams {
        let (set, _) = stream.set().await;
        stream.ack(&set).await;
    }
    let shown = progress(&mesh, &answer, 500).await;
    assert_eq!(shown["enforced"].as_array().unwrap().len(), FLEET - 1);
    let missing = &shown["missing"][0];
    assert_eq!(missing["sidecar"], format!("fleet/{}", silent.instance));
    assert_eq!(missing["stopped_how"], "lease");
    let by = missing["stopped_by"].as_u64().unwrap();
    let now = aip_runtime::unix_now();
    assert!(by > now && by <= now + 33, "{by} at {now}");
    assert!(shown["p99_ms"].as_f64().unwrap() <= begun.elapsed().as_secs_f64() * 1_000.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_control_plane_what_may_still_run_is_known() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = Stream::open(&sidecar, &fresh(), None).await.unwrap();
    let (set, _) = stream.set().await;
    stream.ack(&set).await;
    stream.beat(1, 0).await;
    let mesh = mesh.restarted().await;
    let answer = kill(&mesh, json!({"kind": "mesh"})).await;
    let shown = progress(&mesh, &answer, 0).await;
    let missing = &shown["missing"][0];
    assert_eq!(missing["sidecar"], format!("planner/{}", stream.instance));
    assert_eq!(missing["stopped_how"], "svid", "its lease lets it go on");
    assert!(missing["stopped_by"].as_u64().unwrap() > aip_runtime::unix_now() + Duration::from_secs(600).as_secs());
}

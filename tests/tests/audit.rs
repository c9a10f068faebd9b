//! What sidecars record, as processes: both ends of each hop, whatever becomes of it, and through crashes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use aip_audit::checkpoint::Closing;
use aip_audit::hop;
use aip_audit::log::{Reader, claims_of, kept};
use aip_audit::record::{Decision, End};
use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, Mesh, Sidecar};
use aip_tests::{http as wire, trail, wait};
use http::{Method, Request};
use http_body_util::Full;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const HOST: &str = "callee.aip.internal";

fn audit(sidecar: &Sidecar) -> PathBuf {
    sidecar.dir.join("data/audit")
}

fn logs(sidecar: &Sidecar) -> Vec<PathBuf> {
    trail::logs(&audit(sidecar))
}

fn requests(sidecar: &Sidecar) -> BTreeMap<String, (Decision, Option<End>)> {
    trail::requests(&audit(sidecar))
}

/// Both records of one request, once it is over.
async fn over(sidecar: &Sidecar, path: &str) -> (Decision, End) {
    wait::until(
        &format!("{} recorded the end of {path}", sidecar.spec.name),
        async || {
            let (decision, end) = requests(sidecar).remove(path)?;
            Some((decision, end?))
        },
    )
    .await
}

struct Rig {
    mesh: Mesh,
    agent: Agent,
    caller: Sidecar,
    callee: Sidecar,
}

impl Rig {
    async fn start(durability: &str) -> Self {
        let mesh = Mesh::start().await;
        let agent = Agent::start();
        let caller = mesh.sidecar("caller", agent.address).await;
        let callee = mesh.sidecar("callee", agent.address).await;
        let mut config = mesh.admin().get("/v1/mesh-config").await;
        let config = &mut config["resource"];
        config["audit"]["durability"] = durability.into();
        let put = mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(config)).await;
        mesh.admin().acknowledged(put["revision"].as_u64().unwrap()).await;
        let rig = Self {
            mesh,
            agent,
            caller,
            callee,
        };
        reaches(&rig.caller).await;
        rig
    }

    /// The two ends of a request, which must tell the same story.
    async fn both(&self, path: &str) -> (End, End) {
        let ((asked, caller), (served, callee)) = (over(&self.caller, path).await, over(&self.callee, path).await);
        assert!(caller.hop.is_some() && caller.hop == callee.hop, "{path}");
        assert_eq!(
            hop::compare(
                &hop::Said::of(&asked).ended(&caller),
                &hop::Said::of(&served).ended(&callee)
            ),
            [],
            "{path}: {caller:?} {callee:?}"
        );
        (caller, callee)
    }
}

async fn reaches(caller: &Sidecar) {
    wait::until_ok("a call gets through", async || {
        let answer = caller.get(&format!("http://{HOST}/first")).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_of_every_kind_of_request_are_recorded_and_agree() {
    let rig = Rig::start("buffered").await;
    let policy = json!({"name": "no-denied", "attach": "mesh", "rego":
        "package aip.policy.no_denied\n\nrules contains {\"rule\": \"denied\", \"verdict\": \"deny\", \"reason\": \"no\"} if {\n\tinput.direction == \"inbound\"\n\tinput.request.path[0] == \"denied\"\n}\n"});
    rig.mesh.admin().apply(&policy).await;

    let post = Request::post(format!("http://{HOST}/allowed"));
    assert_eq!(rig.caller.call(post, "a body").await.status, 200);
    let (caller, callee) = rig.both("/allowed").await;
    assert!(caller.response_in.digest.is_some() && callee.request_in.digest.is_some());
    assert_eq!((caller.end.as_str(), callee.end.as_str()), ("complete", "complete"));

    assert_eq!(rig.caller.get(&format!("http://{HOST}/denied")).await.status, 403);
    let (_, callee) = rig.both("/denied").await;
    assert_eq!(
        (callee.status, callee.blame.as_str(), callee.request_out.bytes),
        (403, "policy", 0)
    );
    assert_eq!(over(&rig.callee, "/denied").await.0.rule, "denied");

    whole_stream(&rig).await;
    websocket(&rig).await;
    cut_stream(&rig).await;
    for sidecar in [rig.caller, rig.callee] {
        ends_in_order(sidecar).await;
    }
}

/// A stream to its end.
async fn whole_stream(rig: &Rig) {
    for step in 1..=3 {
        rig.agent.heard("whole", step);
    }
    rig.caller
        .get(&format!("http://{HOST}/events?stream=whole&steps=3"))
        .await;
    let (caller, _) = rig.both("/events").await;
    assert!(
        caller.response_in.digest.is_some() && caller.end == "complete",
        "{caller:?}"
    );
}

/// A WebSocket, closed by the client.
async fn websocket(rig: &Rig) {
    let mut tcp = TcpStream::connect(rig.caller.outbound).await.unwrap();
    let head = format!(
        "GET http://{HOST}/upgrade HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: abcd\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let answer = wire::read_until(&mut tcp, wire::head_came).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    tcp.write_all(b"ping").await.unwrap();
    assert_eq!(wire::read_until(&mut tcp, |came| came.len() >= 4).await, "ping");
    tcp.shutdown().await.unwrap();
    drop(tcp);
    let (caller, callee) = rig.both("/upgrade").await;
    assert_eq!(
        (caller.request_out.bytes, callee.response_out.bytes),
        (4, 4),
        "{caller:?} {callee:?}"
    );
    assert!(caller.request_out.digest.is_some() && caller.request_out.digest == callee.request_in.digest);
}

/// A stream that is cut by a new policy.
async fn cut_stream(rig: &Rig) {
    let stream = {
        let (outbound, url) = (rig.caller.outbound, format!("http://{HOST}/events?stream=cut&steps=9"));
        tokio::spawn(async move {
            let request = Request::get(url).header("host", HOST).body(Full::default()).unwrap();
            wire::send(outbound, request).await
        })
    };
    wait::until("the stream is open", async || {
        let open = |sidecar: &Sidecar| requests(sidecar).get("/events").is_some_and(|(_, end)| end.is_none());
        (open(&rig.caller) && open(&rig.callee)).then_some(())
    })
    .await;
    let later = json!({"name": "no-events", "attach": "mesh", "rego":
        "package aip.policy.no_events\n\nrules contains {\"rule\": \"later\", \"verdict\": \"deny\", \"reason\": \"no\"} if input.request.path == [\"events\"]\n"});
    rig.mesh.admin().apply(&later).await;
    assert!(stream.await.unwrap().is_err(), "the stream breaks off");
    let (caller, callee) = rig.both("/events").await;
    let ends = [caller.end.as_str(), callee.end.as_str()];
    assert!(ends.contains(&"policy_denied"), "{ends:?}");
}

/// Everything is signed, and nothing follows.
async fn ends_in_order(mut sidecar: Sidecar) {
    sidecar.process.signal(Signal::TERM);
    assert!(
        sidecar.process.end().await.success(),
        "{}",
        sidecar.process.last_words()
    );
    let dir = logs(&sidecar).pop().unwrap();
    let last = claims_of(&kept(&dir).unwrap().pop().unwrap().statement).unwrap();
    let records = Reader::open(&dir).unwrap().count() as u64;
    assert_eq!((last.closing, last.size), (Closing::Close, records));
}

/// Everything that was answered is in the log of whoever was killed, with its end, and the log holds as a whole.
async fn nothing_is_lost(mesh: &Mesh, sidecar: &Sidecar, answered: &[String]) {
    let recorded = requests(sidecar);
    for path in answered {
        let (_, end) = recorded
            .get(path)
            .unwrap_or_else(|| panic!("{path} was answered and is not recorded"));
        let end = end
            .as_ref()
            .unwrap_or_else(|| panic!("{path} was answered, and its end is not recorded"));
        assert_eq!(end.end, "complete", "{path}");
    }
    // A life that is younger than the time between two checkpoints has signed nothing yet.
    let report = wait::until_ok("the log verifies", async || {
        trail::verifies(mesh, &audit(sidecar)).await
    })
    .await;
    assert!(report.logs.iter().all(|log| log.gaps == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loses_nothing_that_was_answered() {
    for durability in ["grouped", "required"] {
        let mut rig = Rig::start(durability).await;
        let answered = Arc::new(Mutex::new(Vec::new()));
        for crash in 0..4 {
            let stop = Arc::new(AtomicBool::new(false));
            let lanes: Vec<_> = (0..4)
                .map(|lane| {
                    tokio::spawn(trail::load(
                        rig.caller.outbound,
                        HOST,
                        crash * 10 + lane,
                        stop.clone(),
                        answered.clone(),
                    ))
                })
                .collect();
            let before = answered.lock().unwrap().len();
            wait::until("calls are answered", async || {
                (answered.lock().unwrap().len() > before + 20 + 7 * crash).then_some(())
            })
            .await;
            let victim = if crash % 2 == 0 {
                &mut rig.callee
            } else {
                &mut rig.caller
            };
            victim.process.kill();
            stop.store(true, Ordering::Release);
            for lane in lanes {
                lane.await.unwrap();
            }
            victim.restart().await;
            reaches(&rig.caller).await;
            // The log went on, and says that it did. That is signed at once, where the next checkpoint takes seconds.
            let victim = if crash % 2 == 0 { &rig.callee } else { &rig.caller };
            let dirs = logs(victim);
            assert_eq!(dirs.len(), 1, "{durability}");
            wait::until("a recovery is signed", async || {
                (recoveries(&dirs[0]) > crash / 2).then_some(())
            })
            .await;
        }
        // Of all lives: what was answered before any of the crashes stands in the one log of each.
        let answered = answered.lock().unwrap().clone();
        nothing_is_lost(&rig.mesh, &rig.caller, &answered).await;
        nothing_is_lost(&rig.mesh, &rig.callee, &answered).await;
        let page = rig.callee.look("/audit").await.json();
        assert!(page["log"]["records"].as_u64() > Some(0), "{page}");
    }
}

/// Checkpoints of a log that say that it went on after a crash.
fn recoveries(dir: &Path) -> usize {
    let all = kept(dir).unwrap();
    let claims = all.iter().filter_map(|kept| claims_of(&kept.statement));
    claims.filter(|claims| claims.closing == Closing::Recovery).count()
}

/// What a control plane has lost, as one has that was restored from an older copy, comes up again: also of a log that is not
/// written any more and that it had once.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_lost_records_gets_them_again() {
    let mut rig = Rig::start("buffered").await;
    let copies = ControlPlane::data(&rig.mesh.control_plane.dir).join("audit");
    let sent = |callee: &Sidecar| {
        let mut all = logs(callee).into_iter();
        all.all(|dir| {
            let (log, segment) = (dir.file_name().unwrap(), "segment-00000000.jsonl");
            let ours = std::fs::read(dir.join(segment)).unwrap();
            let theirs = std::fs::read(copies.join("callee").join(log).join(segment));
            theirs.is_ok_and(|theirs| theirs == ours)
        })
    };
    rig.callee.process.signal(Signal::TERM);
    assert!(rig.callee.process.end().await.success());
    rig.callee = Sidecar::start(rig.callee.spec.clone(), &rig.callee.dir).await;
    reaches(&rig.caller).await;
    let done = |callee: &Sidecar| std::fs::read_to_string(logs(callee)[0].join("sent.json")).unwrap();
    wait::until("both logs were sent", async || {
        let all = logs(&rig.callee).len() == 2 && sent(&rig.callee);
        (all && done(&rig.callee).contains("\"done\":true")).then_some(())
    })
    .await;
    rig.mesh.control_plane.kill();
    std::fs::remove_dir_all(&copies).unwrap();
    rig.mesh.revive().await;
    wait::until("both logs were sent again", async || sent(&rig.callee).then_some(())).await;
}

/// A log whose files somebody damaged stays where it is: the one that is written goes up all the same, and nobody says that
/// records were taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_can_not_be_read_stops_no_other_one() {
    let mut rig = Rig::start("buffered").await;
    rig.callee.process.signal(Signal::TERM);
    assert!(rig.callee.process.end().await.success());
    let damaged = logs(&rig.callee).pop().unwrap();
    let file = damaged.join("checkpoints.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"statement\"", "\"statemint\"", 1)).unwrap();
    rig.callee = Sidecar::start(rig.callee.spec.clone(), &rig.callee.dir).await;
    reaches(&rig.caller).await;
    let copies = ControlPlane::data(&rig.mesh.control_plane.dir).join("audit/callee");
    wait::until("the new log goes up", async || {
        let live = logs(&rig.callee).pop().filter(|live| *live != damaged)?;
        let copy = copies.join(live.file_name().unwrap()).join("segment-00000000.jsonl");
        std::fs::read(copy).is_ok_and(|copy| !copy.is_empty()).then_some(())
    })
    .await;
    let said = ["log_unreadable"];
    assert!(rig.callee.metric("aip_audit_refused_total", &said).await > 0.0);
    let findings = rig.mesh.admin().get("/v1/audit/findings").await;
    assert_eq!(findings["items"], json!([]));
    assert!(damaged.exists());
}

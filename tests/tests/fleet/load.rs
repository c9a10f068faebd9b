//! The agents call each other all the while.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip_tests::http::{Answer, send_within};
use aip_tests::seeded::Seeded;
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::history::{Call, CallId, Member, Outcome, Recorder};
use crate::members::{Fleet, SIDECARS, name};

/// Between two calls of one agent: some 150 calls a second of all, which two cores do beside everything else.
const PAUSE_MS: (u64, u64) = (100, 500);
/// How long an agent waits: a way that is held up would keep it from calling others.
const PATIENCE: Duration = Duration::from_secs(4);
/// Whom it calls: few, as agents do, by their distance around the fleet.
const PEERS: [usize; 5] = [1, 5, 7, 18, 31];

/// All agents, calling.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    lanes: JoinSet<()>,
}

/// The path of a call.
pub(crate) fn path(call: CallId) -> String {
    format!("/fleet/{call}")
}

/// The call of a path.
pub(crate) fn call_of(path: &str) -> Option<CallId> {
    path.strip_prefix("/fleet/")?.parse().ok()
}

/// The peers that a member calls.
pub(crate) fn peers(member: Member) -> impl Iterator<Item = Member> {
    PEERS.into_iter().map(move |distance| (member + distance) % SIDECARS)
}

impl Load {
    pub(crate) fn begin(fleet: &Fleet, recorder: &Recorder, seed: u64) -> Self {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut lanes = JoinSet::new();
        for (member, one) in fleet.members.iter().enumerate() {
            let lane = Lane {
                member,
                door: one.door.clone(),
                recorder: recorder.clone(),
                next: next.clone(),
                random: Seeded::new(seed ^ (member as u64 + 1)),
            };
            lanes.spawn(lane.run(stop.clone()));
        }
        Self { stop, lanes }
    }

    /// No further calls; waits for those that are asked.
    pub(crate) async fn end(self) {
        self.stop.store(true, Ordering::Release);
        self.lanes.join_all().await;
    }
}

struct Lane {
    member: Member,
    door: Arc<Mutex<SocketAddr>>,
    recorder: Recorder,
    next: Arc<AtomicU64>,
    random: Seeded,
}

impl Lane {
    async fn run(mut self, stop: Arc<AtomicBool>) {
        let peers: Vec<_> = peers(self.member).collect();
        while !stop.load(Ordering::Acquire) {
            let to = peers[self.random.index(peers.len())];
            self.call(to).await;
            let (least, most) = PAUSE_MS;
            let pause = least + self.random.below(most - least);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn call(&self, to: Member) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let asked = self.recorder.now();
        let door = *self.door.lock().unwrap();
        let outcome = call(door, to, id).await;
        self.recorder.called(Call {
            id,
            from: self.member,
            to,
            asked,
            ended: self.recorder.now(),
            outcome,
        });
    }
}

/// One call by the agent whose door it is.
pub(crate) async fn call(door: SocketAddr, to: Member, id: CallId) -> Outcome {
    let host = format!("{}.aip.internal", name(to));
    // Not a method that a sidecar asks twice.
    let request = Request::post(format!("http://{host}{}", path(id))).header("host", host);
    let request = request.body(Full::from("work")).unwrap();
    let answer = send_within(PATIENCE, door, request).await;
    answer.map_or(Outcome::Broken, |answer| outcome(&answer))
}

fn outcome(answer: &Answer) -> Outcome {
    if answer.status == 200 {
        return Outcome::Answered;
    }
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let reason = problem["reason"].as_str().unwrap_or_default();
    // An answer of a gateway that lost its peer in the middle says nothing of what the peer does.
    match answer.status.as_u16() {
        502 | 504 => Outcome::Broken,
        _ => Outcome::Refused(reason.to_owned()),
    }
}

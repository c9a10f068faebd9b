//! The audit of a sidecar, ended at each of its points under load: whoever was answered is in the log, and the log holds.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip_audit::log;
use aip_audit::record::Event;
use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Process, Sidecar, SidecarSpec};
use aip_tests::{trail, wait};
use http::Method;

use crate::{FAULT, SEEN, is_killed, points};

const HOST: &str = "callee.aip.internal";
/// Calls at once.
const LANES: usize = 4;
/// A small log: a segment has some fifty requests, and a few hundred of them fill it.
const SMALL: [&str; 2] = ["--audit-mib", "1"];
/// How long it may take until a log of a MiB was filled, signed, sent and is dropped from.
const FULL: Duration = Duration::from_secs(120);

/// What the names of steps begin with that take a copy, a crash before or hours of checkpoints: `aip-audit` ends its own logs at those.
const IN_ONE_PROCESS: [&str; 6] = [
    "log:swe",
    "log:short",
    "log:leftover_",
    "log:statement_",
    "log:later_",
    "log:tail_",
];

struct Rig {
    mesh: Mesh,
    caller: Sidecar,
    spec: SidecarSpec,
    /// The callee's.
    _agent: Agent,
}

impl Rig {
    async fn start() -> Self {
        let mesh = Mesh::start().await;
        let agent = Agent::start();
        let caller = mesh.sidecar("caller", agent.address).await;
        let mut spec = mesh.spec(serde_json::json!({"name": "callee"}), agent.address).await;
        spec.flags = SMALL.map(str::to_owned).into();
        Self {
            mesh,
            caller,
            spec,
            _agent: agent,
        }
    }

    /// For every callee that starts from now on.
    async fn durability(&self, durability: &str) {
        let mut config = self.mesh.admin().get("/v1/mesh-config").await;
        let config = &mut config["resource"];
        config["audit"]["durability"] = durability.into();
        self.mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(config)).await;
    }

    async fn callee(&self) -> SidecarSpec {
        SidecarSpec {
            token: self.mesh.admin().token("callee").await,
            ..self.spec.clone()
        }
    }
}

/// Starts a callee whose process notes its points, or ends at one; maybe before it listens.
fn begin(spec: &SidecarSpec, dir: &Path, variable: &str, value: &str) -> Process {
    let mut command = Sidecar::command(spec, dir);
    command.env(variable, value);
    Process::start("sidecar-callee", &command, dir)
}

/// Calls in several lanes until `done`; what was answered, by lane and in order.
pub(crate) async fn under_load(caller: &Sidecar, mut done: impl AsyncFnMut() -> bool) -> Vec<Vec<String>> {
    let stop = Arc::new(AtomicBool::new(false));
    let answered: Vec<_> = (0..LANES).map(|_| Arc::new(Mutex::new(Vec::new()))).collect();
    let lanes: Vec<_> = answered
        .iter()
        .enumerate()
        .map(|(lane, answered)| {
            let load = trail::load(caller.outbound, HOST, lane, stop.clone(), answered.clone());
            tokio::spawn(load)
        })
        .collect();
    wait::until_within(FULL, "the load was enough", async || done().await.then_some(())).await;
    stop.store(true, Ordering::Release);
    for lane in lanes {
        lane.await.unwrap();
    }
    answered
        .iter()
        .map(|answered| answered.lock().unwrap().clone())
        .collect()
}

/// Everything that was answered is recorded with its end, but for what a quota took by the log's own word.
pub(crate) fn nothing_is_lost(audit: &Path, answered: &[Vec<String>], point: &str) {
    let recorded = trail::requests(audit);
    let dropped = trail::events(audit)
        .iter()
        .any(|event| matches!(event, Event::Dropped(_)));
    for lane in answered {
        let first = match dropped {
            true => lane
                .iter()
                .position(|path| recorded.contains_key(path))
                .unwrap_or(lane.len()),
            false => 0,
        };
        for path in &lane[first..] {
            let (_, end) = recorded
                .get(path)
                .unwrap_or_else(|| panic!("at {point}: {path} was answered and is not recorded"));
            let end = end.as_ref();
            let end = end.unwrap_or_else(|| panic!("at {point}: {path} was answered, and its end is not recorded"));
            assert_eq!(end.end, "complete", "at {point}: {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_record_is_lost_at_any_point_of_the_audit() {
    let rig = Rig::start().await;
    let dir = rig.mesh.dir("first");
    let seen = dir.join("seen");
    let first = begin(&rig.callee().await, &dir, SEEN, seen.to_str().unwrap());
    let dropped = async || seen.exists() && points(&seen).contains("log:dropping#1");
    under_load(&rig.caller, dropped).await;
    drop(first);
    let points: Vec<_> = points(&seen)
        .into_iter()
        .filter(|point| point.starts_with("log:"))
        .collect();
    let elsewhere = |step: &str| IN_ONE_PROCESS.iter().any(|begins| step.starts_with(begins));
    for step in log::STEPS.iter().filter(|step| !elsewhere(step)) {
        let step = format!("{step}#1");
        assert!(points.contains(&step), "{step} is not among {points:?}");
    }
    // Each point in both, at another of its passages; filling a log twice proves no more than once.
    for (durability, passage) in [("grouped", "#1"), ("required", "#2")] {
        rig.durability(durability).await;
        for point in points.iter().filter(|point| point.ends_with(passage)) {
            ends_at(&rig, point).await;
        }
    }
}

async fn ends_at(rig: &Rig, point: &str) {
    let dir = rig.mesh.dir(&point.replace([':', '#'], "-"));
    let spec = rig.callee().await;
    let mut process = begin(&spec, &dir, FAULT, point);
    let answered = under_load(&rig.caller, async || process.ended().is_some()).await;
    is_killed(&mut process, point).await;
    let audit = dir.join("data/audit");
    nothing_is_lost(&audit, &answered, point);
    drop(process);
    let _back = Sidecar::start(spec, &dir).await;
    wait::until_ok(&format!("the log verifies after {point}"), async || {
        trail::verifies(&rig.mesh, &audit).await
    })
    .await;
    nothing_is_lost(&audit, &answered, point);
}

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

use crate::{AFTER, FAULT, SEEN, all_points, is_killed, points};

const HOST: &str = "callee.aip.internal";
/// Calls at once.
const LANES: usize = 4;
/// Calls that are answered before a point counts: each lane's first few.
const ANSWERED: usize = 20;
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
fn begin(spec: &SidecarSpec, dir: &Path, variables: &[(&str, &Path)]) -> Process {
    let mut command = Sidecar::command(spec, dir);
    command.envs(variables.iter().copied());
    Process::start("sidecar-callee", &command, dir)
}

/// Calls in several lanes until `done`, which is told how many were answered; what was answered, by lane and in order.
pub(crate) async fn under_load(caller: &Sidecar, mut done: impl AsyncFnMut(usize) -> bool) -> Vec<Vec<String>> {
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
    wait::until_within(FULL, "the load was enough", async || {
        let so_far = answered.iter().map(|answered| answered.lock().unwrap().len()).sum();
        done(so_far).await.then_some(())
    })
    .await;
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

/// Whether the log must be full for this point, which takes a while: CI tries those under one durability.
fn is_of_a_full_log(point: &str) -> bool {
    ["log:drop", "log:manifest_"]
        .iter()
        .any(|begins| point.starts_with(begins))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_record_is_lost_at_any_point_of_the_audit() {
    let rig = Rig::start().await;
    let dir = rig.mesh.dir("first");
    let (seen, after) = (dir.join("seen"), dir.join("after"));
    let first = begin(&rig.callee().await, &dir, &[(SEEN, &seen), (AFTER, &after)]);
    under_load(&rig.caller, async |answered| {
        if answered >= ANSWERED {
            std::fs::write(&after, "").unwrap();
        }
        seen.exists() && points(&seen).contains("log:dropped#1")
    })
    .await;
    drop(first);
    let passed = points(&seen);
    let elsewhere = |step: &str| IN_ONE_PROCESS.iter().any(|begins| step.starts_with(begins));
    let (late, early): (Vec<_>, Vec<_>) = log::STEPS
        .iter()
        .filter(|step| !elsewhere(step))
        .map(|step| format!("{step}#1"))
        .partition(|step| passed.contains(step));
    for step in ["log:appended#1", "log:flushed#1", "log:rotated#1", "log:dropping#1"] {
        assert!(late.iter().any(|passed| passed == step), "{step} is not among {late:?}");
    }
    rig.durability("grouped").await;
    // Before anybody was answered.
    for point in &early {
        ends_at(&rig, point, None).await;
    }
    for durability in ["grouped", "required"] {
        rig.durability(durability).await;
        let spared = |point: &str| durability == "required" && is_of_a_full_log(point) && !all_points();
        for point in late.iter().filter(|point| !spared(point)) {
            ends_at(&rig, point, Some(durability)).await;
        }
    }
}

/// Ends it at that point: the first time, or, with a durability, the first time after some calls were answered.
async fn ends_at(rig: &Rig, point: &str, under: Option<&str>) {
    let name = format!("{}-{}", point.replace([':', '#'], "-"), under.unwrap_or("start"));
    let dir = rig.mesh.dir(&name);
    let (spec, after) = (rig.callee().await, dir.join("after"));
    let mut variables = vec![(FAULT, Path::new(point))];
    variables.extend(under.map(|_| (AFTER, after.as_path())));
    let mut process = begin(&spec, &dir, &variables);
    let answered = under_load(&rig.caller, async |answered| {
        if answered >= ANSWERED {
            std::fs::write(&after, "").unwrap();
        }
        process.ended().is_some()
    })
    .await;
    is_killed(&mut process, point).await;
    let count: usize = answered.iter().map(Vec::len).sum();
    assert!(
        under.is_none() || count >= ANSWERED,
        "at {name}: {count} were answered before the end"
    );
    let audit = dir.join("data/audit");
    nothing_is_lost(&audit, &answered, &name);
    drop(process);
    let _back = Sidecar::start(spec, &dir).await;
    wait::until_ok(&format!("the log verifies after {name}"), async || {
        trail::verifies(&rig.mesh, &audit).await
    })
    .await;
    nothing_is_lost(&audit, &answered, &name);
}

//! The control plane, ended at each point of its copies of sidecars' logs: what was signed comes up again, once and whole.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aip_audit::verify::Kind;
use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, DEV, Mesh, Process, Sidecar};
use aip_tests::{trail, wait};

use crate::audit::under_load;
use crate::{FAULT, SEEN, all_points, is_killed, points};

/// How long it may take: a sidecar waits up to 15 s between two attempts, and signs every 4 s.
const COMES_UP: Duration = Duration::from_secs(120);
/// What a verifier says of a hop whose records a full log could not take.
const LOST: [Kind; 2] = [Kind::MissingAtCallee, Kind::EndMissing];
/// The points of a copy: its own, and those of the log that it is.
const OURS: [&str; 2] = ["audit:", "copy-log:"];
/// What it comes to, at the least.
const REACHED: [&str; 12] = [
    "audit:written",
    "audit:synced",
    "audit:rotated",
    "copy-log:made",
    "copy-log:made_synced",
    "copy-log:manifest_written",
    "copy-log:manifest_synced",
    "copy-log:manifest_renamed",
    "copy-log:flush",
    "copy-log:flushed",
    "copy-log:rotating",
    "copy-log:kept",
];

/// Those that CI ends it at: after each, logs come up for some ten seconds.
const IN_CI: [&str; 5] = [
    "audit:written#1",
    "audit:synced#1",
    "audit:rotated#1",
    "copy-log:flushed#1",
    "copy-log:kept#1",
];

/// Starts the control plane where it was, as one that notes its points or ends at one.
fn start_again(mesh: &mut Mesh, variable: &str, value: &str) {
    let (mesh_port, admin) = (mesh.control_plane.mesh, mesh.control_plane.admin.address);
    let dir = mesh.control_plane.dir.clone();
    let mut command = ControlPlane::command(&ControlPlane::data(&dir), mesh_port, admin, DEV);
    command.env(variable, value);
    mesh.control_plane.kill();
    mesh.control_plane.process = ControlPlane::begin(&dir, &command);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sidecars_signed_comes_up_whole_whenever_the_control_plane_ends() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let mut spec = mesh.spec(serde_json::json!({"name": "callee"}), agent.address).await;
    // A small log has small segments: some hundred requests close one.
    spec.flags = ["--audit-mib", "1"].map(str::to_owned).into();
    let seen = mesh.dir("seen").join("points");
    start_again(&mut mesh, SEEN, seen.to_str().unwrap());
    let first = Sidecar::start(spec.clone(), &mesh.dir("first")).await;
    // The first checkpoint that stands beside a copy is the one inside of a segment that the next one closes.
    let last = ["audit:rotated#1", "copy-log:kept#1"];
    let rotated = async || seen.exists() && last.iter().all(|point| points(&seen).contains(*point));
    under_load(&caller, async |_| rotated().await).await;
    // One that is killed takes what is not signed yet with it, and that is another test's.
    come_up(&mesh, [&caller.dir, &first.dir], "its start").await;
    drop(first);
    let mut points = points(&seen);
    points.retain(|point| point.ends_with("#1") && OURS.iter().any(|ours| point.starts_with(ours)));
    for reached in REACHED {
        assert!(
            points.contains(&format!("{reached}#1")),
            "{reached} is not among {points:?}"
        );
    }
    let wanted = |point: &&String| all_points() || IN_CI.contains(&point.as_str());
    for point in points.iter().filter(wanted) {
        mesh.control_plane.kill();
        mesh.revive().await;
        spec.token = mesh.admin().token("callee").await;
        start_again(&mut mesh, FAULT, point);
        let dir = mesh.dir(&point.replace([':', '#'], "-"));
        // It has a new log, and may come to join only when there is a control plane again.
        let callee = Process::start("sidecar-callee", &Sidecar::command(&spec, &dir), &dir);
        under_load(&caller, async |_| mesh.control_plane.process.ended().is_some()).await;
        is_killed(&mut mesh.control_plane.process, point).await;
        mesh.revive().await;
        come_up(&mesh, [&caller.dir, &dir], point).await;
        drop(callee);
    }
    let report = trail::report_of_copies(&mesh).await.unwrap();
    // The callee's log is small, and full while the control plane is away: what it loses then is missed at its end of a hop.
    let faults = report.faults.iter().filter(|fault| !LOST.contains(&fault.kind));
    let faults: Vec<_> = faults.collect();
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(report.ledger.is_some_and(|ledger| ledger.covered > 0));
}

/// The control plane's copies become what the two sidecars have, all of it signed.
async fn come_up(mesh: &Mesh, [caller, callee]: [&Path; 2], point: &str) {
    let copies = ControlPlane::data(&mesh.control_plane.dir).join("audit");
    let missing = |dir: &Path, agent: &str| -> Vec<PathBuf> {
        let audit = dir.join("data/audit");
        if !audit.exists() {
            return vec![audit];
        }
        let logs = trail::logs(&audit);
        logs.into_iter()
            .flat_map(|log| trail::lacking(&log, &copies.join(agent)))
            .collect()
    };
    wait::until_within(COMES_UP, &format!("the logs come up after {point}"), async || {
        let both = [missing(caller, "caller"), missing(callee, "callee")].concat();
        both.is_empty().then_some(())
    })
    .await;
}

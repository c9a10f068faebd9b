//! Load for an hour, while agents come and go, policy changes and SVIDs live for a minute: no call fails that is not meant to, and no
//! process has more memory or open files in the end than it had once it was warm.
//!
//! | file | what |
//! |---|---|
//! | `lanes` | the calls, each with what it must be answered |
//! | `churn` | agents that come and go, policies that change |
//! | `meter` | what processes have, and whether it grows |

mod churn;
mod lanes;
mod meter;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aip_audit::verify::{Fault, Kind, LogReport};
use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::seeded::number;
use aip_tests::{trail, wait};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use churn::Churn;
use lanes::{Lane, Tally};
use meter::Meter;

/// Minutes of it, unless `SOAK_MINUTES` says otherwise.
const MINUTES: u64 = 60;
/// Sidecars that stand all the while.
const STANDING: usize = 4;
/// Calls at once of each.
const LANES: usize = 2;
/// Seconds that an SVID lives: the least there is.
const SVID: u64 = 60;
/// MiB of a sidecar's log, and of the control plane's copies of one agent's: both are full soon, so that what an hour at
/// most adds is what a leak adds.
const LOG_MIB: u64 = 16;

/// How long the control plane may be behind in the end.
const SENT: Duration = Duration::from_secs(180);

/// The name of one that stands.
fn name(standing: usize) -> String {
    format!("s{standing}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes an hour: `make soak`"]
async fn load_and_churn_fail_nobody_and_leak_nothing() {
    let minutes = number("SOAK_MINUTES").unwrap_or(MINUTES);
    let (mesh, agent) = (Mesh::start().await, Agent::forgetful());
    settings(&mesh).await;
    let mut standing = Vec::new();
    for number in 0..STANDING {
        let mut spec = mesh.spec(json!({"name": name(number)}), agent.address).await;
        spec.flags = vec!["--audit-mib".into(), LOG_MIB.to_string()];
        standing.push(Sidecar::start(spec, &mesh.dir(&name(number))).await);
    }
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let mut churn = Churn::begin(&mesh, &agent, &standing).await;
    let mut lanes = JoinSet::new();
    for lane in (0..STANDING * LANES).map(|lane| Lane::of(lane, &standing)) {
        lanes.spawn(lane.run(stop.clone(), tally.clone()));
    }
    let mut meter = Meter::begin(&mesh, &standing);
    let (began, all) = (Instant::now(), Duration::from_secs(minutes * 60));
    while began.elapsed() < all {
        churn.round(&tally).await;
        meter.look(&mesh, &standing);
    }
    stop.store(true, Ordering::Release);
    lanes.join_all().await;
    println!("{minutes} minutes: {tally}; {churn}\n{meter}");
    tally.is_clean();
    meter.is_flat();
    renewed(&mesh, minutes).await;
    nobody_complains(&mesh, &standing);
    all_is_sent(&standing).await;
    verifies(&mesh, &churn.left).await;
}

/// SVIDs that live for a minute, and small logs.
async fn settings(mesh: &Mesh) {
    let mut config = mesh.admin().get("/v1/mesh-config").await["resource"].clone();
    config["svid_ttl_seconds"] = SVID.into();
    config["audit"]["retention"]["bytes"] = (LOG_MIB << 20).into();
    mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(&config)).await;
}

/// Each has renewed its SVID as often as it should: after 24 to 36 seconds, so not less than once a minute, and not more than thrice.
async fn renewed(mesh: &Mesh, minutes: u64) {
    for name in (0..STANDING).map(name) {
        let svids = mesh.admin().get(&format!("/v1/agents/{name}/svids")).await;
        let nth = svids["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|svid| svid["nth"].as_u64());
        let nth = nth.max().unwrap_or_default();
        println!("{name} has renewed its SVID {nth} times");
        assert!(
            nth >= minutes,
            "{name} renewed its SVID {nth} times in {minutes} minutes: {svids}"
        );
    }
}

/// No process says that something failed that should not.
fn nobody_complains(mesh: &Mesh, standing: &[Sidecar]) {
    let processes = standing.iter().map(|sidecar| &sidecar.process);
    for process in processes.chain([&mesh.control_plane.process]) {
        let said = process.stderr();
        let errors: Vec<_> = said.lines().filter(|line| line.contains("ERROR")).take(5).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", process.name);
    }
}

/// The control plane has what was recorded: from then on nothing comes, for which it would let go of what is being exported.
async fn all_is_sent(standing: &[Sidecar]) {
    for sidecar in standing {
        let what = format!("all of {} is sent", sidecar.spec.name);
        wait::until_within(SENT, &what, async || {
            let unsent = sidecar.metric("aip_audit_unsent_bytes", &[]).await;
            (unsent < 1.0).then_some(())
        })
        .await;
    }
}

/// All logs hold, but for the ends that these never sent.
async fn verifies(mesh: &Mesh, left: &BTreeSet<String>) {
    let report = trail::report_of_copies(mesh).await.expect("the verifier ends");
    let is_left = |fault: &&Fault| fault.kind == Kind::Truncated && left.contains(&fault.log);
    let faults: Vec<_> = report.faults.iter().filter(|fault| !is_left(fault)).collect();
    assert!(faults.is_empty() && !report.logs.is_empty(), "{faults:#?}");
    let sum = |of: fn(&LogReport) -> u64| report.logs.iter().map(of).sum::<u64>();
    let (dropped, gaps) = (sum(|log| log.dropped), sum(|log| log.gaps));
    println!(
        "{} logs verify: {dropped} records dropped by their quota, {gaps} lost",
        report.logs.len()
    );
    assert_eq!(gaps, 0);
}

/// The document that denies what has `denied` in its path, and says its version.
fn policy(version: u64) -> Value {
    let rego = format!(
        "package aip.policy.soak\n\nrules contains {{\"rule\": \"no_denied\", \"verdict\": \"deny\", \"reason\": \"version {version}\"}} if input.request.path[_] == \"denied\"\n"
    );
    json!({"name": "soak", "rego": rego, "attach": "mesh"})
}

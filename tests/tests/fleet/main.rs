//! One control plane and fifty sidecars, as processes, while ways between them are held up, cut and healed, processes are
//! killed and started again, and operators order, lift and revoke: no sidecar lets through what it was said to have stopped, or
//! serves an SVID that it was said to know as revoked; every answered call is in a log that verifies in the end; and, healed,
//! all hold the same.
//!
//! Real processes, and relays between them, because what fails in a partition is in their parts that no simulated network would
//! have: the TLS of a stream, its retries, the disk. So a seed draws the same steps again, and not the same moments.
//!
//! | file | what |
//! |---|---|
//! | `members` | the processes, and the ways between them |
//! | `load` | the calls that their agents make |
//! | `schedule` | what happens to them, drawn from the seed |
//! | `watch` | what the admin API says meanwhile |
//! | `history` | all that was asked and answered, by one clock |
//! | `healed` | what is found afterwards |
//! | `judge` | whether that keeps the promises |
//! | `soak` | a small fleet that nothing happens to, for an hour |

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod healed;
mod history;
mod judge;
mod load;
mod members;
mod schedule;
mod soak;
mod watch;

use aip_tests::seeded::{number, seed};
use http::Method;

use history::{Fact, History, Outcome, Recorder};
use judge::{Evidence, judge};
use load::Load;
use members::{Fleet, SIDECARS};
use schedule::Schedule;

/// The first seed: the same at every change, so that what fails was changed. `make soak` takes others.
const SEED: u64 = 20_261_122;
/// Runs, each with the next seed, and steps of each, unless `AIP_FLEET_RUNS` and `AIP_FLEET_STEPS` say otherwise.
const RUNS: u64 = 1;
const STEPS: u64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_in_partitions_and_restarts_keeps_its_promises() {
    let first = seed(SEED);
    let steps = number("AIP_FLEET_STEPS").unwrap_or(STEPS);
    for seed in first..first + number("AIP_FLEET_RUNS").unwrap_or(RUNS) {
        let (history, evidence) = Box::pin(run(seed, steps)).await;
        eprintln!("seed {seed}: {}", told(&history, &evidence));
        let broken = judge(&history, &evidence);
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
        means_something(&history);
    }
}

async fn run(seed: u64, steps: u64) -> (History, Evidence) {
    let recorder = Recorder::begin();
    let fleet = Fleet::start().await;
    eprintln!("{:>8.2?} until {SIDECARS} sidecars are ready", recorder.now());
    durability(&fleet, seed).await;
    let load = Load::begin(&fleet, &recorder, seed);
    let mut schedule = Schedule::new(fleet, recorder.clone(), seed);
    schedule.run(steps).await;
    let revision = schedule.heal().await;
    let standing = healed::standing(&schedule.fleet, revision).await;
    load.end().await;
    let history = recorder.so_far();
    let evidence = healed::evidence(&schedule.fleet, standing).await;
    (history, evidence)
}

/// What waits for the disk, by the seed.
async fn durability(fleet: &Fleet, seed: u64) {
    let admin = fleet.mesh.admin();
    let mut config = admin.get("/v1/mesh-config").await;
    let config = &mut config["resource"];
    config["audit"]["durability"] = ["buffered", "grouped", "required"][usize::try_from(seed % 3).unwrap()].into();
    let put = admin.ok(Method::PUT, "/v1/mesh-config", Some(config)).await;
    admin.acknowledged(put["revision"].as_u64().unwrap()).await;
}

/// What there was to judge, in numbers.
fn told(history: &History, evidence: &Evidence) -> String {
    let ended = |is: fn(&Outcome) -> bool| history.calls.iter().filter(|call| is(&call.outcome)).count();
    let facts = |is: fn(&Fact) -> bool| history.facts.iter().filter(|(_, fact)| is(fact)).count();
    format!(
        "{} calls ({} answered, {} refused, {} broken), {} orders enforced {} times, {} revocations, {} acknowledgements, \
         {} records, {} logs",
        history.calls.len(),
        ended(|outcome| *outcome == Outcome::Answered),
        ended(|outcome| matches!(outcome, Outcome::Refused(_))),
        ended(|outcome| *outcome == Outcome::Broken),
        facts(|fact| matches!(fact, Fact::Ordered { .. })),
        facts(|fact| matches!(fact, Fact::Enforced { .. })),
        facts(|fact| matches!(fact, Fact::Revoked { .. })),
        facts(|fact| matches!(fact, Fact::Holds { .. })),
        evidence.recorded.len(),
        evidence.logs.len(),
    )
}

/// A run in which nothing was answered, stopped, cut off or revoked proves nothing.
fn means_something(history: &History) {
    let calls = |is: &dyn Fn(&Outcome) -> bool| history.calls.iter().filter(|call| is(&call.outcome)).count();
    let refused = |reason: &str| calls(&|outcome| *outcome == Outcome::Refused(reason.to_owned()));
    let facts = |is: fn(&Fact) -> bool| history.facts.iter().filter(|(_, fact)| is(fact)).count();
    for (what, count, least) in [
        ("calls answered", calls(&|outcome| *outcome == Outcome::Answered), 500),
        ("calls stopped", refused("killed") + refused("paused"), 50),
        ("calls broken", calls(&|outcome| *outcome == Outcome::Broken), 10),
        (
            "words of an order enforced",
            facts(|fact| matches!(fact, Fact::Enforced { .. })),
            100,
        ),
        ("revocations", facts(|fact| matches!(fact, Fact::Revoked { .. })), 1),
        (
            "words of a revision held",
            facts(|fact| matches!(fact, Fact::Holds { .. })),
            100,
        ),
        (
            "checkpoints",
            facts(|fact| matches!(fact, Fact::Signed { .. })),
            SIDECARS,
        ),
    ] {
        assert!(count >= least, "{count} {what}: too few to judge by");
    }
}

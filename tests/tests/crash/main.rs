//! Processes that end as SIGKILL ends them: at every point that has a name, before and after each step that makes
//! something durable, and at random moments under load. What was acknowledged is there afterwards, and what is there is
//! whole. Where something is to be acknowledged before the end, points count only once that has happened.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod audit;
mod commits;
mod control_plane;
mod copy;
mod decisions;
mod kills;
mod observed;
mod random;
mod sidecar;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use aip_tests::process::Process;
use aip_tests::wait;

/// The variable that says at which point a process ends.
const FAULT: &str = "AIP_FAULT";
/// The variable that says where it writes down the points that it comes to.
const SEEN: &str = "AIP_FAULT_SEEN";

/// The variable that says which file must be there before a point counts.
const AFTER: &str = "AIP_FAULT_AFTER";
/// The variable that asks for every point, also where CI tries some: `make soak` sets it.
const ALL: &str = "AIP_CRASH_POINTS";

/// Whether every point is to be tried.
fn all_points() -> bool {
    std::env::var(ALL).is_ok_and(|points| points == "all")
}

/// The points that a process wrote down.
fn points(seen: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(seen).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Waits until the process has ended, and holds that it was killed: a fault is no failure of its own.
async fn is_killed(process: &mut Process, point: &str) {
    let status = wait::until_ok(&format!("it ends at {point}"), async || {
        process.ended().ok_or_else(|| "it goes on".to_owned())
    })
    .await;
    assert_eq!(
        status.signal(),
        Some(9),
        "at {point}: {status}\n{}",
        process.last_words()
    );
}

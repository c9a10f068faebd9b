//! How long a record waits for a signature, in paused time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use aip_audit::log::{self, claims_of};
use aip_sidecar::audit::checkpoint;

use crate::agent::Agent;
use crate::client::{get, send};
use crate::mesh::{DEADLINE, Pair, Side};

/// What is promised.
const PROMISED: Duration = Duration::from_secs(5);
/// Shorter than the time between two checkpoints.
const SHORTER: Duration = Duration::from_millis(3_900);

fn dir(side: &Side) -> PathBuf {
    let logs = std::fs::read_dir(side.dir.path()).unwrap();
    let mut logs = logs.map(|entry| entry.unwrap().path());
    logs.find(|path| log::name_of(path).is_ok()).unwrap()
}

/// Records that each checkpoint covers.
fn signed(side: &Side) -> Vec<u64> {
    let kept = log::kept(&dir(side)).unwrap();
    kept.iter()
        .map(|kept| claims_of(&kept.statement).unwrap().size)
        .collect()
}

/// Waits by the clock on the wall: the other one stands still.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        tokio::task::yield_now().await;
    }
}

/// Lets everything that is due happen.
async fn settle() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_is_signed_within_five_seconds_and_nothing_is_signed_twice() {
    // While a thread is busy the clock does not go on by itself.
    let (end, busy) = std::sync::mpsc::sync_channel::<()>(0);
    let clock = tokio::task::spawn_blocking(move || busy.recv().is_ok());
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let side = &pair.callee;
    tokio::spawn(checkpoint::run(side.audit.clone(), side.svid.clone(), side.mesh()));
    settle().await;
    for round in 1..=3 {
        send(pair.caller.outbound, get("/empty")).await;
        until("both records are written", || side.recorded().len() == 2 * round).await;
        settle().await;
        assert_eq!(signed(side).len(), round - 1, "it is not time yet");
        tokio::time::advance(SHORTER).await;
        settle().await;
        assert_eq!(signed(side).len(), round - 1, "nor now");
        tokio::time::advance(PROMISED - SHORTER).await;
        until("it is signed", || signed(side).len() == round).await;
        assert_eq!(signed(side).last(), Some(&(2 * round as u64)), "all of it");
        // Where nothing is new there is nothing to sign; and the next time begins with the next checkpoint.
        tokio::time::advance(Duration::from_secs(8)).await;
        settle().await;
        assert_eq!(signed(side).len(), round);
    }
    drop(end);
    assert!(!clock.await.unwrap());
}

//! How long a record waits for a signature, in paused time.

use std::path::PathBuf;
use std::time::Duration;

use aip_audit::log::{self, claims_of};
use aip_sidecar::audit::checkpoint;

use crate::agent::Agent;
use crate::client::{get, send};
use crate::mesh::{Pair, Side};
use crate::paused::Paused;

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

#[tokio::test(start_paused = true)]
async fn a_record_is_signed_within_five_seconds_and_nothing_is_signed_twice() {
    let clock = Paused::new();
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let side = &pair.callee;
    tokio::spawn(checkpoint::run(side.audit.clone(), side.svid.clone(), side.mesh()));
    clock.settle().await;
    for round in 1..=3 {
        send(pair.caller.outbound, get("/empty")).await;
        clock
            .until("both records are written", || side.recorded().len() == 2 * round)
            .await;
        clock.settle().await;
        assert_eq!(signed(side).len(), round - 1, "it is not time yet");
        tokio::time::advance(SHORTER).await;
        clock.settle().await;
        assert_eq!(signed(side).len(), round - 1, "nor now");
        tokio::time::advance(PROMISED - SHORTER).await;
        clock.until("it is signed", || signed(side).len() == round).await;
        assert_eq!(signed(side).last(), Some(&(2 * round as u64)), "all of it");
        // Where nothing is new there is nothing to sign; and the next time begins with the next checkpoint.
        tokio::time::advance(Duration::from_secs(8)).await;
        clock.settle().await;
        assert_eq!(signed(side).len(), round);
    }
}

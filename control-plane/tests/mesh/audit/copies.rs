//! How many copies of logs one agent's sidecars can have opened, and what of them stays.

use std::path::Path;
use std::time::Duration;

use aip_api::wire::HeldLog;
use aip_audit::log::fresh_name;
use serde_json::json;

use crate::support::audit::{Audit, Log};
use crate::support::{Mesh, Sidecar, eventually};

/// Files below `dir` that this process has open: the control plane of the test among them.
fn open_below(dir: &Path) -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let files = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    files.filter(|file| file.starts_with(dir)).count()
}

fn copies(mesh: &Mesh) -> usize {
    mesh.plane.audit.copies(None).len()
}

/// Sends a log of one record, on a stream that has others, too.
async fn sent(stream: &mut Audit, sidecar: &Sidecar) -> Log {
    let mut log = Log::fresh();
    log.fill(1);
    stream.all(sidecar, &log).await;
    log
}

#[tokio::test]
async fn logs_that_are_only_named_leave_nothing_behind() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let named = |_| HeldLog {
            log: fresh_name(),
            size: 0,
        };
        let mut stream = Audit::open(&sidecar, (0..64).map(named).collect()).await.unwrap();
        for _ in 0..64 {
            stream.answer().await.unwrap();
        }
        streams.push(stream);
    }
    assert_eq!((copies(&mesh), open_below(&mesh.data.join("audit/planner"))), (0, 0));
    assert_eq!(mesh.admin.get("/v1/audit/logs").await["items"], json!([]));
    // Nor do records that no checkpoint covers.
    let mut log = Log::fresh();
    log.fill(1);
    let mut stream = Audit::open(&sidecar, vec![]).await.unwrap();
    assert_eq!(
        stream.chunk(log.whole(0, false)).await.unwrap_err(),
        "checkpoint_missing"
    );
    assert_eq!(copies(&mesh), 0);
    stream.all(&sidecar, &log).await;
    assert_eq!(copies(&mesh), 1, "and an honest one is taken");
}

#[tokio::test]
async fn one_stream_has_few_copies_open_and_goes_on_with_each() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = Audit::open(&sidecar, vec![]).await.unwrap();
    let mut logs = Vec::new();
    for _ in 0..12 {
        logs.push(sent(&mut stream, &sidecar).await);
    }
    let below = mesh.data.join("audit/planner");
    assert_eq!(copies(&mesh), 12);
    assert!(open_below(&below) <= 4 * 4, "{} files are open", open_below(&below));
    for log in &mut logs {
        let before = log.bytes(0).len();
        log.fill(1);
        stream.checkpoint(log.checkpoint(&sidecar)).await.unwrap();
        let length = log.bytes(0).len();
        let next = log.chunk(0, before, length, false);
        assert_eq!(stream.chunk(next).await, Ok((0, length as u64)));
        let copy = below.join(log.name()).join("segment-00000000.jsonl");
        assert_eq!(std::fs::read(copy).unwrap(), log.bytes(0));
    }
    assert_eq!(mesh.admin.get("/v1/audit/findings").await["items"], json!([]));
}

#[tokio::test]
async fn a_copy_to_which_nothing_comes_is_closed() {
    let mesh = Mesh::dev().await;
    let sidecar = mesh.joined("planner").await;
    let mut stream = Audit::open(&sidecar, vec![]).await.unwrap();
    let log = sent(&mut stream, &sidecar).await;
    let below = mesh.data.join("audit/planner");
    assert!(open_below(&below) > 0);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    eventually("the files to be closed", async || {
        (open_below(&below) == 0).then_some(())
    })
    .await;
    // Nobody lost the right to it.
    let mut other = Audit::open(&sidecar, vec![log.held()]).await.unwrap();
    assert_eq!(
        crate::support::sidecar::why(&other.answer().await.unwrap_err()),
        "log_in_use"
    );
}

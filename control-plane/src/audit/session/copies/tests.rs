//! Turns of reading records, and what is heard of a copy that is opened again.

use std::path::Path;

use aip_api::resource::MeshMode;
use aip_audit::log::{Options, Writer, fresh_name, segment_path};
use aip_audit::record::{Event, Strangers};
use aip_runtime::drain::{self, Drain};
use futures_util::FutureExt as _;
use tokio::sync::mpsc;

use super::super::*;
use super::*;
use crate::audit::MAX_READING_EACH;
use crate::audit::ledger::Writing;
use crate::config::world::World;
use crate::quota::Quota;
use crate::testing;

async fn audit(data: &Path) -> (Arc<Audit>, Writing) {
    let mesh = testing::mesh(MeshMode::Dev).await;
    let trust = mesh.ca.trust().unwrap().shared();
    let world = World::new(&mesh.registry.store, mesh.ca.clone(), trust.clone()).await;
    let world = world.unwrap();
    Audit::open(data, mesh.registry, mesh.ca, world, trust).await.unwrap()
}

/// A stream of planner's; nobody reads what it answers.
fn session(audit: &Arc<Audit>) -> (Session, Drain) {
    let (drain, watch) = drain::channel();
    let place = Quota::new(1, 1).try_take("planner").unwrap();
    let (peer, out) = (testing::peer("planner", "1"), mpsc::channel(8).0);
    (
        Session::new(audit.clone(), peer, "one".into(), out, watch, place),
        drain,
    )
}

/// All turns that planner may have at once and that are free.
fn free(audit: &Audit) -> Vec<Place> {
    std::iter::from_fn(|| audit.reading.try_take("planner")).collect()
}

#[tokio::test]
async fn who_waits_for_a_turn_ends_when_its_stream_does() {
    let data = tempfile::tempdir().unwrap();
    let (audit, _writing) = audit(data.path()).await;
    let (mut superseded, _drain) = session(&audit);
    let (mut drained, drain) = session(&audit);
    let held = free(&audit);
    assert_eq!(held.len(), MAX_READING_EACH);
    let cancel = superseded.cancel.clone();
    let mut turn = Box::pin(superseded.turn());
    assert!(turn.as_mut().now_or_never().is_none(), "it waits");
    cancel.cancel();
    assert_eq!(turn.await.unwrap_err().reason(), "superseded");
    let mut turn = Box::pin(drained.turn());
    assert!(turn.as_mut().now_or_never().is_none(), "it waits");
    drain.start();
    assert_eq!(turn.await.unwrap_err().reason(), "draining");
    drop(held);
    assert_eq!(free(&audit).len(), MAX_READING_EACH);
}

#[tokio::test]
async fn who_waits_for_the_disk_holds_no_turn() {
    let data = tempfile::tempdir().unwrap();
    // Nobody runs what writes the ledger: it is a disk that never answers.
    let (audit, _writing) = audit(data.path()).await;
    let (mut session, _drain) = session(&audit);
    let log = fresh_name();
    session.claimed(&log).await.unwrap();
    session.copied(&log).await.unwrap();
    let copy = session.dir_of(&log);
    assert!(copy.exists());
    let chunk = SegmentChunk {
        log: log.clone(),
        segment: 0,
        offset: 0,
        data: b"no record\n".to_vec(),
        last: false,
    };
    let mut taking = Box::pin(session.take(&log, chunk, 1));
    // It is read when nothing is left of it; what was found is then to be written down.
    while copy.exists() {
        let moment = tokio::time::timeout(Duration::from_millis(10), &mut taking);
        assert!(moment.await.is_err(), "it waits for the disk");
    }
    assert!(taking.as_mut().now_or_never().is_none(), "it waits for the disk");
    assert_eq!(free(&audit).len(), MAX_READING_EACH);
}

/// A log of so many records, of which each MiB has ten; and its copy, opened.
fn log(dir: &Path, records: u64) -> Unread {
    let (mut writer, _) = Writer::open(dir, Options::default()).unwrap();
    for _ in 0..records {
        let said = Strangers {
            reason: "r".into(),
            count: 1,
            sample: "x".repeat(105_000),
        };
        writer.append(Event::Strangers(said), 1).unwrap();
    }
    drop(writer);
    Copy::open(dir, Options::default()).unwrap()
}

#[tokio::test]
async fn what_was_read_half_way_is_heard_once() {
    let data = tempfile::tempdir().unwrap();
    let (audit, _writing) = audit(data.path()).await;
    let (mut session, _drain) = session(&audit);
    let dir = data.path().join(fresh_name());
    let unread = log(&dir, 25);
    let segment = segment_path(&dir, 0);
    let whole = std::fs::read(&segment).unwrap();
    let mut bytes = whole.clone();
    let third = whole.len() / 25 * 15;
    bytes[third..third + 10].fill(b'!');
    std::fs::write(&segment, bytes).unwrap();
    session.heard_anew("log", "log".into(), unread).await.unwrap_err();
    let heard = session.heard["log"];
    assert!((10..15).contains(&heard), "{heard}");
    std::fs::write(&segment, whole).unwrap();
    let unread = Copy::open(&dir, Options::default()).unwrap();
    let (mut all, mut counted) = (Vec::new(), heard);
    let copy = unread.read(|records| all.extend(unheard(records, &mut counted)));
    let all: Vec<_> = all.iter().map(|(_, record)| record.seq).collect();
    assert_eq!((all, counted), ((heard..25).collect(), 25), "the rest, and each once");
    drop(copy);
    let unread = Copy::open(&dir, Options::default()).unwrap();
    session.heard_anew("log", "log".into(), unread).await.unwrap();
    assert_eq!(session.heard["log"], 25);
}

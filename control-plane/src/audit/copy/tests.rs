use aip_audit::log::fresh_name;
use aip_audit::record::{Event, Strangers};

use super::*;

fn said(bytes: usize) -> Event {
    Event::Strangers(Strangers {
        reason: "r".into(),
        count: 1,
        sample: "x".repeat(bytes),
    })
}

/// A log of `records` of so many bytes each.
fn log(records: usize, bytes: usize) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join(fresh_name());
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    for n in 0..records {
        writer.append(said(bytes), n as u64).unwrap();
    }
    (root, dir)
}

#[test]
fn an_open_segment_is_read_in_parts() {
    let (_root, dir) = log(60, 100_000);
    let (mut heard, mut most) = (0, 0);
    let copy = Copy::open(&dir, Options::default(), |records| {
        heard += records.len();
        most = most.max(records.len());
    });
    assert_eq!((copy.unwrap().size(), heard), (60, 60));
    assert!(most <= READ_AT_ONCE / 100_000 + 1, "{most}");
}

#[test]
fn an_empty_segment_is_not_closed_and_costs_nothing_however_often_it_is_ended() {
    use base64::Engine as _;
    let (_root, dir) = log(1, 10);
    let mut copy = Copy::open(&dir, Options::default(), drop).unwrap();
    let claims = aip_audit::Checkpoint {
        v: 1,
        log: copy.log().to_owned(),
        agent: "spiffe://aip.internal/agent/planner".parse().unwrap(),
        size: 1,
        root: Digest::sha256(b""),
        at: 1,
        closing: aip_audit::Closing::Periodic,
    };
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap());
    let row = TakenRow {
        log: copy.log().to_owned(),
        size: 1,
        statement: format!("e30.{claims}.e30"),
        chain: vec!["AQ==".into()],
    };
    copy.close(Some(&row)).unwrap();
    assert_eq!(copy.place(), (1, 0));
    let held = || std::fs::metadata(dir.join("checkpoints.jsonl")).unwrap().len();
    let before = held();
    for _ in 0..10 {
        copy.close(Some(&row)).unwrap();
    }
    assert_eq!((copy.place(), held()), ((1, 0), before));
}

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

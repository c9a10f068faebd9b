use aip_audit::log::fresh_name;
use aip_audit::record::{Event, Strangers};

use super::*;
use crate::audit::retention::weigh;

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

fn opened(dir: &Path, options: Options) -> Copy {
    Copy::open(dir, options).unwrap().read(drop).unwrap()
}

/// A checkpoint that was taken; nobody looks at signatures here.
fn checkpoint(log: &str, size: u64, root: Digest) -> TakenRow {
    use base64::Engine as _;
    let claims = aip_audit::Checkpoint {
        v: 1,
        log: log.to_owned(),
        agent: "spiffe://aip.internal/agent/planner".parse().unwrap(),
        size,
        root,
        at: size,
        closing: aip_audit::Closing::Periodic,
    };
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap());
    TakenRow {
        log: log.to_owned(),
        size,
        statement: format!("e30.{claims}.e30"),
        chain: vec!["AQ==".into()],
    }
}

#[test]
fn an_open_segment_is_read_in_parts() {
    let (_root, dir) = log(60, 100_000);
    let (mut heard, mut most) = (0, 0);
    let copy = Copy::open(&dir, Options::default()).unwrap().read(|records| {
        heard += records.len();
        most = most.max(records.len());
    });
    assert_eq!((copy.unwrap().size(), heard), (60, 60));
    assert!(most <= READ_AT_ONCE / 100_000 + 1, "{most}");
}

#[test]
fn an_empty_segment_is_not_closed_and_costs_nothing_however_often_it_is_ended() {
    let (_root, dir) = log(1, 10);
    let mut copy = opened(&dir, Options::default());
    let row = checkpoint(copy.log(), 1, Digest::sha256(b""));
    copy.close(Some(&row), 0).unwrap();
    assert_eq!(copy.place(), (1, 0));
    let held = || std::fs::metadata(dir.join("checkpoints.jsonl")).unwrap().len();
    let before = held();
    for _ in 0..10 {
        copy.close(Some(&row), 0).unwrap();
    }
    assert_eq!((copy.place(), held()), ((1, 0), before));
}

/// Sends the copy one segment of so many records, of a log that it has all of so far.
fn send(copy: &mut Copy, log: &mut Writer, records: usize) -> Result<(), Refusal> {
    for _ in 0..records {
        log.append(said(10), 1).unwrap();
    }
    let (segment, _) = log.segment();
    let data = std::fs::read(segment_path(log.dir(), segment)).unwrap();
    let (size, root) = (log.size(), log.tree().root());
    log.rotate().unwrap();
    let chunk = Chunk {
        segment,
        offset: 0,
        data,
        last: true,
    };
    copy.take(chunk, &[(size, root, 0)], size)?;
    copy.close(Some(&checkpoint(copy.log(), size, root)), 1)
}

/// A person makes retention narrower than half of what is there: the next segment is taken, and what is past the new bounds
/// goes. Were it closed first, it would be refused for good.
#[test]
fn bounds_that_were_narrowed_let_go_of_what_is_past_them_before_a_segment_is_closed() {
    let (_root, dir) = log(0, 0);
    let (mut sender, _) = Writer::open(&dir, Options::default()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut copy = opened(&root.path().join(sender.log()), Options::default());
    for _ in 0..10 {
        send(&mut copy, &mut sender, 1).unwrap();
    }
    assert_eq!(copy.writer.kept_segments(), 0..=10);
    let narrow = Options {
        most_segments: 2,
        ..Options::default()
    };
    for sent in 11..14 {
        copy.bounded(narrow);
        send(&mut copy, &mut sender, 1).unwrap();
        assert_eq!(copy.writer.kept_segments(), sent - 2..=sent);
    }
}

/// Bytes of the records of a copy and of their rows, as they lie on disk.
fn on_disk(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let counts = |name: &str| name.starts_with("segment-") || name.starts_with("index-");
    let counted = files.filter(|file| counts(&file.file_name().to_string_lossy()));
    counted.map(|file| file.metadata().unwrap().len()).sum()
}

/// A sidecar that writes the smallest records there are has its agent's room on disk and no more: the rows count, and what
/// is said of a copy that is open is what is found when its control plane starts again.
#[test]
fn small_records_take_no_more_room_than_large_ones() {
    let (_root, dir) = log(0, 0);
    let (mut sender, _) = Writer::open(&dir, Options::default()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let narrow = Options {
        segment_bytes: 32 * 1024,
        total_bytes: 512 * 1024,
        least_bytes: LEAST_SEGMENT,
        record_bytes: ROW_BYTES as u64,
        ..Options::default()
    };
    let mut copy = opened(&root.path().join(sender.log()), narrow);
    for _ in 0..40 {
        send(&mut copy, &mut sender, 100).unwrap();
        let (taken, counted) = (on_disk(&copy.dir()), copy.bytes());
        assert!(taken <= counted && counted <= narrow.total_bytes, "{taken} {counted}");
        assert_eq!(weigh(&copy.dir()).0, counted);
    }
    assert!(copy.gone().unwrap().is_some(), "the oldest went");
}

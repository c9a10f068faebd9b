mod bounded;
mod gathered;
mod steps;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use aip_api::id::{DecisionId, HopId};
use base64::Engine as _;
use proptest::prelude::*;

use super::disk::Appender;
use super::*;
use crate::Closing;
use crate::merkle;
use crate::record::{Direction, End, Event, Gap, Passed};

fn home() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(fresh_name());
    (home, dir)
}

fn event(bytes: u64) -> Event {
    Event::End(Box::new(End {
        id: DecisionId::fresh(),
        hop: Some(HopId::fresh()),
        direction: Direction::Outbound,
        status: 200,
        end: "complete".into(),
        blame: String::new(),
        other: String::new(),
        ms: 1,
        salt: String::new(),
        request_in: Passed { bytes, digest: None },
        request_out: Passed::default(),
        response_in: Passed::default(),
        response_out: Passed::default(),
    }))
}

fn small() -> Options {
    Options {
        segment_bytes: 2000,
        total_bytes: 8000,
        ..Options::default()
    }
}

/// A statement with these claims; nobody in this file looks at its signature.
fn sign(writer: &mut Writer, closing: Closing) {
    let agent = "spiffe://aip.internal/agent/planner".parse().unwrap();
    let claims = serde_json::to_vec(&writer.unsigned(&agent, closing, 1)).unwrap();
    let b64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    writer
        .keep(&format!("e30.{}.e30", b64.encode(claims)), &[vec![1]])
        .unwrap();
}

fn leaves(dir: &Path) -> Vec<Digest> {
    Reader::open(dir)
        .unwrap()
        .map(|e| merkle::leaf(&e.unwrap().bytes))
        .collect()
}

#[test]
fn what_was_appended_is_read_back_with_its_root_over_segments_and_restarts() {
    let (_home, dir) = home();
    let mut size = 0;
    for life in 0..3 {
        let (mut writer, recovered) = Writer::open(
            &dir,
            Options {
                total_bytes: 1 << 20,
                ..small()
            },
        )
        .unwrap();
        assert_eq!((recovered.records, recovered.cut_bytes), (size, 0), "life {life}");
        for n in 0..10 {
            assert_eq!(writer.append(event(n), 1000 + n).unwrap(), size);
            size += 1;
        }
        assert_eq!(writer.sync_handle().sync().unwrap(), size);
        let head = writer.head();
        assert_eq!((head.size, head.root), (size, merkle::root(&leaves(&dir))));
    }
    assert!(segments(&dir).unwrap().len() > 3);
    let manifest = Manifest::read(&dir).unwrap();
    for closed in &manifest.closed {
        let upto = &leaves(&dir)[..usize::try_from(closed.end()).unwrap()];
        assert_eq!(closed.tree().unwrap().root(), merkle::root(upto));
    }
}

#[test]
fn a_line_that_was_cut_off_is_cut_away_and_the_log_goes_on() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    for n in 0..3 {
        writer.append(event(n), n).unwrap();
    }
    drop(writer);
    let path = segment_path(&dir, 0);
    let whole = fs::read(&path).unwrap();
    let second = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
    for cut in second..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let kept = whole[..cut].iter().filter(|b| **b == b'\n').count() as u64;
        let (mut writer, recovered) = Writer::open(&dir, Options::default()).unwrap();
        assert_eq!((recovered.records, recovered.cut_lines), (kept, 0), "at {cut}");
        writer.append(event(9), 9).unwrap();
        assert_eq!(writer.head().root, merkle::root(&leaves(&dir)));
    }
    // Zeros, as a file system may leave them.
    let mut zeros = whole.clone();
    zeros.extend(vec![0; LONGEST + 10]);
    fs::write(&path, &zeros).unwrap();
    let (writer, recovered) = Writer::open(&dir, Options::default()).unwrap();
    assert_eq!((writer.size(), recovered.cut_bytes), (3, LONGEST as u64 + 10));
}

#[test]
fn what_was_signed_is_never_cut_away() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    for n in 0..3 {
        writer.append(event(n), n).unwrap();
    }
    sign(&mut writer, Closing::Periodic);
    drop(writer);
    let path = segment_path(&dir, 0);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let refused = Writer::open(&dir, Options::default()).unwrap_err();
    assert_eq!(refused.reason(), "audit_log_damaged");
    let ends: Vec<_> = (0..whole.len()).filter(|n| whole[*n] == b'\n').collect();
    fs::write(&path, &whole[..=ends[1]]).unwrap();
    let refused = Writer::open(&dir, Options::default()).unwrap_err();
    assert!(refused.to_string().contains("3 records were signed"), "{refused}");
    assert_eq!(fs::read(&path).unwrap().len(), ends[1] + 1, "nothing was changed");
}

#[test]
fn a_log_that_was_rewritten_while_its_sidecar_was_down_is_not_gone_on_with() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, small()).unwrap();
    for n in 0..6 {
        writer.append(event(n), n).unwrap();
    }
    sign(&mut writer, Closing::Periodic);
    drop(writer);
    // The chain fits, so that only the signed root shows it.
    let mut prev: Option<Digest> = None;
    for number in segments(&dir).unwrap() {
        let path = segment_path(&dir, number);
        let mut text = Vec::new();
        for line in fs::read(&path)
            .unwrap()
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
        {
            let mut record = crate::Record::from_bytes(line).unwrap();
            record.at += u64::from(record.seq == 1);
            record.prev = prev.unwrap_or(record.prev);
            let bytes = record.to_bytes().unwrap();
            prev = Some(merkle::leaf(&bytes));
            text.extend_from_slice(&bytes);
            text.push(b'\n');
        }
        fs::write(&path, text).unwrap();
    }
    fs::remove_file(Manifest::path(&dir)).unwrap();
    let refused = Writer::open(&dir, small()).unwrap_err();
    assert!(refused.to_string().contains("not those that were signed"), "{refused}");
}

#[test]
fn a_log_knows_whether_it_was_closed_in_order() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    writer.append(event(1), 1).unwrap();
    sign(&mut writer, Closing::Close);
    drop(writer);
    let (mut writer, recovered) = Writer::open(&dir, Options::default()).unwrap();
    assert!(recovered.clean);
    assert_eq!(recovered.signed, 1);
    writer.append(event(2), 2).unwrap();
    drop(writer);
    assert!(!Writer::open(&dir, Options::default()).unwrap().1.clean);
    let kept = kept(&dir).unwrap();
    assert_eq!(claims_of(&kept[0].statement).unwrap().closing, Closing::Close);
    assert_eq!(*kept[0].chain, [vec![1]]);
}

#[test]
fn quotas_drop_only_what_was_sent_and_signed_and_the_tree_goes_on() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, small()).unwrap();
    let mut all = Vec::new();
    let full = loop {
        match writer.append(event(7), 5) {
            Ok(_) => all = leaves(&dir),
            Err(e) => break e,
        }
    };
    assert_eq!(full.reason(), "quota");
    assert_eq!(writer.sweep(u64::MAX, 6).unwrap(), None, "nothing is signed yet");
    sign(&mut writer, Closing::Periodic);
    assert_eq!(writer.sweep(0, 6).unwrap(), None, "nothing was sent");
    let dropped = writer.sweep(2, 6).unwrap().unwrap();
    assert_eq!((dropped.through < 2, dropped.quota.as_str()), (true, "size"));
    assert_eq!(segments(&dir).unwrap()[0], dropped.through + 1);
    writer.append(event(8), 7).unwrap();
    let size = writer.size();
    let kept = leaves(&dir);
    let gone = all.len() + 1 - kept.len();
    let whole: Vec<_> = all[..gone].iter().chain(&kept).copied().collect();
    assert_eq!(writer.head().root, merkle::root(&whole));
    drop(writer);
    let (writer, recovered) = Writer::open(&dir, small()).unwrap();
    assert_eq!((recovered.records, writer.head().root), (size, merkle::root(&whole)));
    drop(writer);
    let (mut writer, _) = Writer::open(
        &dir,
        Options {
            total_millis: 10,
            ..small()
        },
    )
    .unwrap();
    sign(&mut writer, Closing::Periodic);
    assert_eq!(writer.sweep(u64::MAX, 1000).unwrap().unwrap().quota, "age");
    assert_eq!(writer.append(event(1), 1000).unwrap(), size);
}

#[test]
fn a_segment_that_is_missing_or_shorter_stops_the_log() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, small()).unwrap();
    while segments(&dir).unwrap().len() < 4 {
        writer.append(event(7), 5).unwrap();
    }
    drop(writer);
    let path = segment_path(&dir, 1);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(Writer::open(&dir, small()).unwrap_err().reason(), "audit_log_damaged");
    fs::remove_file(&path).unwrap();
    assert_eq!(Writer::open(&dir, small()).unwrap_err().reason(), "audit_log_damaged");
    fs::write(&path, &whole).unwrap();
    // The manifest is only a shortcut: without it the segments are read.
    fs::remove_file(Manifest::path(&dir)).unwrap();
    let (writer, _) = Writer::open(&dir, small()).unwrap();
    assert_eq!(writer.head().root, merkle::root(&leaves(&dir)));
    assert_eq!(Manifest::read(&dir).unwrap().closed.len(), 3);
}

#[test]
fn a_segment_is_closed_by_age() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(
        &dir,
        Options {
            segment_millis: 100,
            ..Options::default()
        },
    )
    .unwrap();
    assert!(!writer.is_due(1 << 40), "an empty segment is never due");
    writer.append(event(1), 1000).unwrap();
    writer.append(event(1), 1099).unwrap();
    assert_eq!(writer.segment().0, 0);
    assert!(writer.is_due(1100));
    writer.append(event(1), 1100).unwrap();
    assert_eq!(writer.segment().0, 1);
}

#[test]
fn a_log_is_named_by_its_directory() {
    let parent = tempfile::tempdir().unwrap();
    let refused = Writer::open(&parent.path().join("planner"), Options::default()).unwrap_err();
    assert_eq!(refused.reason(), "audit_log_name");
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    let gap = Gap {
        lost: 1,
        reason: "io".into(),
    };
    writer.append(Event::Gap(gap), 1).unwrap();
    let first = Reader::open(&dir).unwrap().next().unwrap().unwrap();
    assert_eq!(first.record.prev, Digest::sha256(writer.log().as_bytes()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn whatever_the_order_of_writes_rotations_and_restarts_the_log_is_one(steps in proptest::collection::vec(0_u8..10, 1..60)) {
        let (_home, dir) = home();
        let (mut writer, _) = Writer::open(&dir, small()).unwrap();
        let mut expected = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                0 => writer.rotate().unwrap(),
                1 => {
                    drop(writer);
                    writer = Writer::open(&dir, small()).unwrap().0;
                }
                2 => {
                    sign(&mut writer, Closing::Periodic);
                    writer.sweep(u64::MAX, 1).unwrap();
                }
                _ if writer.append(event(1), 1).is_ok() => {
                    expected.push(merkle::leaf(&Reader::open(&dir).unwrap().last().unwrap().unwrap().bytes));
                }
                _ => prop_assert!(writer.held() > 7000, "step {} is refused only when full", n),
            }
            prop_assert_eq!(writer.head().root, merkle::root(&expected));
            prop_assert_eq!(writer.size(), expected.len() as u64);
        }
    }
}

/// The manifest is not signed: what it says is gone counts where it fits what is there.
#[test]
fn a_manifest_that_says_more_is_gone_than_it_knows_of_takes_nothing_away() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    for n in 0..3 {
        writer.append(event(n), n).unwrap();
    }
    sign(&mut writer, Closing::Close);
    drop(writer);
    let segment = fs::read(segment_path(&dir, 0)).unwrap();
    fs::write(
        Manifest::path(&dir),
        "{\"dropped\":{\"through\":0,\"at\":1,\"quota\":\"size\"}}\n",
    )
    .unwrap();
    let refused = Writer::open(&dir, Options::default()).unwrap_err();
    assert_eq!(refused.reason(), "audit_log_damaged");
    assert_eq!(fs::read(segment_path(&dir, 0)).unwrap(), segment);
}

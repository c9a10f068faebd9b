//! What keeps a log's files small, and that nothing is lost by it.

use super::*;
use crate::record::Dropped as Said;

/// A statement over so many records, whose signature nobody looks at here.
fn statement(log: &str, size: u64) -> String {
    let claims = crate::Checkpoint {
        v: 1,
        log: log.to_owned(),
        agent: "spiffe://aip.internal/agent/planner".parse().unwrap(),
        size,
        root: Digest::sha256(&size.to_be_bytes()),
        at: size,
        closing: Closing::Periodic,
    };
    let b64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    format!("e30.{}.e30", b64.encode(serde_json::to_vec(&claims).unwrap()))
}

#[test]
fn a_chain_stands_in_the_file_once() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    writer.append(event(1), 1).unwrap();
    let chains = [vec![vec![7; 900], vec![8; 900]], vec![vec![9; 900], vec![8; 900]]];
    for chain in [0, 0, 0, 1, 1, 0] {
        writer.keep(&statement(writer.log(), 1), &chains[chain]).unwrap();
    }
    let text = fs::read_to_string(dir.join("checkpoints.jsonl")).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("certificates")).count(), 3);
    let read: Vec<_> = kept(&dir)
        .unwrap()
        .into_iter()
        .map(|kept| (*kept.chain).clone())
        .collect();
    let expected: Vec<_> = [0, 0, 0, 1, 1, 0].map(|chain: usize| chains[chain].clone()).into();
    assert_eq!(read, expected);
    // What names a chain that is not there, or not the one that it says, is no checkpoint.
    for (from, to) in [
        ("\"certificates\":[\"", "\"certificates\":[\"AAAA\",\""),
        ("\"id\":\"", "\"id\":\"00"),
    ] {
        let bent = text.replacen(from, to, 1);
        fs::write(dir.join("checkpoints.jsonl"), bent).unwrap();
        assert_eq!(kept(&dir).unwrap_err().reason(), "audit_log_damaged", "{to}");
    }
}

#[test]
fn a_file_of_checkpoints_loses_its_oldest_lines_and_whoever_reads_it_goes_on() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    writer.append(event(1), 1).unwrap();
    let log = writer.log().to_owned();
    // So that it is long with fewer lines, and claims more records than there are.
    let chain = |n: u64| vec![vec![u8::try_from(n % 251).unwrap(); 3000]];
    let mut lines = CheckpointLines::default();
    let mut text = Vec::new();
    for n in 0..1200 {
        text.extend(lines.add_next(&statement(&log, n * 1000), &chain(n)));
    }
    drop(writer);
    fs::write(dir.join("checkpoints.jsonl"), &text).unwrap();
    let early = Statements::open(&dir, 0).unwrap();
    let mut reader = Statements::open(&dir, 0).unwrap();
    let mut told = Vec::new();
    for _ in 0..700 {
        told.push(claims_of(&reader.next_kept().unwrap().unwrap().0).unwrap().size);
    }
    let place = reader.at();

    let mut statements = Appender::open(dir.join("checkpoints.jsonl")).unwrap();
    let long = shorten::Long::checkpoints(&statements, 0, 4 * 1024 * 1024, |_| ());
    let shorter = long.shorten().unwrap();
    // Something is added meanwhile.
    let added = lines.add_next(&statement(&log, 1_200_000), &chain(3));
    (&*statements.file).write_all(&added).unwrap();
    statements.bytes += added.len() as u64;
    shorter.install(&mut statements).unwrap();
    let length = fs::metadata(dir.join("checkpoints.jsonl")).unwrap().len();
    assert_eq!(length, statements.bytes);
    assert!(length < text.len() as u64 / 2, "{length}");

    // A reader of before, one that begins at its place, and one that begins at the beginning.
    let mut later = Statements::open(&dir, place).unwrap();
    for reader in [&mut reader, &mut later] {
        let (mut size, mut all) = (0, 0);
        while let Some((statement, held)) = reader.next_kept().unwrap() {
            size = claims_of(&statement).unwrap().size;
            assert_eq!(*held, chain(if size == 1_200_000 { 3 } else { size / 1000 }));
            all += 1;
        }
        assert_eq!((size, all > 100), (1_200_000, true));
    }
    drop(early);
    let sizes: Vec<u64> = kept(&dir)
        .unwrap()
        .iter()
        .map(|kept| claims_of(&kept.statement).unwrap().size)
        .collect();
    let mut first = Statements::open(&dir, 0).unwrap();
    let mut from_first = Vec::new();
    while let Some((statement, _)) = first.next_kept().unwrap() {
        from_first.push(claims_of(&statement).unwrap().size);
    }
    assert_eq!(sizes, from_first);
    assert!(sizes.len() < 600 && sizes.windows(2).all(|two| two[0] < two[1] && two[1] - two[0] <= 66_000));
    assert!(sizes[0] <= 66_000, "{}", sizes[0]);
}

#[test]
fn what_a_quota_takes_is_said_signed_and_then_gone() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, small()).unwrap();
    let mut at = 0;
    loop {
        at += 1;
        match writer.append(event(at), at) {
            Ok(_) => {}
            Err(refused) => {
                assert_eq!(refused.reason(), "quota");
                break;
            }
        }
    }
    sign(&mut writer, Closing::Periodic);
    assert!(!writer.say_dropped(0, at).unwrap(), "nobody else has it");
    let (whole, before) = (leaves(&dir), segments(&dir).unwrap());
    assert!(
        writer.say_dropped(u64::MAX, at).unwrap(),
        "a full log has room to say it"
    );
    assert!(writer.drop_said().unwrap().is_none() && segments(&dir).unwrap() == before);
    sign(&mut writer, Closing::Periodic);
    let gone = writer.drop_said().unwrap().unwrap();
    assert_eq!(
        segments(&dir).unwrap(),
        before,
        "the files stay until it is on disk that they go"
    );
    let dropped = gone.remove().unwrap();
    assert_eq!(segments(&dir).unwrap()[0], dropped.through + 1);
    let said: Vec<Said> = Reader::open(&dir)
        .unwrap()
        .filter_map(|entry| match entry.unwrap().record.event {
            Event::Dropped(said) => Some(said),
            _ => None,
        })
        .collect();
    let left = Reader::open(&dir).unwrap().next().unwrap().unwrap();
    assert_eq!((said.len(), said[0].first, said[0].end()), (1, 0, left.seq));
    assert!(said[0].until < left.record.at && said[0].quota == "size");
    // Written as before, and opened again.
    writer.append(event(1), at).unwrap();
    let head = writer.head();
    drop(writer);
    let (writer, _) = Writer::open(&dir, small()).unwrap();
    assert_eq!(writer.head(), head);
    let all = leaves(&dir);
    let kept_from = usize::try_from(left.seq).unwrap();
    let mut rebuilt = whole[..kept_from].to_vec();
    rebuilt.extend(all);
    assert_eq!(merkle::root(&rebuilt), head.root);
}

/// Adds a record to a segment of its own, and signs it.
fn add_segment(writer: &mut Writer) {
    writer.append(event(1), 1).unwrap();
    sign(writer, Closing::Periodic);
    writer.rotate().unwrap();
}

#[test]
fn a_copy_has_so_many_segments_at_most_and_a_small_one_counts_as_a_larger() {
    let (_home, dir) = home();
    let counted = Options {
        least_bytes: 10_000,
        most_segments: 5,
        ..Options::default()
    };
    let (mut writer, _) = Writer::open(&dir, counted).unwrap();
    (0..20).for_each(|_| add_segment(&mut writer));
    assert_eq!(writer.weight(), 200_000, "the open one is empty");
    writer.sweep(u64::MAX, 1).unwrap().unwrap();
    assert_eq!((segments(&dir).unwrap().len(), writer.weight()), (6, 50_000));
    drop(writer);
    let quota = Options {
        total_bytes: 45_000,
        segment_bytes: 5_000,
        ..counted
    };
    let (mut writer, _) = Writer::open(&dir, quota).unwrap();
    assert_eq!(writer.sweep(u64::MAX, 1).unwrap().unwrap().quota, "size");
    assert!(writer.weight() <= 40_000 && writer.bytes() < 5_000);
    writer.append(event(1), 1).unwrap();
    assert_eq!(writer.weight() % 10_000, 0, "the open one counts, too");
}

/// A copy has a row of an index for each record, and the smallest records have as many as others.
#[test]
fn a_quota_counts_what_each_record_costs_beside_its_line() {
    let (_home, dir) = home();
    let counted = Options {
        record_bytes: 1_000,
        ..Options::default()
    };
    let (mut writer, _) = Writer::open(&dir, counted).unwrap();
    (0..20).for_each(|_| add_segment(&mut writer));
    writer.append(event(1), 1).unwrap();
    assert_eq!(writer.weight(), writer.bytes() + 21_000);
    drop(writer);
    let quota = Options {
        total_bytes: 15_000,
        segment_bytes: 2_000,
        ..counted
    };
    let (mut writer, _) = Writer::open(&dir, quota).unwrap();
    assert_eq!(writer.sweep(u64::MAX, 1).unwrap().unwrap().quota, "size");
    assert!(writer.weight() <= 13_000, "{}", writer.weight());
    assert!(segments(&dir).unwrap().len() < 13, "rows of so many would not fit");
}

use std::path::Path;

use super::*;
use crate::log::{Options, Writer, fresh_name};
use crate::record::{Decision, Direction, sample};

fn decision(verdict: &str, tool: &str, trace: &str) -> Event {
    Event::Decision(Box::new(Decision {
        trace: trace.into(),
        tool: tool.into(),
        verdict: verdict.into(),
        ..sample::decision(Direction::Outbound)
    }))
}

/// Two logs whose records take turns, a millisecond apart.
fn logs(dir: &Path, records: u64, segment_bytes: u64) -> Vec<Log> {
    let mut writers: Vec<_> = (0..2)
        .map(|_| {
            let options = Options {
                segment_bytes,
                total_bytes: u64::MAX,
                ..Options::default()
            };
            Writer::open(&dir.join(fresh_name()), options).unwrap().0
        })
        .collect();
    for at in 0..records {
        let verdict = if at % 10 == 0 { "deny" } else { "allow" };
        let tool = format!("tool-{}", at % 7);
        let event = decision(verdict, &tool, &format!("{at:032x}"));
        writers[(at % 2) as usize].append(event, 1_000 + at).unwrap();
    }
    let log = |(i, writer): (usize, &Writer)| Log {
        agent: format!("agent-{i}"),
        dir: writer.dir().to_owned(),
    };
    writers.iter().enumerate().map(log).collect()
}

fn naive(records: u64, wanted: impl Fn(u64) -> bool) -> Vec<u64> {
    (0..records)
        .filter(|at| wanted(*at))
        .rev()
        .map(|at| 1_000 + at)
        .collect()
}

fn times(hits: &[Hit]) -> Vec<u64> {
    hits.iter().map(|hit| hit.place.at).collect()
}

#[test]
fn what_is_found_is_what_reading_everything_finds() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), 500, 4_096);
    let denied = Filter {
        verdict: Some("deny".into()),
        ..Filter::default()
    };
    let all = find(&logs, &denied, 1_000, None).unwrap();
    assert_eq!(times(&all), naive(500, |at| at % 10 == 0));
    let both = Filter {
        tool: Some("tool-3".into()),
        since: Some(1_100),
        until: Some(1_200),
        ..Filter::default()
    };
    let found = find(&logs, &both, 1_000, None).unwrap();
    assert_eq!(times(&found), naive(500, |at| at % 7 == 3 && (100..200).contains(&at)));
    let one = Filter {
        trace: Some(format!("{:032x}", 77)),
        ..Filter::default()
    };
    assert_eq!(times(&find(&logs, &one, 10, None).unwrap()), [1_077]);
    assert!(find(&logs[..1], &one, 10, None).unwrap().is_empty(), "of the other log");
}

#[test]
fn pages_go_on_where_the_one_before_ended() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), 100, 4_096);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = find(&logs, &Filter::default(), 7, after.as_ref()).unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.place.clone());
        seen.extend(times(&page));
    }
    assert_eq!(seen, naive(100, |_| true));
}

#[test]
fn an_index_that_is_cut_wrong_or_gone_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), 200, 4_096);
    let all = find(&logs, &Filter::default(), 1_000, None).unwrap();
    assert_eq!(all.len(), 200);
    let first = logs[0].dir.join("index-00000000.bin");
    for damage in [vec![], vec![7; ROW_BYTES]] {
        std::fs::write(&first, damage).unwrap();
        assert_eq!(find(&logs, &Filter::default(), 1_000, None).unwrap(), all);
    }
    std::fs::remove_file(&first).unwrap();
    assert_eq!(find(&logs, &Filter::default(), 1_000, None).unwrap(), all);
}

#[test]
fn what_is_written_after_a_search_is_found_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(fresh_name());
    let mut writer = Writer::open(&path, Options::default()).unwrap().0;
    let log = [Log {
        agent: "a".into(),
        dir: path.clone(),
    }];
    for count in 1..5 {
        writer.append(decision("allow", "", ""), count).unwrap();
        if count == 2 {
            rebuild(&path, 0).unwrap();
        }
        let found = find(&log, &Filter::default(), 10, None).unwrap();
        assert_eq!(found.len() as u64, count);
    }
}

/// `cargo test -p aip-audit --lib index -- --ignored --nocapture` measures it.
#[test]
#[ignore = "measures: a million records"]
fn a_million_records_answer_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), 1_000_000, 16 * 1024 * 1024);
    for log in &logs {
        for segment in crate::log::segments(&log.dir).unwrap() {
            rebuild(&log.dir, segment).unwrap();
        }
    }
    let asked = [
        (
            "verdict",
            Filter {
                verdict: Some("deny".into()),
                ..Filter::default()
            },
        ),
        (
            "tool that is not there",
            Filter {
                tool: Some("none".into()),
                ..Filter::default()
            },
        ),
        (
            "oldest trace",
            Filter {
                trace: Some(format!("{:032x}", 1)),
                ..Filter::default()
            },
        ),
        (
            "time",
            Filter {
                since: Some(500_000),
                until: Some(500_100),
                ..Filter::default()
            },
        ),
    ];
    for (what, filter) in asked {
        let begun = std::time::Instant::now();
        let hits = find(&logs, &filter, 500, None).unwrap();
        let took = begun.elapsed();
        eprintln!("{what}: {} hits in {took:?}", hits.len());
        assert!(took < std::time::Duration::from_secs(1), "{what}: {took:?}");
    }
}

#[test]
fn who_writes_times_to_come_stands_before_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let written = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let written = u64::try_from(written.as_millis()).unwrap();
    let mut logs = Vec::new();
    for (agent, at) in [("ahead", u64::MAX), ("honest", written + SKEW_AND_MORE)] {
        let (mut writer, _) = Writer::open(&dir.path().join(fresh_name()), Options::default()).unwrap();
        writer.append(decision("allow", "tool", "t"), at).unwrap();
        let file = std::fs::File::open(crate::log::segment_path(writer.dir(), 0)).unwrap();
        // The honest one was received later.
        let later = if agent == "honest" { 2 * SKEW_AND_MORE } else { 0 };
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_millis(later))
            .unwrap();
        logs.push(Log {
            agent: agent.into(),
            dir: writer.dir().to_owned(),
        });
    }
    let found = find(&logs, &Filter::default(), 10, None).unwrap();
    let order: Vec<_> = found.iter().map(|hit| hit.agent.as_str()).collect();
    assert_eq!(order, ["honest", "ahead"]);
    let until = Filter {
        until: Some(written + SKEW_AND_MORE),
        ..Filter::default()
    };
    let found = find(&logs, &until, 10, None).unwrap();
    assert_eq!(found.len(), 1, "it is found by when it came");
    assert_eq!((found[0].agent.as_str(), found[0].record.at), ("ahead", u64::MAX));
}

/// More than clocks may differ, in milliseconds.
const SKEW_AND_MORE: u64 = 400_000;

//! A log that ends at each of its steps, as a process ends that is killed: everything that was acknowledged is there
//! afterwards, and what is there verifies.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};

use aip_api::SpiffeId;

use super::*;
use crate::Checkpoint;
use crate::checkpoint::{LedgerBegins, Retired, TreeHead};
use crate::record::Strangers;
use crate::verify::{Keys, Kind, Sources, verify};

/// Passages of each step at which a run ends.
const PASSAGES: u32 = 3;

#[derive(Default)]
struct Fault {
    at: Option<(&'static str, u32)>,
    seen: BTreeMap<&'static str, u32>,
    /// Records that were acknowledged, of the log of a sidecar and of a copy.
    sure: [u64; 2],
}

thread_local! {
    static FAULT: RefCell<Fault> = RefCell::default();
}

/// What a killed process leaves behind, without its end.
struct Killed;

fn step(name: &'static str) {
    let due = FAULT.with_borrow_mut(|fault| {
        let times = fault.seen.entry(name).or_default();
        *times += 1;
        fault.at == Some((name, *times))
    });
    if due {
        panic_any(Killed);
    }
}

fn sure(log: usize, records: u64) {
    FAULT.with_borrow_mut(|fault| fault.sure[log] = records);
}

fn options() -> Options {
    Options {
        segment_bytes: 2_000,
        total_bytes: 512 * 1024,
        total_millis: 1_000,
        step,
        ..Options::default()
    }
}

const NAMES: [&str; 2] = [
    "01936f6e-0000-7000-8000-000000000001",
    "01936f6e-0000-7000-8000-000000000002",
];

fn append(writer: &mut Writer, log: usize, count: u64) {
    for _ in 0..count {
        let at = writer.size();
        writer.append(entry(), at).unwrap();
        sure(log, writer.size());
    }
}

/// Everything that a log goes through in its life.
fn life(home: &Path) {
    let dir = home.join(NAMES[0]);
    let (mut writer, _) = Writer::open(&dir, options()).unwrap();
    append(&mut writer, 0, 20);
    writer.sync_handle().sync().unwrap();
    sign(&mut writer, Closing::Periodic);
    // What is old goes, once that is said and signed: and once it goes as one is killed before the files are gone.
    for (late, removed) in [(20_000, true), (40_000, false)] {
        assert!(writer.say_dropped(u64::MAX, late).unwrap());
        sure(0, writer.size());
        sign(&mut writer, Closing::Periodic);
        let gone = writer.drop_said().unwrap().unwrap();
        if removed {
            gone.remove().unwrap();
        }
        append(&mut writer, 0, 20);
        sign(&mut writer, Closing::Periodic);
    }
    lengthen(&mut writer);
    let shorter = writer.long().unwrap().shorten().unwrap();
    sign(&mut writer, Closing::Periodic);
    writer.shortened(shorter).unwrap();
    append(&mut writer, 0, 3);
    drop(writer);
    // Lines that were cut off.
    torn(&dir);
    let (mut writer, _) = Writer::open(&dir, options()).unwrap();
    append(&mut writer, 0, 3);
    sign(&mut writer, Closing::Recovery);
    writer.sync_handle().sync().unwrap();
    let durable = writer.head();
    writer.append(entry(), 1).unwrap();
    writer.rotate().unwrap();
    drop(writer);
    let mut writer = cut_to(&dir, &durable, options()).unwrap();
    append(&mut writer, 0, 1);
    sign(&mut writer, Closing::Close);

    let (mut copy, _) = Writer::open(&home.join(NAMES[1]), options()).unwrap();
    append(&mut copy, 1, 20);
    sign(&mut copy, Closing::Periodic);
    assert!(copy.sweep(u64::MAX, 10_000).unwrap().is_some());
    append(&mut copy, 1, 20);
    sign(&mut copy, Closing::Periodic);
}

/// Makes `checkpoints.jsonl` long: each chain is another one.
fn lengthen(writer: &mut Writer) {
    let agent = agent();
    let claims = serde_json::to_vec(&writer.unsigned(&agent, Closing::Periodic, 1)).unwrap();
    let statement = format!(
        "e30.{}.e30",
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims)
    );
    for n in 0..4 {
        writer.keep(&statement, &[vec![n; 20_000]]).unwrap();
    }
}

fn torn(dir: &Path) {
    for file in [
        "checkpoints.jsonl".to_owned(),
        format!("segment-{:08}.jsonl", segments(dir).unwrap().pop().unwrap()),
    ] {
        let mut file = fs::OpenOptions::new().append(true).open(dir.join(file)).unwrap();
        file.write_all(b"{\"cut").unwrap();
    }
}

/// A record that speaks of no request.
fn entry() -> Event {
    Event::Strangers(Strangers {
        reason: "no_certificate".into(),
        count: 1,
        sample: "x".repeat(200),
    })
}

fn agent() -> SpiffeId {
    "spiffe://aip.internal/agent/planner".parse().unwrap()
}

/// Signatures are not what this is about.
struct Believed;

impl Keys for Believed {
    fn checkpoint(&self, kept: &Kept) -> Result<(Checkpoint, SpiffeId), String> {
        let claims = claims_of(&kept.statement).ok_or("not a checkpoint")?;
        Ok((claims, agent()))
    }
    fn tree_head(&self, _: &str) -> Result<TreeHead, String> {
        Err("there is none".into())
    }
    fn ledger_begins(&self, _: &str) -> Result<LedgerBegins, String> {
        Err("there is none".into())
    }
    fn retired(&self, _: &str) -> Result<Retired, String> {
        Err("there is none".into())
    }
}

/// Opens what is left of a log and goes on with it.
fn goes_on(home: &Path, log: usize, sure: u64, at: &str) {
    let dir = home.join(NAMES[log]);
    if !dir.exists() {
        assert_eq!(sure, 0, "{at}");
        return;
    }
    let opened = Writer::open(
        &dir,
        Options {
            step: |_| (),
            ..options()
        },
    );
    let (mut writer, recovered) = opened.unwrap_or_else(|error| panic!("{at}: {error}"));
    assert!(
        writer.size() >= sure,
        "{at}: {sure} records were acknowledged, {} are there",
        writer.size()
    );
    assert_eq!(recovered.cut_lines, 0, "{at}");
    writer.append(entry(), 100).unwrap();
    sign(&mut writer, Closing::Recovery);
    let begins = Manifest::read(&dir).unwrap();
    let begins = begins
        .begins()
        .checked_sub(1)
        .map_or(0, |last| begins.of(last).unwrap().end());
    let seqs: Vec<u64> = Reader::open(&dir).unwrap().map(|entry| entry.unwrap().seq).collect();
    assert!(seqs.iter().copied().eq(begins..writer.size()), "{at}: {seqs:?}");
}

#[test]
fn a_log_that_ends_at_any_step_loses_nothing_that_was_acknowledged() {
    std::panic::set_hook(Box::new(quiet(std::panic::take_hook())));
    let home = tempfile::tempdir().unwrap();
    life(home.path());
    let seen = FAULT.take().seen;
    let names: Vec<_> = seen.keys().copied().collect();
    let mut all = STEPS.to_vec();
    all.sort_unstable();
    assert_eq!(names, all, "the steps that a log comes to are those that are named");
    for (name, times) in seen {
        for passage in (1..=PASSAGES.min(times)).chain((times > PASSAGES).then_some(times)) {
            ends_at(name, passage);
        }
    }
}

fn ends_at(name: &'static str, passage: u32) {
    let at = format!("{name}#{passage}");
    let home = tempfile::tempdir().unwrap();
    FAULT.replace(Fault {
        at: Some((name, passage)),
        ..Fault::default()
    });
    let ended = catch_unwind(AssertUnwindSafe(|| life(home.path())));
    let sure = FAULT.take().sure;
    assert!(ended.is_err_and(|why| why.is::<Killed>()), "{at} is not reached");
    (0..2).for_each(|log| goes_on(home.path(), log, sure[log], &at));
    let report = verify(&Sources::find(home.path()).unwrap(), &Believed, &mut |_| {});
    // Of a copy the control plane signs what its retention took; here nobody does.
    let copys = |fault: &&crate::verify::Fault| fault.log == NAMES[1] && fault.kind == Kind::SegmentMissing;
    let faults: Vec<_> = report.faults.iter().filter(|fault| !copys(fault)).collect();
    assert!(faults.is_empty(), "{at}: {faults:#?}");
}

type Hook = Box<dyn Fn(&std::panic::PanicHookInfo<'_>) + Send + Sync>;

/// Says nothing of the ends that are meant.
fn quiet(hook: Hook) -> impl Fn(&std::panic::PanicHookInfo<'_>) + Send + Sync {
    move |info| {
        if !info.payload().is::<Killed>() {
            hook(info);
        }
    }
}

#[test]
fn only_what_was_on_disk_before_a_failure_is_gone_on_with() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, small()).unwrap();
    let mut heads = vec![writer.head()];
    for n in 0..14 {
        writer.append(event(n), n).unwrap();
        heads.push(writer.head());
    }
    drop(writer);
    assert!(segments(&dir).unwrap().len() > 2);
    for durable in heads.iter().rev() {
        let cut = cut_to(&dir, durable, small()).unwrap();
        assert_eq!((cut.head(), leaves(&dir).len() as u64), (durable.clone(), durable.size));
    }
    let (_home, dir) = self::home();
    let (mut writer, _) = Writer::open(&dir, small()).unwrap();
    for n in 0..5 {
        writer.append(event(n), n).unwrap();
    }
    let other = Head {
        size: 4,
        ..writer.head()
    };
    drop(writer);
    assert_eq!(cut_to(&dir, &other, small()).unwrap_err().reason(), "audit_log_damaged");
}

use std::sync::atomic::AtomicBool;

use aip_audit::log::{self, LogError, Reader};
use aip_audit::record::{Dropped, Gap, Strangers};
use aip_audit::{Checkpoint, Closing};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::book::logs;
use super::earlier::Earlier;
use super::strangers::Strangers as Counted;
use super::*;

fn event(text: usize) -> Event {
    Event::Strangers(Strangers {
        reason: "no_certificate".into(),
        count: 1,
        sample: "x".repeat(text),
    })
}

/// A decision by `source`, of some kilobytes.
fn decision(source: &str) -> Event {
    let decision = json!({
        "kind": "decision", "id": aip_api::id::DecisionId::fresh(), "direction": "inbound", "source": {"id": source},
        "destination": {"id": "me"}, "method": "GET", "path": "x".repeat(4000), "protocol": "http", "verdict": "deny",
        "mesh_revision": 1, "revision": 1,
    });
    serde_json::from_value(decision).unwrap()
}

fn recorded(root: &Path) -> Vec<Event> {
    let records = logs(root).into_iter().flat_map(|dir| Reader::open(&dir).unwrap());
    records.map(|entry| entry.unwrap().record.event).collect()
}

fn open(root: &Path, options: Options) -> Arc<Shared> {
    // Without its thread: nothing happens but what the test does.
    let book = Book::open(root, options);
    Arc::new(Shared {
        durable: watch::Sender::new(Durable::of(&book)),
        book: Mutex::new(book),
        wants: Mutex::default(),
        wake: Condvar::new(),
        gathered: AtomicBool::new(false),
        kept: watch::Sender::new(0),
        sent: Mutex::default(),
        strangers: Counted::default(),
        flush_ms: AtomicU64::new(1),
        metrics: metrics::Metrics::register(),
    })
}

/// Signs what is there, with a signature that nobody looks at here.
fn sign(shared: &Shared) {
    let agent = "spiffe://aip.internal/agent/planner".parse().unwrap();
    let mut book = shared.book();
    let unsigned = book.unsigned(&agent, false, 1).unwrap();
    assert_ne!(unsigned.checkpoint.closing, Closing::Close);
    let statement = stated(&unsigned.checkpoint);
    book.keep(&unsigned, &statement, &[vec![1]]).unwrap();
}

fn stated(checkpoint: &Checkpoint) -> String {
    let claims = serde_json::to_vec(checkpoint).unwrap();
    format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(claims))
}

#[test]
fn what_could_not_be_written_is_said_first_also_after_a_crash() {
    let home = tempfile::tempdir().unwrap();
    let shared = open(home.path(), Options::default());
    shared.append(event(1), None, When::AtOnce).unwrap();
    let full = Options::default().total_bytes;
    shared.book().earlier(full);
    for _ in 0..3 {
        assert_eq!(shared.append(event(1), None, When::AtOnce), Err(Unrecorded("quota")));
    }
    shared.book().earlier(0);
    shared.append(event(2), None, When::AtOnce).unwrap();
    let gap = |lost| {
        Event::Gap(Gap {
            lost,
            reason: "quota".into(),
        })
    };
    assert_eq!(recorded(home.path()), [event(1), gap(3), event(2)]);
    // The process ends before there is room to say it.
    shared.book().earlier(full);
    assert_eq!(shared.append(event(1), None, When::AtOnce), Err(Unrecorded("quota")));
    drop(shared);
    let shared = open(home.path(), Options::default());
    shared.append(event(3), None, When::AtOnce).unwrap();
    assert_eq!(recorded(home.path())[3..], [gap(1), event(3)]);
}

#[test]
fn while_room_is_short_one_noisy_peer_leaves_the_others_theirs() {
    let home = tempfile::tempdir().unwrap();
    let options = Options {
        total_bytes: 1024 * 1024,
        segment_bytes: 128 * 1024,
        ..Options::default()
    };
    let shared = open(home.path(), options);
    while shared.book().bytes() < 600 * 1024 {
        shared.append(decision("noisy"), None, When::AtOnce).unwrap();
    }
    assert!(shared.book().tidy(0, 1).is_none());
    let mut written = 0;
    while shared.append(decision("noisy"), None, When::AtOnce).is_ok() {
        written += 1;
    }
    assert!((20..40).contains(&written), "an eighth of the log: {written}");
    for _ in 0..20 {
        assert_eq!(
            shared.append(decision("noisy"), None, When::AtOnce),
            Err(Unrecorded("share"))
        );
        shared.append(decision("quiet"), None, When::AtOnce).unwrap();
    }
    // The control plane has it: there is room again.
    assert!(shared.book().tidy(u64::MAX, 1).is_none());
    shared.append(decision("noisy"), None, When::AtOnce).unwrap();
}

/// What earlier logs hold that the control plane does not have is of the room, too.
#[test]
fn earlier_logs_that_nobody_has_make_room_short() {
    let home = tempfile::tempdir().unwrap();
    let options = Options {
        total_bytes: 1024 * 1024,
        segment_bytes: 128 * 1024,
        ..Options::default()
    };
    let shared = open(home.path(), options);
    shared.book().earlier(800 * 1024);
    assert!(shared.book().tidy(0, 1).is_none());
    let mut written = 0;
    while shared.append(decision("noisy"), None, When::AtOnce).is_ok() {
        written += 1;
    }
    assert!((5..10).contains(&written), "an eighth of what is left: {written}");
    shared.append(decision("quiet"), None, When::AtOnce).unwrap();
}

/// What was on disk when the disk failed is vouched for by a last checkpoint; what was not is lost, and said.
#[test]
fn of_a_log_that_can_not_be_brought_to_disk_what_was_there_is_signed_and_the_rest_counted() {
    let home = tempfile::tempdir().unwrap();
    let shared = open(home.path(), Options::default());
    for n in 0..3 {
        shared.append(event(n), None, When::AtOnce).unwrap();
    }
    shared.flush();
    for n in 3..5 {
        shared.append(event(n), None, When::AtOnce).unwrap();
    }
    let old = logs(home.path()).pop().unwrap();
    let life = shared.book().life();
    shared.book().broken(life, &LogError::Poisoned);
    assert!(shared.book().is_left(&old), "it is not sent as it is");
    shared.see_to_left();
    let agent = "spiffe://aip.internal/agent/planner".parse().unwrap();
    {
        let mut book = shared.book();
        let left = book.left_mut().unwrap();
        let statements: Vec<_> = left
            .unsigned(&agent, 1)
            .iter()
            .map(|unsigned| stated(&unsigned.checkpoint))
            .collect();
        left.keep(&statements, &[vec![1]]).unwrap();
    }
    shared.see_to_left();
    assert!(!shared.book().is_left(&old), "it is an earlier log as every other");
    assert_eq!(Reader::open(&old).unwrap().count(), 3);
    let kept = log::kept(&old).unwrap();
    let said = kept.iter().map(|kept| log::claims_of(&kept.statement).unwrap());
    let said: Vec<_> = said.map(|claims| (claims.size, claims.closing)).collect();
    assert_eq!(said, [(3, Closing::Recovery), (3, Closing::Close)]);
    let begun = book::begin(home.path(), Options::default());
    shared.book().began(begun);
    shared.append(event(6), None, When::AtOnce).unwrap();
    let lost = recorded(home.path()).into_iter().find_map(|event| match event {
        Event::Gap(gap) => Some(gap.lost),
        _ => None,
    });
    assert_eq!(lost, Some(2));
}

/// Whoever changes the files of such a log in between gets no signature under that.
#[test]
fn of_a_log_that_can_not_be_brought_to_disk_nothing_is_signed_that_was_not_written() {
    let home = tempfile::tempdir().unwrap();
    let shared = open(home.path(), Options::default());
    for n in 0..3 {
        shared.append(event(n), None, When::AtOnce).unwrap();
    }
    shared.flush();
    let old = logs(home.path()).pop().unwrap();
    let life = shared.book().life();
    shared.book().broken(life, &LogError::Poisoned);
    let path = log::segment_path(&old, 0);
    let text = std::fs::read_to_string(&path).unwrap();
    let last = text.trim_end().rfind("no_certificate").unwrap();
    std::fs::write(
        &path,
        text[..last].to_owned() + &text[last..].replacen("no_certificate", "no_certificatE", 1),
    )
    .unwrap();
    shared.see_to_left();
    assert!(!shared.book().is_left(&old));
    assert!(log::kept(&old).unwrap().is_empty());
}

#[test]
fn an_earlier_log_that_can_not_be_read_stays() {
    let home = tempfile::tempdir().unwrap();
    let options = Options {
        total_bytes: 64 * 1024,
        segment_bytes: 8 * 1024,
        ..Options::default()
    };
    let mut writer = book::begin(home.path(), options).unwrap();
    for n in 0..50 {
        writer.append(event(1000), n).unwrap();
    }
    let (old, name) = (writer.dir().to_owned(), writer.log().to_owned());
    std::fs::write(old.join("checkpoints.jsonl"), "not a checkpoint\n").unwrap();
    drop(writer);
    let shared = open(home.path(), options);
    shared.append(event(1), None, When::AtOnce).unwrap();
    shared.sent().says_it_has_all(&name);
    let mut earlier = Earlier::default();
    for _ in 0..3 {
        earlier.tidy(&shared);
        sign(&shared);
        shared.append(event(1), None, When::AtOnce).unwrap();
    }
    assert!(old.exists());
    assert_eq!(
        shared.append(event(14_000), None, When::AtOnce),
        Err(Unrecorded("quota")),
        "it takes the room of new records"
    );
}

#[test]
fn an_earlier_log_is_dropped_when_the_control_plane_says_that_it_has_it_and_then_said() {
    let home = tempfile::tempdir().unwrap();
    let options = Options {
        total_bytes: 64 * 1024,
        segment_bytes: 8 * 1024,
        ..Options::default()
    };
    let mut writer = book::begin(home.path(), options).unwrap();
    for n in 0..50 {
        writer.append(event(1000), n).unwrap();
    }
    let (old, name) = (writer.dir().to_owned(), writer.log().to_owned());
    let agent = "spiffe://aip.internal/agent/planner".parse().unwrap();
    let claims = serde_json::to_vec(&writer.unsigned(&agent, Closing::Close, 1)).unwrap();
    let statement = format!("e30.{}.e30", URL_SAFE_NO_PAD.encode(claims));
    writer.keep(&statement, &[vec![1]]).unwrap();
    drop(writer);
    let shared = open(home.path(), options);
    shared.append(event(1), None, When::AtOnce).unwrap();
    let mut earlier = Earlier::default();
    // It was sent once, and the control plane of now does not say that it has it.
    std::fs::write(old.join("sent.json"), r#"{"checkpoints":0,"done":true}"#).unwrap();
    for _ in 0..3 {
        earlier.tidy(&shared);
        sign(&shared);
        shared.append(event(1), None, When::AtOnce).unwrap();
    }
    assert!(old.exists(), "nobody else has it");
    assert_eq!(
        shared.append(event(14_000), None, When::AtOnce),
        Err(Unrecorded("quota")),
        "it takes the room of new records"
    );
    shared.sent().says_it_has_all(&name);
    earlier.tidy(&shared);
    assert!(old.exists(), "nobody signed yet that it goes");
    sign(&shared);
    earlier.tidy(&shared);
    assert!(!old.exists());
    let said = recorded(home.path()).into_iter().find_map(|event| match event {
        Event::Dropped(said) => Some(said),
        _ => None,
    });
    let Some(Dropped {
        log, records, quota, ..
    }) = said
    else {
        panic!("nothing was said");
    };
    assert_eq!((log, records, quota.as_str()), (Some(name), 50, "size"));
    earlier.tidy(&shared);
    shared.append(event(14_000), None, When::AtOnce).unwrap();
}

static FAILS: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn a_thread_that_fails_hangs_nobody_and_a_new_log_begins() {
    let home = tempfile::tempdir().unwrap();
    let options = Options {
        step: |name| {
            assert!(
                name != "log:flush" || !FAILS.load(Ordering::Acquire),
                "a test's own failure"
            )
        },
        ..Options::default()
    };
    let audit = Audit::open(home.path(), options).unwrap();
    let first = audit.append(event(1), When::AtOnce).unwrap().unwrap();
    assert!(audit.on_disk(first).await);
    FAILS.store(true, Ordering::Release);
    // What waits is told, long before a disk is given up.
    let waits = audit.append(event(2), When::AtOnce).unwrap().unwrap();
    let begun = std::time::Instant::now();
    assert!(!audit.on_disk(waits).await);
    assert!(begun.elapsed() < DISK);
    FAILS.store(false, Ordering::Release);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        assert!(std::time::Instant::now() < deadline, "no log begins");
        if let Ok(Some(place)) = audit.append(event(3), When::AtOnce)
            && audit.on_disk(place).await
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(log::segments(&logs(home.path())[0]).is_ok() && logs(home.path()).len() == 2);
}

#[test]
fn what_is_gathered_is_in_the_file_before_anybody_looks_and_ends_follow_their_decisions() {
    let home = tempfile::tempdir().unwrap();
    let shared = open(home.path(), Options::default());
    let first = shared.append(decision("a"), None, When::WithOthers).unwrap();
    assert!(first.is_some());
    shared.append(decision("b"), None, When::WithOthers).unwrap();
    assert_eq!(recorded(home.path()).len(), 0);
    assert!(shared.gathered.load(Ordering::Acquire));
    assert_eq!(shared.book().size(), 2);
    assert_eq!(recorded(home.path()).len(), 2);
    assert!(!shared.gathered.load(Ordering::Acquire));
    shared.append(event(1), None, When::WithOthers).unwrap();
    // What is written at once has what waited before it.
    shared.append(event(2), first, When::AtOnce).unwrap();
    assert_eq!(recorded(home.path()).len(), 4);
}

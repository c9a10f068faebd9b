//! A file that somebody has changed is not believed, and says why; nothing of it goes on by mistake.

use std::fs;

use aip_api::kill::{Heartbeat, OnLost};
use serde_json::{Value, json};

use super::*;
use crate::testing::{Keys, kill_set};

struct Kept {
    keys: Keys,
    dir: tempfile::TempDir,
    disk: Disk,
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        v: 1,
        trust_domain: "aip.internal".parse().unwrap(),
        term: 2,
        epoch: 5,
        at: 1,
        instance: "one".into(),
        sequence: 1,
        lease: Lease {
            seconds: 60,
            on_lost: OnLost::Continue,
        },
    }
}

/// Changes a file that was written well.
type Change = fn(&mut Value);

impl Kept {
    /// (2, 5), with `ann` killed, and a lease.
    fn new() -> Self {
        let (keys, dir) = (Keys::new(), tempfile::tempdir().unwrap());
        let disk = Disk::new(dir.path());
        let (set, beat) = (keys.set(&kill_set(2, 5, &["ann"])), keys.heartbeat(&heartbeat()));
        disk.store(&set, Some(&beat)).unwrap();
        Self { keys, dir, disk }
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join(FILE)
    }

    fn load(&self) -> Result<(Held, Option<Granted>), Unusable> {
        self.disk.load(&self.keys.trust())
    }

    fn changed(change: Change) -> Self {
        let kept = Self::new();
        let mut document: Value = serde_json::from_slice(&fs::read(kept.file()).unwrap()).unwrap();
        change(&mut document);
        fs::write(kept.file(), document.to_string()).unwrap();
        kept
    }

    fn refused(&self) -> String {
        self.load().map(|(held, _)| held.set).unwrap_err().to_string()
    }
}

fn replace(at: &mut Value, from: &str, to: &str) {
    let text = at.as_str().unwrap();
    assert!(text.contains(from), "{text}");
    *at = text.replacen(from, to, 1).into();
}

#[test]
fn what_was_kept_comes_back_as_it_was_signed() {
    let kept = Kept::new();
    let (held, granted) = kept.load().unwrap();
    assert_eq!(held.set, kill_set(2, 5, &["ann"]));
    assert_eq!(held.signed, kept.keys.set(&kill_set(2, 5, &["ann"])));
    assert_eq!(granted.unwrap().lease, heartbeat().lease);
    kept.disk.store(&held.signed, None).unwrap();
    assert_eq!(kept.load().unwrap().1, None);
}

#[test]
fn orders_that_were_changed_on_disk_are_not_believed() {
    let changes: [(&str, Change); 7] = [
        ("another agent", |file| {
            replace(&mut file["set"]["payload"], "ann", "bob")
        }),
        ("a pause", |file| {
            replace(&mut file["set"]["payload"], "\"kill\"", "\"pause\"")
        }),
        ("a later epoch", |file| {
            replace(&mut file["set"]["payload"], "\"epoch\":5", "\"epoch\":6")
        }),
        ("another signature", |file| {
            let other = Keys::new().set(&kill_set(2, 5, &["ann"]));
            file["set"]["signature"] = hex::encode(other.signature).into();
        }),
        ("a set of another mesh's key", |file| {
            let other = Keys::new().set(&kill_set(2, 5, &[]));
            file["set"] = json!({
                "payload": String::from_utf8(other.payload).unwrap(),
                "kid": other.kid,
                "signature": hex::encode(other.signature),
            });
        }),
        ("no signature", |file| file["set"]["signature"] = "".into()),
        ("the heartbeat in place of the set", |file| {
            file["set"] = file["heartbeat"].clone()
        }),
    ];
    for (what, change) in changes {
        let why = Kept::changed(change).refused();
        assert!(why.contains("is not the control plane's"), "{what}: {why}");
    }
}

#[test]
fn a_file_that_is_no_such_file_is_not_believed() {
    let changes: [(&str, Change); 5] = [
        ("another version", |file| file["v"] = 2.into()),
        ("more than it has", |file| file["lifted"] = true.into()),
        ("no set", |file| file["set"] = Value::Null),
        ("no hex", |file| file["set"]["signature"] = "zz".into()),
        ("no object", |file| *file = json!([])),
    ];
    for (what, change) in changes {
        let why = Kept::changed(change).refused();
        assert!(why.contains("can't be read"), "{what}: {why}");
    }
}

#[test]
fn a_file_that_was_cut_anywhere_is_not_believed() {
    let kept = Kept::new();
    let whole = fs::read(kept.file()).unwrap();
    for length in 0..whole.len() {
        fs::write(kept.file(), &whole[..length]).unwrap();
        assert!(kept.refused().contains("can't be read"), "{length} bytes");
    }
    fs::write(kept.file(), [&whole[..], b"{}"].concat()).unwrap();
    assert!(kept.refused().contains("can't be read"), "more after its end");
}

#[test]
fn what_is_no_file_or_no_small_one_is_not_read() {
    let kept = Kept::new();
    let file = fs::File::create(kept.file()).unwrap();
    file.set_len(MAX_FILE_BYTES + 1).unwrap();
    assert!(kept.refused().contains("bytes"));
    fs::remove_file(kept.file()).unwrap();
    assert!(matches!(kept.load(), Err(Unusable::Absent)), "none is none");
    fs::create_dir(kept.file()).unwrap();
    assert!(kept.refused().contains("can't be read"));
}

/// What is stopped stays stopped, and nothing goes on until the control plane is heard.
#[test]
fn a_lease_that_was_changed_on_disk_grants_nothing() {
    let changes: [(&str, Change); 4] = [
        ("longer", |file| {
            replace(&mut file["heartbeat"]["payload"], "60", "86400")
        }),
        ("cut", |file| file["heartbeat"]["signature"] = "".into()),
        ("no hex", |file| file["heartbeat"]["signature"] = "zz".into()),
        ("the set in its place", |file| file["heartbeat"] = file["set"].clone()),
    ];
    for (what, change) in changes {
        let (held, granted) = Kept::changed(change).load().unwrap();
        assert_eq!(held.set.orders.len(), 1, "{what}");
        assert_eq!(granted, None, "{what}");
    }
}

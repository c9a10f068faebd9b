//! Several copies of one log: each is held to the same, and what was changed in any of them is found there.

use super::kept::{Listed, copy};
use super::*;

/// A copy of the planner's log, under this folder.
fn copied(mesh: &Mesh, folder: &str) -> PathBuf {
    let dir = mesh.home.path().join(folder).join(mesh.planner.writer.log());
    copy(&mesh.dir(), &dir);
    dir
}

/// As the control plane has it: the checkpoints are elsewhere.
fn collected(mesh: &Mesh) -> PathBuf {
    let dir = copied(mesh, "collected");
    fs::remove_file(dir.join("checkpoints.jsonl")).unwrap();
    dir
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn first(dir: &Path) -> PathBuf {
    segment_path(&dir.canonicalize().unwrap(), 0)
}

#[test]
fn copies_that_are_the_same_are_verified_and_counted_once() {
    let mesh = Mesh::busy();
    let (same, theirs) = (copied(&mesh, "zzz"), collected(&mesh));
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!((report.logs.len(), report.hops.both), (2, 20));
    let dirs: Vec<_> = report.copies.iter().map(|copy| (copy.records, copy.signed)).collect();
    assert_eq!(dirs, [(40, 40), (40, 40)], "{same:?} and {theirs:?}");
    assert!(
        report.logs.iter().all(|log| log.checkpoints == 5),
        "each checkpoint once"
    );
}

/// Where records are not those that were signed.
fn rewritten(mesh: &Mesh) -> Vec<PathBuf> {
    let found = mesh.verify().faults;
    let faults = found.iter().filter(|fault| fault.kind == Kind::Rewritten);
    faults.map(|fault| PathBuf::from(&fault.file)).collect()
}

#[test]
fn a_change_in_either_copy_is_found_in_that_copy() {
    for (at, other) in [("aaa", "zzz"), ("zzz", "aaa")] {
        let mesh = Mesh::busy();
        let changed = copied(&mesh, at);
        let (_, theirs) = (copied(&mesh, other), collected(&mesh));
        for dir in [&changed, &theirs, &mesh.dir()] {
            let path = first(dir);
            let whole = fs::read(&path).unwrap();
            flip(&path);
            assert_eq!(rewritten(&mesh), vec![path.clone()], "{at}");
            fs::write(&path, whole).unwrap();
        }
        assert!(mesh.verify().intact());
    }
}

#[test]
fn a_copy_that_is_behind_is_none_that_was_cut_and_one_with_its_checkpoints_is() {
    let mesh = Mesh::busy();
    let (own, theirs) = (copied(&mesh, "zzz"), collected(&mesh));
    let last = *crate::log::segments(&theirs).unwrap().last().unwrap();
    let short = |dir: &Path| {
        let path = segment_path(dir, last);
        let whole = lines(&path);
        write(&path, &whole[..whole.len() - 1]);
    };
    short(&theirs);
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    let behind = report
        .copies
        .iter()
        .find(|copy| copy.dir.contains("collected"))
        .unwrap();
    assert_eq!((behind.records, behind.ahead), (39, 0));
    short(&own);
    assert_eq!(mesh.kinds(), [Kind::Truncated]);
}

/// Neither the chain nor a checkpoint shows it: only the other copy does.
#[test]
fn an_unsigned_end_that_differs_between_copies_is_found() {
    let mut mesh = Mesh::busy();
    mesh.hop();
    let theirs = collected(&mesh);
    let last = *crate::log::segments(&theirs).unwrap().last().unwrap();
    let path = segment_path(&theirs, last);
    let mut whole = lines(&path);
    let end = whole.last_mut().unwrap();
    let mut record = crate::Record::from_bytes(end.as_bytes()).unwrap();
    record.at += 1;
    *end = String::from_utf8(record.to_bytes().unwrap()).unwrap();
    write(&path, &whole);
    let report = mesh.verify();
    let kinds: Vec<_> = report.faults.iter().map(|fault| fault.kind).collect();
    assert_eq!(kinds, [Kind::CopyDiffers], "{:#?}", report.faults);
    assert_eq!((report.faults[0].seq, report.faults[0].through), (Some(40), Some(41)));
}

/// Whoever cuts a log and its checkpoints at the same place is not found by them; a copy has the rest.
#[test]
fn a_copy_with_more_than_the_log_says_that_something_is_missing() {
    let mut mesh = Mesh::busy();
    mesh.hop();
    collected(&mesh);
    Listed::beside(&mut mesh);
    assert!(mesh.verify().is_whole());
    let path = segment_path(&mesh.dir(), *crate::log::segments(&mesh.dir()).unwrap().last().unwrap());
    let whole = lines(&path);
    write(&path, &whole[..whole.len() - 2]);
    let own = mesh.dir().join("checkpoints.jsonl");
    let kept = lines(&own);
    write(&own, &kept[..kept.len() - 1]);
    fs::remove_dir_all(mesh.home.path().join(LEDGER_DIR)).unwrap();
    let report = mesh.verify();
    assert_eq!(report.copies[0].ahead, 2, "{:#?}", report.copies);
    assert!(!report.is_whole());
}

#[test]
fn two_exports_of_the_control_planes_log_are_held_against_each_other() {
    let mut mesh = Mesh::busy();
    let listed = Listed::beside(&mut mesh);
    let second = mesh.home.path().join("older").join(LEDGER_DIR);
    copy(&listed.dir, &second);
    assert!(mesh.verify().intact(), "{:#?}", mesh.verify().faults);
    // One of them was rewritten, and whoever did it has a key of the mesh: the other one's head does not fit.
    let forged = mesh.planner.checkpoint();
    let mut tree = crate::merkle::Tree::default();
    let mut text = String::new();
    for _ in 0..2 {
        let by = forged.agent.to_string();
        let statement = sign(&by, &forged);
        tree.append(crate::merkle::leaf(statement.as_bytes()));
        let chain = base64::engine::general_purpose::STANDARD.encode(by);
        text += &format!("{{\"statement\":\"{statement}\",\"chain\":[\"{chain}\"]}}\n");
    }
    let head = TreeHead {
        v: 1,
        iss: "aip.internal".into(),
        size: 2,
        root: tree.root(),
        at: 6,
    };
    fs::write(second.join("checkpoints.jsonl"), text).unwrap();
    fs::write(second.join("heads.jsonl"), sign("control plane", &head)).unwrap();
    let found = mesh.verify().faults;
    assert!(
        !found.is_empty() && found.iter().all(|fault| fault.kind == Kind::TreeHeadDiffers),
        "{found:#?}"
    );
}

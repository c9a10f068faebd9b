//! What outlives files: a quota's manifest, and the control plane's log of checkpoints.

use super::*;

#[test]
fn a_log_whose_oldest_segments_a_quota_took_still_verifies() {
    let home = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::busy();
    let dir = home.path().join(mesh.planner.writer.log());
    copy(&mesh.dir(), &dir);
    let options = Options {
        segment_bytes: 6000,
        total_bytes: 16_000,
        ..Options::default()
    };
    let (mut writer, _) = Writer::open(&dir, options).unwrap();
    assert!(writer.say_dropped(u64::MAX, 9).unwrap());
    assert!(writer.drop_said().unwrap().is_none(), "not signed yet");
    std::mem::swap(&mut mesh.planner.writer, &mut writer);
    mesh.planner.checkpoint();
    mesh.planner.writer.drop_said().unwrap().unwrap().remove().unwrap();
    let sources = Sources::find(home.path()).unwrap();
    let report = verify(&sources, &TestKeys, &mut |_| {});
    assert!(report.intact(), "{:#?}", report.faults);
    assert!(report.logs[0].dropped > 0 && report.logs[0].signed == 41);
    // A quota that nobody kept: the subtrees are made up.
    let manifest = dir.join("segments.jsonl");
    let text = fs::read_to_string(&manifest).unwrap();
    let subtree = crate::log::Manifest::read(&dir).unwrap().closed[0].subtrees[0].to_string();
    fs::write(&manifest, text.replacen(&subtree, &Digest::sha256(b"x").to_string(), 1)).unwrap();
    let report = verify(&sources, &TestKeys, &mut |_| {});
    assert!(
        report.faults.iter().any(|f| f.kind == Kind::Rewritten),
        "{:#?}",
        report.faults
    );
}

#[test]
fn records_that_nobody_said_a_quota_took_are_missed() {
    let home = tempfile::tempdir().unwrap();
    let mesh = Mesh::busy();
    let dir = home.path().join(mesh.planner.writer.log());
    copy(&mesh.dir(), &dir);
    let options = Options {
        segment_bytes: 6000,
        total_bytes: 16_000,
        ..Options::default()
    };
    // As one does who has the files and not the key: the manifest names a quota, and no signed record does.
    let (mut writer, _) = Writer::open(&dir, options).unwrap();
    writer.sweep(u64::MAX, 9).unwrap().unwrap();
    let faults = |home: &Path| {
        let sources = Sources::find(home).unwrap();
        verify(&sources, &TestKeys, &mut |_| {}).faults
    };
    let found = faults(home.path());
    let kinds: Vec<_> = found.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Kind::SegmentMissing], "{found:#?}");
    // And one who says so in a record that nobody signs.
    let unsigned = crate::record::Dropped {
        log: None,
        first: 0,
        records: 40,
        until: 9_999_999,
        quota: "size".into(),
    };
    writer.append(Event::Dropped(unsigned), 10).unwrap();
    assert!(faults(home.path()).iter().any(|f| f.kind == Kind::SegmentMissing));
}

fn kinds(home: &Path) -> Vec<Kind> {
    let sources = Sources::find(home).unwrap();
    let report = verify(&sources, &TestKeys, &mut |_| {});
    report.faults.iter().map(|fault| fault.kind).collect()
}

/// What a sidecar's quota took is in the control plane's copy, and so no reason for what that lacks.
#[test]
fn a_sidecars_word_excuses_its_own_log_and_not_the_control_planes_copy() {
    let home = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::busy();
    let earlier = fresh_name();
    let whole = crate::record::Dropped {
        log: Some(earlier.clone()),
        first: 0,
        records: 7,
        until: 9,
        quota: "age".into(),
    };
    mesh.planner
        .writer
        .append(Event::Dropped(whole), mesh.planner.now)
        .unwrap();
    mesh.planner.checkpoint();
    let dir = home.path().join("planner").join(mesh.planner.writer.log());
    copy(&mesh.dir(), &dir);
    let options = Options {
        segment_bytes: 6000,
        total_bytes: 16_000,
        ..Options::default()
    };
    let (writer, _) = Writer::open(&dir, options).unwrap();
    mesh.planner.writer = writer;
    assert!(mesh.planner.writer.say_dropped(u64::MAX, 9).unwrap());
    mesh.planner.checkpoint();
    mesh.planner.writer.drop_said().unwrap().unwrap().remove().unwrap();
    assert_eq!(kinds(home.path()), [], "its own log");
    // The same files, as an export has them.
    Listed::beside(&mut mesh);
    copy(&mesh.home.path().join(LEDGER_DIR), &home.path().join(LEDGER_DIR));
    let researcher = mesh.researcher.writer.dir();
    copy(
        researcher,
        &home.path().join("researcher").join(mesh.researcher.writer.log()),
    );
    let sources = Sources::find(home.path()).unwrap();
    let report = verify(&sources, &TestKeys, &mut |_| {});
    assert_eq!(report.faults[0].kind, Kind::SegmentMissing, "{:#?}", report.faults);
    assert!(
        report.logs.iter().all(|log| log.dropped_logs.is_empty()),
        "nor the whole of {earlier}"
    );
    assert!(
        report.faults[0].detail.contains("the control plane"),
        "{:#?}",
        report.faults
    );
    let dropped = report.logs.iter().map(|log| log.dropped).max();
    let taken = retired(mesh.planner.writer.log(), dropped.unwrap());
    fs::write(dir.join(crate::log::RETIRED_FILE), sign("control plane", &taken)).unwrap();
    assert_eq!(kinds(home.path()), []);
}

/// The control plane's word that retention took so many records.
fn retired(log: &str, records: u64) -> Retired {
    Retired {
        v: 1,
        iss: "aip.internal".into(),
        log: log.into(),
        agent: id("planner"),
        records,
        until: 1_000_100,
        at: 1_000_200,
    }
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The control plane's log of a checkpoint of each, beside them.
pub(super) struct Listed {
    pub(super) dir: PathBuf,
    pub(super) text: String,
    head: TreeHead,
}

impl Listed {
    pub(super) fn beside(mesh: &mut Mesh) -> Self {
        let dir = mesh.home.path().join(LEDGER_DIR);
        fs::create_dir_all(&dir).unwrap();
        let (mut tree, mut text) = (crate::merkle::Tree::default(), String::new());
        for claims in [mesh.planner.checkpoint(), mesh.researcher.checkpoint()] {
            let by = claims.agent.to_string();
            let statement = sign(&by, &claims);
            tree.append(crate::merkle::leaf(statement.as_bytes()));
            let chain = base64::engine::general_purpose::STANDARD.encode(by);
            text += &format!("{{\"statement\":\"{statement}\",\"chain\":[\"{chain}\"]}}\n");
        }
        let head = TreeHead {
            v: 1,
            iss: "aip.internal".into(),
            size: 2,
            root: tree.root(),
            at: 5,
        };
        let listed = Self { dir, text, head };
        listed.put(&listed.text);
        listed.heads(&[sign("control plane", &listed.head)]);
        listed
    }

    pub(super) fn put(&self, checkpoints: &str) {
        fs::write(self.dir.join("checkpoints.jsonl"), checkpoints).unwrap();
    }

    pub(super) fn heads(&self, statements: &[String]) {
        fs::write(self.dir.join("heads.jsonl"), statements.join("\n")).unwrap();
    }
}

#[test]
fn the_control_planes_log_shows_what_a_sidecar_took_back() {
    let mut mesh = Mesh::busy();
    Listed::beside(&mut mesh);
    let report = mesh.verify();
    assert!(report.intact(), "{:#?}", report.faults);
    assert_eq!(report.ledger.unwrap().covered, 2);
    // A sidecar that cuts its log and its own checkpoints.
    let own = mesh.dir().join("checkpoints.jsonl");
    let kept = lines(&own);
    write(&own, &kept[..1]);
    for number in crate::log::segments(&mesh.dir()).unwrap().into_iter().skip(1) {
        fs::remove_file(segment_path(&mesh.dir(), number)).unwrap();
    }
    assert!(mesh.kinds().contains(&Kind::Truncated));
    // One that takes the whole log away.
    fs::remove_dir_all(mesh.dir()).unwrap();
    assert!(mesh.kinds().contains(&Kind::LogMissing));
}

#[test]
fn a_control_plane_that_takes_back_what_it_signed_is_found() {
    let mut mesh = Mesh::busy();
    let listed = Listed::beside(&mut mesh);
    listed.put(&(listed.text.lines().next().unwrap().to_owned() + "\n"));
    assert!(mesh.kinds().contains(&Kind::TreeHeadDiffers));
    listed.put(&listed.text);
    let other = TreeHead {
        root: Digest::sha256(b"x"),
        ..listed.head.clone()
    };
    let (good, lied) = (sign("control plane", &listed.head), sign("control plane", &other));
    listed.heads(&[good.clone(), lied]);
    assert!(mesh.kinds().contains(&Kind::TreeHeadDiffers));
    listed.heads(&[]);
    assert_eq!(mesh.kinds(), [Kind::TreeHeadDiffers], "a ledger that nobody signed");
    listed.put("");
    assert_eq!(
        mesh.kinds(),
        [Kind::TreeHeadDiffers],
        "one that was swapped for an empty one"
    );
    listed.heads(&[good]);
    assert_eq!(mesh.kinds(), [Kind::TreeHeadDiffers], "and whose head was forgotten");
    listed.put(&listed.text);
    listed.heads(&[sign("somebody", &listed.head)]);
    assert!(mesh.kinds().contains(&Kind::TreeHeadInvalid));
}

#[test]
fn what_the_control_planes_retention_took_is_excused_by_its_signature_alone() {
    let home = tempfile::tempdir().unwrap();
    let mesh = Mesh::busy();
    let log = mesh.planner.writer.log().to_owned();
    let dir = home.path().join(&log);
    copy(&mesh.dir(), &dir);
    let options = Options {
        segment_bytes: 6000,
        total_bytes: 16_000,
        ..Options::default()
    };
    let (mut writer, _) = Writer::open(&dir, options).unwrap();
    writer.sweep(u64::MAX, 9).unwrap().unwrap();
    let manifest = crate::log::Manifest::read(&dir).unwrap();
    let gone = manifest.of(manifest.begins() - 1).unwrap().end();
    let kinds = || kinds(home.path());
    // A ledger beside it, which anybody can put there, excuses nothing: without a signed head it is a fault itself.
    let ledger = home.path().join(LEDGER_DIR);
    fs::create_dir_all(&ledger).unwrap();
    fs::write(ledger.join("checkpoints.jsonl"), "").unwrap();
    assert_eq!(kinds(), [Kind::TreeHeadDiffers, Kind::SegmentMissing]);
    fs::remove_dir_all(&ledger).unwrap();
    let retired = |log: &str, records| Retired {
        v: 1,
        iss: "aip.internal".into(),
        log: log.into(),
        agent: id("planner"),
        records,
        until: 1_000_100,
        at: 1_000_200,
    };
    let said = |by: &str, claims: &Retired| fs::write(dir.join(crate::log::RETIRED_FILE), sign(by, claims)).unwrap();
    said("control plane", &retired(&log, gone));
    assert_eq!(
        kinds(),
        [Kind::SegmentMissing],
        "what it let go of is not what a sidecar's own log lacks"
    );
    let there = crate::log::segments(&dir).unwrap()[0];
    fs::write(dir.join(format!("index-{there:08}.bin")), "").unwrap();
    assert_eq!(kinds(), []);
    said("control plane", &retired(&log, gone - 1));
    assert_eq!(kinds(), [Kind::SegmentMissing], "more is gone than it says");
    said("somebody", &retired(&log, gone));
    assert_eq!(kinds(), [Kind::CheckpointInvalid, Kind::SegmentMissing]);
    said("control plane", &retired("another", gone));
    assert_eq!(kinds(), [Kind::CheckpointInvalid, Kind::SegmentMissing]);
}

//! What can't be read is named, and everything else is verified all the same.

use std::os::unix::fs::symlink;

use super::kept::Listed;
use super::*;

/// Tampers with the other log, so that a verification that stops early is seen.
fn tamper(mesh: &Mesh) {
    let path = segment_path(mesh.researcher.writer.dir(), 0);
    let mut whole = lines(&path);
    whole.remove(2);
    write(&path, &whole);
}

fn the_other_is_named(mesh: &Mesh, found: &[Fault]) {
    let other = mesh.researcher.writer.log();
    let named = |fault: &Fault| fault.log == other && fault.kind == Kind::RecordsMissing;
    assert!(found.iter().any(named), "{found:#?}");
}

/// The faults that say that this file can't be read.
fn unreadable<'a>(found: &'a [Fault], file: &str) -> Vec<&'a Fault> {
    let of_it = |fault: &&Fault| fault.kind == Kind::LogUnreadable && fault.file.ends_with(file);
    found.iter().filter(of_it).collect()
}

#[test]
fn something_else_in_a_segments_place_is_named_and_the_rest_is_verified() {
    let make: [fn(&Path); 2] = [
        |path| fs::create_dir(path).unwrap(),
        |path| symlink("/dev/zero", path).unwrap(),
    ];
    for make in make {
        let mesh = Mesh::busy();
        tamper(&mesh);
        let path = segment_path(&mesh.dir(), 1);
        fs::remove_file(&path).unwrap();
        make(&path);
        let report = mesh.verify();
        assert_eq!(
            unreadable(&report.faults, "segment-00000001.jsonl").len(),
            1,
            "{:#?}",
            report.faults
        );
        the_other_is_named(&mesh, &report.faults);
        // By how the segment ended, those after it are verified up to their last signed root.
        let log = report
            .logs
            .iter()
            .find(|log| log.log == mesh.planner.writer.log())
            .unwrap();
        assert_eq!((log.records, log.signed), (40, 40));
    }
}

#[test]
fn what_stands_in_the_place_of_a_logs_other_files_is_named() {
    for file in ["segments.jsonl", "checkpoints.jsonl"] {
        let mesh = Mesh::busy();
        tamper(&mesh);
        let path = mesh.dir().join(file);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let found = mesh.verify().faults;
        assert_eq!(unreadable(&found, file).len(), 1, "{found:#?}");
        the_other_is_named(&mesh, &found);
    }
}

#[test]
fn one_broken_checkpoint_is_named_and_the_others_still_count() {
    let mesh = Mesh::busy();
    let path = mesh.dir().join("checkpoints.jsonl");
    let mut kept = lines(&path);
    // A chain, and five checkpoints.
    assert_eq!(kept.len(), 6);
    kept[2] = kept[2].replacen('{', "(", 1);
    write(&path, &kept);
    let report = mesh.verify();
    let named: Vec<_> = report.faults.iter().map(|fault| (fault.kind, fault.line)).collect();
    assert_eq!(named, [(Kind::CheckpointInvalid, Some(3))]);
    let log = report
        .logs
        .iter()
        .find(|log| log.log == mesh.planner.writer.log())
        .unwrap();
    assert_eq!((log.checkpoints, log.signed), (4, 40));
    kept[0] = kept[0].replacen('{', "(", 1);
    write(&path, &kept);
    let report = mesh.verify();
    let named: Vec<_> = report
        .faults
        .iter()
        .map(|fault| (fault.kind, fault.line))
        .take(3)
        .collect();
    let broken = Kind::CheckpointInvalid;
    assert_eq!(
        named,
        [(broken, Some(1)), (broken, Some(2)), (broken, Some(3))],
        "and not each that names it"
    );
}

#[test]
fn one_changed_byte_in_the_control_planes_log_is_named_beside_what_else_is_wrong() {
    let mut mesh = Mesh::busy();
    let listed = Listed::beside(&mut mesh);
    tamper(&mesh);
    for at in (0..listed.text.len()).step_by(29) {
        let mut bent = listed.text.clone().into_bytes();
        bent[at] ^= 1;
        fs::write(listed.dir.join("checkpoints.jsonl"), bent).unwrap();
        let found = mesh.verify().faults;
        let ledger = |fault: &&Fault| fault.log == "control plane";
        let kinds: Vec<_> = found.iter().filter(ledger).map(|fault| fault.kind).collect();
        let ours = [Kind::CheckpointInvalid, Kind::TreeHeadDiffers];
        assert!(kinds.iter().any(|kind| ours.contains(kind)), "byte {at}: {found:#?}");
        the_other_is_named(&mesh, &found);
    }
}

#[test]
fn what_stands_in_the_place_of_the_control_planes_log_is_named() {
    for file in ["checkpoints.jsonl", "heads.jsonl"] {
        let mut mesh = Mesh::busy();
        let listed = Listed::beside(&mut mesh);
        tamper(&mesh);
        fs::remove_file(listed.dir.join(file)).unwrap();
        fs::create_dir(listed.dir.join(file)).unwrap();
        let found = mesh.verify().faults;
        assert_eq!(unreadable(&found, file).len(), 1, "{found:#?}");
        assert!(
            found.iter().any(|fault| fault.kind == Kind::TreeHeadDiffers),
            "{found:#?}"
        );
        the_other_is_named(&mesh, &found);
    }
}

#[test]
fn faults_name_times_as_people_read_them() {
    let mesh = Mesh::busy();
    let last = *crate::log::segments(&mesh.dir()).unwrap().last().unwrap();
    fs::remove_file(segment_path(&mesh.dir(), last)).unwrap();
    let found = mesh.verify().faults;
    let said = |fault: &Fault| {
        fault
            .detail
            .ends_with("records were signed at 1970-01-01T00:16:40.200Z")
    };
    assert!(found.iter().any(said), "{found:#?}");
}

#[test]
fn what_a_sidecar_could_not_write_is_not_called_whole() {
    let mut mesh = Mesh::busy();
    mesh.planner.writer.append(gap(), mesh.planner.now).unwrap();
    Listed::beside(&mut mesh);
    let report = mesh.verify();
    assert!(report.intact() && !report.is_whole(), "{:#?}", report.faults);
    let mut other = Mesh::busy();
    Listed::beside(&mut other);
    let mut report = other.verify();
    assert!(report.is_whole(), "{:#?}", report.faults);
    report.hops.lost = 1;
    assert!(!report.is_whole());
}

#[test]
fn numbers_that_a_record_makes_up_count_as_far_as_a_number_goes() {
    let mut mesh = Mesh::busy();
    let now = mesh.researcher.now;
    for _ in 0..2 {
        let counted = crate::record::Strangers {
            reason: "rate_limited".into(),
            count: u64::MAX,
            sample: String::new(),
        };
        let lost = crate::record::Gap {
            lost: u64::MAX,
            reason: "io".into(),
        };
        for event in [Event::Strangers(counted), Event::Gap(lost)] {
            mesh.researcher.writer.append(event, now).unwrap();
        }
    }
    mesh.checkpoints();
    assert!(mesh.verify().intact(), "{:#?}", mesh.verify().faults);
    // The last record that there can be, and one after it.
    let last = *crate::log::segments(&mesh.dir()).unwrap().last().unwrap();
    let path = segment_path(&mesh.dir(), last);
    let mut whole = lines(&path);
    let mut record = crate::Record::from_bytes(whole[0].as_bytes()).unwrap();
    record.seq = u64::MAX;
    let end = String::from_utf8(record.to_bytes().unwrap()).unwrap();
    whole.extend([end.clone(), end]);
    write(&path, &whole);
    assert!(mesh.kinds().contains(&Kind::RecordsMissing), "{:?}", mesh.kinds());
}

//! Records that share a write.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};

use super::*;

/// Two logs of one name, so that the same records are the same lines.
fn twins(options: Options) -> [(tempfile::TempDir, PathBuf, Writer); 2] {
    let name = fresh_name();
    [(); 2].map(|()| {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join(&name);
        let (writer, _) = Writer::open(&dir, options).unwrap();
        (home, dir, writer)
    })
}

fn lines(dir: &Path) -> Vec<Vec<u8>> {
    Reader::open(dir).unwrap().map(|entry| entry.unwrap().bytes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_gathered_is_the_log_that_it_would_be_one_by_one(steps in proptest::collection::vec(0_u8..10, 1..60)) {
        let [(_one, alone, mut single), (_two, together, mut shared)] = twins(small());
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                0 => {
                    single.rotate().unwrap();
                    shared.rotate().unwrap();
                }
                1 | 2 => shared.write_gathered().unwrap(),
                _ => {
                    let at = n as u64;
                    let event = event(at);
                    let expected = single.append(event.clone(), at);
                    let written = match step {
                        3 => shared.append(event, at),
                        _ => shared.gather(&mut event.settled().unwrap(), at),
                    };
                    prop_assert_eq!(written.as_ref().ok(), expected.as_ref().ok());
                    prop_assert!(step != 3 || written.is_err() || !shared.has_gathered());
                }
            }
            prop_assert_eq!((shared.size(), shared.bytes(), shared.held()), (single.size(), single.bytes(), single.held()));
        }
        shared.write_gathered().unwrap();
        prop_assert_eq!(shared.head(), single.head());
        prop_assert_eq!(shared.segment(), single.segment());
        prop_assert_eq!(lines(&together), lines(&alone));
        drop(shared);
        prop_assert!(Writer::open(&together, small()).is_ok());
    }
}

#[test]
fn nothing_is_in_the_file_before_the_write_and_all_of_it_after() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    let handle = writer.sync_handle();
    for n in 0..3 {
        assert_eq!(writer.gather(&mut event(n).settled().unwrap(), n).unwrap(), n);
    }
    assert_eq!(
        (lines(&dir).len(), handle.written()),
        (0, 0),
        "nobody may sync what is not there"
    );
    writer.write_gathered().unwrap();
    assert_eq!((lines(&dir).len(), handle.written()), (3, 3));
    // However many come, what waits is bounded.
    while writer.gather(&mut event(1).settled().unwrap(), 9).unwrap() < 1000 {}
    assert!(lines(&dir).len() > 500);
}

/// A file that takes `bytes` and no more.
fn bounded(bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("segment", MemfdFlags::ALLOW_SEALING).unwrap());
    file.set_len(bytes).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    (&file).seek(SeekFrom::End(0)).unwrap();
    file
}

#[test]
fn what_can_not_be_written_leaves_the_log_as_it_was() {
    let (_home, dir) = home();
    let (mut writer, _) = Writer::open(&dir, Options::default()).unwrap();
    writer.append(event(1), 1).unwrap();
    let (head, segment, bytes) = (writer.head(), writer.segment(), writer.bytes());
    let real = std::mem::replace(&mut writer.segment.file, Arc::new(bounded(segment.1)));
    for n in 0..2 {
        writer.gather(&mut event(n).settled().unwrap(), 2).unwrap();
    }
    assert!(writer.size() == 3 && writer.bytes() > bytes);
    assert!(matches!(writer.write_gathered(), Err(LogError::Io { .. })));
    assert_eq!(
        (writer.head(), writer.segment(), writer.bytes()),
        (head, segment, bytes)
    );
    assert!(!writer.has_gathered() && writer.write_gathered().is_ok());
    assert_eq!((writer.take_undone(), writer.take_undone()), (2, 0));
    // A record that is appended takes those with it that waited: it comes after them.
    writer.gather(&mut event(3).settled().unwrap(), 3).unwrap();
    assert!(writer.append(event(4), 4).is_err());
    assert_eq!((writer.size(), writer.take_undone()), (1, 1));
    writer.segment.file = real;
    assert_eq!(writer.append(event(5), 5).unwrap(), 1);
    drop(writer);
    let (_, recovered) = Writer::open(&dir, Options::default()).unwrap();
    assert_eq!((recovered.records, recovered.cut_bytes), (2, 0));
}

//! What fuzzing found, and what it began with, replayed: `fuzz/corpus/<target>/`. And of each input some changes, always the
//! same, so that every build fuzzes a little. `make fuzz` does it for longer.

// Clippy knows a test function from its helpers, but here helpers belong to the tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use aip_decoders::{TARGETS, Target};

/// Most inputs of one corpus, and most bytes of each: it is read by people, too.
const MAX_INPUTS: usize = 60;
const MAX_INPUT_BYTES: u64 = 8 * 1024;
/// Changed inputs of each target.
const CHANGES: u64 = 2_000;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names_in(dir: &Path, ending: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.strip_suffix(ending).map(str::to_owned))
        .collect()
}

/// The inputs of a corpus, by name.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let dir = fuzz().join("corpus").join(target.name);
    if std::env::var_os("AIP_REGENERATE").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in (target.seeds)() {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
    let read = |name: String| (name.clone(), std::fs::read(dir.join(name)).unwrap());
    names_in(&dir, "").into_iter().map(read).collect()
}

/// Whether an input is taken; where a promise does not hold on it, which.
fn run(target: &Target, input: &str, bytes: &[u8]) -> Result<bool, String> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).map_err(|_| {
        let kept = std::env::temp_dir().join(format!("fuzz-{}", target.name));
        std::fs::write(&kept, bytes).unwrap();
        format!("{} does not hold on {input}, kept in {}", target.name, kept.display())
    })
}

#[test]
fn every_target_has_its_executable_and_its_corpus_and_no_corpus_is_nobodys() {
    let expected: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(expected.len(), TARGETS.len(), "two targets have one name");
    for target in TARGETS {
        let inputs = corpus(target);
        assert!(
            inputs.len() <= MAX_INPUTS,
            "{} has {} inputs",
            target.name,
            inputs.len()
        );
        let long = |(_, bytes): &&(String, Vec<u8>)| bytes.len() as u64 > MAX_INPUT_BYTES;
        assert_eq!(
            inputs.iter().find(long).map(|(name, _)| name),
            None,
            "{}: too long",
            target.name
        );
    }
    assert_eq!(names_in(&fuzz().join("corpus"), ""), expected, "corpora");
    assert_eq!(names_in(&fuzz().join("fuzz_targets"), ".rs"), expected, "executables");
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let listed = manifest.lines().filter_map(|line| line.strip_prefix("name = \""));
    let listed: BTreeSet<String> = listed.map(|rest| rest.trim_end_matches('"').to_owned()).collect();
    let unlisted: Vec<_> = expected.difference(&listed).collect();
    assert!(unlisted.is_empty(), "fuzz/Cargo.toml has no executable {unlisted:?}");
}

/// One that takes nothing, or everything, tests nothing.
#[test]
fn what_was_found_by_fuzzing_holds() {
    let mut failed = Vec::new();
    for target in TARGETS {
        let mut taken = BTreeSet::new();
        for (name, bytes) in corpus(target) {
            match run(target, &format!("fuzz/corpus/{}/{name}", target.name), &bytes) {
                Ok(is_taken) => drop(taken.insert(is_taken)),
                Err(why) => failed.push(why),
            }
        }
        if taken.len() < 2 {
            failed.push(format!("{}: of its corpus all or nothing is taken", target.name));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn some_thousand_changes_of_it_hold() {
    let mut failed = Vec::new();
    for target in TARGETS {
        let inputs: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut change = |n| {
            run(
                target,
                &format!("change {n} of its corpus"),
                &changed(&inputs, &mut random),
            )
        };
        failed.extend((0..CHANGES).find_map(|n| change(n).err()));
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// xorshift64*: the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// An input with one to four changes: a bit, a byte, a piece that goes, comes twice, or comes from another input.
fn changed(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = INTERESTING[random.below(INTERESTING.len())],
            2 if !bytes.is_empty() => drop(bytes.drain(at..end)),
            3 if !bytes.is_empty() => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => bytes.insert(at, INTERESTING[random.below(INTERESTING.len())]),
            _ => {
                let other = &inputs[random.below(inputs.len())];
                let from = random.below(other.len());
                let until = (from + random.below(64)).min(other.len());
                bytes.splice(at..at, other[from..until].iter().copied());
            }
        }
    }
    bytes.truncate(MAX_INPUT_BYTES as usize);
    bytes
}

/// Bytes that mean something to one reader or another.
const INTERESTING: [u8; 24] = [
    0, 1, 0x7f, 0x80, 0xc2, 0xff, b'"', b'\\', b'{', b'}', b'[', b']', b':', b',', b'.', b'-', b'%', b'/', b';', b' ',
    b'\n', b'\r', b'0', b'9',
];

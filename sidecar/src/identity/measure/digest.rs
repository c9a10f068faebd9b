//! Digests of files, of any size in the same memory.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::OnceLock;

use aip_api::Digest;
use aip_api::evidence::MAX_TOTAL_BYTES;
use ring::digest::{Context, SHA256};

use super::{MeasureError, io_error};

/// What is read at a time: past it, larger reads no longer make hashing faster, and less than a thread's stack.
const CHUNK_BYTES: usize = 64 * 1024;

/// The digest of a regular file, whose length is taken from `budget`; `None` where it has more.
pub(super) fn of_file(path: &Path, budget: &mut u64) -> Result<Option<Digest>, MeasureError> {
    let failed = |e| io_error(path, e);
    // A named pipe in a file's place would wait for somebody to write to it; so it is opened, and refused below.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(nonblocking).open(path);
    let mut file = opened.map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        // Counted as it is read: a file that grows, or whose length is not told, ends here too.
        let Some(left) = budget.checked_sub(read as u64) else {
            return Ok(None);
        };
        *budget = left;
        context.update(&chunk[..read]);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok(Some(Digest::from_bytes(digest)))
}

/// The digest of a program, which has a bound of its own.
pub(super) fn of_program(path: &Path) -> Result<Digest, MeasureError> {
    let digest = of_file(path, &mut MAX_TOTAL_BYTES.clone())?;
    digest.ok_or_else(|| MeasureError::ProgramTooLarge(path.to_owned()))
}

/// The digest of the program that this process runs. Read once: the kernel lets nobody write to it, and it stays the
/// same file when another takes its name.
pub(super) fn of_this_program() -> Result<Digest, MeasureError> {
    static DIGEST: OnceLock<Digest> = OnceLock::new();
    match DIGEST.get() {
        Some(digest) => Ok(*digest),
        None => of_program(Path::new("/proc/self/exe")).map(|digest| *DIGEST.get_or_init(|| digest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Peak memory of this process, in bytes.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    #[test]
    fn a_large_program_is_measured_in_little_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        // Holes: no disk is written.
        File::create(&path).unwrap().set_len(MAX_TOTAL_BYTES).unwrap();
        let before = peak();
        of_program(&path).unwrap();
        // Other tests of this process have some, too; and the kernel counts in batches, so that a peak may seem to fall.
        assert!(peak().saturating_sub(before) < MAX_TOTAL_BYTES / 2, "it was held whole");
    }

    #[test]
    fn a_program_past_the_bound_is_named_with_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        File::create(&path).unwrap().set_len(MAX_TOTAL_BYTES + 1).unwrap();
        let error = of_program(&path).unwrap_err();
        assert_eq!(error.reason(), "measure_too_large");
        let said = error.to_string();
        assert!(
            said.contains("huge") && said.contains(&MAX_TOTAL_BYTES.to_string()),
            "{said}"
        );
        assert!(!said.contains("glob"), "no glob has to do with it: {said}");
    }

    #[test]
    fn a_file_of_several_chunks_has_the_digest_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..3 * CHUNK_BYTES + 1).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut budget = bytes.len() as u64;
        assert_eq!(of_file(&path, &mut budget).unwrap(), Some(Digest::sha256(&bytes)));
        assert_eq!(budget, 0);
        assert!(of_file(&path, &mut budget).unwrap().is_none(), "nothing is left of it");
    }
}

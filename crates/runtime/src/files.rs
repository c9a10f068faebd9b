//! Files that must be whole, private, and held by one process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::fault;

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Can't be made or written.
    #[error("the data directory {path} can't be written: {source}; make it writable for this user, or name another")]
    NotWritable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the data directory {0} is in use by another process; stop that one, or name another directory")]
    InUse(PathBuf),
}

impl FilesError {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotWritable { .. } => "data_dir_not_writable",
            Self::InUse(_) => "data_dir_in_use",
        }
    }
}

/// Holds a directory for this process, by a lock that the kernel drops with it.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Makes `path` (0700) if need be and locks it.
///
/// # Errors
/// Not writable, or held by another process.
pub fn lock_dir(path: &Path) -> Result<DirLock, FilesError> {
    let failed = |source| FilesError::NotWritable {
        path: path.to_owned(),
        source,
    };
    if !path.exists() {
        fs::create_dir_all(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let lock = path.join(".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(lock)
        .map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DirLock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FilesError::InUse(path.to_owned())),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Replaces `path` with `bytes`, mode 0600: readers see the old file or the new one, also after a power loss.
///
/// # Errors
/// Any step fails; the old file then stays.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let at = |step: &str| fault::point(|| format!("{}:{step}", name.to_string_lossy()));
    let temp = dir.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        // A leftover of a crash may carry other permissions.
        let _ = fs::remove_file(&temp);
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&temp)?;
        file.write_all(bytes)?;
        at("written");
        file.sync_all()?;
        at("synced");
        fs::rename(&temp, path)?;
        at("renamed");
        File::open(dir)?.sync_all()?;
        at("kept");
        Ok(())
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let held = lock_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(lock_dir(&path).unwrap_err().reason(), "data_dir_in_use");
        drop(held);
        lock_dir(&path).unwrap();
    }

    #[test]
    fn private_files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
        assert!(write_private(&dir.path().join("absent/key"), b"x").is_err());
    }
}

//! What of a log is on disk for good: files written and not yet synced, and the handle by which another thread syncs
//! them while records go on being appended.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{LogError, Step};

#[derive(Debug)]
struct State {
    /// Files with data that may not be on disk, oldest first.
    files: Vec<(PathBuf, Arc<File>)>,
    /// A file was made: its name is in the directory, which must be synced as well.
    names: bool,
    /// Records written.
    written: u64,
    /// Records on disk.
    durable: u64,
    poisoned: bool,
}

#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    step: Step,
    /// One sync at a time: a second one would find nothing to do while the first is not done.
    turn: Mutex<()>,
    state: Mutex<State>,
}

impl Disk {
    pub(super) fn new(dir: &Path, written: u64, step: Step) -> Self {
        let state = State {
            files: Vec::new(),
            names: true,
            written,
            durable: 0,
            poisoned: false,
        };
        Self {
            dir: dir.to_owned(),
            step,
            turn: Mutex::new(()),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `file` was written, and the log now has `size` records.
    pub(super) fn wrote(&self, path: &Path, file: &Arc<File>, size: u64) {
        let mut state = self.state();
        state.written = size;
        if !state.files.iter().any(|(_, known)| Arc::ptr_eq(known, file)) {
            state.files.push((path.to_owned(), file.clone()));
        }
    }

    /// A file was made.
    pub(super) fn made(&self) {
        self.state().names = true;
    }

    pub(super) fn step(&self, name: &'static str) {
        (self.step)(name);
    }

    pub(super) fn poison(&self) {
        self.state().poisoned = true;
    }

    pub(super) fn poisoned(&self) -> bool {
        self.state().poisoned
    }
}

/// Syncs what was appended, from any thread, without holding up the one that appends.
#[derive(Debug, Clone)]
pub struct SyncHandle(pub(super) Arc<Disk>);

impl SyncHandle {
    /// Brings to disk what has been appended before this call; answers how many records are there for good.
    ///
    /// # Errors
    /// The disk does not take it. The log is then poisoned: after a failed sync the system may believe a page written
    /// that is not, so a second attempt would prove nothing.
    pub fn sync(&self) -> Result<u64, LogError> {
        let disk = &self.0;
        let _turn = disk.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, names, written) = {
            let mut state = disk.state();
            if state.poisoned {
                return Err(LogError::Poisoned);
            }
            if state.durable == state.written && state.files.is_empty() && !state.names {
                return Ok(state.durable);
            }
            let names = std::mem::take(&mut state.names);
            (std::mem::take(&mut state.files), names, state.written)
        };
        disk.step("log:flush");
        let done = files
            .iter()
            .try_for_each(|(path, file)| file.sync_data().map_err(|e| LogError::io(path, e)))
            .inspect(|()| disk.step("log:flushed_data"))
            .and_then(|()| if names { sync_dir(&disk.dir) } else { Ok(()) });
        disk.step("log:flushed");
        let mut state = disk.state();
        match done {
            Ok(()) => {
                state.durable = state.durable.max(written);
                Ok(written)
            }
            Err(e) => {
                state.poisoned = true;
                Err(e)
            }
        }
    }

    pub(super) fn step(&self, name: &'static str) {
        self.0.step(name);
    }

    /// How many records are on disk for good.
    pub fn durable(&self) -> u64 {
        self.0.state().durable
    }

    /// How many records were appended.
    pub fn written(&self) -> u64 {
        self.0.state().written
    }
}

/// A file that is only added to, whole lines at a time.
#[derive(Debug)]
pub(super) struct Appender {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// Its length.
    pub(super) bytes: u64,
}

impl Appender {
    /// Opens `path`, or makes it, 0600.
    pub(super) fn open(path: PathBuf) -> Result<Self, LogError> {
        let failed = |e| LogError::io(&path, e);
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Self {
            path,
            file: Arc::new(file),
            bytes,
        })
    }

    /// Adds a line in one write. After a failure the file is as before, or `disk` is poisoned.
    pub(super) fn add(&mut self, line: &[u8], disk: &Disk) -> Result<(), LogError> {
        if let Err(e) = (&*self.file).write_all(line) {
            // A disk that fills up takes a part of the line.
            if self.file.set_len(self.bytes).is_err() {
                disk.poison();
            }
            return Err(LogError::io(&self.path, e));
        }
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// Brings names in a directory to disk.
pub(super) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| LogError::io(dir, e))
}

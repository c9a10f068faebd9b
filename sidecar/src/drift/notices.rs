//! The kernel's notices (inotify(7)) of changes to what is measured.
//!
//! A write to a measured file, and a change of what stands at a measured name, are drift by themselves: what was there in
//! between may have been loaded, also where the old content is back by the time that somebody looks. Reading, touching
//! and other attributes are looked at, and what measures the same is none.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::interest::Interest;

/// Read at a time: some 60 notices with ordinary names.
const BUFFER: usize = 4096;
/// Notices that are read before whoever waits is answered: more come with the next turn.
const MAX_BATCH: usize = 4096;
/// Changed names that are kept; past it they are only counted.
const MAX_CHANGED: usize = 64;

const SELF: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);
const FILE: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::ATTRIB).union(SELF);
/// Of a directory its names alone: files are heard of by themselves, and one that somebody logs to wakes nobody.
const DIRECTORY: WatchFlags = SELF
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR);

/// A name came, went, or stands for something else.
const NAMES: ReadFlags = ReadFlags::CREATE
    .union(ReadFlags::DELETE)
    .union(ReadFlags::MOVED_FROM)
    .union(ReadFlags::MOVED_TO);
/// The watched thing itself is gone from where it was.
const GONE: ReadFlags = ReadFlags::DELETE_SELF.union(ReadFlags::MOVE_SELF);

/// What a batch of notices says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// What was written or replaced.
    pub(super) changed: BTreeSet<String>,
    /// Something may measure otherwise.
    pub(super) look: bool,
    /// A directory came: what it holds is to be watched, too.
    pub(super) again: bool,
    /// Notices were lost.
    pub(super) blind: bool,
}

impl Seen {
    /// Both together.
    pub(super) fn add(&mut self, later: Self) {
        self.changed.extend(later.changed);
        self.look |= later.look;
        self.again |= later.again;
        self.blind |= later.blind;
    }
}

/// What a watch is of. One inode can be several things.
#[derive(Debug, Clone)]
enum Of {
    File(String),
    Directory(PathBuf),
    Above(PathBuf),
}

/// Notices of one [`Interest`].
#[derive(Debug)]
pub(super) struct Notices {
    fd: AsyncFd<OwnedFd>,
    watches: HashMap<i32, Vec<Of>>,
    interest: Interest,
}

impl Notices {
    /// Asks for notices of everything in `interest`. Inside a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no watch left for this user (`fs.inotify.max_user_watches`, `max_user_instances`), or something is
    /// gone already.
    pub(super) fn of(interest: Interest) -> std::io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut watches: HashMap<i32, Vec<Of>> = HashMap::new();
        let mut add = |path: &Path, flags: WatchFlags, of: Of| -> std::io::Result<()> {
            // What an inode is watched for already stays.
            let watch = inotify::add_watch(&fd, path, flags | WatchFlags::MASK_ADD)?;
            watches.entry(watch).or_default().push(of);
            Ok(())
        };
        for directory in interest.directories() {
            add(directory, DIRECTORY, Of::Directory(directory.to_owned()))?;
        }
        for directory in &interest.above {
            add(directory, SELF, Of::Above(directory.clone()))?;
        }
        for (path, shown) in &interest.files {
            add(path, FILE, Of::File(shown.clone()))?;
        }
        // Deprecated for types whose descriptor may not stay what it is; an `OwnedFd` is the descriptor. What replaces it
        // is `unsafe`, which is forbidden here.
        #[expect(deprecated, reason = "sound for an OwnedFd")]
        let fd = AsyncFd::new(fd)?;
        Ok(Self { fd, watches, interest })
    }

    /// The next notices that matter.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn next(&self) -> std::io::Result<Seen> {
        loop {
            let mut ready = self.fd.readable().await?;
            let (seen, emptied) = self.read()?;
            if emptied {
                ready.clear_ready();
            }
            if seen != Seen::default() {
                return Ok(seen);
            }
        }
    }

    /// Reads a batch without waiting; and whether nothing is left.
    pub(super) fn read(&self) -> std::io::Result<(Seen, bool)> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
        let mut seen = Seen::default();
        for _ in 0..MAX_BATCH {
            match reader.next() {
                Ok(notice) => {
                    let name = notice.file_name().map(|n| OsString::from_vec(n.to_bytes().to_vec()));
                    self.take(&mut seen, notice.wd(), notice.events(), name);
                }
                Err(Errno::WOULDBLOCK) => return Ok((seen, true)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // What is left in the buffer is not read again.
        while !reader.is_buffer_empty() {
            if let Ok(notice) = reader.next() {
                let name = notice.file_name().map(|n| OsString::from_vec(n.to_bytes().to_vec()));
                self.take(&mut seen, notice.wd(), notice.events(), name);
            }
        }
        Ok((seen, false))
    }

    fn take(&self, seen: &mut Seen, watch: i32, events: ReadFlags, name: Option<OsString>) {
        if events.intersects(ReadFlags::QUEUE_OVERFLOW) {
            seen.look = true;
            seen.blind = true;
            return;
        }
        if events.intersects(ReadFlags::UNMOUNT | ReadFlags::IGNORED) {
            // The watch is gone: others are needed.
            seen.look = true;
            seen.again = true;
        }
        for of in self.watches.get(&watch).into_iter().flatten() {
            match (of, &name) {
                (Of::File(shown), _) => {
                    if events.intersects(ReadFlags::MODIFY | GONE) {
                        note(seen, shown.clone());
                    } else if events.intersects(ReadFlags::ATTRIB) {
                        seen.look = true;
                    }
                }
                (Of::Directory(directory), Some(name)) => self.named(seen, directory, name, events),
                (Of::Directory(path) | Of::Above(path), _) if events.intersects(GONE) => {
                    note(seen, path.display().to_string());
                }
                (Of::Directory(_) | Of::Above(_), _) => {}
            }
        }
    }

    /// What happened to a name in a directory.
    fn named(&self, seen: &mut Seen, directory: &Path, name: &OsString, events: ReadFlags) {
        if let Some(shown) = self.interest.names.get(directory).and_then(|names| names.get(name)) {
            if events.intersects(NAMES) {
                note(seen, shown.clone());
            }
            return;
        }
        let Some(walked) = self.interest.walked.get(directory) else {
            return;
        };
        let path = walked.join(name);
        if events.intersects(ReadFlags::ISDIR) {
            // One that comes may be full already.
            seen.look |= events.intersects(NAMES);
            seen.again |= events.intersects(NAMES);
        } else if events.intersects(NAMES) && self.interest.covered.covers(&path) {
            note(seen, path.display().to_string());
        }
    }
}

fn note(seen: &mut Seen, path: String) {
    if seen.changed.len() < MAX_CHANGED {
        seen.changed.insert(path);
    }
}

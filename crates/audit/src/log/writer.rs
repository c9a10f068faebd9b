//! The one that appends.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aip_api::{Digest, SpiffeId};

use super::disk::{Appender, Disk, SyncHandle};
use super::gather::Gathered;
use super::manifest::line_of_closed;
use super::quota::Leaving;
use super::recover::{self, Open, Recovered};
use super::{CheckpointLines, Dropped, Head, LogError, Manifest, Options, Step, checkpoints, name_of, segment_path};
use crate::checkpoint::{Checkpoint, Closing};
use crate::merkle::{self, Tree};
use crate::record::{Event, MAX_RECORD_BYTES, RecordError, Settled};

/// Appends to a log.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    log: String,
    pub(super) options: Options,
    pub(super) disk: Arc<Disk>,
    pub(super) manifest: Manifest,
    pub(super) book: Appender,
    pub(super) statements: Appender,
    /// The chain that stands last among the checkpoints.
    chains: CheckpointLines,
    pub(super) leaving: Option<Leaving>,
    pub(super) segment: Appender,
    pub(super) open: Open,
    pub(super) tree: Tree,
    /// Records that wait for the next write.
    pub(super) gathered: Gathered,
    /// Bytes of the closed segments that are there.
    pub(super) closed_bytes: u64,
    /// Records that the last kept checkpoint covers.
    signed: u64,
}

impl Writer {
    /// Makes the log in `dir`, whose name is a UUID, or goes on with it. A line that a crash cut off is cut away.
    ///
    /// # Errors
    /// The directory's name or the disk does not allow it; or what is there is not what was written and signed, and then
    /// nothing is changed: keep it for the auditor and open a new log.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovered), LogError> {
        let log = name_of(dir)?;
        let failed = |e| LogError::io(dir, e);
        if !dir.exists() {
            fs::create_dir_all(dir).map_err(failed)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
            (options.step)("log:made");
            // The names of the directories above may be as new.
            dir.ancestors().skip(1).take(2).try_for_each(super::disk::sync_dir)?;
            (options.step)("log:made_synced");
        }
        let found = recover::recover(dir, &log, options.step)?;
        found.manifest.write(dir, options.step)?;
        let begins = found.manifest.begins();
        let live = found.manifest.closed.iter().filter(|c| c.segment >= begins);
        let closed_bytes = live.map(|c| c.bytes).sum();
        let disk = Arc::new(Disk::new(dir, found.tree.size(), options.step));
        let segment = Appender::open(segment_path(dir, found.open.number))?;
        // What an earlier process wrote may not be on disk yet.
        disk.wrote(&segment.path, &segment.file, found.tree.size());
        let writer = Self {
            book: Appender::open(Manifest::path(dir))?,
            statements: Self::statements(dir, options.step)?,
            dir: dir.to_owned(),
            log,
            options,
            disk,
            segment,
            open: found.open,
            tree: found.tree,
            gathered: Gathered::default(),
            closed_bytes,
            signed: found.recovered.signed,
            chains: CheckpointLines::default(),
            leaving: None,
            manifest: found.manifest,
        };
        Ok((writer, found.recovered))
    }

    /// `checkpoints.jsonl`, without a last line that was cut off.
    fn statements(dir: &Path, step: Step) -> Result<Appender, LogError> {
        let path = checkpoints::path(dir);
        let mut statements = Appender::open(path.clone())?;
        let failed = |e| LogError::io(&path, e);
        let held = fs::read(&path).map_err(failed)?;
        let whole = held.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < held.len() {
            statements.bytes = whole as u64;
            step("log:statement_cutting");
            statements.file.set_len(statements.bytes).map_err(failed)?;
            step("log:statement_cut");
        }
        Ok(statements)
    }

    /// The log's name.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Records so far.
    pub const fn size(&self) -> u64 {
        self.tree.size()
    }

    /// The segment that is being written, and its length in bytes.
    pub const fn segment(&self) -> (u64, u64) {
        (self.open.number, self.segment.bytes)
    }

    /// Bytes of all segments that are there, and of what waits for the next write.
    pub const fn bytes(&self) -> u64 {
        self.closed_bytes + self.segment.bytes + self.gathered.bytes()
    }

    /// Bytes that the quota counts: checkpoints, too.
    pub fn held(&self) -> u64 {
        self.weight() + self.statements.bytes
    }

    /// Appends a record, at `at` Unix milliseconds, and answers its sequence number. One write has been made when this
    /// returns: a crash of this process does not lose it.
    ///
    /// # Errors
    /// The quota or the disk does not allow it; the log is then as it was before.
    pub fn append(&mut self, event: Event, at: u64) -> Result<u64, LogError> {
        self.append_settled(&mut event.settled()?, at)
    }

    /// As [`Self::append`], of an event that was made ready elsewhere: what is left is what depends on the record before it.
    /// A line begins with the hash of the one before, so its own can't be begun earlier.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_settled(&mut self, event: &mut Settled, at: u64) -> Result<u64, LogError> {
        self.add(event, at, 0)
    }

    pub(super) fn add(&mut self, event: &mut Settled, at: u64, reserve: u64) -> Result<u64, LogError> {
        self.write_gathered()?;
        let (line, leaf) = self.admit(event, at, reserve)?;
        self.segment.add(line, &self.disk)?;
        let seq = self.chained(leaf, at);
        self.written();
        Ok(seq)
    }

    /// The line of a record, and its leaf hash, where there is room for it. The segment has room, too.
    pub(super) fn admit<'a>(
        &mut self,
        event: &'a mut Settled,
        at: u64,
        reserve: u64,
    ) -> Result<(&'a [u8], Digest), LogError> {
        if self.disk.poisoned() {
            return Err(LogError::Poisoned);
        }
        let line = event.line(self.tree.size(), self.open.last, at);
        let record = &line[..line.len() - 1];
        if record.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong(record.len()).into());
        }
        let length = line.len() as u64;
        if self.held() + length > self.options.total_bytes + reserve {
            return Err(LogError::Quota {
                held: self.held(),
                most: self.options.total_bytes,
            });
        }
        if self.due(at, length) {
            self.rotate()?;
        }
        Ok((line, merkle::leaf(record)))
    }

    /// A record is the log's last one now; answers its sequence number.
    pub(super) fn chained(&mut self, leaf: Digest, at: u64) -> u64 {
        let seq = self.tree.size();
        self.open.last = leaf;
        self.open.passed(at);
        self.open.since = self.open.since.or(Some(at));
        self.tree.append(leaf);
        seq
    }

    /// All records so far are in the file.
    pub(super) fn written(&self) {
        self.disk
            .wrote(&self.segment.path, &self.segment.file, self.tree.size());
        self.disk.step("log:appended");
    }

    fn due(&self, at: u64, length: u64) -> bool {
        let Some(since) = self.open.since else {
            return false;
        };
        self.segment.bytes + self.gathered.bytes() + length > self.options.segment_bytes
            || at.saturating_sub(since) >= self.options.segment_millis
    }

    /// Bytes from this segment on.
    pub fn unsent(&self, segment: u64) -> u64 {
        let sent = self
            .manifest
            .closed
            .iter()
            .filter(|c| c.segment >= self.manifest.begins() && c.segment < segment);
        self.bytes().saturating_sub(sent.map(|c| c.bytes).sum())
    }

    /// Whether the segment is old enough to be closed though nothing is appended.
    pub fn is_due(&self, at: u64) -> bool {
        self.due(at, 0)
    }

    /// Closes the segment and begins the next one; nothing where the segment is empty.
    ///
    /// # Errors
    /// The disk does not allow it; the log is then as it was before.
    pub fn rotate(&mut self) -> Result<(), LogError> {
        if self.disk.poisoned() {
            return Err(LogError::Poisoned);
        }
        self.write_gathered()?;
        if self.open.since.is_none() {
            return Ok(());
        }
        let next = Appender::open(segment_path(&self.dir, self.open.number + 1))?;
        let closed = recover::closed(&self.open, &self.tree, self.segment.bytes);
        if let Err(e) = self.book.add(&line_of_closed(&closed), &self.disk) {
            let _ = fs::remove_file(&next.path);
            return Err(e);
        }
        self.disk.step("log:rotating");
        self.disk.made();
        self.disk.wrote(&self.book.path, &self.book.file, self.tree.size());
        self.closed_bytes += self.segment.bytes;
        self.manifest.closed.push(closed);
        self.segment = next;
        self.open.number += 1;
        self.open.first = self.tree.size();
        self.open.since = None;
        self.disk.step("log:rotated");
        Ok(())
    }

    /// A handle by which another thread syncs what was appended.
    pub fn sync_handle(&self) -> SyncHandle {
        SyncHandle(self.disk.clone())
    }

    /// How far the log reaches.
    pub fn head(&self) -> Head {
        Head {
            log: self.log.clone(),
            size: self.tree.size(),
            root: self.tree.root(),
        }
    }

    /// What is to be signed about it now.
    pub fn unsigned(&self, agent: &SpiffeId, closing: Closing, at: u64) -> Checkpoint {
        Checkpoint {
            v: 1,
            log: self.log.clone(),
            agent: agent.clone(),
            size: self.tree.size(),
            root: self.tree.root(),
            at,
            closing,
        }
    }

    /// Keeps a signed checkpoint, with the chain (DER, leaf first) of the certificate whose key signed it.
    ///
    /// # Errors
    /// It is not of this log, or the disk does not allow it.
    pub fn keep(&mut self, statement: &str, chain: &[Vec<u8>]) -> Result<(), LogError> {
        let claims = checkpoints::claims_of(statement);
        let claims = claims.filter(|c| c.log == self.log && c.size <= self.tree.size());
        let claims =
            claims.ok_or_else(|| LogError::damaged(&self.statements.path, 0, None, "not a checkpoint of this log"))?;
        let lines = self.chains.add_next(statement, chain);
        if let Err(e) = self.statements.add(&lines, &self.disk) {
            self.chains = CheckpointLines::default();
            return Err(e);
        }
        self.disk
            .wrote(&self.statements.path, &self.statements.file, self.tree.size());
        self.signed = self.signed.max(claims.size);
        self.disk.step("log:kept");
        Ok(())
    }

    /// Records that the last kept checkpoint covers.
    pub const fn signed(&self) -> u64 {
        self.signed
    }

    /// Drops the oldest closed segments that a quota asks for, at once: of a copy, whose log goes on elsewhere. Only those
    /// before segment `sent`, and only what a kept checkpoint covers. Answers what is gone.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn sweep(&mut self, sent: u64, now: u64) -> Result<Option<Dropped>, LogError> {
        let begins = self.manifest.begins();
        let Some(last) = self.due_to_go(sent, now, self.options.segment_bytes) else {
            return Ok(None);
        };
        // The manifest is on disk before a file is gone: a missing file that it does not name is an attack.
        self.forget(&last);
        self.manifest.write(&self.dir, self.options.step)?;
        self.book = Appender::open(Manifest::path(&self.dir))?;
        for number in begins..=last.through {
            let path = segment_path(&self.dir, number);
            self.disk.step("log:sweeping");
            fs::remove_file(&path).map_err(|e| LogError::io(&path, e))?;
            self.disk.step("log:swept");
        }
        Ok(Some(last))
    }

    /// What a quota asks for, so that so much room is left.
    pub(super) fn due_to_go(&self, sent: u64, now: u64, room: u64) -> Option<Dropped> {
        let begins = self.manifest.begins();
        let (mut dropped, mut held) = (None, self.held());
        let mut left = self.open.number.saturating_sub(begins);
        for closed in self.manifest.closed.iter().filter(|c| c.segment >= begins) {
            let full = held + room > self.options.total_bytes || left > self.options.most_segments;
            let old = now.saturating_sub(closed.at) > self.options.total_millis;
            if closed.segment >= sent || closed.end() > self.signed || !(full || old) {
                break;
            }
            held -= self.weight_of(closed);
            left -= 1;
            dropped = Some(Dropped {
                through: closed.segment,
                at: now,
                quota: if full { "size" } else { "age" }.to_owned(),
            });
        }
        dropped
    }

    /// Takes segments out of what is known.
    pub(super) fn forget(&mut self, dropped: &Dropped) {
        let gone = self.manifest.begins()..=dropped.through;
        let closed = self.manifest.closed.iter().filter(|c| gone.contains(&c.segment));
        self.closed_bytes -= closed.map(|c| c.bytes).sum::<u64>();
        self.manifest.closed.retain(|c| c.segment >= dropped.through);
        self.manifest.dropped = Some(dropped.clone());
    }
}

//! The log that is being written. A log goes on over crashes and ends with an orderly end; one that can't be gone on with
//! stays as it is, for the auditor, and the next one begins.
//!
//! Requests wait for whoever holds this: nothing here syncs, and nothing reads a directory, once it is open.

mod left;
mod write;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aip_api::SpiffeId;
use aip_audit::log::{self, Gone, Head, LogError, Long, Options, Shorter, SyncHandle, Writer};
use aip_audit::record::{Dropped, Event, Gap, RecordError, Settled};
use aip_audit::{Checkpoint, Closing};
use serde_json::{Value, json};

use super::lost::Lost;
use super::shares::Shares;
use left::Left;
use write::Undone;

/// Time between two attempts to begin a log, where none can be written: a disk that was full has room within seconds or
/// not for long.
const RETRY: Duration = Duration::from_secs(1);

/// Where a record stands: in which log of this process, and at which place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) life: u64,
    pub(super) seq: u64,
    /// How often records that were gathered had been lost by then.
    undone: u64,
}

impl Place {
    /// The place of a record that is in its file.
    pub(super) const fn in_file(life: u64, seq: u64) -> Self {
        Self { life, seq, undone: 0 }
    }
}

/// A record that could not be written, and why, as a stable word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log can't be written ({0})")]
pub(crate) struct Unrecorded(pub(crate) &'static str);

/// What is to be written.
pub(super) struct Entry<'a> {
    /// The event, as its line has it.
    pub(super) event: Result<Settled, RecordError>,
    /// Of an end, where its decision stands: both belong into the same log.
    pub(super) after: Option<Place>,
    /// Of a decision, who asked.
    pub(super) from: Option<&'a str>,
    /// Whether it may wait for the next write: whoever asks for that has it written before anybody learns of it.
    pub(super) gathers: bool,
}

/// What is to be signed, and how far the files reach that it covers.
pub(super) struct Unsigned {
    pub(super) life: u64,
    pub(super) checkpoint: Checkpoint,
    pub(super) covers: Covers,
}

impl Unsigned {
    /// What a log says of itself now.
    pub(super) fn of(writer: &Writer, agent: &SpiffeId, closing: Closing, at: u64) -> Self {
        let (segment, bytes) = writer.segment();
        Self {
            life: 0,
            checkpoint: writer.unsigned(agent, closing, at),
            covers: Covers { segment, bytes },
        }
    }
}

/// Up to where a checkpoint covers the files of its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Covers {
    pub(super) segment: u64,
    pub(super) bytes: u64,
}

pub(super) struct Book {
    root: PathBuf,
    options: Options,
    /// Bytes of logs of earlier lives that can't be dropped: they are of the quota, too.
    earlier: u64,
    /// How many logs this process has begun or gone on with.
    life: u64,
    writer: Option<Writer>,
    /// Why there is none.
    why: &'static str,
    /// When one was last tried to begin, where that failed.
    failed: Option<Instant>,
    lost: Lost,
    shares: Shares,
    /// An earlier life ended without a word: the next checkpoint says so.
    recovers: bool,
    /// The last checkpoint was not believed: another one is made though nothing is new.
    signs_again: bool,
    /// Since when there is a record that no checkpoint covers.
    unsigned_since: Option<Instant>,
    /// Up to where the last kept checkpoint covers the files.
    covers: Covers,
    closed: bool,
    /// How far the log of a life is on disk.
    synced: Option<(u64, Head)>,
    /// The last one that could not be brought to disk, until that is in order.
    left: Option<Left>,
    /// Which gathered records were lost.
    undone: Undone,
}

impl Book {
    pub(super) fn open(root: &Path, options: Options) -> Self {
        let mut book = Self {
            root: root.to_owned(),
            options,
            earlier: 0,
            life: 0,
            writer: None,
            why: "io",
            failed: None,
            lost: Lost::open(root),
            shares: Shares::new(options.total_bytes),
            recovers: false,
            signs_again: false,
            unsigned_since: None,
            covers: Covers::default(),
            closed: false,
            synced: None,
            left: None,
            undone: Undone::default(),
        };
        if !book.go_on() {
            let begun = begin(root, options);
            book.began(begun);
        }
        book
    }

    /// Goes on with the last log, where it may.
    fn go_on(&mut self) -> bool {
        let Some(dir) = logs(&self.root).pop() else {
            return false;
        };
        match Writer::open(&dir, self.options) {
            Ok((_, found)) if found.clean && found.records > 0 => false,
            Ok((writer, found)) => {
                tracing::info!(
                    log = writer.log(),
                    records = found.records,
                    signed = found.signed,
                    cut_bytes = found.cut_bytes,
                    "the audit log goes on after an end without a word"
                );
                if found.cut_lines > 0 {
                    self.lost.add("io", found.cut_lines);
                }
                self.enter(writer);
                self.recovers = found.records > 0;
                true
            }
            Err(error) => {
                tracing::error!(reason = error.reason(), %error, log = %dir.display(),
                    "this audit log can't be gone on with; it stays as it is, and a new one begins");
                false
            }
        }
    }

    fn enter(&mut self, mut writer: Writer) {
        writer.bounded(self.bounds());
        self.life += 1;
        self.covers = Covers::default();
        self.recovers = false;
        self.failed = None;
        self.unsigned_since = (writer.size() > writer.signed()).then(Instant::now);
        self.writer = Some(writer);
    }

    /// The bounds of this log: what earlier ones leave it.
    fn bounds(&self) -> Options {
        Options {
            total_bytes: self.options.total_bytes.saturating_sub(self.earlier),
            ..self.options
        }
    }

    /// Logs of earlier lives take so many bytes that can't be dropped.
    pub(super) fn earlier(&mut self, bytes: u64) {
        self.earlier = bytes;
        let bounds = self.bounds();
        if let Some(writer) = &mut self.writer {
            writer.bounded(bounds);
        }
    }

    fn complain(&mut self, error: &LogError) {
        self.why = word(error);
        tracing::error!(reason = self.why, %error, "the audit log can't be written");
    }

    /// Where a log is to begin, and within which bounds, if there is none and it is time to try.
    pub(super) fn to_begin(&self) -> Option<(PathBuf, Options)> {
        let waits = self.failed.is_some_and(|failed| failed.elapsed() < RETRY);
        let wanted = self.writer.is_none() && !self.closed && !waits;
        wanted.then(|| (self.root.clone(), self.options))
    }

    /// What became of an attempt to begin one.
    pub(super) fn began(&mut self, begun: Result<Writer, LogError>) {
        match begun {
            Ok(writer) if self.writer.is_none() && !self.closed => self.enter(writer),
            Ok(_) => {}
            Err(error) => {
                self.failed = Some(Instant::now());
                self.complain(&error);
            }
        }
    }

    /// The log of `life` can't be brought to disk: nobody knows what of it is there. The next one begins soon.
    pub(super) fn broken(&mut self, life: u64, error: &LogError) {
        let Some(writer) = self.writer.take_if(|_| self.life == life) else {
            return;
        };
        // Whoever waits for it waits no longer.
        self.life += 1;
        self.complain(error);
        if !matches!(error, LogError::Damaged { .. }) {
            self.leave(&writer, life);
        }
        // A disk that fails may fail again: not a new directory for every attempt.
        self.wait_to_begin();
    }

    /// Lets some time go by before the next log begins: whatever failed may fail again.
    pub(super) fn wait_to_begin(&mut self) {
        self.failed = Some(Instant::now());
    }

    /// Writes a record.
    pub(super) fn append(&mut self, entry: Entry<'_>, at: u64) -> Result<Place, Unrecorded> {
        let written = self.try_append(entry, at);
        if let Err(Unrecorded(why)) = &written {
            self.lost.add(why, 1);
        }
        written
    }

    fn try_append(&mut self, entry: Entry<'_>, at: u64) -> Result<Place, Unrecorded> {
        if entry.after.is_some_and(|decision| decision.life != self.life) {
            return Err(Unrecorded("io"));
        }
        let mut event = match entry.event {
            Ok(event) => event,
            Err(error) => {
                tracing::error!(%error, "a record could not be written");
                return Err(Unrecorded("io"));
            }
        };
        if let Some(from) = entry.from
            && !self.shares.allows(from)
        {
            return Err(Unrecorded("share"));
        }
        self.mind_the_gap(at)?;
        let before = self.bytes();
        let place = self.write(&mut event, at, entry.gathers)?;
        if let Some(from) = entry.from {
            self.shares.took(from, self.bytes().saturating_sub(before));
        }
        Ok(place)
    }

    /// Says first what is missing.
    fn mind_the_gap(&mut self, at: u64) -> Result<(), Unrecorded> {
        let Some((lost, reason)) = self.lost.unsaid() else {
            return Ok(());
        };
        let gap = Gap {
            lost,
            reason: reason.to_owned(),
        };
        let mut gap = Event::Gap(gap).settled().map_err(|_| Unrecorded("io"))?;
        self.write(&mut gap, at, false)?;
        tracing::warn!(lost, reason, "the audit log is written again, with a gap");
        self.lost.said();
        Ok(())
    }

    /// Closes the segment by age, and says what a quota takes of what the control plane has. What was said, and signed since,
    /// goes from the log; whoever calls takes the files away.
    pub(super) fn tidy(&mut self, sent_segment: u64, at: u64) -> Option<Gone> {
        let writer = self.writer.as_mut()?;
        let mut tidied = Ok(());
        if writer.is_due(at) {
            tidied = writer.rotate();
        }
        let tidied = tidied
            .and_then(|()| writer.say_dropped(sent_segment, at))
            .and_then(|_| writer.drop_said());
        let (unsent, room) = (
            writer.unsent(sent_segment),
            self.options.total_bytes.saturating_sub(self.earlier),
        );
        self.shares.press(self.earlier.saturating_add(unsent), room);
        tidied.unwrap_or_else(|error| {
            tracing::warn!(reason = error.reason(), %error, "the audit log can't be tidied");
            None
        })
    }

    /// A file of the log that is to be made shorter.
    pub(super) fn long(&self) -> Option<(u64, Long)> {
        Some((self.life, self.writer.as_ref()?.long()?))
    }

    /// Puts the shorter one in its place.
    pub(super) fn shortened(&mut self, life: u64, shorter: Shorter) -> Result<(), LogError> {
        match self.writer.as_mut().filter(|_| self.life == life) {
            Some(writer) => writer.shortened(shorter),
            None => Ok(()),
        }
    }

    /// Says that an earlier log goes, whole.
    pub(super) fn say_dropped(&mut self, dropped: Dropped, at: u64) -> Option<Place> {
        let mut event = Event::Dropped(dropped).settled().ok()?;
        self.write(&mut event, at, false).ok()
    }

    /// Whether a kept checkpoint covers that record.
    pub(super) fn has_signed(&self, place: Place) -> bool {
        self.life == place.life && self.signed() > place.seq
    }

    /// What is to be signed now, if there is anything.
    pub(super) fn unsigned(&self, agent: &SpiffeId, closes: bool, at: u64) -> Option<Unsigned> {
        let writer = self.writer.as_ref().filter(|writer| writer.size() > 0)?;
        let closing = match (self.recovers, closes) {
            (true, _) => Closing::Recovery,
            (false, true) => Closing::Close,
            (false, false) => Closing::Periodic,
        };
        if closing == Closing::Periodic && writer.size() <= writer.signed() && !self.signs_again {
            return None;
        }
        let life = self.life;
        Some(Unsigned {
            life,
            ..Unsigned::of(writer, agent, closing, at)
        })
    }

    /// Keeps what was signed.
    pub(super) fn keep(&mut self, signed: &Unsigned, statement: &str, chain: &[Vec<u8>]) -> Result<(), LogError> {
        let Some(writer) = self.writer.as_mut().filter(|_| self.life == signed.life) else {
            return Ok(());
        };
        writer.keep(statement, chain)?;
        // What came while it was signed has waited for no longer than that.
        self.unsigned_since = (writer.size() > writer.signed()).then(Instant::now);
        self.covers = signed.covers;
        self.signs_again = false;
        if signed.checkpoint.closing == Closing::Recovery {
            self.recovers = false;
        }
        Ok(())
    }

    /// The last checkpoint was refused: sign again, by the key of then.
    pub(super) fn sign_again(&mut self) {
        self.signs_again = true;
    }

    /// The log ends here.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.why = "closed";
        self.writer = None;
    }

    /// The log that goes on after an end without a word, until that is signed.
    pub(super) fn resting(&self) -> Option<(u64, PathBuf)> {
        let writer = self.writer.as_ref().filter(|_| self.recovers)?;
        Some((self.life, writer.dir().to_owned()))
    }

    pub(super) fn sync_handle(&self) -> Option<(SyncHandle, u64)> {
        Some((self.writer.as_ref()?.sync_handle(), self.life))
    }

    pub(super) const fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the log that is being written.
    pub(super) fn dir(&self) -> Option<&Path> {
        self.writer.as_ref().map(Writer::dir)
    }

    pub(super) const fn covers(&self) -> Covers {
        self.covers
    }

    pub(super) fn bytes(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::bytes)
    }

    pub(super) fn size(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::size)
    }

    pub(super) fn signed(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::signed)
    }

    /// How long the oldest record has waited for a checkpoint.
    pub(super) fn unsigned_for(&self) -> Duration {
        self.unsigned_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    /// The bounds of all logs together.
    pub(super) const fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn page(&self) -> Value {
        json!({
            "id": self.writer.as_ref().map(|writer| writer.log().to_owned()),
            "unavailable": self.writer.is_none().then_some(self.why),
            "records": self.size(),
            "bytes": self.bytes(),
            "signed": self.signed(),
            "lost": self.lost.in_all(),
        })
    }
}

/// Begins a log.
pub(super) fn begin(root: &Path, options: Options) -> Result<Writer, LogError> {
    Writer::open(&root.join(log::fresh_name()), options).map(|(writer, _)| writer)
}

/// The logs below `root`, oldest first: their names begin with the time.
pub(super) fn logs(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && log::name_of(path).is_ok())
        .collect();
    found.sort();
    found
}

/// Why nothing can be written, as records, metrics and answers say it.
fn word(error: &LogError) -> &'static str {
    match error {
        LogError::DiskFull { .. } => "disk_full",
        LogError::Quota { .. } => "quota",
        _ => "io",
    }
}

//! The log that is being written. A log goes on over crashes and ends with an orderly end; one that can't be gone on with
//! stays as it is, for the auditor, and the next one begins.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aip_api::SpiffeId;
use aip_audit::log::{self, LogError, Options, SyncHandle, Writer};
use aip_audit::record::{Event, Gap};
use aip_audit::{Checkpoint, Closing};
use serde_json::{Value, json};

/// Time between two attempts to begin a log, where none can be written: a disk that was full has room within seconds or
/// not for long.
const RETRY: Duration = Duration::from_secs(1);

/// Where a record stands: in which log of this process, and at which place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) life: u64,
    pub(super) seq: u64,
}

/// A record that could not be written, and why, as a stable word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log can't be written ({0})")]
pub(crate) struct Unrecorded(pub(crate) &'static str);

/// What is to be signed, and how far the files reach that it covers.
pub(super) struct Unsigned {
    pub(super) life: u64,
    pub(super) checkpoint: Checkpoint,
    pub(super) covers: Covers,
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
    /// How many logs this process has begun or gone on with.
    life: u64,
    writer: Option<Writer>,
    /// Why there is none.
    why: &'static str,
    tried: Instant,
    /// Records that could not be written since the last one that could.
    lost: u64,
    lost_because: &'static str,
    /// What was lost in this process' life.
    lost_in_all: u64,
    /// An earlier life ended without a word: the next checkpoint says so.
    recovers: bool,
    /// The last checkpoint was not believed: another one is made though nothing is new.
    signs_again: bool,
    /// Up to where the last kept checkpoint covers the files.
    covers: Covers,
    closed: bool,
}

impl Book {
    pub(super) fn open(root: &Path, options: Options) -> Self {
        let mut book = Self {
            root: root.to_owned(),
            options,
            life: 0,
            writer: None,
            why: "io",
            tried: Instant::now(),
            lost: 0,
            lost_because: "io",
            lost_in_all: 0,
            recovers: false,
            signs_again: false,
            covers: Covers::default(),
            closed: false,
        };
        if let Err(error) = book.begin(true) {
            book.complain(&error);
        }
        book
    }

    /// Goes on with the last log, where it may, or begins one.
    fn begin(&mut self, may_go_on: bool) -> Result<(), LogError> {
        self.tried = Instant::now();
        let last = may_go_on.then(|| logs(&self.root).pop()).flatten();
        if let Some(dir) = last {
            match Writer::open(&dir, self.options) {
                Ok((_, found)) if found.clean && found.records > 0 => {}
                Ok((writer, found)) => {
                    let log = writer.log();
                    tracing::info!(
                        log,
                        records = found.records,
                        signed = found.signed,
                        cut_bytes = found.cut_bytes,
                        "the audit log goes on after an end without a word"
                    );
                    if found.cut_lines > 0 {
                        self.lose("io", found.cut_lines);
                    }
                    self.recovers = found.records > 0;
                    self.enter(writer);
                    return Ok(());
                }
                Err(error) => tracing::error!(reason = error.reason(), %error, log = %dir.display(),
                    "this audit log can't be gone on with; it stays as it is, and a new one begins"),
            }
        }
        let (writer, _) = Writer::open(&self.root.join(log::fresh_name()), self.options)?;
        self.recovers = false;
        self.enter(writer);
        Ok(())
    }

    fn enter(&mut self, writer: Writer) {
        self.life += 1;
        self.covers = Covers::default();
        self.writer = Some(writer);
    }

    fn complain(&mut self, error: &LogError) {
        self.why = word(error);
        tracing::error!(reason = self.why, %error, "the audit log can't be written");
    }

    /// Begins a log where there is none, if it is time to try again.
    pub(super) fn mend(&mut self) {
        if self.writer.is_some() || self.closed || self.tried.elapsed() < RETRY {
            return;
        }
        if let Err(error) = self.begin(false) {
            self.complain(&error);
        }
    }

    /// The log of `life` can't be brought to disk: nobody knows what of it is there.
    pub(super) fn broken(&mut self, life: u64, error: &LogError) {
        if self.life != life || self.writer.is_none() {
            return;
        }
        self.complain(error);
        self.writer = None;
        // The next one begins at once.
        if let Err(error) = self.begin(false) {
            self.life += 1;
            self.complain(&error);
        }
    }

    fn lose(&mut self, why: &'static str, count: u64) {
        self.lost += count;
        self.lost_in_all += count;
        self.lost_because = why;
    }

    /// Writes a record; `after` is the decision of an end, which belongs into the same log.
    pub(super) fn append(&mut self, event: Event, after: Option<Place>, at: u64) -> Result<Place, Unrecorded> {
        let written = match after {
            Some(decision) if decision.life != self.life => Err(Unrecorded("io")),
            _ => self.mind_the_gap(at).and_then(|()| self.write(event, at)),
        };
        if let Err(Unrecorded(why)) = &written {
            self.lose(why, 1);
        }
        written
    }

    /// Says first what is missing.
    fn mind_the_gap(&mut self, at: u64) -> Result<(), Unrecorded> {
        if self.lost == 0 {
            return Ok(());
        }
        let gap = Gap {
            lost: self.lost,
            reason: self.lost_because.to_owned(),
        };
        self.write(Event::Gap(gap), at)?;
        tracing::warn!(
            lost = self.lost,
            reason = self.lost_because,
            "the audit log is written again, with a gap"
        );
        self.lost = 0;
        Ok(())
    }

    fn write(&mut self, event: Event, at: u64) -> Result<Place, Unrecorded> {
        let Some(writer) = &mut self.writer else {
            return Err(Unrecorded(self.why));
        };
        let written = writer.append(event, at);
        let life = self.life;
        written.map(|seq| Place { life, seq }).map_err(|error| {
            let why = word(&error);
            match error {
                LogError::Poisoned => self.broken(life, &error),
                _ if self.lost == 0 => tracing::error!(reason = why, %error, "a record could not be written"),
                _ => {}
            }
            Unrecorded(why)
        })
    }

    /// Closes the segment by age, and drops what a quota asks for of what the control plane has.
    pub(super) fn tidy(&mut self, sent_segment: u64, at: u64) {
        let Some(writer) = &mut self.writer else { return };
        let mut done = Ok(());
        if writer.is_due(at) {
            done = writer.rotate();
        }
        let swept = done.and_then(|()| writer.sweep(sent_segment, at));
        match swept {
            Ok(Some(dropped)) => tracing::info!(
                through = dropped.through,
                quota = dropped.quota,
                "audit segments dropped"
            ),
            Ok(None) => {}
            Err(error) => tracing::warn!(reason = error.reason(), %error, "the audit log can't be tidied"),
        }
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
        let (segment, bytes) = writer.segment();
        Some(Unsigned {
            life: self.life,
            checkpoint: writer.unsigned(agent, closing, at),
            covers: Covers { segment, bytes },
        })
    }

    /// Keeps what was signed.
    pub(super) fn keep(&mut self, signed: &Unsigned, statement: &str, chain: &[Vec<u8>]) -> Result<(), LogError> {
        let Some(writer) = self.writer.as_mut().filter(|_| self.life == signed.life) else {
            return Ok(());
        };
        writer.keep(statement, chain)?;
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

    pub(super) fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    pub(super) fn page(&self) -> Value {
        json!({
            "id": self.writer.as_ref().map(|writer| writer.log().to_owned()),
            "unavailable": self.writer.is_none().then_some(self.why),
            "records": self.size(),
            "bytes": self.bytes(),
            "signed": self.signed(),
            "lost": self.lost_in_all,
        })
    }
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

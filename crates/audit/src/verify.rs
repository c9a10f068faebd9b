//! Verifies logs from their files alone: that nothing was changed, left out, cut or told twice since it was signed, and
//! that the two ends of each hop say the same.
//!
//! | step | file |
//! |---|---|
//! | find logs in a folder | `sources` |
//! | signatures of checkpoints, and that they tell one history | `signed` |
//! | lines: form, order, chain, borders, roots at each signed size | `walk` |
//! | further copies of a log, held to the same | `copies` |
//! | the control plane's log of checkpoints | `ledger` |
//! | both ends of each hop | `pair` |

mod copies;
mod fault;
mod ledger;
mod pair;
mod signed;
mod sources;
mod walk;

use aip_api::SpiffeId;
use serde::{Deserialize, Serialize};

pub use fault::{Fault, Kind, MAX_FAULTS};
pub use ledger::LedgerReport;
pub use pair::Hops;
pub use sources::{LEDGER_DIR, Ledger, Source, Sources};

use crate::checkpoint::{Checkpoint, LedgerBegins, Retired, TreeHead};
use crate::log::Kept;
use fault::Found;
use pair::Pairing;
use walk::Of;

/// Who knows the keys.
pub trait Keys {
    /// The claims of a checkpoint and whose key signed it, if the certificates led to a root when it was signed.
    ///
    /// # Errors
    /// Why it is not believed.
    fn checkpoint(&self, kept: &Kept) -> Result<(Checkpoint, SpiffeId), String>;

    /// The claims of a tree head, if an audit key of the mesh signed it.
    ///
    /// # Errors
    /// Why it is not believed.
    fn tree_head(&self, statement: &str) -> Result<TreeHead, String>;

    /// The claims of what the control plane says of checkpoints that it keeps no more, if an audit key of the mesh signed it.
    ///
    /// # Errors
    /// Why it is not believed.
    fn ledger_begins(&self, statement: &str) -> Result<LedgerBegins, String>;

    /// The claims of what the control plane says that its retention took of a log, if an audit key of the mesh signed it.
    ///
    /// # Errors
    /// Why it is not believed.
    fn retired(&self, statement: &str) -> Result<Retired, String>;
}

/// How far verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub done: u64,
    /// Bytes to read.
    pub all: u64,
}

/// What one log is worth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// Its name.
    pub log: String,
    /// Where it was read.
    pub dir: String,
    /// Whose, as its checkpoints say.
    pub agent: Option<String>,
    /// Records up to its end, also those that a quota took.
    pub records: u64,
    /// Of them, those whose lines a quota took: only their subtrees are here.
    pub dropped: u64,
    /// Time of the last of those, Unix milliseconds, by a signed record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_until: Option<u64>,
    /// Earlier logs of this sidecar that a quota took whole, by a signed record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped_logs: Vec<String>,
    /// Segments that are here.
    pub segments: u64,
    /// Checkpoints whose signature holds.
    pub checkpoints: u64,
    /// Of them, those made after a crash.
    pub recoveries: u64,
    /// Records at the last of those: requests before it without an end were cut by the crash.
    pub recovered: u64,
    /// It ended in order: its last checkpoint says so.
    pub closed: bool,
    /// Records that a checkpoint with the right root covers.
    pub signed: u64,
    /// When that checkpoint was made, Unix milliseconds: what happened later is pending.
    pub signed_at: Option<u64>,
    /// When the first record that is here was made, Unix milliseconds.
    pub first_at: Option<u64>,
    /// Records that could not be written, by the sidecar's own word.
    pub gaps: u64,
    /// Bytes after the last whole line: being written, or what a crash left.
    pub torn_bytes: u64,
}

/// What a further copy of a log is worth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// The log's name.
    pub log: String,
    /// Where it was read.
    pub dir: String,
    /// Records up to its end.
    pub records: u64,
    /// Of them, those that a checkpoint with the right root covers.
    pub signed: u64,
    /// Records of it that the log that it is a copy of has not.
    pub ahead: u64,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Each log.
    pub logs: Vec<LogReport>,
    /// Both ends of hops.
    pub hops: Hops,
    /// The control plane's log of checkpoints, where it was there.
    pub ledger: Option<LedgerReport>,
    /// Folders that could not be read.
    pub unread: Vec<String>,
    /// Further copies of these logs, held to the same as they are.
    pub copies: Vec<CopyReport>,
    /// What does not hold.
    pub faults: Vec<Fault>,
    /// Faults beyond [`MAX_FAULTS`], which are only counted.
    pub more_faults: u64,
}

impl Report {
    /// Nothing was found wrong, in at least one log.
    pub fn intact(&self) -> bool {
        self.faults.is_empty() && !self.logs.is_empty()
    }

    /// Whether that also says that nothing was left out: every log and every end of a hop is here, no sidecar says that it
    /// could not write some, no copy has more, and the control plane signed which there are.
    pub fn is_whole(&self) -> bool {
        let signed = self.ledger.as_ref().is_some_and(|ledger| ledger.heads > 0);
        let ended = self.hops.cut == 0 && self.hops.dropped == 0 && self.hops.no_log == 0;
        let written = self.hops.lost == 0 && self.logs.iter().all(|log| log.gaps == 0);
        let behind = self.copies.iter().any(|copy| copy.ahead > 0);
        signed && ended && written && !behind && self.unread.is_empty()
    }
}

/// Verifies `sources`. What can't be read is a fault of the report, as what is wrong in it is.
pub fn verify(sources: &Sources, keys: &dyn Keys, progress: &mut dyn FnMut(Progress)) -> Report {
    let mut found = Found::default();
    let mut pairing = Pairing::default();
    let mut report = Report {
        unread: sources.unread.iter().map(|path| path.display().to_string()).collect(),
        ..Report::default()
    };
    let ledger = ledger::read(&sources.ledgers, keys, &mut found);
    let all = sources.bytes();
    let (mut done, mut tails) = (0, Vec::new());
    let mut step = |bytes: u64| {
        done = u64::saturating_add(done, bytes);
        progress(Progress { done, all });
    };
    for source in &sources.logs {
        let listed = ledger.as_ref().map(|l| l.of(&source.log)).unwrap_or_default();
        let signed = signed::read(source, listed, keys, &mut found);
        // The copies first: one that is being written may be behind, and never ahead.
        let copies = copies::walk(source, &signed, &mut found, &mut step);
        let of_log = Of::Log(&copies.ends);
        let (log, tail) = walk::walk(
            &source.dir,
            source,
            &signed,
            of_log,
            &mut found,
            &mut pairing,
            &mut step,
        );
        report.copies.extend(copies.reports(log.records));
        report.logs.push(log);
        tails.extend(tail);
    }
    // By what was signed last, and not by the clock: what is verified may be years old.
    let signed = report.logs.iter().filter_map(|log| log.signed_at);
    let newest = signed
        .chain(ledger.as_ref().map(ledger::Read::newest))
        .max()
        .unwrap_or(0);
    walk::old_tails(&report.logs, &tails, newest, &mut found);
    if let Some(ledger) = ledger {
        report.ledger = Some(ledger.close(&report.logs, &mut found));
    }
    report.hops = pairing.close(&report.logs, newest, &mut found);
    (report.faults, report.more_faults) = found.close();
    report
}

#[cfg(test)]
mod tests;

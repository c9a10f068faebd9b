//! What can be wrong, and what that means.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::log::LogError;

/// Faults that a report lists; one that was torn to pieces would list millions.
pub const MAX_FAULTS: usize = 1000;
/// Characters of a text of a record that a fault repeats: twice what the longest id of an agent has. A record may have half a
/// megabyte, and each of those faults another one.
const MAX_NAMED: usize = 512;
/// Characters of what a fault says: a few such texts, and the words around them.
const MAX_DETAIL: usize = 4 * MAX_NAMED;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal: $means:literal,)*) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind { $(#[doc = $means] $kind,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// What it means, in a sentence.
            pub const fn means(self) -> &'static str {
                match self { $(Self::$kind => $means,)* }
            }
        }
    };
}

kinds! {
    NotARecord = "not_a_record": "The line is not a record as a sidecar writes it: it was changed.",
    ChainBroken = "chain_broken": "The line before is not the one that this record was written after: one of the two was changed.",
    RecordsMissing = "records_missing": "Records were taken out.",
    OutOfOrder = "out_of_order": "A record stands where another belongs: lines were put in, doubled or moved.",
    SegmentMissing = "segment_missing": "A whole segment file was taken away, and no quota says so.",
    SegmentBorder = "segment_border": "The segment does not go on where the one before ended: one of the two was changed or replaced.",
    ManifestDiffers = "manifest_differs": "The segment is not as it was when it was closed.",
    Rewritten = "rewritten": "The records are not those that were signed: they were rewritten, however well they fit together.",
    LogUnreadable = "log_unreadable": "A file of the log can't be read, or something else stands in its place: what it held is not verified.",
    CopyDiffers = "copy_differs": "Two copies of one log hold different records: one of them was changed since.",
    Truncated = "truncated": "The log ends before what was signed: its tail was cut off.",
    CheckpointInvalid = "checkpoint_invalid": "A checkpoint is not signed by the key of an agent of this mesh at that time: it is forged or was changed.",
    CheckpointOfAnother = "checkpoint_of_another": "A checkpoint of another log or another agent stands here.",
    Forked = "forked": "Two signed checkpoints tell different histories: the sidecar signed both, or its key was used elsewhere.",
    Unsigned = "unsigned": "Nothing of this log was ever signed: nobody vouches for it.",
    TailUnsigned = "tail_unsigned": "Records after the last checkpoint are older than a checkpoint may take: nobody vouches for them.",
    AgentDiffers = "agent_differs": "A record speaks for another agent than the one whose sidecar signed the log.",
    DecisionTwice = "decision_twice": "One decision id was used for two decisions.",
    EndWithoutDecision = "end_without_decision": "A request ended that was never decided.",
    ContradictsItself = "contradicts_itself": "A callee's sidecar recorded a refusal, and that the request went on to its agent or was answered as no refusal is.",
    EndMissing = "end_missing": "A request was decided and has no end, though its sidecar ended in order or the other end saw it end.",
    HopReused = "hop_reused": "One hop id was let through twice at one end.",
    OtherCallee = "other_callee": "A callee's sidecar recorded a hop that its caller recorded as a call of another agent: one of the two records is not true.",
    MissingAtCallee = "missing_at_callee": "The caller's sidecar had an answer, and the callee's sidecar has no record of the hop.",
    MissingAtCaller = "missing_at_caller": "The callee's sidecar was called, and the caller's sidecar has no record of the hop.",
    Late = "late": "One end's record is signed, and the other end's sidecar has signed nothing of that time since: its record is late, withheld, or was never made.",
    WentOnAfterRefusal = "went_on_after_refusal": "The caller's sidecar recorded a refusal, and the callee's was called all the same.",
    OtherDecision = "other_decision": "The caller's sidecar was told of another decision than the one that the callee's recorded.",
    EndsDiffer = "ends_differ": "The two ends say different things of the same hop: what one sent is not what the other received, or they recorded another call or outcome.",
    LogMissing = "log_missing": "The control plane has checkpoints of a log that is not here.",
    TreeHeadInvalid = "tree_head_invalid": "A tree head is not signed by an audit key of this mesh.",
    TreeHeadDiffers = "tree_head_differs": "The control plane's log of checkpoints is not the one whose head was signed: it was rewritten, cut or forked.",
}

/// Something that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// In which log.
    pub log: String,
    /// In which file.
    pub file: String,
    /// In which line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// At which record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The last record, where it is about several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<u64>,
    /// The decision that the record speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// What was found, and what belongs there.
    pub detail: String,
    /// What that means.
    pub means: String,
}

/// Where a fault is.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) log: &'a str,
    pub(super) file: &'a Path,
    pub(super) line: Option<u64>,
    pub(super) seq: Option<u64>,
    pub(super) through: Option<u64>,
    pub(super) decision: Option<&'a str>,
}

impl<'a> At<'a> {
    pub(super) const fn file(log: &'a str, file: &'a Path) -> Self {
        Self {
            log,
            file,
            line: None,
            seq: None,
            through: None,
            decision: None,
        }
    }

    pub(super) const fn line(self, line: u64) -> Self {
        Self {
            line: Some(line),
            ..self
        }
    }

    pub(super) const fn seq(self, seq: u64) -> Self {
        Self { seq: Some(seq), ..self }
    }

    pub(super) const fn through(self, last: u64) -> Self {
        Self {
            through: Some(last),
            ..self
        }
    }

    pub(super) const fn decision(self, decision: Option<&'a str>) -> Self {
        Self { decision, ..self }
    }
}

/// A moment in Unix milliseconds, for people.
pub(super) fn moment(millis: u64) -> String {
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let nanos = i128::from(millis) * 1_000_000;
    let known = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    let text = known.and_then(|at| at.format(&format).ok());
    text.unwrap_or_else(|| format!("{millis} ms after 1970"))
}

/// What a record says of an agent, as far as a fault repeats it.
pub(super) fn named(text: &str) -> String {
    clipped(text.to_owned(), MAX_NAMED)
}

fn clipped(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The faults so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    faults: Vec<Fault>,
    more: u64,
}

impl Found {
    pub(super) fn add(&mut self, kind: Kind, at: At<'_>, detail: impl Into<String>) {
        if self.faults.len() >= MAX_FAULTS {
            self.more += 1;
            return;
        }
        self.faults.push(Fault {
            kind,
            log: at.log.to_owned(),
            file: at.file.display().to_string(),
            line: at.line,
            seq: at.seq,
            through: at.through,
            decision: at.decision.map(str::to_owned),
            detail: clipped(detail.into(), MAX_DETAIL),
            means: kind.means().to_owned(),
        });
    }

    /// A file that can't be read: verification goes on with the others.
    pub(super) fn unreadable(&mut self, log: &str, file: &Path, error: &LogError) {
        let why = match error {
            LogError::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        self.add(Kind::LogUnreadable, At::file(log, file), why);
    }

    pub(super) fn count(&self) -> u64 {
        self.faults.len() as u64 + self.more
    }

    pub(super) fn close(self) -> (Vec<Fault>, u64) {
        (self.faults, self.more)
    }
}

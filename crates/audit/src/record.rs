//! What one line of a segment says: a decision before the agent heard anything, and how the request ended.
//!
//! A record's bytes are its JSON, compact, in the order of the fields here, without a line end. Those bytes are what is
//! hashed: a reader that writes what it read must get the same bytes again, or the line is not a record.

use std::sync::Arc;

use aip_api::Digest;
use aip_api::id::{DecisionId, HopId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the records that are written.
pub const RECORD_VERSION: u32 = 1;
/// Longest record, in bytes: kept facts may hold a whole body's arguments.
pub const MAX_RECORD_BYTES: usize = 512 * 1024;

/// Spellings that are tried until a float reads back as itself: those of usual size do at the second.
const MAX_SPELLINGS: usize = 8;

/// A line that is not a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON of this shape.
    #[error("not a record: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Of a version that this program does not know.
    #[error("a record of version {0}; this program knows {RECORD_VERSION}")]
    Version(u32),
    /// Longer than a record may be.
    #[error("{0} bytes; a record has at most {MAX_RECORD_BYTES}")]
    TooLong(usize),
    /// It is not written the way in which records are.
    #[error("not in canonical form")]
    NotCanonical,
}

/// One line. A key that is not known here is lost in reading, and so refused as not canonical.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub v: u32,
    /// Its place in the log, from 0.
    pub seq: u64,
    /// Leaf hash (RFC 6962) of the line before, without its end; SHA-256 of the log's name for the first.
    pub prev: Digest,
    /// Unix milliseconds.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A request was decided; its agent has heard nothing yet.
    Decision(Box<Decision>),
    /// A request is over.
    End(Box<End>),
    /// Refusals of parties that never showed who they are: counted, with samples by their own quota.
    Strangers(Strangers),
    /// Records that could not be written, where the durability lets traffic go on.
    Gap(Gap),
    /// Records that a quota takes: said, and signed, before they go.
    Dropped(Dropped),
}

/// Which way the request went, seen from the sidecar that recorded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the recording sidecar's agent.
    Inbound,
    /// From it.
    Outbound,
}

/// One end of a hop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Party {
    /// SPIFFE ID, or an outside host with its port.
    pub id: String,
    /// Serial of the certificate that it showed; empty where there was none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub serial: String,
}

/// A policy that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRef {
    /// Its name.
    pub name: String,
    /// The revision that it was pushed at.
    pub revision: u64,
}

/// What was decided, and on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The decision's id: also in `x-aip-decision`, the access log and the answer.
    pub id: DecisionId,
    /// The hop, equal at both ends; none for what never became one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop: Option<HopId>,
    /// The trace id, 32 hex digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trace: String,
    /// Which way.
    pub direction: Direction,
    /// Who asked.
    pub source: Party,
    /// Who was asked.
    pub destination: Party,
    /// HTTP method.
    pub method: String,
    /// Path as it came, clipped; without the query, which may hold secrets.
    pub path: String,
    /// `http`, `mcp`, `a2a`, `grpc`, …
    pub protocol: String,
    /// The protocol's own method.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub call: String,
    /// The tool that was called.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tool: String,
    /// The verdict.
    pub verdict: String,
    /// The stable reason of a refusal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// Words that policy put on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The refusal was only recorded: the agent is observed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub observed: bool,
    /// The policies that took part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyRef>,
    /// The revision of the mesh's settings, which policies read.
    pub mesh_revision: u64,
    /// The revision of the world that the request saw.
    pub revision: u64,
    /// The facts that policy read.
    #[serde(default, skip_serializing_if = "Facts::is_empty")]
    pub facts: Facts,
}

/// The facts that policy could read, so far as they may be kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// As the input document has them; what was not established is listed there.
    #[serde(default, with = "shared", skip_serializing_if = "shared::is_null")]
    pub kept: Arc<Value>,
    /// Paths of facts that policy could read and that are not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<String>,
    /// Further facts, sealed to the auditor's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
}

impl Facts {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.kept.is_null() && self.dropped.is_empty() && self.sealed.is_none()
    }
}

/// A document that many records have, which is not copied for each.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use serde_json::Value;

    pub(super) fn is_null(value: &Arc<Value>) -> bool {
        value.is_null()
    }

    pub(super) fn serialize<S: Serializer>(value: &Arc<Value>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Value>, D::Error> {
        Value::deserialize(deserializer).map(Arc::new)
    }
}

/// Facts that only the auditor can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// Which of the auditor's keys: the first 16 hex digits of its SHA-256.
    pub key: String,
    /// The sealed document, base64.
    pub data: String,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The decision that it ends.
    pub id: DecisionId,
    /// The hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop: Option<HopId>,
    /// Which way.
    pub direction: Direction,
    /// The status that the caller was given; 0 where none was.
    pub status: u16,
    /// `complete`, `aborted`, or the stable reason of a cut.
    pub end: String,
    /// Whose doing a failure was: `caller`, `callee`, `mesh`, `policy`, …; empty where nothing failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub blame: String,
    /// The other end's decision and verdict, `<id>;<verdict>`, where it said one: see [`Self::heard`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub other: String,
    /// Milliseconds from the request's head to its end.
    pub ms: u64,
    /// Salt of the digests, made by the caller's sidecar for this hop, 32 hex digits; none where no body was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub salt: String,
    /// The request's body as this side received it.
    pub request_in: Passed,
    /// The request's body as this side sent it on.
    pub request_out: Passed,
    /// The response's body as this side received it.
    pub response_in: Passed,
    /// The response's body as this side sent it on.
    pub response_out: Passed,
}

impl End {
    /// What is recorded of the `x-aip-decision` of the other end, `<id>;<verdict>;<end>`: it is known which end that is.
    pub fn heard(header: &str) -> String {
        let mut parts = header.splitn(3, ';');
        match (parts.next(), parts.next()) {
            (Some(id), Some(verdict)) => format!("{id};{verdict}"),
            _ => header.to_owned(),
        }
    }

    /// The decision and the verdict that the other end told of; an empty verdict where it told of none.
    pub fn told(&self) -> (Option<DecisionId>, &str) {
        let (id, verdict) = self.other.split_once(';').unwrap_or((&self.other, ""));
        (id.parse().ok(), verdict)
    }
}

/// A body that passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passed {
    /// Bytes of data, without framing and trailers.
    pub bytes: u64,
    /// SHA-256 over the salt and these bytes; none where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// Refusals before anybody showed who they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strangers {
    /// The stable reason.
    pub reason: String,
    /// How many since the record before of this reason.
    pub count: u64,
    /// An address of one of them, as a sample.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sample: String,
}

/// Records that are missing by this sidecar's own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// How many.
    pub lost: u64,
    /// Why: `disk_full`, `io`, `quota`, `share`.
    pub reason: String,
}

/// Records that a quota takes. Everything before them went earlier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// The log that goes, where it is an earlier one and goes whole; none where the first records of this one go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// The first that goes now.
    pub first: u64,
    /// How many.
    pub records: u64,
    /// Time of the last of them, Unix milliseconds.
    pub until: u64,
    /// Which quota: `size` or `age`.
    pub quota: String,
}

impl Dropped {
    /// The first record that is left; nothing before it is.
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.records)
    }
}

/// An event as it stands in its line, made before its place in a log is known: nobody waits for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Room for the beginning of its line, its JSON, and the line's end.
    line: Vec<u8>,
}

/// Longest beginning of a line, up to its event: two numbers of 20 digits, a digest, and their names.
const MAX_BEGIN: usize = 192;
/// Room for an event. Most have less, and none is copied for it.
const USUAL_EVENT: usize = 2048;

impl Settled {
    fn of(event: &Event) -> Result<Self, RecordError> {
        let mut line = Vec::with_capacity(MAX_BEGIN + USUAL_EVENT);
        line.resize(MAX_BEGIN, 0);
        aip_api::json::append(&mut line, event)?;
        line.push(b'\n');
        Ok(Self { line })
    }

    /// Its JSON.
    fn event(&self) -> &[u8] {
        &self.line[MAX_BEGIN..self.line.len() - 1]
    }

    /// The line of the record with this event, with its end.
    pub(crate) fn line(&mut self, seq: u64, prev: Digest, at: u64) -> &[u8] {
        use std::io::Write as _;
        let mut begin = [0; MAX_BEGIN];
        let mut rest = begin.as_mut_slice();
        // All of it fits.
        let _ = write!(
            rest,
            "{{\"v\":{RECORD_VERSION},\"seq\":{seq},\"prev\":\"{prev}\",\"at\":{at}"
        );
        let length = MAX_BEGIN - rest.len();
        self.line[MAX_BEGIN - length..MAX_BEGIN].copy_from_slice(&begin[..length]);
        // Its own brace gives way to the members before it.
        self.line[MAX_BEGIN] = b',';
        &self.line[MAX_BEGIN - length..]
    }
}

impl Event {
    /// The event as it will be written. A float that policy read may be printed as another one is read that is one unit in
    /// the last place away; then that one is the fact. Where none settles, the facts are not kept, and the record says so.
    ///
    /// # Errors
    /// Longer than a record may be.
    pub fn settled(mut self) -> Result<Settled, RecordError> {
        let mut settled = Settled::of(&self)?;
        if self.has_floats() {
            let mut spellings = 0;
            loop {
                self = serde_json::from_slice(settled.event())?;
                let again = Settled::of(&self)?;
                if again == settled {
                    break;
                }
                settled = again;
                spellings += 1;
                if spellings == MAX_SPELLINGS {
                    // A record without its facts is still a record; one that can't be read back would be taken for a
                    // changed one.
                    self.drop_facts();
                    settled = Settled::of(&self)?;
                    break;
                }
            }
        }
        match settled.event().len() {
            length if length + MAX_BEGIN > MAX_RECORD_BYTES => Err(RecordError::TooLong(length)),
            _ => Ok(settled),
        }
    }

    /// Leaves out the facts, and says so.
    pub fn drop_facts(&mut self) {
        if let Self::Decision(decision) = self
            && !decision.facts.is_empty()
        {
            decision.facts = Facts {
                dropped: vec!["input".to_owned()],
                ..Facts::default()
            };
        }
    }

    fn has_floats(&self) -> bool {
        fn floats(value: &Value) -> bool {
            match value {
                Value::Number(number) => number.is_f64(),
                Value::Array(items) => items.iter().any(floats),
                Value::Object(members) => members.values().any(floats),
                _ => false,
            }
        }
        matches!(self, Self::Decision(decision) if floats(&decision.facts.kept))
    }
}

impl Record {
    /// Its bytes.
    ///
    /// # Errors
    /// Longer than a record may be.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordError> {
        let bytes = serde_json::to_vec(self)?;
        match bytes.len() {
            length if length > MAX_RECORD_BYTES => Err(RecordError::TooLong(length)),
            _ => Ok(bytes),
        }
    }

    /// Reads a line, without its end.
    ///
    /// # Errors
    /// Not a record, of another version, or not in canonical form.
    pub fn from_bytes(line: &[u8]) -> Result<Self, RecordError> {
        if line.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong(line.len()));
        }
        let record: Self = serde_json::from_slice(line)?;
        if record.v != RECORD_VERSION {
            return Err(RecordError::Version(record.v));
        }
        if record.to_bytes()? != line {
            return Err(RecordError::NotCanonical);
        }
        Ok(record)
    }
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

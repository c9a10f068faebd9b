//! What of a log's files is to be sent next.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use aip_api::wire::{SegmentChunk, SignedCheckpoint, audit_request};
use aip_audit::log::{self, LogError, Statements};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::audit::book::Covers;

/// Bytes of a chunk: more than the longest record, and small beside what a message may have.
const CHUNK: u64 = 1024 * 1024;
/// What was taken of a log's checkpoints, beside them.
const NOTE: &str = "sent.json";

/// What the control plane has of one log.
#[derive(Debug, Clone, Default)]
pub(in crate::audit) struct Held {
    pub(super) segment: u64,
    offset: u64,
    /// Bytes of `checkpoints.jsonl` that it has taken.
    checkpoints: u64,
    /// Records that they cover.
    signed: u64,
    pub(super) refused: Option<String>,
    /// How far checkpoints cover the files, of a log that is not written any more.
    covers: Option<Covers>,
    /// By its own word on the stream of now, the control plane has all that there will ever be.
    pub(super) has_all: bool,
    /// All checkpoints were told once more on this stream.
    retold: bool,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A checkpoint, whose line ends here.
    Checkpoint(u64),
    Chunk,
}

#[derive(Serialize, Deserialize)]
struct Note {
    checkpoints: u64,
    /// The control plane has all that there will ever be.
    #[serde(default)]
    done: bool,
}

fn note(dir: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(dir.join(NOTE)).ok()?).ok()
}

fn write_note(dir: &Path, note: &Note) {
    // Without it some of it is sent once more.
    let _ = fs::write(dir.join(NOTE), serde_json::to_vec(note).unwrap_or_default());
}

/// Whether the control plane has all of a log that is not written any more.
pub(super) fn is_done(dir: &Path) -> bool {
    note(dir).is_some_and(|note| note.done)
}

impl Held {
    /// What the control plane says at a greeting. One that has nothing of the log is told all checkpoints again.
    pub(super) fn greet(&mut self, dir: &Path, segment: u64, offset: u64) {
        let note = note(dir);
        let has_nothing = (segment, offset) == (0, 0);
        *self = Self {
            segment,
            offset,
            checkpoints: note.filter(|_| !has_nothing).map_or(0, |note| note.checkpoints),
            signed: self.signed,
            refused: None,
            covers: self.covers,
            has_all: false,
            retold: false,
        };
    }

    /// The control plane lacks checkpoints that it had taken, as one does that was restored: all are told once more. Whether
    /// that was not done yet.
    pub(super) fn retell(&mut self) -> bool {
        self.checkpoints = 0;
        !std::mem::replace(&mut self.retold, true)
    }

    /// Where the control plane says that the log goes on; whether that is another place than before.
    pub(super) fn resume(&mut self, segment: u64, offset: u64) -> bool {
        let before = (self.segment, self.offset);
        (self.segment, self.offset) = (segment, offset);
        before != (segment, offset)
    }

    /// Passes over a checkpoint that is not believed.
    pub(super) fn skip(&mut self, at: u64) {
        self.checkpoints = at;
    }

    /// How far checkpoints cover the files of a log that is not written any more; read from them once.
    ///
    /// # Errors
    /// They can't be read. It is then not known whether there is more to send.
    pub(super) fn covered(&mut self, dir: &Path) -> Result<Covers, LogError> {
        let covers = match self.covers {
            Some(covers) => covers,
            None => covers_of(dir)?,
        };
        self.covers = Some(covers);
        Ok(covers)
    }

    /// Whether the log goes on for the control plane with a segment that a quota took here.
    pub(super) fn lacks_what_is_gone(&self, dir: &Path) -> bool {
        let first = log::segments(dir).ok().and_then(|all| all.first().copied());
        first.is_some_and(|first| self.segment < first)
    }

    /// Notes that there is nothing more to send of a log that is not written any more.
    pub(super) fn done(&mut self, dir: &Path) {
        self.has_all = true;
        if !is_done(dir) {
            let (checkpoints, done) = (self.checkpoints, true);
            write_note(dir, &Note { checkpoints, done });
        }
    }

    pub(super) fn taken(&mut self, dir: &Path, at: u64, size: u64) {
        (self.checkpoints, self.signed) = (at, size);
        let note = Note {
            checkpoints: at,
            done: false,
        };
        write_note(dir, &note);
    }

    pub(super) fn page(&self) -> Value {
        json!({ "segment": self.segment, "offset": self.offset, "checkpointed": self.signed, "refused": self.refused })
    }

    /// What is to be sent next of this log. `covers` is how far the last checkpoint covers its files: what nobody signed
    /// stays here.
    pub(super) fn next(
        &self,
        log: &str,
        dir: &Path,
        covers: Covers,
        statements: &mut Option<Statements>,
    ) -> io::Result<Option<(audit_request::Message, Next)>> {
        if let Some((checkpoint, at)) = self.checkpoint(dir, statements).map_err(io::Error::other)? {
            return Ok(Some((
                audit_request::Message::Checkpoint(checkpoint),
                Next::Checkpoint(at),
            )));
        }
        let Some((data, last)) = self.chunk(dir, covers)? else {
            return Ok(None);
        };
        let chunk = SegmentChunk {
            log: log.to_owned(),
            segment: self.segment,
            offset: self.offset,
            data,
            last,
        };
        Ok(Some((audit_request::Message::Chunk(chunk), Next::Chunk)))
    }

    /// The next checkpoint, and where the one after it begins.
    fn checkpoint(
        &self,
        dir: &Path,
        statements: &mut Option<Statements>,
    ) -> Result<Option<(SignedCheckpoint, u64)>, LogError> {
        if statements
            .as_ref()
            .is_none_or(|statements| statements.at() != self.checkpoints)
        {
            *statements = Some(Statements::open(dir, self.checkpoints)?);
        }
        let Some(statements) = statements else { return Ok(None) };
        let next = statements.next_kept()?;
        Ok(next.map(|(statement, chain)| {
            let chain = (*chain).clone();
            (SignedCheckpoint { statement, chain }, statements.at())
        }))
    }

    fn chunk(&self, dir: &Path, covers: Covers) -> io::Result<Option<(Vec<u8>, bool)>> {
        let path = log::segment_path(dir, self.segment);
        if !path.exists() {
            return Ok(None);
        }
        let length = fs::metadata(&path)?.len();
        let (end, closed) = match self.segment.cmp(&covers.segment) {
            Ordering::Less => (length, true),
            Ordering::Equal => (covers.bytes.min(length), false),
            Ordering::Greater => return Ok(None),
        };
        if self.offset > end || (self.offset == end && !closed) {
            return Ok(None);
        }
        let most = CHUNK.min(end - self.offset);
        // One more than there is to read: room in which the file's end shows.
        let mut data = Vec::with_capacity(usize::try_from(most).unwrap_or_default() + 1);
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        file.take(most).read_to_end(&mut data)?;
        let reaches_end = self.offset + data.len() as u64 == end;
        if !reaches_end {
            // Whole records only.
            data.truncate(data.iter().rposition(|b| *b == b'\n').map_or(data.len(), |at| at + 1));
        }
        Ok(Some((data, reaches_end && closed)))
    }
}

/// How far the files of a log reach that its last checkpoint covers. Where that is all, its last segment is closed.
fn covers_of(dir: &Path) -> Result<Covers, LogError> {
    let (signed, mut reached, mut covers) = (signed(dir)?, 0, Covers::default());
    for entry in log::Reader::open(dir)? {
        let entry = match entry {
            // What nobody signed stays here, whatever it is.
            Err(_) if reached >= signed => return Ok(covers),
            entry => entry?,
        };
        if entry.seq >= signed {
            return Ok(covers);
        }
        reached = entry.seq + 1;
        if entry.segment != covers.segment {
            covers = Covers {
                segment: entry.segment,
                bytes: 0,
            };
        }
        covers.bytes += entry.bytes.len() as u64 + 1;
    }
    let length = fs::metadata(log::segment_path(dir, covers.segment)).map_or(0, |found| found.len());
    if length > 0 && length == covers.bytes {
        covers = Covers {
            segment: covers.segment + 1,
            bytes: 0,
        };
    }
    Ok(covers)
}

/// Records that the last checkpoint of a log covers.
///
/// # Errors
/// They can't be read: that is not the same as none.
pub(in crate::audit) fn signed(dir: &Path) -> Result<u64, LogError> {
    let kept = log::kept(dir)?;
    let Some(last) = kept.last() else { return Ok(0) };
    let claims = log::claims_of(&last.statement).ok_or_else(|| LogError::Damaged {
        path: dir.to_owned(),
        line: last.line,
        seq: None,
        why: "the last of its checkpoints is none".to_owned(),
    })?;
    Ok(claims.size)
}

/// Bytes of a log's records.
pub(in crate::audit) fn bytes(dir: &Path) -> u64 {
    unsent(dir, None)
}

/// Bytes of a log that the control plane does not have.
pub(super) fn unsent(dir: &Path, held: Option<&Held>) -> u64 {
    let (segment, offset) = held.map_or((0, 0), |held| (held.segment, held.offset));
    let numbers = log::segments(dir).unwrap_or_default();
    let length = |number: &u64| fs::metadata(log::segment_path(dir, *number)).map_or(0, |found| found.len());
    let there: u64 = numbers.iter().filter(|number| **number >= segment).map(length).sum();
    there.saturating_sub(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_that_can_not_be_read_are_not_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(signed(dir.path()).unwrap(), 0);
        fs::write(dir.path().join("checkpoints.jsonl"), "{\"statement\":1}\n").unwrap();
        assert!(signed(dir.path()).is_err());
        let mut held = Held::default();
        assert!(
            held.covered(dir.path()).is_err(),
            "nothing says that all of it was sent"
        );
        assert!(held.next("log", dir.path(), Covers::default(), &mut None).is_err());
    }

    #[test]
    fn a_log_whose_next_segment_is_gone_here_can_not_be_continued() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = Held::default();
        assert!(!held.lacks_what_is_gone(dir.path()));
        fs::write(log::segment_path(dir.path(), 2), b"three\n").unwrap();
        for (segment, lacks) in [(0, true), (1, true), (2, false), (3, false)] {
            held.resume(segment, 0);
            assert_eq!(held.lacks_what_is_gone(dir.path()), lacks, "{segment}");
        }
    }

    #[test]
    fn chunks_are_whole_lines_and_never_beyond_what_is_covered() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(log::segment_path(dir.path(), 0), b"one\ntwo\nthree\n").unwrap();
        let covers = |segment, bytes| Covers { segment, bytes };
        let mut held = Held::default();
        let (data, last) = held.chunk(dir.path(), covers(0, 8)).unwrap().unwrap();
        assert_eq!((&data[..], last), (&b"one\ntwo\n"[..], false));
        assert!(held.resume(0, 8));
        let rest = held.chunk(dir.path(), covers(0, 8)).unwrap();
        assert!(rest.is_none(), "the rest is not signed");
        let (data, last) = held.chunk(dir.path(), covers(1, 0)).unwrap().unwrap();
        assert_eq!((&data[..], last), (&b"three\n"[..], true));
        held.resume(0, 14);
        let (data, last) = held.chunk(dir.path(), covers(1, 0)).unwrap().unwrap();
        assert_eq!((data.len(), last), (0, true), "its end is said");
        assert!(held.resume(1, 0) && !held.resume(1, 0));
        assert!(held.chunk(dir.path(), covers(1, 0)).unwrap().is_none());
    }
}

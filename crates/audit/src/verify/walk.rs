//! One log, line by line.

mod events;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use aip_api::Digest;
use aip_api::id::DecisionId;

pub(super) use events::{Tail, old_tails};

use super::copies::Ends;
use super::fault::{At, Found, Kind, moment};
use super::pair::{Pairing, Place};
use super::signed::Signed;
use super::sources::{self, is_file};
use super::{LogReport, Source};
use crate::log::{Closed, LONGEST, Line, Lines, LogError, Manifest, first_prev, segment_path, segments};
use crate::merkle::{self, Tree};
use crate::record::{Dropped, Event, Record};

/// Bytes between two words about progress.
const STEP: u64 = 4 * 1024 * 1024;
/// How long a record may wait for a checkpoint, in milliseconds: a dozen of the five seconds that sidecars take.
pub(super) const UNSIGNED_MILLIS: u64 = 60_000;

/// What is walked through.
pub(super) enum Of<'a> {
    /// The log; where its copies end.
    Log(&'a Ends),
    /// A further copy, which may lag behind; its records and the root over them are put here, where nothing of it is wrong.
    Copy(&'a mut Option<(u64, Digest)>),
}

struct Walk<'a> {
    source: &'a Source,
    dir: &'a Path,
    of: Of<'a>,
    signed: &'a Signed,
    found: &'a mut Found,
    pairing: &'a mut Pairing,
    /// The log, as the pairing knows it.
    number: u32,
    report: LogReport,
    /// Sequence number of the next record.
    next: u64,
    /// Leaf hash of the line before; none where it is not known.
    prev: Option<Digest>,
    tree: Tree,
    /// The tree can be compared: no records are known to be missing from it.
    whole: bool,
    /// Segments are missing or can't be read: what began or ended in them is not known.
    holes: bool,
    /// A wrong root was reported: the later ones are wrong for the same reason.
    rewritten: bool,
    agent: Option<String>,
    /// Where each segment begins.
    begins: Vec<(u64, PathBuf)>,
    /// Decisions whose requests are under way, and their records.
    open: HashMap<DecisionId, u64>,
    /// All decisions so far: an id is used once.
    decided: HashSet<DecisionId>,
    last_at: u64,
    /// When the record before was made, by its own word within what was signed.
    last_made: Option<u64>,
    /// The first record after the last checkpoint, and when it was made.
    unsigned_since: Option<(u64, u64)>,
    /// What the log says of records that a quota took, and in which record.
    said: Vec<(u64, Dropped)>,
}

/// Walks through a log, or a copy of it, in `dir`, and says what it is worth.
pub(super) fn walk(
    dir: &Path,
    source: &Source,
    signed: &Signed,
    of: Of<'_>,
    found: &mut Found,
    pairing: &mut Pairing,
    progress: &mut dyn FnMut(u64),
) -> (LogReport, Option<Tail>) {
    let manifest = sources::manifest(dir).unwrap_or_else(|error| {
        found.unreadable(&source.log, &Manifest::path(dir), &error);
        Manifest::default()
    });
    let present = segments(dir).unwrap_or_else(|error| {
        found.unreadable(&source.log, dir, &error);
        Vec::new()
    });
    let number = pairing.log(&source.log, dir);
    let mut walk = Walk::new(dir, source, signed, of, (found, pairing, number));
    walk.skip_dropped(&manifest);
    let mut expected = manifest.begins();
    let present: Vec<u64> = present.into_iter().filter(|number| *number >= expected).collect();
    for (index, number) in present.iter().copied().enumerate() {
        if number != expected {
            walk.missing(expected, number, &manifest);
        }
        let last = index + 1 == present.len();
        match walk.segment(number, last, progress) {
            Ok(()) => walk.compare(manifest.of(number)),
            Err(error) => {
                walk.found.unreadable(&source.log, &segment_path(dir, number), &error);
                walk.go_on_after(manifest.of(number));
            }
        }
        expected = number.saturating_add(1);
    }
    walk.dropped();
    walk.close()
}

impl<'a> Walk<'a> {
    fn new(
        dir: &'a Path,
        source: &'a Source,
        signed: &'a Signed,
        of: Of<'a>,
        (found, pairing, number): (&'a mut Found, &'a mut Pairing, u32),
    ) -> Self {
        let agent = signed.agent.as_ref().map(ToString::to_string);
        Self {
            source,
            dir,
            of,
            signed,
            found,
            number,
            pairing,
            report: LogReport {
                log: source.log.clone(),
                dir: dir.display().to_string(),
                agent: agent.clone(),
                checkpoints: signed.count,
                recoveries: signed.recoveries,
                recovered: signed.recovered,
                closed: signed.closed,
                ..LogReport::default()
            },
            next: 0,
            prev: Some(first_prev(&source.log)),
            tree: Tree::default(),
            whole: true,
            holes: false,
            rewritten: false,
            agent,
            begins: Vec::new(),
            open: HashMap::new(),
            decided: HashSet::new(),
            last_at: 0,
            last_made: None,
            unsigned_since: None,
            said: Vec::new(),
        }
    }
}

impl Walk<'_> {
    fn fault(&mut self, kind: Kind, at: At<'_>, detail: impl Into<String>) {
        let log = self.source.log.as_str();
        self.found.add(kind, At { log, ..at }, detail);
    }

    /// Goes on after the segments that a quota took. What the manifest says of them is shown by the next signed root.
    fn skip_dropped(&mut self, manifest: &Manifest) {
        let last = manifest.begins().checked_sub(1).and_then(|last| manifest.of(last));
        if let Some((closed, tree)) = last.and_then(|c| Some((c, c.tree()?))) {
            self.next = closed.end();
            self.prev = Some(closed.last);
            self.tree = tree;
            self.report.dropped = closed.end();
        } else if manifest.begins() > 0 {
            self.next = 0;
            self.lose();
        }
        self.check_root();
    }

    /// From here on nothing is known about what came before.
    fn lose(&mut self) {
        self.whole = false;
        self.prev = None;
    }

    fn missing(&mut self, from: u64, to: u64, manifest: &Manifest) {
        let path = segment_path(self.dir, from);
        let at = At::file("", &path).seq(self.next);
        let detail = format!("segments {from} to {} are not here", to - 1);
        self.fault(Kind::SegmentMissing, at, detail);
        self.go_on_after(manifest.of(to - 1));
    }

    /// Goes on after a segment that can't be read, by how it ended: the next signed root shows whether that is true.
    fn go_on_after(&mut self, closed: Option<&Closed>) {
        self.holes = true;
        match closed.and_then(|c| Some((c, c.tree()?))) {
            Some((closed, tree)) => {
                self.next = closed.end();
                self.prev = Some(closed.last);
                self.tree = tree;
            }
            None => self.lose(),
        }
    }

    fn segment(&mut self, number: u64, last: bool, progress: &mut dyn FnMut(u64)) -> Result<(), LogError> {
        let path = segment_path(self.dir, number);
        self.begins.push((self.next, path.clone()));
        is_file(&path)?;
        self.report.segments += 1;
        let mut told = 0;
        let mut reached = 0;
        for line in Lines::open(&path, LONGEST)? {
            let line = match line {
                Err(LogError::Damaged { line, why, .. }) => {
                    let at = At::file("", &path).line(line).seq(self.next);
                    self.fault(Kind::NotARecord, at, why);
                    self.lose();
                    break;
                }
                line => line?,
            };
            reached = line.offset + line.bytes.len() as u64 + u64::from(line.ended);
            if reached - told >= STEP {
                progress(reached - told);
                told = reached;
            }
            if !line.ended && last {
                self.report.torn_bytes = line.bytes.len() as u64;
                break;
            }
            self.line((number, &path), &line);
        }
        progress(reached - told);
        Ok(())
    }

    fn line(&mut self, (segment, path): (u64, &Path), line: &Line) {
        let at = At::file("", path).line(line.number).seq(self.next);
        let leaf = merkle::leaf(&line.bytes);
        match Record::from_bytes(&line.bytes) {
            Err(why) => {
                // The line still has its place; whether its bytes are those that were written, the next one says.
                self.fault(Kind::NotARecord, at, why.to_string());
                self.count(leaf);
            }
            Ok(record) => {
                self.order(at, &record);
                self.chain(at, &record, line.number == 1);
                self.count(leaf);
                let place = Place {
                    log: self.number,
                    segment,
                    line: line.number,
                    seq: record.seq,
                };
                self.content(at.seq(record.seq), &record, place);
            }
        }
        self.check_root();
    }

    fn count(&mut self, leaf: Digest) {
        self.prev = Some(leaf);
        self.tree.append(leaf);
        // As far as a number goes: whoever writes a record chooses it.
        self.next = self.next.saturating_add(1);
    }

    fn order(&mut self, at: At<'_>, record: &Record) {
        let decision = decision_of(&record.event).map(|d| d.to_string());
        let at = at.decision(decision.as_deref());
        if record.seq == self.next {
            return;
        }
        if self.prev.is_none() {
            self.next = record.seq;
        } else if record.seq > self.next {
            let detail = format!(
                "records {} to {} are not here; the line is record {}",
                self.next,
                record.seq - 1,
                record.seq
            );
            self.fault(Kind::RecordsMissing, at, detail);
            self.next = record.seq;
            // The chain fails here for the same reason, and the tree from here on.
            self.lose();
        } else {
            let detail = format!("the line is record {}; {} belongs here", record.seq, self.next);
            self.fault(Kind::OutOfOrder, at, detail);
            self.next = record.seq;
            self.lose();
        }
    }

    fn chain(&mut self, at: At<'_>, record: &Record, first: bool) {
        let Some(prev) = self.prev.filter(|prev| *prev != record.prev) else {
            return;
        };
        let decision = decision_of(&record.event).map(|d| d.to_string());
        let at = at.decision(decision.as_deref());
        let detail = format!(
            "it was written after a line whose leaf is {}; that of the line before is {prev}",
            record.prev
        );
        self.fault(if first { Kind::SegmentBorder } else { Kind::ChainBroken }, at, detail);
    }

    fn check_root(&mut self) {
        let size = self.next;
        self.compare_copies();
        let Some((root, at)) = self.signed.roots.get(&size).copied() else {
            return;
        };
        if self.whole && self.tree.size() == size && self.tree.root() == root {
            self.report.signed = size;
            self.report.signed_at = Some(self.report.signed_at.unwrap_or(0).max(at));
            return;
        }
        if std::mem::replace(&mut self.rewritten, true) {
            return;
        }
        let from = self.report.signed;
        let mut files = Vec::new();
        for (n, (begin, path)) in self.begins.iter().enumerate() {
            let end = self.begins.get(n + 1).map_or(size, |(begin, _)| *begin);
            if *begin < size && end > from {
                files.push(path.clone());
            }
        }
        let names: Vec<_> = files
            .iter()
            .filter_map(|p| p.file_name()?.to_str().map(str::to_owned))
            .collect();
        let detail = format!(
            "records {from} to {} in {} are not those that were signed at {} with the root {root}",
            size.saturating_sub(1),
            names.join(", "),
            moment(at),
        );
        let file = files.first().cloned().unwrap_or_else(|| self.dir.to_owned());
        let at = At::file("", &file).seq(from).through(size.saturating_sub(1));
        self.fault(Kind::Rewritten, at, detail);
    }

    /// Holds the records so far against a copy that ends here: what the last checkpoint does not cover, too.
    fn compare_copies(&mut self) {
        let Of::Log(ends) = &self.of else { return };
        let Some(copies) = ends.get(&self.next).filter(|_| self.whole && !self.rewritten) else {
            return;
        };
        let ours = self.tree.root();
        let other: Vec<PathBuf> = copies
            .iter()
            .filter(|(root, _)| *root != ours)
            .map(|(_, dir)| dir.clone())
            .collect();
        for dir in other {
            let detail = format!(
                "its {} records are not the first ones of {}",
                self.next,
                self.dir.display()
            );
            let at = At::file("", &dir)
                .seq(self.report.signed)
                .through(self.next.saturating_sub(1));
            self.fault(Kind::CopyDiffers, at, detail);
        }
    }

    /// What is gone is what whoever kept it says, signed, that it let go: its sidecar of its own log, the control plane of its
    /// copy. What a sidecar's quota took was in the copy by then.
    fn dropped(&mut self) {
        let collected = sources::is_collected(self.dir);
        let said = match collected {
            true => self.signed.retired(self.dir),
            false => self.dropped_by_sidecar(),
        };
        let Some(last) = self.report.dropped.checked_sub(1) else {
            return;
        };
        if let Some((_, until)) = said.filter(|(records, _)| *records > last) {
            self.report.dropped_until = Some(until);
            return;
        }
        let path = Manifest::path(self.dir);
        let who = if collected { "the control plane" } else { "its sidecar" };
        let detail = format!("nothing that {who} signed says that records 0 to {last} were let go of");
        self.fault(Kind::SegmentMissing, At::file("", &path).seq(0), detail);
    }

    /// What signed records of the log say that its sidecar's quota took: so many of its first records, and until when. Earlier
    /// logs that went whole are noted.
    fn dropped_by_sidecar(&mut self) -> Option<(u64, u64)> {
        let signed = self.report.signed;
        let mut own = None;
        for (seq, said) in self.said.iter().filter(|(seq, _)| *seq < signed) {
            match &said.log {
                Some(log) => self.report.dropped_logs.push(log.clone()),
                None => own = own.max(Some((said.end(), self.signed.time(*seq, said.until)))),
            }
        }
        // What went is older than what is left, whatever it says.
        let left = self.report.first_at;
        let left = left.map_or(u64::MAX, |at| self.signed.time(self.report.dropped, at));
        own.map(|(records, until)| (records, until.min(left)))
    }

    /// Whether the segment is as its manifest says.
    fn compare(&mut self, closed: Option<&Closed>) {
        let Some(closed) = closed.filter(|_| self.whole && !self.rewritten) else {
            return;
        };
        if closed.end() == self.next && Some(closed.last) == self.prev && closed.subtrees == self.tree.peaks() {
            return;
        }
        let path = segment_path(self.dir, closed.segment);
        let at = At::file("", &path).seq(closed.first);
        let detail = format!(
            "it was closed with records {} to {}",
            closed.first,
            closed.end().saturating_sub(1)
        );
        self.fault(Kind::ManifestDiffers, at, detail);
    }
}

fn decision_of(event: &Event) -> Option<DecisionId> {
    match event {
        Event::Decision(decision) => Some(decision.id),
        Event::End(end) => Some(end.id),
        Event::Strangers(_) | Event::Gap(_) | Event::Dropped(_) => None,
    }
}

//! Opening a log that is there: what of it can be gone on with, and what a crash left half written.

use std::fs;
use std::path::Path;

use aip_api::Digest;

use super::{Closed, LONGEST, Lines, LogError, Manifest, Step, checkpoints, first_prev, segment_path, segments};
use crate::checkpoint::Closing;
use crate::merkle::{self, Tree};
use crate::record::Record;

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Records in the log.
    pub records: u64,
    /// Records that the last kept checkpoint covers.
    pub signed: u64,
    /// The log was closed in order: the last checkpoint says so and covers everything.
    pub clean: bool,
    /// Bytes at the end that were no records and were cut off: what was being written when the process or machine died.
    pub cut_bytes: u64,
    /// Line ends among them: whole lines that can't be what was written. Zero after a crash of the process alone.
    pub cut_lines: u64,
}

/// Where a log goes on.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) manifest: Manifest,
    pub(super) open: Open,
    pub(super) tree: Tree,
    pub(super) recovered: Recovered,
}

/// The segment that is being written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub(super) number: u64,
    pub(super) first: u64,
    /// Time of its first record.
    pub(super) since: Option<u64>,
    /// Time of its newest record.
    pub(super) at: u64,
    /// Leaf hash of the last line of the log.
    pub(super) last: Digest,
}

impl Open {
    /// A record of this time was added. Times may go back, and a search by time leaves out segments: theirs is the newest.
    pub(super) fn passed(&mut self, at: u64) {
        self.at = match self.since {
            Some(_) => self.at.max(at),
            None => at,
        };
    }
}

pub(super) fn recover(dir: &Path, log: &str, step: Step) -> Result<Found, LogError> {
    let mut manifest = Manifest::read(dir)?;
    let (last, closed) = signed(dir, log)?;
    let signed = last.map_or(0, |(size, _)| size);
    let begins = manifest.begins();
    if begins > 0 && manifest.of(begins - 1).is_none() {
        let why = "how the last segment that was dropped had ended is not known";
        return Err(LogError::damaged(&Manifest::path(dir), 0, None, why));
    }
    let (leftover, present): (Vec<u64>, Vec<u64>) = segments(dir)?.into_iter().partition(|n| *n < begins);
    whole(dir, &manifest, &present)?;
    // Whoever signs on vouches for what was signed before: from the last checkpoint on, everything is read again.
    let known = manifest
        .closed
        .iter()
        .take_while(|c| c.segment < begins || c.end() <= signed)
        .count();
    manifest.closed.truncate(known);
    let mut place = Place::after(manifest.closed.last(), log, last);
    place.check(&Manifest::path(dir))?;
    let mut recovered = Recovered::default();
    let next = place.open.number;
    for number in present.iter().copied().filter(|n| *n >= next) {
        if number != place.open.number {
            let path = segment_path(dir, place.open.number);
            return Err(LogError::damaged(
                &path,
                0,
                Some(place.tree.size()),
                "this segment is missing",
            ));
        }
        let path = segment_path(dir, number);
        let last_one = present.last() == Some(&number);
        let bytes = place.read(&path, signed, last_one.then_some(step), &mut recovered)?;
        if present.last() != Some(&number) {
            let closed = place.close(bytes);
            place = Place::after(Some(&closed), log, last);
            manifest.closed.push(closed);
        }
    }
    if place.tree.size() < signed {
        let path = segment_path(dir, place.open.number);
        let why = format!("it ends here, but {signed} records were signed");
        return Err(LogError::damaged(&path, 0, Some(place.tree.size()), why));
    }
    // Last: nothing is removed from a log that is damaged.
    leftover.into_iter().try_for_each(|number| remove(dir, number, step))?;
    recovered.records = place.tree.size();
    recovered.signed = signed;
    recovered.clean = closed && signed == recovered.records;
    Ok(Found {
        manifest,
        open: place.open,
        tree: place.tree,
        recovered,
    })
}

/// Removes a segment that a quota took; the process died before the file was gone.
fn remove(dir: &Path, number: u64, step: Step) -> Result<(), LogError> {
    let path = segment_path(dir, number);
    step("log:leftover_removing");
    fs::remove_file(&path).map_err(|e| LogError::io(&path, e))?;
    step("log:leftover_removed");
    Ok(())
}

/// Records that the last kept checkpoint covers, with their root.
type Last = Option<(u64, Digest)>;

/// The last kept checkpoint, and whether it closed the log.
fn signed(dir: &Path, log: &str) -> Result<(Last, bool), LogError> {
    let claims = checkpoints::kept(dir)?
        .into_iter()
        .filter_map(|k| checkpoints::claims_of(&k.statement));
    Ok(claims
        .filter(|c| c.log == log)
        .fold((None, false), |(last, _): (Last, _), c| {
            let newer = last.is_none_or(|(size, _)| c.size >= size);
            (
                if newer { Some((c.size, c.root)) } else { last },
                c.closing == Closing::Close,
            )
        }))
}

/// The closed segments are there, each as long as it was.
fn whole(dir: &Path, manifest: &Manifest, present: &[u64]) -> Result<(), LogError> {
    let begins = manifest.begins();
    for closed in manifest.closed.iter().filter(|c| c.segment >= begins) {
        let path = segment_path(dir, closed.segment);
        if !present.contains(&closed.segment) {
            return Err(LogError::damaged(
                &path,
                0,
                Some(closed.first),
                "this segment is missing",
            ));
        }
        let bytes = fs::metadata(&path).map_err(|e| LogError::io(&path, e))?.len();
        if bytes != closed.bytes {
            let why = format!("{bytes} bytes; it was closed with {}", closed.bytes);
            return Err(LogError::damaged(&path, 0, Some(closed.first), why));
        }
    }
    Ok(())
}

struct Place {
    open: Open,
    tree: Tree,
    last: Last,
}

impl Place {
    fn after(closed: Option<&Closed>, log: &str, signed: Last) -> Self {
        let (number, last, at) = closed.map_or((0, first_prev(log), 0), |c| (c.segment + 1, c.last, c.at));
        let tree = closed.and_then(Closed::tree).unwrap_or_default();
        let open = Open {
            number,
            first: tree.size(),
            since: None,
            at,
            last,
        };
        Self {
            open,
            tree,
            last: signed,
        }
    }

    /// Where the last checkpoint is, the root must be the one that was signed.
    fn check(&self, path: &Path) -> Result<(), LogError> {
        match self.last {
            Some((size, root)) if size == self.tree.size() && root != self.tree.root() => {
                let why = "the records up to here are not those that were signed";
                Err(LogError::damaged(
                    path,
                    size.saturating_sub(self.open.first),
                    Some(size),
                    why,
                ))
            }
            _ => Ok(()),
        }
    }

    /// Reads a segment; of the last one (`cuts`), a tail that was never signed is cut where it stops being records.
    fn read(
        &mut self,
        path: &Path,
        signed: u64,
        cuts: Option<Step>,
        recovered: &mut Recovered,
    ) -> Result<u64, LogError> {
        let length = fs::metadata(path).map_err(|e| LogError::io(path, e))?.len();
        for line in Lines::open(path, LONGEST)? {
            let (offset, why) = match line {
                Ok(line) => match self.take(&line.bytes, line.ended) {
                    Ok(()) => {
                        self.check(path)?;
                        continue;
                    }
                    Err(why) => (line.offset, why),
                },
                // A tail of zeros, as some file systems leave after a power loss, is one endless line.
                Err(LogError::Damaged { why, .. }) => (self.bytes_read(path)?, why),
                Err(e) => return Err(e),
            };
            let seq = self.tree.size();
            let Some(step) = cuts.filter(|_| seq >= signed) else {
                return Err(LogError::damaged(path, seq - self.open.first + 1, Some(seq), why));
            };
            recovered.cut_bytes = length - offset;
            recovered.cut_lines = line_ends(path, offset)?;
            if recovered.cut_lines > 0 {
                // Whole lines were not cut off by a crash: kept for whoever asks how they came there.
                let aside = path.with_extension(format!("cut-{offset}"));
                fs::copy(path, &aside).map_err(|e| LogError::io(&aside, e))?;
            }
            super::cut::cut(path, offset, step)?;
            return Ok(offset);
        }
        Ok(length)
    }

    /// Where the records that were taken from this file end.
    fn bytes_read(&self, path: &Path) -> Result<u64, LogError> {
        let mut end = 0;
        for line in Lines::open(path, LONGEST)?.take((self.tree.size() - self.open.first) as usize) {
            let line = line?;
            end = line.offset + line.bytes.len() as u64 + 1;
        }
        Ok(end)
    }

    fn take(&mut self, line: &[u8], ended: bool) -> Result<(), String> {
        if !ended {
            return Err("the line has no end".into());
        }
        let record = Record::from_bytes(line).map_err(|e| e.to_string())?;
        if record.seq != self.tree.size() {
            return Err(format!("record {} where {} belongs", record.seq, self.tree.size()));
        }
        if record.prev != self.open.last {
            return Err("it does not name the line before it".into());
        }
        let leaf = merkle::leaf(line);
        self.open.last = leaf;
        self.open.passed(record.at);
        self.open.since = self.open.since.or(Some(record.at));
        self.tree.append(leaf);
        Ok(())
    }

    fn close(&self, bytes: u64) -> Closed {
        closed(&self.open, &self.tree, bytes)
    }
}

/// How a segment ends that is closed now.
pub(super) fn closed(open: &Open, tree: &Tree, bytes: u64) -> Closed {
    Closed {
        segment: open.number,
        first: open.first,
        records: tree.size() - open.first,
        bytes,
        at: open.at,
        last: open.last,
        subtrees: tree.peaks().to_vec(),
    }
}

fn line_ends(path: &Path, offset: u64) -> Result<u64, LogError> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let failed = |e| LogError::io(path, e);
    let mut file = fs::File::open(path).map_err(failed)?;
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut ends = 0;
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(ends),
            read => ends += buffer[..read].iter().filter(|b| **b == b'\n').count() as u64,
        }
    }
}

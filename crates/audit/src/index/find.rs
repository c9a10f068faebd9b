//! The newest records that are asked for, over any number of logs.

mod shares;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Filter;
use super::row::{ROW_BYTES, Wanted, counted, rows};
use crate::log::{LogError, Manifest, name_of, segment_path, segments};
use crate::record::{MAX_RECORD_BYTES, Record};
use shares::Shares;

/// How far ahead a sidecar's clock may be, in milliseconds: what the mesh tolerates in signatures.
const SKEW_MILLIS: u64 = 300_000;

/// A log to look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Whose, as the hits say it.
    pub agent: String,
    /// Where.
    pub dir: PathBuf,
}

/// Where a hit stands in the order of hits: newest first, then by log, segment and place.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Unix milliseconds.
    pub at: u64,
    /// The log.
    pub log: String,
    /// The segment.
    pub segment: u64,
    /// Where the line begins.
    pub offset: u64,
}

/// A record that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Whose log.
    pub agent: String,
    /// Where it stands.
    pub place: Cursor,
    /// The record.
    pub record: Record,
}

/// How much a search may do, and where it begins.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    /// Records that are answered at most.
    pub limit: usize,
    /// Bytes of their lines after which no more are answered.
    pub bytes: usize,
    /// Rows that are looked through at most. Where the logs are of several agents and have more, each agent has a share: what one
    /// records without end leaves the others' to them.
    pub rows: u64,
    /// Only what stands after this in the order of hits.
    pub after: Option<&'a Cursor>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// Newest first.
    pub hits: Vec<Hit>,
    /// After what to go on, where there may be more; a page may be short, or empty, all the same.
    pub next: Option<Cursor>,
    /// Agents with more rows than their share: of these, older records were not looked through.
    pub left_out: BTreeSet<String>,
}

struct Part<'a> {
    log: &'a Log,
    name: String,
    segment: u64,
    records: Option<u64>,
    /// As many rows, or about as many where it is open.
    rows: u64,
    /// No record in it is newer.
    newest: u64,
}

/// The newest records that `filter` asks for, within `bounds`. Which they are is told from the rows alone: no record is read
/// that is not answered, but for those whose rows were made to look like it, and of these as few as a page has.
///
/// # Errors
/// A log can't be read, or one agent alone has more to look through than may be.
pub fn find(logs: &[Log], filter: &Filter, bounds: &Bounds<'_>) -> Result<Found, LogError> {
    let mut parts = Vec::new();
    for log in logs {
        parts.extend(unless_gone(parts_of(log))?);
    }
    parts.sort_by_key(|part| std::cmp::Reverse(part.newest));
    let wanted = Wanted::of(filter);
    let mut best = Best {
        places: BTreeMap::new(),
        most: bounds.limit.saturating_add(1),
        after: bounds.after,
    };
    let is_too_old = |part: &Part<'_>| filter.since.is_some_and(|since| part.newest < since);
    parts.retain(|part| !is_too_old(part));
    let mut shares = Shares::of(bounds.rows, &parts);
    for part in &parts {
        if best.is_past(part.newest) {
            break;
        }
        search(part, &wanted, &mut shares, &mut best)?;
    }
    let found = answer(best.places, filter, bounds)?;
    Ok(Found {
        left_out: shares.left_out(),
        ..found
    })
}

/// Reads what the rows told of.
fn answer(mut places: BTreeMap<Cursor, &Log>, filter: &Filter, bounds: &Bounds<'_>) -> Result<Found, LogError> {
    let mut found = Found::default();
    if places.len() > bounds.limit {
        places.pop_first();
        found.next = places.first_key_value().map(|(oldest, _)| oldest.clone());
    }
    let mut bytes = 0;
    let mut last = None;
    for (place, log) in places.into_iter().rev() {
        let Some((length, record)) = read(log, &place)? else {
            continue;
        };
        // The row is a hint.
        if !filter.matches_words(&record) {
            continue;
        }
        bytes += length;
        if bytes > bounds.bytes && !found.hits.is_empty() {
            found.next = last;
            break;
        }
        last = Some(place.clone());
        found.hits.push(Hit {
            agent: log.agent.clone(),
            place,
            record,
        });
    }
    Ok(found)
}

/// The newest places so far.
struct Best<'a> {
    /// Ordered from the oldest: what is pushed out.
    places: BTreeMap<Cursor, &'a Log>,
    most: usize,
    after: Option<&'a Cursor>,
}

impl<'a> Best<'a> {
    /// Whether nothing that is this old, or older, is among them.
    fn is_past(&self, at: u64) -> bool {
        let oldest = self.places.first_key_value();
        self.places.len() >= self.most && oldest.is_some_and(|(oldest, _)| oldest.at > at)
    }

    fn add(&mut self, part: &Part<'a>, at: u64, offset: u64) {
        if self.is_past(at) || self.after.is_some_and(|after| at > after.at) {
            return;
        }
        let place = Cursor {
            at,
            log: part.name.clone(),
            segment: part.segment,
            offset,
        };
        if self.after.is_some_and(|after| place >= *after) {
            return;
        }
        self.places.insert(place, part.log);
        if self.places.len() > self.most {
            self.places.pop_first();
        }
    }
}

fn parts_of(log: &Log) -> Result<Vec<Part<'_>>, LogError> {
    let (name, manifest) = (name_of(&log.dir)?, Manifest::read(&log.dir)?);
    let begins = manifest.begins();
    let now = millis(SystemTime::now());
    let present = segments(&log.dir)?.into_iter().filter(|segment| *segment >= begins);
    let part = |segment| {
        let closed = manifest.of(segment);
        let newest = match closed {
            Some(closed) if closed.at <= now => closed.at,
            // A time to come is its sidecar's choice, and one that is open was written by then.
            closed => latest(log, segment).min(closed.map_or(u64::MAX, |closed| closed.at)),
        };
        Part {
            log,
            name: name.clone(),
            segment,
            records: closed.map(|closed| closed.records),
            rows: closed.map_or_else(|| counted(&log.dir, segment), |closed| closed.records),
            newest,
        }
    };
    Ok(present.map(part).collect())
}

fn search<'a>(
    part: &Part<'a>,
    wanted: &Wanted<'_>,
    shares: &mut Shares<'a>,
    best: &mut Best<'a>,
) -> Result<(), LogError> {
    if !shares.take(part)? {
        return Ok(());
    }
    let held = unless_gone(rows(&part.log.dir, part.segment, part.records))?;
    let latest = latest(part.log, part.segment);
    for row in held.chunks_exact(ROW_BYTES).rev() {
        if let Some((at, offset)) = wanted.hit(row, latest) {
            best.add(part, at, offset);
        }
    }
    Ok(())
}

/// What was read, and nothing of what was taken away meanwhile: by a quota, or with a log that came to nothing.
fn unless_gone<T: Default>(read: Result<T, LogError>) -> Result<T, LogError> {
    match read {
        Err(LogError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        read => read,
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |at| at.as_millis() as u64)
}

/// No record of a segment is newer than its file: a time to come, which its sidecar could have chosen, would stand before
/// everybody else's records.
fn latest(log: &Log, segment: u64) -> u64 {
    let file = std::fs::metadata(segment_path(&log.dir, segment));
    let written = file.and_then(|file| file.modified()).ok();
    written.map_or(u64::MAX, |at| millis(at).saturating_add(SKEW_MILLIS))
}

/// The record that stands there, and the length of its line.
fn read(log: &Log, place: &Cursor) -> Result<Option<(usize, Record)>, LogError> {
    let path = segment_path(&log.dir, place.segment);
    let failed = |e| LogError::io(&path, e);
    let mut file = match std::fs::File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    file.seek(SeekFrom::Start(place.offset)).map_err(failed)?;
    let mut line = Vec::new();
    let most = MAX_RECORD_BYTES as u64 + 1;
    BufReader::new(file)
        .take(most)
        .read_until(b'\n', &mut line)
        .map_err(failed)?;
    let record = line.strip_suffix(b"\n").and_then(|line| Record::from_bytes(line).ok());
    Ok(record.map(|record| (line.len(), record)))
}

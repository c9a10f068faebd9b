//! The newest records that are asked for, over any number of logs.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use super::Filter;
use super::row::{ROW_BYTES, Wanted, rows};
use crate::log::{LogError, Manifest, name_of, segment_path, segments};
use crate::record::{MAX_RECORD_BYTES, Record};

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

struct Part<'a> {
    log: &'a Log,
    name: String,
    segment: u64,
    records: Option<u64>,
    /// No record in it is newer; none known for a segment that is open.
    newest: u64,
}

/// The newest `limit` records that `filter` asks for, after `after` in their order.
///
/// # Errors
/// A log can't be read.
pub fn find(logs: &[Log], filter: &Filter, limit: usize, after: Option<&Cursor>) -> Result<Vec<Hit>, LogError> {
    let mut parts = Vec::new();
    for log in logs {
        parts.extend(parts_of(log)?);
    }
    parts.sort_by_key(|part| std::cmp::Reverse(part.newest));
    let wanted = Wanted::of(filter);
    // Ordered from the oldest: what is pushed out.
    let mut best: BTreeMap<Cursor, &Log> = BTreeMap::new();
    let mut hits = Vec::new();
    for part in &parts {
        let full = best.len() >= limit;
        if full
            && best
                .first_key_value()
                .is_some_and(|(oldest, _)| oldest.at > part.newest)
        {
            break;
        }
        if filter.since.is_some_and(|since| part.newest < since) {
            break;
        }
        search(part, &wanted, (limit, after), filter, &mut best)?;
    }
    for (place, log) in best.into_iter().rev() {
        if let Some(record) = read(log, &place)? {
            hits.push(Hit {
                agent: log.agent.clone(),
                place,
                record,
            });
        }
    }
    Ok(hits)
}

fn parts_of(log: &Log) -> Result<Vec<Part<'_>>, LogError> {
    let (name, manifest) = (name_of(&log.dir)?, Manifest::read(&log.dir)?);
    let begins = manifest.begins();
    let present = segments(&log.dir)?.into_iter().filter(|segment| *segment >= begins);
    let part = |segment| {
        let closed = manifest.of(segment);
        Part {
            log,
            name: name.clone(),
            segment,
            records: closed.map(|closed| closed.records),
            newest: closed.map_or(u64::MAX, |closed| closed.at),
        }
    };
    Ok(present.map(part).collect())
}

fn search<'a>(
    part: &Part<'a>,
    wanted: &Wanted<'_>,
    (limit, after): (usize, Option<&Cursor>),
    filter: &Filter,
    best: &mut BTreeMap<Cursor, &'a Log>,
) -> Result<(), LogError> {
    let held = match rows(&part.log.dir, part.segment, part.records) {
        // A quota took it meanwhile.
        Err(LogError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        held => held?,
    };
    let latest = latest(part);
    for row in held.chunks_exact(ROW_BYTES).rev() {
        let Some((at, offset)) = wanted.hit(row, latest) else {
            continue;
        };
        if best.len() >= limit && best.first_key_value().is_some_and(|(oldest, _)| oldest.at > at) {
            continue;
        }
        let place = Cursor {
            at,
            log: part.name.clone(),
            segment: part.segment,
            offset,
        };
        if after.is_some_and(|after| place >= *after) {
            continue;
        }
        // The row is a hint: a record that is not asked for after all takes nobody's place.
        if !read(part.log, &place)?.is_some_and(|record| filter.matches_words(&record)) {
            continue;
        }
        best.insert(place, part.log);
        if best.len() > limit {
            best.pop_first();
        }
    }
    Ok(())
}

/// No record of a segment is newer than its file: a time to come, which its sidecar could have chosen, would stand before
/// everybody else's records.
fn latest(part: &Part<'_>) -> u64 {
    let file = std::fs::metadata(segment_path(&part.log.dir, part.segment));
    let written = file.and_then(|file| file.modified()).ok();
    let written = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    written.map_or(u64::MAX, |at| (at.as_millis() as u64).saturating_add(SKEW_MILLIS))
}

fn read(log: &Log, place: &Cursor) -> Result<Option<Record>, LogError> {
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
    Ok(line.strip_suffix(b"\n").and_then(|line| Record::from_bytes(line).ok()))
}

//! The control plane's copy of a sidecar's log, as it comes: on disk as the sidecar has it, so that the same verifier
//! reads both.
//!
//! Nothing is kept that was not checked: each line continues the chain, is covered by a checkpoint that was taken before
//! it, and the root of every checkpoint on the way is the root of what came.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use aip_api::Digest;
use aip_audit::index::{ROW_BYTES, Rows, row};
use aip_audit::log::{Lines, LogError, Manifest, Options, Staged, Writer, segment_path};
use aip_audit::merkle::Tree;
use aip_audit::record::{MAX_RECORD_BYTES, Record};
use aip_runtime::fault;

use super::ledger::TakenRow;
use crate::refusal::{Reason, Refusal};

/// Largest segment that is taken: sidecars close theirs at 16 MiB.
pub const MAX_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Leaves between two checkpoints: a sidecar signs every 5 s, and this is 13,000 requests a second; 4 MiB.
const MAX_UNCOVERED: usize = 131_072;

/// What a segment counts at least of what an agent may keep: with its rows it is two files. All 256 sidecars that an agent may
/// have close one an hour where they have little to record, and 10 GiB hold that for 90 days.
pub const LEAST_SEGMENT: u64 = 16 * 1024;
/// Bytes of the open segment that are read at once when a copy is opened.
const READ_AT_ONCE: usize = 1024 * 1024;

/// A size of which a checkpoint speaks: records, root, place in the log of checkpoints.
pub type Covered = (u64, Digest, u64);

/// A log that is being received.
#[derive(Debug)]
pub struct Copy {
    writer: Writer,
    rows: Rows,
    /// The tree at the last checkpoint that was compared.
    compared: Tree,
    /// The leaves after it.
    leaves: VecDeque<Digest>,
    /// The beginning of a line whose rest has not come.
    partial: Vec<u8>,
    /// Its bounds.
    options: Options,
}

/// Records that are gone of a copy, from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// How many.
    pub records: u64,
    /// Time of the last of them, by its sidecar's word, Unix milliseconds.
    pub until: u64,
}

impl Gone {
    /// What this says is gone.
    pub fn of(manifest: &Manifest) -> Option<Self> {
        let last = manifest.begins().checked_sub(1).and_then(|last| manifest.of(last));
        last.map(|closed| Self {
            records: closed.end(),
            until: closed.at,
        })
    }
}

/// What a chunk brought.
#[derive(Debug, Default)]
pub struct Brought {
    /// The segment.
    pub segment: u64,
    /// Its records, each with its line in the segment's order: where it begins.
    pub records: Vec<(u64, Record)>,
    /// Bytes.
    pub bytes: u64,
}

/// A chunk of a segment.
#[derive(Debug)]
pub struct Chunk {
    /// The segment.
    pub segment: u64,
    /// Where in it.
    pub offset: u64,
    /// What.
    pub data: Vec<u8>,
    /// It ends the segment.
    pub last: bool,
}

fn disk(error: &LogError) -> Refusal {
    let reason = match error {
        LogError::DiskFull { .. } => Reason::StoreFull,
        LogError::Quota { .. } => Reason::AuditQuota,
        _ => Reason::AuditCopyFailed,
    };
    Refusal::new(reason, error.to_string())
}

impl Copy {
    /// Opens the copy in `dir`, or makes it; what that flushes is on disk then. Its open segment is to be read before it is
    /// written to.
    ///
    /// # Errors
    /// The disk does not allow it, or what is there is not what was written.
    pub fn open(dir: &Path, options: Options) -> Result<Unread, Refusal> {
        let (writer, _) = Writer::open(dir, options).map_err(|e| disk(&e))?;
        Ok(Unread { writer, options })
    }

    fn reread(&mut self, segment: u64, mut hear: impl FnMut(Vec<Record>)) -> Result<(), LogError> {
        let (mut records, mut rows, mut bytes) = (Vec::new(), Vec::new(), 0);
        for line in Lines::open(&segment_path(self.writer.dir(), segment), MAX_RECORD_BYTES)? {
            let line = line?;
            self.leaves.push_back(aip_audit::merkle::leaf(&line.bytes));
            let record = Record::from_bytes(&line.bytes)?;
            rows.push(row(&record, line.offset));
            records.push(record);
            bytes += line.bytes.len();
            if bytes >= READ_AT_ONCE {
                self.rows.add(&rows)?;
                rows.clear();
                hear(std::mem::take(&mut records));
                bytes = 0;
            }
        }
        self.rows.add(&rows)?;
        hear(records);
        Ok(())
    }

    /// The log's name.
    pub fn log(&self) -> &str {
        self.writer.log()
    }

    /// Where it stands.
    pub fn dir(&self) -> PathBuf {
        self.writer.dir().to_owned()
    }

    /// Where the next chunk begins: segment and offset.
    pub fn place(&self) -> (u64, u64) {
        let (segment, bytes) = self.writer.segment();
        (segment, bytes + self.partial.len() as u64)
    }

    /// Records that were received.
    pub fn size(&self) -> u64 {
        self.writer.size()
    }

    /// Bytes that it counts of what its agent may keep.
    pub fn bytes(&self) -> u64 {
        self.writer.weight()
    }

    /// Records up to the last checkpoint whose root was compared.
    pub fn compared(&self) -> u64 {
        self.compared.size()
    }

    /// Records up to the last checkpoint that is kept beside the segments.
    pub fn signed(&self) -> u64 {
        self.writer.signed()
    }

    /// Other bounds from now on.
    pub fn bounded(&mut self, options: Options) {
        self.options = options;
        self.writer.bounded(options);
    }

    /// Drops segments that the bounds ask for.
    fn sweep(&mut self, now_millis: u64) -> Result<(), Refusal> {
        sweep(&mut self.writer, self.options, now_millis)
    }

    /// What is gone by now.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn gone(&self) -> Result<Option<Gone>, Refusal> {
        gone(&self.writer)
    }

    /// Lets go of what is too old or too much, also of what another log needs the room of.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn give_way(&mut self, options: Options, now_millis: u64) -> Result<(), Refusal> {
        self.bounded(options);
        self.sweep(now_millis)
    }

    /// Takes a chunk that begins where [`Self::place`] says. `covered`: sizes of which checkpoints speak, from
    /// [`Self::compared`] on; `signed`: records that the newest checkpoint covers.
    ///
    /// # Errors
    /// It does not continue the log, or is not what the checkpoints cover; nothing of it is then kept.
    pub fn take(&mut self, chunk: Chunk, covered: &[Covered], signed: u64) -> Result<Brought, Refusal> {
        let (segment, _) = self.writer.segment();
        let (_, offset) = self.place();
        if offset + chunk.data.len() as u64 > MAX_SEGMENT_BYTES {
            let detail = format!("segment {segment} is larger than {MAX_SEGMENT_BYTES} bytes");
            return Err(Refusal::new(Reason::ChainBroken, detail));
        }
        let mut lines = self.partial.clone();
        lines.extend_from_slice(&chunk.data);
        let whole = lines.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let partial = lines.split_off(whole);
        if partial.len() > MAX_RECORD_BYTES || chunk.last && !partial.is_empty() {
            let detail = format!("segment {segment} has a line without an end");
            return Err(Refusal::new(Reason::ChainBroken, detail));
        }
        let base = self.writer.segment().1;
        let staged = self
            .writer
            .stage(lines)
            .map_err(|e| Refusal::new(Reason::ChainBroken, e.to_string()))?;
        if self.size() + staged.leaves.len() as u64 > signed {
            let detail = format!("no checkpoint covers more than {signed} records; send it first");
            return Err(Refusal::new(Reason::CheckpointMissing, detail));
        }
        let compared = self.compare(&staged.leaves, covered)?;
        if self.leaves.len() + staged.leaves.len() > MAX_UNCOVERED + (compared.size() - self.compared.size()) as usize {
            let detail = format!("more than {MAX_UNCOVERED} records between two checkpoints");
            return Err(Refusal::new(Reason::ChainBroken, detail));
        }
        self.writer.take(&staged).map_err(|e| disk(&e))?;
        fault::point(|| "audit:written".into());
        self.partial = partial;
        Ok(self.taken(staged, compared, (segment, base)))
    }

    fn taken(&mut self, staged: Staged, compared: Tree, (segment, base): (u64, u64)) -> Brought {
        let bytes = staged.len() as u64;
        self.leaves.extend(staged.leaves.iter().copied());
        self.passed(compared);
        let records: Vec<_> = staged
            .records
            .into_iter()
            .map(|(at, record)| (base + at as u64, record))
            .collect();
        let rows: Vec<[u8; ROW_BYTES]> = records.iter().map(|(offset, record)| row(record, *offset)).collect();
        if let Err(error) = self.rows.add(&rows) {
            tracing::warn!(%error, "rows of an index were not written: they are made when somebody asks");
        }
        Brought {
            segment,
            records,
            bytes,
        }
    }

    fn passed(&mut self, compared: Tree) {
        let passed = compared.size() - self.compared.size();
        self.leaves.drain(..passed as usize);
        // Those of a whole segment were there while it was opened.
        self.leaves
            .shrink_to((4 * self.leaves.len()).clamp(READ_AT_ONCE / 256, MAX_UNCOVERED));
        self.compared = compared;
    }

    /// Compares what came before with checkpoints that came later.
    ///
    /// # Errors
    /// One covers something else.
    pub fn settle(&mut self, covered: &[Covered]) -> Result<(), Refusal> {
        let compared = self.compare(&[], covered)?;
        self.passed(compared);
        Ok(())
    }

    /// The tree at the last of these checkpoints that what came, and `more`, reaches.
    fn compare(&self, more: &[Digest], covered: &[Covered]) -> Result<Tree, Refusal> {
        let mut at = self.compared.clone();
        let mut leaves = self.leaves.iter().chain(more);
        let reached = self.size() + more.len() as u64;
        for (size, root, index) in covered.iter().filter(|(size, ..)| *size <= reached) {
            while at.size() < *size {
                let Some(leaf) = leaves.next() else { break };
                at.append(*leaf);
            }
            if at.size() != *size || at.root() != *root {
                let detail = format!("the first {size} records are not those that checkpoint {index} covers");
                return Err(Refusal::new(Reason::RootMismatch, detail));
            }
        }
        Ok(at)
    }

    /// Closes the segment, and lets go of what is too old or too much: when this returns, the segment is on disk, with the
    /// newest checkpoint that it reaches.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn close(&mut self, checkpoint: Option<&TakenRow>, now_millis: u64) -> Result<(), Refusal> {
        // Before as well: bounds that a person has narrowed since let go first of what is past them.
        self.sweep(now_millis)?;
        self.rotate(checkpoint)?;
        self.sweep(now_millis)
    }

    /// Nothing where the segment is empty.
    fn rotate(&mut self, checkpoint: Option<&TakenRow>) -> Result<(), Refusal> {
        let failed = |e: LogError| disk(&e);
        if self.writer.segment().1 == 0 {
            return Ok(());
        }
        // What no checkpoint covers can't be let go of: no honest sidecar closes a segment before it signs.
        let (kept, most) = (self.writer.kept_segments(), self.options.most_segments);
        if kept.end() - kept.start() >= most.saturating_mul(2) {
            let detail = format!("twice the {most} segments that a log may have are here, and none may go yet");
            return Err(Refusal::new(Reason::AuditQuota, detail));
        }
        self.writer.sync_handle().sync().map_err(failed)?;
        fault::point(|| "audit:synced".into());
        if let Some(row) = checkpoint {
            use base64::Engine as _;
            let decode = |der: &String| base64::engine::general_purpose::STANDARD.decode(der);
            let chain: Vec<_> = row.chain.iter().filter_map(|der| decode(der).ok()).collect();
            self.writer.keep(&row.statement, &chain).map_err(failed)?;
        }
        self.writer.rotate().map_err(failed)?;
        fault::point(|| "audit:rotated".into());
        self.writer.sync_handle().sync().map_err(failed)?;
        self.rows = Rows::begin(self.writer.dir(), self.writer.segment().0).map_err(failed)?;
        self.shorten().map_err(failed)
    }

    /// A checkpoint is kept with each segment, and segments go: those of what is gone go, too.
    fn shorten(&mut self) -> Result<(), LogError> {
        match self.writer.long_statements() {
            Some(long) => self.writer.shortened(long.shorten()?),
            None => Ok(()),
        }
    }
}

/// A copy whose open segment has not been read yet: all that retention needs.
#[derive(Debug)]
pub struct Unread {
    writer: Writer,
    options: Options,
}

impl Unread {
    /// Reads the open segment. `hear` is given its records, some at a time.
    ///
    /// # Errors
    /// The disk does not allow it, or what is there is not what was written.
    pub fn read(self, hear: impl FnMut(Vec<Record>)) -> Result<Copy, Refusal> {
        let Self { writer, options } = self;
        let (segment, _) = writer.segment();
        let compared = before(&writer, segment).map_err(|e| disk(&e))?;
        let mut copy = Copy {
            rows: Rows::begin(writer.dir(), segment).map_err(|e| disk(&e))?,
            writer,
            compared,
            leaves: VecDeque::new(),
            partial: Vec::new(),
            options,
        };
        copy.reread(segment, hear).map_err(|e| disk(&e))?;
        Ok(copy)
    }

    /// Lets go of what is too old or too much; answers what it counts from then on of what its agent may keep, and what is
    /// gone.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn sweep(mut self, now_millis: u64) -> Result<(u64, Option<Gone>), Refusal> {
        sweep(&mut self.writer, self.options, now_millis)?;
        Ok((self.writer.weight(), gone(&self.writer)?))
    }
}

fn sweep(writer: &mut Writer, options: Options, now_millis: u64) -> Result<(), Refusal> {
    let (open, _) = writer.segment();
    // The times of records are their sidecar's word: as old as a file is what was received then.
    let young = young(writer.dir(), open, now_millis, options.total_millis)?;
    let sizes = Options {
        total_millis: u64::MAX,
        ..options
    };
    for (sent, bounds) in [(open, sizes), (young, options)] {
        writer.bounded(bounds);
        let dropped = writer.sweep(sent, now_millis).map_err(|e| disk(&e))?;
        if let Some(dropped) = dropped {
            remove_rows(writer.dir(), dropped.through);
        }
    }
    Ok(())
}

fn gone(writer: &Writer) -> Result<Option<Gone>, Refusal> {
    let manifest = Manifest::read(writer.dir()).map_err(|e| disk(&e))?;
    Ok(Gone::of(&manifest))
}

/// The tree before a segment.
fn before(writer: &Writer, segment: u64) -> Result<Tree, LogError> {
    let manifest = Manifest::read(writer.dir())?;
    let last = segment.checked_sub(1).and_then(|last| manifest.of(last));
    let tree = last.and_then(aip_audit::log::Closed::tree);
    match tree {
        Some(tree) => Ok(tree),
        None if segment == 0 => Ok(Tree::default()),
        None => Err(LogError::Damaged {
            path: writer.dir().to_owned(),
            line: 0,
            seq: Some(writer.size()),
            why: "how the segment before it ended is not known".into(),
        }),
    }
}

/// The first segment of a copy that was received within `most` milliseconds; `open` where none of the closed ones was.
///
/// # Errors
/// The disk does not allow it.
pub fn young(dir: &Path, open: u64, now: u64, most: u64) -> Result<u64, Refusal> {
    let begins = Manifest::read(dir).map_err(|e| disk(&e))?.begins();
    let is_young = |segment: &u64| {
        let written = std::fs::metadata(segment_path(dir, *segment)).and_then(|file| file.modified());
        let written = written.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        written.is_none_or(|at| now.saturating_sub(at.as_millis() as u64) <= most)
    };
    Ok((begins..open).find(is_young).unwrap_or(open))
}

fn remove_rows(dir: &Path, through: u64) {
    for segment in (0..=through).rev() {
        // The first that is not there ends it: earlier ones went before.
        if std::fs::remove_file(dir.join(format!("index-{segment:08}.bin"))).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;

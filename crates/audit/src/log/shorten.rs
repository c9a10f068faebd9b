//! Files that only grow, made shorter: what stands in them twice, or was signed again by what follows, goes.
//!
//! The shorter file is written beside the other without holding up whoever appends, and takes its place in a moment.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aip_api::Digest;

use super::checkpoints::{Before, Chain, Older, Statement, before_line, before_of};
use super::disk::Appender;
use super::{Closed, LogError, Manifest, Step, Writer};

/// `segments.jsonl` is made shorter from here on: a thousand segments of a few hundred bytes each.
const MANIFEST_BYTES: u64 = 1024 * 1024;
/// `checkpoints.jsonl` is made shorter from here on: seven thousand checkpoints, eight hours of a busy sidecar.
const CHECKPOINTS_BYTES: u64 = 4 * 1024 * 1024;
/// Of a small quota they take no more than this part.
const CHECKPOINTS_PART: u64 = 8;
/// And no less than this: a chain of certificates takes a tenth of it.
const CHECKPOINTS_LEAST: u64 = 64 * 1024;
/// The part of the file that stays: of a large one two hours. The last checkpoint covers all that those before it did.
const CHECKPOINTS_KEPT: u64 = 4;
/// Records between two of the older checkpoints that stay: half of what the control plane takes without one.
const APART: u64 = 65_536;
/// Older checkpoints that stay: a log of the default size has a few dozen times that many records.
pub(super) const MAX_CARRIED: usize = 64;

/// A file that is to be made shorter.
#[derive(Debug)]
pub struct Long {
    path: PathBuf,
    /// Its bytes now: what is added from here on stays as it is.
    upto: u64,
    /// What it is to say, where that is known.
    manifest: Option<Manifest>,
    /// Records that a quota took: nobody needs a signature of them alone.
    begins: u64,
    /// Bytes of its newest lines that stay.
    keeps: u64,
    step: Step,
}

/// The shorter file, on disk, beside the long one.
#[derive(Debug)]
pub struct Shorter {
    long: Long,
    temp: PathBuf,
    file: File,
    bytes: u64,
}

impl Writer {
    /// A file of this log that has grown long.
    pub fn long(&self) -> Option<Long> {
        if self.book.bytes > MANIFEST_BYTES {
            return Some(Long {
                path: self.book.path.clone(),
                upto: self.book.bytes,
                manifest: Some(self.manifest.clone()),
                begins: 0,
                keeps: 0,
                step: self.options.step,
            });
        }
        self.long_statements()
    }

    /// The file of checkpoints, where it has grown long.
    pub fn long_statements(&self) -> Option<Long> {
        let first = self.manifest.closed.first().filter(|_| self.manifest.dropped.is_some());
        let begins = first.map_or(0, Closed::end);
        let most = (self.options.total_bytes / CHECKPOINTS_PART).clamp(CHECKPOINTS_LEAST, CHECKPOINTS_BYTES);
        (self.statements.bytes > most).then(|| Long::checkpoints(&self.statements, begins, most, self.options.step))
    }

    /// Puts a shorter file in the place of the long one, with what was added meanwhile.
    ///
    /// # Errors
    /// The disk does not allow it; the long one then stays.
    pub fn shortened(&mut self, shorter: Shorter) -> Result<(), LogError> {
        let appender = match &shorter.long.manifest {
            Some(_) => &mut self.book,
            None => &mut self.statements,
        };
        shorter.install(appender)?;
        self.disk.made();
        self.disk.wrote(&appender.path, &appender.file, self.tree.size());
        self.disk.step("log:shortened");
        Ok(())
    }
}

impl Shorter {
    /// Takes the place of the file that `appender` adds to.
    pub(super) fn install(mut self, appender: &mut Appender) -> Result<(), LogError> {
        let failed = |e| LogError::io(&self.temp, e);
        let mut added = Vec::new();
        File::open(&self.long.path)
            .and_then(|mut old| {
                old.seek(SeekFrom::Start(self.long.upto))?;
                old.take(appender.bytes - self.long.upto).read_to_end(&mut added)
            })
            .map_err(failed)?;
        self.file.write_all(&added).map_err(failed)?;
        if !added.is_empty() {
            // What takes the place of a file is on disk before it does.
            self.file.sync_data().map_err(failed)?;
        }
        (self.long.step)("log:shorter_renaming");
        fs::rename(&self.temp, &self.long.path).map_err(failed)?;
        (self.long.step)("log:shorter_renamed");
        *appender = Appender {
            path: self.long.path,
            file: Arc::new(self.file),
            bytes: self.bytes + added.len() as u64,
        };
        Ok(())
    }
}

impl Long {
    /// A file of checkpoints that is to have at most `most` bytes; `begins`: records that a quota took.
    pub(super) fn checkpoints(statements: &Appender, begins: u64, most: u64, step: Step) -> Self {
        Self {
            path: statements.path.clone(),
            upto: statements.bytes,
            manifest: None,
            begins,
            keeps: most / CHECKPOINTS_KEPT,
            step,
        }
    }

    /// Writes the shorter one.
    ///
    /// # Errors
    /// The disk does not allow it.
    pub fn shorten(self) -> Result<Shorter, LogError> {
        let text = match &self.manifest {
            Some(manifest) => manifest.text(),
            None => newest(&self.path, self.upto, self.begins, self.keeps)?,
        };
        let temp = self.path.with_extension("jsonl.new");
        let failed = |e| LogError::io(&temp, e);
        let mut options = OpenOptions::new();
        // An older attempt may have left one.
        match fs::remove_file(&temp) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let file = options.create_new(true).append(true).mode(0o600).open(&temp);
        let mut file = file.map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        (self.step)("log:shorter_written");
        file.sync_all().map_err(failed)?;
        (self.step)("log:shorter_synced");
        Ok(Shorter {
            bytes: text.len() as u64,
            long: self,
            temp,
            file,
        })
    }
}

/// The newest lines of a file of checkpoints, after a line that stands for the rest. `begins`: records that a quota took.
fn newest(path: &Path, upto: u64, begins: u64, keeps: u64) -> Result<Vec<u8>, LogError> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| LogError::io(path, e))?;
    file.take(upto)
        .read_to_end(&mut text)
        .map_err(|e| LogError::io(path, e))?;
    let line_end = |from: usize| {
        text[from..]
            .iter()
            .position(|b| *b == b'\n')
            .map_or(text.len(), |at| from + at + 1)
    };
    let first = line_end(0);
    let said = before_of(text[..first].strip_suffix(b"\n").unwrap_or(&text));
    let from = if said.is_some() { first } else { 0 };
    let cut = line_end(text.len().saturating_sub(keeps as usize).max(from));
    let mut older = Thin::default();
    let mut before = 0;
    if let Some(said) = said {
        before = said.before;
        said.chains.into_iter().for_each(|chain| older.chain(chain));
        said.carried.into_iter().for_each(|statement| older.pass(statement));
    }
    for line in text[from..cut].split(|b| *b == b'\n') {
        match Older::of(line) {
            Some(Older::Chain(chain)) => older.chain(chain),
            Some(Older::Statement(statement)) => older.pass(statement),
            None => {}
        }
    }
    let mut out = before_line(older.close(before + (cut - from) as u64, begins));
    out.extend_from_slice(&text[cut..]);
    Ok(out)
}

/// Checkpoints that are taken away, but for a few.
#[derive(Default)]
struct Thin {
    chains: HashMap<Digest, Chain>,
    /// The chain that stood last: what is left may name it.
    last_chain: Option<Digest>,
    carried: Vec<Statement>,
    last: Option<Statement>,
}

impl Thin {
    fn chain(&mut self, chain: Chain) {
        self.last_chain = Some(chain.id);
        self.chains.insert(chain.id, chain);
    }

    fn pass(&mut self, next: Statement) {
        let reached = self.carried.last().map_or(0, Statement::size);
        let Some(last) = self.last.replace(next) else { return };
        let far = self
            .last
            .as_ref()
            .is_some_and(|next| next.size() > reached.saturating_add(APART));
        if far && last.size() > reached {
            self.carried.push(last);
        }
    }

    fn close(mut self, before: u64, begins: u64) -> Before {
        // The last of those that go is always kept: what follows is never far from it.
        self.carried.extend(self.last.take());
        self.carried.retain(|statement| statement.size() > begins);
        while self.carried.len() > MAX_CARRIED {
            let mut nth = 0;
            self.carried.retain(|_| {
                nth += 1;
                nth % 2 == 0
            });
        }
        let named: HashSet<Digest> = self
            .carried
            .iter()
            .filter_map(Statement::names)
            .chain(self.last_chain)
            .collect();
        self.chains.retain(|id, _| named.contains(id));
        Before {
            before,
            chains: self.chains.into_values().collect(),
            carried: self.carried,
        }
    }
}

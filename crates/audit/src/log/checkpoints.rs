//! `checkpoints.jsonl`: what was signed, with the certificates that a verifier needs years later.
//!
//! A chain of certificates stands there once, before the first checkpoint that names it. The first line may say how many
//! bytes of older lines were taken away ([`super::shorten`]): places in the file count those, too.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aip_api::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{Lines, LogError, MAX_CHECKPOINT_BYTES};
use crate::checkpoint::Checkpoint;

/// A checkpoint as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its line in the file, from 1.
    pub line: u64,
    /// The JWS.
    pub statement: String,
    /// The chain of the SVID that signed it, DER, leaf first; all checkpoints that name it share it.
    pub chain: Certificates,
}

/// A chain of certificates, DER, leaf first.
pub type Certificates = Arc<Vec<Vec<u8>>>;

/// A checkpoint, as its JWS, and the chain of the SVID that signed it.
pub type Signed = (String, Certificates);

/// The same; no chain where none of its name stands before it.
pub type MaybeSigned = (String, Option<Certificates>);

/// Longest first line, which stands for those that were taken away: at most [`super::shorten::MAX_CARRIED`] checkpoints, each
/// with a chain.
const LONGEST_FIRST: usize = 16 * MAX_CHECKPOINT_BYTES;

/// What is wrong with a checkpoint that names no chain of the file.
const NO_CHAIN: &str = "its chain does not stand before it";

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Before(Before),
    Chain(Chain),
    Statement(Statement),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Statement {
    pub(super) statement: String,
    chain: Named,
}

/// The first line of a file whose oldest lines were taken away.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Before {
    /// Bytes that were taken away in all.
    pub(super) before: u64,
    /// The chains that what is left names and that stood in them.
    pub(super) chains: Vec<Chain>,
    /// Of them, those that are still needed: few records lie between one and the next.
    pub(super) carried: Vec<Statement>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chain {
    pub(super) id: Digest,
    certificates: Vec<String>,
}

/// The chain of a checkpoint: by its name; or itself, where a line stands alone.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Named {
    Id(Digest),
    Whole(Vec<String>),
}

/// Where they are kept.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("checkpoints.jsonl")
}

/// How a chain is named: SHA-256 over its certificates, each after its length in four bytes.
pub fn chain_id(chain: &[Vec<u8>]) -> Digest {
    let lengths: Vec<[u8; 4]> = chain.iter().map(|der| (der.len() as u32).to_be_bytes()).collect();
    let parts = lengths.iter().zip(chain).flat_map(|(length, der)| [&length[..], der]);
    Digest::of_parts(&parts.collect::<Vec<_>>())
}

/// Writes checkpoints as a file has them: each chain once.
#[derive(Debug, Default)]
pub struct CheckpointLines(HashSet<Digest>);

impl CheckpointLines {
    /// The lines to add for a checkpoint, with their ends.
    pub fn add(&mut self, statement: &str, chain: &[Vec<u8>]) -> Vec<u8> {
        let id = chain_id(chain);
        let mut lines = Vec::new();
        if self.0.insert(id) {
            let certificates = chain.iter().map(|der| STANDARD.encode(der)).collect();
            push(&mut lines, &Text::Chain(Chain { id, certificates }));
        }
        let chain = Named::Id(id);
        let statement = statement.to_owned();
        push(&mut lines, &Text::Statement(Statement { statement, chain }));
        lines
    }

    /// As [`Self::add`], naming no chain but the one before it: then a file that loses its oldest lines has to carry over
    /// one chain at most.
    pub(super) fn add_next(&mut self, statement: &str, chain: &[Vec<u8>]) -> Vec<u8> {
        if !self.0.contains(&chain_id(chain)) {
            self.0.clear();
        }
        self.add(statement, chain)
    }
}

/// The line that stands for those which were taken away, with its end.
pub(super) fn before_line(before: Before) -> Vec<u8> {
    let mut line = Vec::new();
    push(&mut line, &Text::Before(before));
    line
}

fn push(lines: &mut Vec<u8>, text: &Text) {
    // Strings and numbers: this can't fail to be JSON.
    lines.extend(serde_json::to_vec(text).unwrap_or_default());
    lines.push(b'\n');
}

/// What the line says that its file begins with.
pub(super) fn before_of(line: &[u8]) -> Option<Before> {
    match serde_json::from_slice(line) {
        Ok(Text::Before(before)) => Some(before),
        _ => None,
    }
}

/// A line after the first, for whoever takes lines away.
pub(super) enum Older {
    Chain(Chain),
    Statement(Statement),
}

impl Older {
    pub(super) fn of(line: &[u8]) -> Option<Self> {
        match serde_json::from_slice(line).ok()? {
            Text::Chain(chain) => Some(Self::Chain(chain)),
            Text::Statement(statement) => Some(Self::Statement(statement)),
            Text::Before(_) => None,
        }
    }
}

impl Statement {
    /// Records that it covers.
    pub(super) fn size(&self) -> u64 {
        claims_of(&self.statement).map_or(0, |claims| claims.size)
    }

    /// The chain that it names.
    pub(super) const fn names(&self) -> Option<Digest> {
        match &self.chain {
            Named::Id(id) => Some(*id),
            Named::Whole(_) => None,
        }
    }
}

/// The chains that were read so far.
#[derive(Debug, Default)]
struct Chains(HashMap<Digest, Certificates>);

impl Chains {
    fn learn(&mut self, chain: &Chain) -> Result<(), String> {
        let certificates = decoded(&chain.certificates)?;
        if chain_id(&certificates) != chain.id {
            return Err("a chain is not the one that its name says".to_owned());
        }
        self.0.insert(chain.id, Arc::new(certificates));
        Ok(())
    }

    fn statement(&self, text: Statement) -> Result<Signed, String> {
        let chain = match text.chain {
            Named::Whole(chain) => Arc::new(decoded(&chain)?),
            Named::Id(id) => self.0.get(&id).cloned().ok_or(NO_CHAIN)?,
        };
        Ok((text.statement, chain))
    }

    /// The checkpoints of a first line.
    fn carried(&mut self, said: Before) -> Result<Vec<Signed>, String> {
        said.chains.iter().try_for_each(|chain| self.learn(chain))?;
        said.carried.into_iter().map(|text| self.statement(text)).collect()
    }

    /// The checkpoints in a line, also those whose chain is not known: one, but in a first line and in one with a chain.
    fn held(&mut self, line: &[u8]) -> Result<Vec<MaybeSigned>, String> {
        let text = serde_json::from_slice(line).map_err(|_| "not a kept checkpoint".to_owned())?;
        let known = |(statement, chain)| (statement, Some(chain));
        match text {
            Text::Before(before) => Ok(self.carried(before)?.into_iter().map(known).collect()),
            Text::Chain(chain) => self.learn(&chain).map(|()| Vec::new()),
            Text::Statement(Statement { statement, chain }) => {
                let chain = match chain {
                    Named::Whole(chain) => Some(Arc::new(decoded(&chain)?)),
                    Named::Id(id) => self.0.get(&id).cloned(),
                };
                Ok(vec![(statement, chain)])
            }
        }
    }

    /// The same; a checkpoint whose chain is not known is an error.
    fn take_all(&mut self, line: &[u8]) -> Result<Vec<Signed>, String> {
        let named = |(statement, chain): MaybeSigned| Ok((statement, chain.ok_or(NO_CHAIN)?));
        self.held(line)?.into_iter().map(named).collect()
    }

    /// The checkpoint in a line that is not the first, where there is one.
    fn take(&mut self, line: &[u8]) -> Result<Option<Signed>, String> {
        self.take_all(line).map(|mut all| all.pop())
    }
}

fn decoded(chain: &[String]) -> Result<Vec<Vec<u8>>, String> {
    let decode = |der| {
        STANDARD
            .decode(der)
            .map_err(|e| format!("a certificate is not base64: {e}"))
    };
    chain.iter().map(decode).collect()
}

/// All that were kept in `dir`, in order. A last line without its end is one whose write was cut off, and left out.
///
/// # Errors
/// The file can't be read, or a line in it is no checkpoint.
pub fn kept(dir: &Path) -> Result<Vec<Kept>, LogError> {
    let path = path(dir);
    if path.exists() {
        read_checkpoints(&path)
    } else {
        Ok(Vec::new())
    }
}

/// The same, of a file of any name.
///
/// # Errors
/// The file can't be read, or a line in it is no checkpoint.
pub fn read_checkpoints(path: &Path) -> Result<Vec<Kept>, LogError> {
    let (mut all, mut wrong) = (Vec::new(), None);
    each_checkpoint(path, &mut |line, read| {
        let whole = read.and_then(|(statement, chain)| Ok((statement, chain.ok_or(NO_CHAIN)?)));
        match whole {
            Ok((statement, chain)) => all.push(Kept { line, statement, chain }),
            Err(why) => wrong = wrong.take().or(Some((line, why))),
        }
    })?;
    match wrong {
        Some((line, why)) => Err(LogError::damaged(path, line, None, why)),
        None => Ok(all),
    }
}

/// Reads the checkpoints of a file, on after lines that are none: each with its line, from 1, or what is wrong there. A last
/// line without its end is left out.
///
/// # Errors
/// The file can't be read.
pub fn each_checkpoint(path: &Path, each: &mut dyn FnMut(u64, Result<MaybeSigned, String>)) -> Result<(), LogError> {
    let mut chains = Chains::default();
    for line in Lines::open(path, LONGEST_FIRST)? {
        let line = match line {
            Err(LogError::Damaged { line, why, .. }) => {
                each(line, Err(why));
                continue;
            }
            line => line?,
        };
        if !line.ended {
            break;
        }
        if line.number > 1 && line.bytes.len() > MAX_CHECKPOINT_BYTES {
            each(line.number, Err(format!("longer than {MAX_CHECKPOINT_BYTES} bytes")));
            continue;
        }
        match chains.held(&line.bytes) {
            Ok(held) => held.into_iter().for_each(|one| each(line.number, Ok(one))),
            Err(why) => each(line.number, Err(why)),
        }
    }
    Ok(())
}

/// Reads checkpoints of a file that is being written, from a place on.
#[derive(Debug)]
pub struct Statements {
    path: PathBuf,
    chains: Chains,
    at: u64,
    lines: Option<Lines>,
    /// Of the older ones that the first line carries, those that are still to be given.
    carried: Vec<Signed>,
    /// Where the lines after that first one begin.
    before: u64,
}

impl Statements {
    /// From `at` on: 0, or what [`Self::at`] said.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn open(dir: &Path, at: u64) -> Result<Self, LogError> {
        let mut statements = Self {
            path: path(dir),
            chains: Chains::default(),
            at: 0,
            lines: None,
            carried: Vec::new(),
            before: 0,
        };
        statements.begin()?;
        if at < statements.before {
            statements.at = at;
            return Ok(statements);
        }
        (statements.at, statements.carried) = (statements.before, Vec::new());
        // What stands before it may be named after it.
        while statements.at < at && statements.step()?.is_some() {}
        Ok(statements)
    }

    /// Where the next one begins.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// The next checkpoint, with its chain; none where no more was kept yet.
    ///
    /// # Errors
    /// The file can't be read, or a line in it is no checkpoint.
    pub fn next_kept(&mut self) -> Result<Option<Signed>, LogError> {
        while let Some(found) = self.step()? {
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Reads a line: none at the end; nothing in it where it is no checkpoint.
    fn step(&mut self) -> Result<Option<Option<Signed>>, LogError> {
        if self.lines.is_none() {
            self.begin()?;
        }
        if let Some(carried) = self.carried.pop() {
            if self.carried.is_empty() {
                self.at = self.at.max(self.before);
            }
            return Ok(Some(Some(carried)));
        }
        let Some(line) = self
            .lines
            .as_mut()
            .and_then(Iterator::next)
            .transpose()?
            .filter(|line| line.ended)
        else {
            // Looked at again next time: another file may stand there then.
            self.lines = None;
            return Ok(None);
        };
        let taken = self.chains.take(&line.bytes);
        let taken = taken.map_err(|why| LogError::damaged(&self.path, line.number, None, why))?;
        self.at += line.bytes.len() as u64 + 1;
        Ok(Some(taken))
    }

    /// Opens the file at the place.
    fn begin(&mut self) -> Result<(), LogError> {
        if !self.path.exists() {
            return Ok(());
        }
        let first = Lines::open(&self.path, LONGEST_FIRST)?.next().transpose()?;
        let (mut before, mut begins) = (0, 0);
        if let Some(first) = first.filter(|first| first.ended)
            && let Some(said) = before_of(&first.bytes)
        {
            (before, begins) = (said.before, first.bytes.len() as u64 + 1);
            let carried = self.chains.carried(said);
            let mut carried = carried.map_err(|why| LogError::damaged(&self.path, 1, None, why))?;
            if self.at < before {
                carried.reverse();
                self.carried = carried;
            }
        }
        let at = self.at.max(before);
        self.before = before;
        if self.carried.is_empty() {
            self.at = at;
        }
        self.lines = Some(Lines::open_at(&self.path, LONGEST_FIRST, begins + (at - before))?);
        Ok(())
    }
}

/// What a statement claims. The signature is NOT looked at: this is for one's own files and for messages.
pub fn claims_of(statement: &str) -> Option<Checkpoint> {
    let payload = statement.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

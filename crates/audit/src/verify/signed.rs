//! What was signed about a log.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use aip_api::{Digest, SpiffeId};

use super::fault::{At, Found, Kind};
use super::pair::SKEW_MILLIS;
use super::sources::is_file;
use super::{Keys, Source};
use crate::checkpoint::{Checkpoint, Closing};
use crate::log::{Kept, RETIRED_FILE, each_checkpoint};

/// Checkpoints before one after a crash that are looked through: only one whose clock stepped has any that cover more.
const MAX_BEFORE_CRASH: usize = 64;

/// The checkpoints of a log whose signatures hold, of all its copies.
#[derive(Debug, Default)]
pub(super) struct Signed {
    /// By the records that they cover; the first of each size.
    pub(super) roots: BTreeMap<u64, (Digest, u64)>,
    pub(super) agent: Option<SpiffeId>,
    pub(super) count: u64,
    pub(super) recoveries: u64,
    /// Records at the last checkpoint that was made after a crash.
    pub(super) recovered: u64,
    /// By the records at it: when each checkpoint was made that says that the log went on after a crash.
    crashed: BTreeMap<u64, u64>,
    /// By the time of every other checkpoint: the records at it.
    alive: BTreeMap<u64, u64>,
    /// Records at the checkpoint that ended the log in order.
    closed_at: Option<u64>,
    /// Of each directory, the records that the control plane's retention took there, by its signed word, and until when.
    retired: HashMap<PathBuf, (u64, u64)>,
    /// The log ended in order: nothing was signed that goes on.
    pub(super) closed: bool,
    /// The records of the last checkpoint beside each copy.
    beside: HashMap<PathBuf, u64>,
    /// What was taken already: the same statement stands beside the log, in a copy, and in the control plane's log.
    taken: HashSet<(u64, Digest, u64, u8)>,
}

/// Reads the checkpoints beside the log and its copies, and `listed`: those that the control plane's log has of it.
pub(super) fn read(source: &Source, listed: Vec<Checkpoint>, keys: &dyn Keys, found: &mut Found) -> Signed {
    let mut signed = Signed::default();
    for dir in [&source.dir].into_iter().chain(&source.copies) {
        signed.read_beside(source, dir, keys, found);
    }
    let path = source.dir.join("checkpoints.jsonl");
    for claims in listed {
        signed.take(&claims, At::file(&source.log, &path), found);
    }
    for dir in [&source.dir].into_iter().chain(&source.copies) {
        signed.read_retired(source, dir, keys, found);
    }
    let most = signed.roots.last_key_value().map(|(size, _)| *size);
    signed.closed = most.is_some() && signed.closed_at == most;
    signed
}

/// Reads a file of checkpoints, on after what is broken: those that are whole, and each statement, also without its chain.
pub(super) fn each(log: &str, path: &Path, found: &mut Found, mut take: impl FnMut(&str, Option<&Kept>, &mut Found)) {
    if !path.exists() {
        return;
    }
    let mut unchained = false;
    let read = is_file(path).and_then(|()| {
        each_checkpoint(path, &mut |line, one| {
            let at = At::file(log, path).line(line);
            match one {
                Err(why) => found.add(Kind::CheckpointInvalid, at, why),
                Ok((statement, Some(chain))) => {
                    let kept = Kept { line, statement, chain };
                    take(&kept.statement, Some(&kept), found);
                }
                Ok((statement, None)) => {
                    // What a broken chain takes with it is one fault.
                    if !std::mem::replace(&mut unchained, true) {
                        let why =
                            "it names a chain of certificates that does not stand before it, as others after it may";
                        found.add(Kind::CheckpointInvalid, at, why);
                    }
                    take(&statement, None, found);
                }
            }
        })
    });
    if let Err(error) = read {
        found.unreadable(log, path, &error);
    }
}

fn belongs(claims: &Checkpoint, by: &SpiffeId, source: &Source, signed: &Signed) -> bool {
    claims.v == 1
        && claims.log == source.log
        && claims.agent == *by
        && signed.agent.as_ref().is_none_or(|agent| agent == by)
}

impl Signed {
    /// The time of a record within what the checkpoints around it allow: its sidecar chose it, and could have it excuse or
    /// hide something.
    pub(super) fn time(&self, seq: u64, at: u64) -> u64 {
        let before = self.roots.range(..=seq).next_back();
        let after = self.roots.range(seq.saturating_add(1)..).next();
        let from = before.map_or(0, |(_, (_, signed))| signed.saturating_sub(SKEW_MILLIS));
        let to = after.map_or(u64::MAX, |(_, (_, signed))| signed.saturating_add(SKEW_MILLIS));
        at.max(from).min(to)
    }

    /// Of each crash: up to which record it may have cut something, and when the last checkpoint before it was made. What comes
    /// after it in time and covers no more records is not of the life that it ended.
    pub(super) fn crashes(&self) -> Vec<(u64, u64)> {
        let alive = |records: u64, at: u64| {
            let mut before = self.alive.range(..at).rev().take(MAX_BEFORE_CRASH);
            before.find(|(_, size)| **size <= records).map_or(0, |(at, _)| *at)
        };
        let crashed = self.crashed.iter();
        crashed.map(|(records, at)| (*records, alive(*records, *at))).collect()
    }

    /// What retention took of the log in this directory.
    pub(super) fn retired(&self, dir: &Path) -> Option<(u64, u64)> {
        self.retired.get(dir).copied()
    }

    /// How many records were signed, by the checkpoints beside this copy.
    pub(super) fn beside(&self, dir: &Path) -> u64 {
        self.beside.get(dir).copied().unwrap_or_default()
    }

    fn read_beside(&mut self, source: &Source, dir: &Path, keys: &dyn Keys, found: &mut Found) {
        let path = dir.join("checkpoints.jsonl");
        let mut most = 0;
        each(&source.log, &path, found, |_, kept, found| {
            let Some(kept) = kept else { return };
            let at = At::file(&source.log, &path).line(kept.line);
            match keys.checkpoint(kept) {
                Err(why) => found.add(Kind::CheckpointInvalid, at, why),
                Ok((claims, by)) if belongs(&claims, &by, source, self) => {
                    most = claims.size.max(most);
                    self.take(&claims, at, found);
                }
                Ok((claims, by)) => {
                    let detail = format!("it speaks of log {} of {}, signed by {by}", claims.log, claims.agent);
                    found.add(Kind::CheckpointOfAnother, at, detail);
                }
            }
        });
        self.beside.insert(dir.to_owned(), most);
    }

    fn read_retired(&mut self, source: &Source, dir: &Path, keys: &dyn Keys, found: &mut Found) {
        let path = dir.join(RETIRED_FILE);
        if !path.is_file() {
            return;
        }
        let text = std::fs::read_to_string(&path).map_err(|e| e.to_string());
        let agent = self.agent.as_ref();
        let claims = text
            .and_then(|statement| keys.retired(statement.trim()))
            .and_then(|claims| {
                let own = claims.v == 1 && claims.log == source.log && agent.is_none_or(|agent| *agent == claims.agent);
                own.then_some(claims)
                    .ok_or_else(|| "it speaks of another log".to_owned())
            });
        match claims {
            Ok(claims) => {
                let taken = (claims.records, claims.until.min(claims.at));
                self.retired.insert(dir.to_owned(), taken);
            }
            Err(why) => found.add(Kind::CheckpointInvalid, At::file(&source.log, &path), why),
        }
    }

    fn take(&mut self, claims: &Checkpoint, at: At<'_>, found: &mut Found) {
        if !self
            .taken
            .insert((claims.size, claims.root, claims.at, claims.closing as u8))
        {
            return;
        }
        self.count += 1;
        match claims.closing {
            Closing::Recovery => {
                self.recoveries += 1;
                self.recovered = self.recovered.max(claims.size);
                let crashed = self.crashed.entry(claims.size).or_insert(claims.at);
                *crashed = claims.at.min(*crashed);
            }
            Closing::Close => self.closed_at = self.closed_at.max(Some(claims.size)),
            Closing::Periodic => {}
        }
        if claims.closing != Closing::Recovery {
            let alive = self.alive.entry(claims.at).or_insert(claims.size);
            *alive = claims.size.min(*alive);
        }
        self.agent.get_or_insert_with(|| claims.agent.clone());
        let (root, time) = self.roots.entry(claims.size).or_insert((claims.root, claims.at));
        if *root == claims.root {
            *time = (*time).max(claims.at);
            return;
        }
        let detail = format!(
            "{} records are signed with the root {root}, and with {}",
            claims.size, claims.root
        );
        found.add(Kind::Forked, at, detail);
    }
}

/// A line of a checkpoint's file as the control plane lists it.
pub(super) fn verified(keys: &dyn Keys, kept: &Kept) -> Result<Checkpoint, String> {
    let (claims, by) = keys.checkpoint(kept)?;
    if claims.agent == by {
        Ok(claims)
    } else {
        Err(format!("it speaks of {}, signed by {by}", claims.agent))
    }
}

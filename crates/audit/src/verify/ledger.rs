//! The control plane's log of checkpoints: that what it signed is what is here, and that each log is as long as it knows.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use aip_api::Digest;
use serde::{Deserialize, Serialize};

use super::fault::{At, Found, Kind};
use super::sources::is_file;
use super::{Keys, Ledger, LogReport, signed};
use crate::checkpoint::Checkpoint;
use crate::log::{Lines, LogError, MAX_CHECKPOINT_BYTES};
use crate::merkle::{self, Tree};

/// How long records are surely kept, in milliseconds: the control plane's default, 90 days.
const KEPT_MILLIS: u64 = 90 * 24 * 3600 * 1000;

/// The name under which faults of this log go.
const NAME: &str = "control plane";

/// What the control plane's log of checkpoints is worth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReport {
    /// Checkpoints in it, also those that are kept no more.
    pub checkpoints: u64,
    /// Of them, the first that are kept no more, by the control plane's signed word.
    pub dropped: u64,
    /// None of those was signed later, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_until: Option<u64>,
    /// Of them, those that a signed tree head covers.
    pub covered: u64,
    /// Tree heads whose signature and root hold.
    pub heads: u64,
    /// Logs that it speaks of.
    pub logs: u64,
    /// Of them, those that are not here and ended longer ago than records are kept.
    pub expired: u64,
}

#[derive(Debug, Default)]
pub(super) struct Read {
    report: LedgerReport,
    path: PathBuf,
    by_log: HashMap<String, Vec<Checkpoint>>,
}

/// A tree head whose signature holds, and where it stands.
struct Head<'a> {
    ledger: &'a Ledger,
    line: u64,
    size: u64,
    root: Digest,
}

/// Reads it, or several exports of it: signatures of all checkpoints and heads, and the root at the size of each head. A root
/// over all of them shows each of them to be included, and each smaller head to be a beginning of the larger.
pub(super) fn read(ledgers: &[Ledger], keys: &dyn Keys, found: &mut Found) -> Option<Read> {
    let heads: Vec<Head<'_>> = ledgers.iter().flat_map(|ledger| heads(ledger, keys, found)).collect();
    let mut all: Option<Read> = None;
    for ledger in ledgers {
        let one = Read::one(ledger, &heads, keys, found);
        all = Some(match all {
            Some(all) => all.joined(one),
            None => one,
        });
    }
    all
}

fn heads<'a>(ledger: &'a Ledger, keys: &dyn Keys, found: &mut Found) -> Vec<Head<'a>> {
    let mut heads = Vec::new();
    if !ledger.heads.exists() {
        return heads;
    }
    let mut read = || -> Result<(), LogError> {
        is_file(&ledger.heads)?;
        for line in Lines::open(&ledger.heads, MAX_CHECKPOINT_BYTES)? {
            let (line, head) = match line {
                Err(LogError::Damaged { line, why, .. }) => (line, Err(why)),
                line => {
                    let line = line?;
                    let text = std::str::from_utf8(&line.bytes).map_err(|_| "not text".to_owned());
                    (line.number, text.and_then(|statement| keys.tree_head(statement.trim())))
                }
            };
            match head {
                Ok(head) => heads.push(Head {
                    ledger,
                    line,
                    size: head.size,
                    root: head.root,
                }),
                Err(why) => found.add(Kind::TreeHeadInvalid, At::file(NAME, &ledger.heads).line(line), why),
            }
        }
        Ok(())
    };
    let read = read();
    if let Err(error) = read {
        found.unreadable(NAME, &ledger.heads, &error);
    }
    heads
}

impl Read {
    fn one(ledger: &Ledger, heads: &[Head<'_>], keys: &dyn Keys, found: &mut Found) -> Self {
        let mut read = Self {
            path: ledger.checkpoints.clone(),
            ..Self::default()
        };
        if !ledger.checkpoints.exists() {
            found.add(
                Kind::LogUnreadable,
                At::file(NAME, &ledger.checkpoints),
                "it is not there",
            );
        }
        let wanted: HashSet<u64> = heads.iter().map(|head| head.size).collect();
        let mut tree = read.begin(ledger, keys, found);
        let mut roots = HashMap::from([(tree.size(), tree.root())]);
        signed::each(NAME, &ledger.checkpoints, found, |statement, kept, found| {
            if let Some(kept) = kept {
                let at = At::file(NAME, &ledger.checkpoints).line(kept.line);
                match signed::verified(keys, kept) {
                    Ok(claims) => read.by_log.entry(claims.log.clone()).or_default().push(claims),
                    Err(why) => found.add(Kind::CheckpointInvalid, at, why),
                }
            }
            tree.append(merkle::leaf(statement.as_bytes()));
            if wanted.contains(&tree.size()) {
                roots.insert(tree.size(), tree.root());
            }
        });
        read.report.checkpoints = tree.size();
        read.report.logs = read.by_log.len() as u64;
        read.compare(ledger, heads, &roots, found);
        read
    }

    /// Holds the roots against those that were signed: its own heads, and those that other exports have of the same log.
    fn compare(&mut self, ledger: &Ledger, heads: &[Head<'_>], roots: &HashMap<u64, Digest>, found: &mut Found) {
        let here = self.report.checkpoints;
        let mut own = 0;
        for head in heads {
            let is_own = head.ledger == ledger;
            own += u64::from(is_own);
            let at = At::file(NAME, &head.ledger.heads).line(head.line);
            match roots.get(&head.size) {
                Some(ours) if *ours == head.root && is_own => {
                    self.report.heads += 1;
                    self.report.covered = self.report.covered.max(head.size);
                }
                Some(ours) if *ours != head.root => {
                    let detail = format!(
                        "{} checkpoints of {} have the root {ours}; signed was {}",
                        head.size,
                        ledger.checkpoints.display(),
                        head.root
                    );
                    found.add(Kind::TreeHeadDiffers, at, detail);
                }
                None if is_own => {
                    let detail = format!("{} checkpoints were signed; {here} are here", head.size);
                    found.add(Kind::TreeHeadDiffers, at, detail);
                }
                // Of another export, which reaches further or begins later.
                _ => {}
            }
        }
        let at = At::file(NAME, &ledger.checkpoints);
        if own == 0 {
            let detail = "no tree head that is here vouches for it";
            found.add(Kind::TreeHeadDiffers, at, detail);
        } else if self.report.covered < here {
            let covered = self.report.covered;
            let detail = format!("{here} checkpoints are here; a tree head covers {covered}");
            found.add(Kind::TreeHeadDiffers, at, detail);
        }
    }

    /// What both know: the longer one is told of.
    fn joined(self, other: Self) -> Self {
        let (mut more, less) = match self.report.checkpoints < other.report.checkpoints {
            true => (other, self),
            false => (self, other),
        };
        for (log, checkpoints) in less.by_log {
            more.by_log.entry(log).or_default().extend(checkpoints);
        }
        more.report.logs = more.by_log.len() as u64;
        more
    }

    /// The tree over what is kept no more. Where nobody signed that, it is as if it were never there: then no root comes out.
    fn begin(&mut self, ledger: &Ledger, keys: &dyn Keys, found: &mut Found) -> Tree {
        if !ledger.begins.is_file() {
            return Tree::default();
        }
        let text = std::fs::read_to_string(&ledger.begins).map_err(|e| e.to_string());
        let begins = text.and_then(|statement| keys.ledger_begins(statement.trim()));
        let tree = begins.and_then(|begins| {
            let tree = Tree::from_peaks(begins.from, begins.subtrees).filter(|tree| tree.root() == begins.root);
            let tree = tree.ok_or("its subtrees are not those of its root")?;
            self.report.dropped = begins.from;
            self.report.dropped_until = Some(begins.until);
            Ok(tree)
        });
        tree.unwrap_or_else(|why| {
            found.add(Kind::TreeHeadInvalid, At::file(NAME, &ledger.begins), why);
            Tree::default()
        })
    }

    /// What it knows of a log.
    pub(super) fn of(&self, log: &str) -> Vec<Checkpoint> {
        self.by_log.get(log).cloned().unwrap_or_default()
    }

    /// When the newest of its checkpoints was made.
    pub(super) fn newest(&self) -> u64 {
        self.by_log.values().flatten().map(|c| c.at).max().unwrap_or(0)
    }

    /// Looks for logs that it knows and that are not here.
    pub(super) fn close(mut self, logs: &[LogReport], found: &mut Found) -> LedgerReport {
        let mut here: HashSet<&str> = logs.iter().map(|l| l.log.as_str()).collect();
        for log in logs {
            let own = |name: &&String| {
                let of = self.by_log.get(*name).and_then(|held| held.first());
                of.is_some_and(|c| Some(c.agent.to_string()) == log.agent)
            };
            here.extend(log.dropped_logs.iter().filter(own).map(String::as_str));
        }
        let newest = self.newest();
        let expired = |held: &[Checkpoint]| held.iter().all(|c| newest.saturating_sub(c.at) > KEPT_MILLIS);
        for (log, checkpoints) in self.by_log.iter().filter(|(log, _)| !here.contains(log.as_str())) {
            if expired(checkpoints) {
                self.report.expired += 1;
                continue;
            }
            let most = checkpoints.iter().max_by_key(|c| c.size);
            let detail = most.map_or_else(String::new, |c| format!("{} records of {}", c.size, c.agent));
            found.add(Kind::LogMissing, At::file(log, &self.path), detail);
        }
        self.report
    }
}

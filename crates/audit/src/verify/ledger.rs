//! The control plane's log of checkpoints: that what it signed is what is here, and that each log is as long as it knows.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use aip_api::Digest;
use serde::{Deserialize, Serialize};

use super::fault::{At, Found, Kind};
use super::{Keys, Ledger, LogReport, signed};
use crate::checkpoint::Checkpoint;
use crate::log::{Kept, Lines, LogError, MAX_CHECKPOINT_BYTES, read_checkpoints};
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

/// Reads it: signatures of all checkpoints and heads, and the root at the size of each head. A root over all of them shows
/// each of them to be included, and each smaller head to be a beginning of the larger.
pub(super) fn read(ledger: &Ledger, keys: &dyn Keys, found: &mut Found) -> Result<Read, LogError> {
    let mut read = Read {
        path: ledger.checkpoints.clone(),
        ..Read::default()
    };
    let at = At::file(NAME, &ledger.checkpoints);
    let all = read_checkpoints(&ledger.checkpoints)?;
    let heads = heads(ledger, keys, found)?;
    let wanted: HashMap<u64, Digest> = heads.iter().map(|(_, size, root)| (*size, *root)).collect();
    let mut tree = read.begin(ledger, keys, found);
    let mut roots = HashMap::from([(tree.size(), tree.root())]);
    for kept in &all {
        read.take(kept, keys, at, found);
        tree.append(merkle::leaf(kept.statement.as_bytes()));
        if wanted.contains_key(&tree.size()) {
            roots.insert(tree.size(), tree.root());
        }
    }
    read.report.checkpoints = tree.size();
    read.report.logs = read.by_log.len() as u64;
    let unsigned = heads.is_empty();
    for (line, size, root) in heads {
        let at = At::file(NAME, &ledger.heads).line(line);
        match roots.get(&size) {
            Some(ours) if *ours == root => {
                read.report.heads += 1;
                read.report.covered = read.report.covered.max(size);
            }
            Some(ours) => {
                let detail = format!("{size} checkpoints have the root {ours}; signed was {root}");
                found.add(Kind::TreeHeadDiffers, at, detail);
            }
            None => {
                let detail = format!("{size} checkpoints were signed; {} are here", tree.size());
                found.add(Kind::TreeHeadDiffers, at, detail);
            }
        }
    }
    if unsigned {
        let detail = "no tree head that is here vouches for it".to_owned();
        found.add(Kind::TreeHeadDiffers, at, detail);
    } else if read.report.covered < read.report.checkpoints {
        let detail = format!(
            "{} checkpoints are here; a tree head covers {}",
            read.report.checkpoints, read.report.covered
        );
        found.add(Kind::TreeHeadDiffers, at, detail);
    }
    Ok(read)
}

fn heads(ledger: &Ledger, keys: &dyn Keys, found: &mut Found) -> Result<Vec<(u64, u64, Digest)>, LogError> {
    let mut heads = Vec::new();
    if !ledger.heads.is_file() {
        return Ok(heads);
    }
    for line in Lines::open(&ledger.heads, MAX_CHECKPOINT_BYTES)? {
        let line = line?;
        let read = std::str::from_utf8(&line.bytes).map_err(|_| "not text".to_owned());
        match read.and_then(|statement| keys.tree_head(statement.trim())) {
            Ok(head) => heads.push((line.number, head.size, head.root)),
            Err(why) => found.add(
                Kind::TreeHeadInvalid,
                At::file(NAME, &ledger.heads).line(line.number),
                why,
            ),
        }
    }
    Ok(heads)
}

impl Read {
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

    fn take(&mut self, kept: &Kept, keys: &dyn Keys, at: At<'_>, found: &mut Found) {
        match signed::verified(keys, kept) {
            Ok(claims) => self.by_log.entry(claims.log.clone()).or_default().push(claims),
            Err(why) => found.add(Kind::CheckpointInvalid, at.line(kept.line), why),
        }
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

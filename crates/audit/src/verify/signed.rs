//! What was signed about a log.

use std::collections::BTreeMap;

use aip_api::{Digest, SpiffeId};

use super::fault::{At, Found, Kind};
use super::pair::SKEW_MILLIS;
use super::{Keys, Source};
use crate::checkpoint::{Checkpoint, Closing};
use crate::log::{Kept, LogError, RETIRED_FILE, kept};

/// The checkpoints of a log whose signatures hold.
#[derive(Debug, Default)]
pub(super) struct Signed {
    /// By the records that they cover; the first of each size.
    pub(super) roots: BTreeMap<u64, (Digest, u64)>,
    pub(super) agent: Option<SpiffeId>,
    pub(super) count: u64,
    pub(super) recoveries: u64,
    /// Records at the last checkpoint that was made after a crash.
    pub(super) recovered: u64,
    /// Records at the checkpoint that ended the log in order.
    closed_at: Option<u64>,
    /// Records that the control plane's retention took, by its signed word, and until when.
    pub(super) retired: Option<(u64, u64)>,
    /// The log ended in order: nothing was signed that goes on.
    pub(super) closed: bool,
}

/// Reads the checkpoints beside the log, and `listed`: those that the control plane's log has of it.
pub(super) fn read(
    source: &Source,
    listed: Vec<Checkpoint>,
    keys: &dyn Keys,
    found: &mut Found,
) -> Result<Signed, LogError> {
    let mut signed = Signed::default();
    let path = source.dir.join("checkpoints.jsonl");
    let at = At::file(&source.log, &path);
    let own = match kept(&source.dir) {
        Err(LogError::Damaged { line, why, .. }) => {
            found.add(Kind::CheckpointInvalid, at.line(line), why);
            Vec::new()
        }
        other => other?,
    };
    for one in &own {
        let at = at.line(one.line);
        match keys.checkpoint(one) {
            Err(why) => found.add(Kind::CheckpointInvalid, at, why),
            Ok((claims, by)) if belongs(&claims, &by, source, &signed) => signed.take(&claims, at, found),
            Ok((claims, by)) => {
                let detail = format!("it speaks of log {} of {}, signed by {by}", claims.log, claims.agent);
                found.add(Kind::CheckpointOfAnother, at, detail);
            }
        }
    }
    for claims in listed {
        signed.take(&claims, at, found);
    }
    signed.read_retired(source, keys, found);
    let most = signed.roots.last_key_value().map(|(size, _)| *size);
    signed.closed = most.is_some() && signed.closed_at == most;
    Ok(signed)
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

    fn read_retired(&mut self, source: &Source, keys: &dyn Keys, found: &mut Found) {
        let path = source.dir.join(RETIRED_FILE);
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
            Ok(claims) => self.retired = Some((claims.records, claims.until.min(claims.at))),
            Err(why) => found.add(Kind::CheckpointInvalid, At::file(&source.log, &path), why),
        }
    }

    fn take(&mut self, claims: &Checkpoint, at: At<'_>, found: &mut Found) {
        self.count += 1;
        match claims.closing {
            Closing::Recovery => {
                self.recoveries += 1;
                self.recovered = self.recovered.max(claims.size);
            }
            Closing::Close => self.closed_at = self.closed_at.max(Some(claims.size)),
            Closing::Periodic => {}
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

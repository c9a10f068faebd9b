//! What the records of a log say, and what they leave out.

use std::path::PathBuf;

use aip_api::id::DecisionId;

use super::super::LogReport;
use super::super::fault::{At, Found, Kind, moment, named};
use super::super::pair::{Place, SKEW_MILLIS};
use super::{Of, UNSIGNED_MILLIS, Walk};
use crate::log::segment_path;
use crate::record::{Decision, Direction, Event, Record};

/// The reason under which sidecars count requests that they refuse without a record each.
const COUNTED: &str = "rate_limited";

/// Records at the end of a log that nobody signed yet.
#[derive(Debug)]
pub(in super::super) struct Tail {
    log: String,
    file: PathBuf,
    /// The first of them.
    seq: u64,
    /// When it was made.
    since: u64,
}

/// Finds the unsigned ends of logs that are older than anything that was signed since allows: one that nobody goes on with is
/// not vouched for by waiting.
pub(in super::super) fn old_tails(logs: &[LogReport], tails: &[Tail], newest: u64, found: &mut Found) {
    for tail in tails {
        let waited = newest.saturating_sub(tail.since);
        if waited <= UNSIGNED_MILLIS + SKEW_MILLIS {
            continue;
        }
        let records = logs.iter().find(|log| log.log == tail.log).map_or(0, |log| log.records);
        let detail = format!(
            "records {} to {} were never signed, {} s before the newest checkpoint here",
            tail.seq,
            records.saturating_sub(1),
            waited / 1000
        );
        found.add(
            Kind::TailUnsigned,
            At::file(&tail.log, &tail.file).seq(tail.seq),
            detail,
        );
    }
}

impl Walk<'_> {
    pub(super) fn content(&mut self, at: At<'_>, record: &Record, place: Place) {
        let made = self.signed.time(record.seq, record.at);
        let before = self.last_made.replace(made);
        self.last_at = self.last_at.max(record.at);
        self.report.first_at.get_or_insert(record.at);
        let signed = self.signed.roots.last_key_value().map_or(0, |(size, _)| *size);
        if record.seq >= signed {
            self.unsigned_since.get_or_insert((record.seq, record.at));
        }
        match &record.event {
            Event::Decision(decision) => self.decision(at, made, decision, place),
            Event::End(end) => {
                let known = self.open.remove(&end.id).is_some();
                // Its decision may be among what a quota took, or what is missing.
                if !known && self.report.dropped == 0 && self.whole && !self.holes {
                    let id = end.id.to_string();
                    let at = at.decision(Some(&id));
                    self.fault(Kind::EndWithoutDecision, at, "no decision of this id stands before it");
                }
                self.pairing.end(made, end, self.found);
            }
            Event::Gap(gap) => {
                self.report.gaps = self.report.gaps.saturating_add(gap.lost);
                // Only what is signed counts for anything.
                if let Some(agent) = self.agent.as_ref().filter(|_| record.seq < signed) {
                    self.pairing.gap(agent, before, made, gap.lost);
                }
            }
            Event::Dropped(dropped) => self.said.push((record.seq, dropped.clone())),
            Event::Strangers(strangers) => {
                // Only what is signed counts for anything.
                if let Some(agent) = self
                    .agent
                    .as_ref()
                    .filter(|_| strangers.reason == COUNTED && record.seq < signed)
                {
                    self.pairing.counted(agent, made, strangers.count);
                }
            }
        }
    }

    fn decision(&mut self, at: At<'_>, made: u64, decision: &Decision, place: Place) {
        let id = decision.id.to_string();
        let at = at.decision(Some(&id));
        self.open.insert(decision.id, place.seq);
        if !self.decided.insert(decision.id) {
            self.fault(Kind::DecisionTwice, at, "it was decided before");
        }
        let own = match decision.direction {
            Direction::Inbound => &decision.destination.id,
            Direction::Outbound => &decision.source.id,
        };
        match &self.agent {
            None => self.agent = Some(own.clone()),
            Some(agent) if agent == own => {}
            Some(agent) => {
                let detail = format!("it speaks for {}; the log is of {}", named(own), named(agent));
                // It is named, and is no end of anybody's hop.
                return self.fault(Kind::AgentDiffers, at, detail);
            }
        }
        self.pairing.decision(made, decision, place, self.found);
    }

    /// Requests that a log which ended in order says nothing more of. Its own gaps may be what is missing; what a crash
    /// cut is what came before the last start.
    fn unended(&mut self) {
        let most = self.signed.roots.last_key_value().map_or(0, |(size, _)| *size);
        let behind = matches!(self.of, Of::Copy(_)) && self.next < most;
        if !self.signed.closed || !self.whole || self.holes || behind {
            return;
        }
        let mut left: Vec<(u64, DecisionId)> = self.open.iter().map(|(id, seq)| (*seq, *id)).collect();
        left.retain(|(seq, _)| *seq >= self.signed.recovered);
        if left.len() as u64 <= self.report.gaps {
            return;
        }
        left.sort_unstable();
        for (seq, decision) in left {
            let segment = self.begins.iter().rev().find(|(begin, _)| *begin <= seq);
            let file = segment.map_or_else(|| segment_path(self.dir, 0), |(_, path)| path.clone());
            let id = decision.to_string();
            let at = At::file("", &file).seq(seq).decision(Some(&id));
            self.fault(Kind::EndMissing, at, "the log was closed without its end");
            self.pairing.unended(decision);
        }
    }

    /// The records that were signed, as far as they must be here, and when: a copy may lag behind what was signed, and not behind
    /// the checkpoints beside it.
    fn due(&self) -> Option<(u64, u64)> {
        let reach = match self.of {
            Of::Log(_) => u64::MAX,
            Of::Copy(_) => self.next.max(self.signed.beside(self.dir)),
        };
        let last = self.signed.roots.range(..=reach).next_back();
        last.map(|(size, (_, at))| (*size, *at))
    }

    pub(super) fn close(mut self) -> (LogReport, Option<Tail>) {
        self.report.records = self.next;
        self.pairing.crashes(self.signed.crashes());
        self.unended();
        let file = self
            .begins
            .last()
            .map_or_else(|| self.dir.to_owned(), |(_, path)| path.clone());
        let most = self.due();
        if let Of::Copy(end) = &mut self.of {
            **end = (self.whole && !self.rewritten).then(|| (self.next, self.tree.root()));
        }
        // A log in which nothing happens is not signed again: what counts is how long a record waited.
        let waited = self
            .unsigned_since
            .map_or(0, |(_, since)| self.last_at.saturating_sub(since));
        let mut tail = None;
        match most {
            Some((size, at)) if size > self.next => {
                let detail = format!(
                    "it ends before record {}; {size} records were signed at {}",
                    self.next,
                    moment(at)
                );
                let at = At::file("", &file).seq(self.next);
                self.fault(Kind::Truncated, at, detail);
            }
            None if self.next > 0 => {
                let at = At::file("", &file);
                self.fault(Kind::Unsigned, at, format!("{} records and no checkpoint", self.next));
            }
            Some((size, at)) if size < self.next && waited > UNSIGNED_MILLIS => {
                let detail = format!(
                    "records {size} to {} follow, over {} s; the last checkpoint was made at {}",
                    self.next - 1,
                    waited / 1000,
                    moment(at)
                );
                let at = At::file("", &file).seq(size);
                self.fault(Kind::TailUnsigned, at, detail);
            }
            Some((size, _)) if size < self.next => {
                tail = self.unsigned_since.map(|(seq, since)| Tail {
                    log: self.report.log.clone(),
                    file,
                    seq,
                    since,
                });
            }
            _ => {}
        }
        if let (Some(agent), Some(last)) = (&self.agent, self.last_made) {
            self.pairing.read(agent, last);
        }
        if let Some(agent) = &self.agent {
            self.report.agent.get_or_insert_with(|| agent.clone());
        }
        (self.report, tail)
    }
}

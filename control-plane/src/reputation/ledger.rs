//! What all events of one agent come to. A ledger is nothing but a fold over its events: the same events, the same ledger.

use std::collections::BTreeMap;

use aip_api::resource::reputation::{Factor, Finding, Score, Slash};
use serde::{Deserialize, Serialize};

use super::event::{Event, Observation, Report, Rules, What};
use super::tally::{HOUR, Tally, UNIT, left, place};

/// Reporters of one agent that are told apart. All others are one together: who makes up reporters gains nothing by it.
/// Who complains takes the place of one who only praises: praise can't crowd complaints out.
pub const MAX_REPORTERS: usize = 64;
/// Who those others are; no reporter can be called so.
pub const OTHERS: &str = "*";
/// Slashes of one agent that are kept, the heaviest: long before, its score is 0.
pub const MAX_SLASHES: usize = 64;
/// What a drift counts against honesty: as much as one reporter at most by default.
const DRIFT_OBSERVATIONS: u64 = 4;
/// Who reports a drift.
const CONTROL_PLANE: &str = "control-plane";

/// What is kept of one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// The last event that is in it.
    pub seq: u64,
    /// When that was, Unix seconds.
    pub at: u64,
    /// The last event that was no observation of hops: what a person decides about.
    pub noted: u64,
    /// By which rules the last event was taken in.
    pub rules: Rules,
    /// Observations of hours that are over, each hour with its cap.
    pub settled: Tally,
    /// Those of the hour that is not over.
    pub open: Tally,
    /// The same observations by reporter, each with its cap.
    pub reporters: BTreeMap<String, Reporter>,
    /// What verifiers took off.
    pub slashes: Vec<Slash>,
    /// No score is above it, until a reset.
    pub ceiling: Option<Score>,
}

/// One reporter's part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporter {
    /// What it observed.
    pub tally: Tally,
    /// The hour of its last report, and how many it made in it.
    pub reports: (u64, u32),
}

impl Ledger {
    /// Takes the next event in, by the rules that stand with it.
    pub fn apply(&mut self, event: &Event) {
        self.seq = event.seq;
        if event.at < self.at {
            self.back_to(event.at);
        }
        self.at = event.at;
        if !matches!(event.what, What::Observed { .. }) {
            self.noted = event.seq;
        }
        let rules = &event.rules;
        match &event.what {
            What::Report(report) => self.report(report, rules),
            What::Observed { by } => by.iter().for_each(|o| self.observed(o, rules)),
            What::Drift => {
                let mut tally = Tally::at(self.hour());
                tally.bad[place(Factor::Honesty)] = DRIFT_OBSERVATIONS * UNIT;
                self.count(CONTROL_PLANE, &tally, rules);
            }
            What::Imported { score, .. } => {
                // Of two statements the lower one holds.
                self.ceiling = Some(self.ceiling.map_or(*score, |held| held.min(*score)));
            }
            What::Reset { .. } => {
                *self = Self {
                    seq: self.seq,
                    at: self.at,
                    noted: self.noted,
                    ..Self::default()
                };
            }
        }
        self.rules = event.rules;
    }

    /// The clock was set back: what came in while it was ahead is of now, and fades from now on.
    fn back_to(&mut self, at: u64) {
        let hour = at / HOUR;
        let tallies = self.reporters.values_mut().map(|held| &mut held.tally);
        for tally in tallies.chain([&mut self.settled, &mut self.open]) {
            tally.hour = tally.hour.min(hour);
        }
        for held in self.reporters.values_mut() {
            held.reports.0 = held.reports.0.min(hour);
        }
        for slash in &mut self.slashes {
            slash.at = slash.at.min(at);
        }
    }

    fn hour(&self) -> u64 {
        self.at / HOUR
    }

    fn report(&mut self, report: &Report, rules: &Rules) {
        let mut tally = Tally::at(self.hour());
        let worth = UNIT * u64::from(report.weight) / 100;
        let side = match report.finding {
            Finding::Confirmed => &mut tally.good,
            _ => &mut tally.bad,
        };
        side[place(report.finding.factor())] = worth;
        let hour = self.hour();
        let reporter = self.count(&report.reporter, &tally, rules);
        reporter.reports = match reporter.reports {
            (at, n) if at == hour => (hour, n + 1),
            _ => (hour, 1),
        };
        if report.points == Score::default() {
            return;
        }
        self.slashes.push(Slash {
            id: report.id.clone(),
            finding: report.finding,
            severity: report.severity,
            points: report.points,
            at: self.at,
            evidence: report.evidence.clone(),
        });
        if self.slashes.len() > MAX_SLASHES {
            self.forget_lightest(rules);
        }
    }

    fn forget_lightest(&mut self, rules: &Rules) {
        let (now, days) = (self.at, rules.slash_half_life_days);
        let weighs = |slash: &Slash| remaining(slash, now, days);
        let lightest = (0..self.slashes.len()).min_by(|a, b| {
            let (a, b) = (&self.slashes[*a], &self.slashes[*b]);
            weighs(a).total_cmp(&weighs(b)).then_with(|| a.id.cmp(&b.id))
        });
        if let Some(lightest) = lightest {
            self.slashes.remove(lightest);
        }
    }

    fn observed(&mut self, observation: &Observation, rules: &Rules) {
        let mut tally = Tally::at(self.hour());
        let worth = |n: u32| u64::from(n) * UNIT * u64::from(observation.weight) / 100;
        for (factor, n) in &observation.good {
            tally.good[place(*factor)] = worth(*n);
        }
        for (factor, n) in &observation.bad {
            tally.bad[place(*factor)] = worth(*n);
        }
        self.count(&observation.peer, &tally, rules);
    }

    /// Counts observations once in their hour, and once with their reporter.
    fn count(&mut self, reporter: &str, tally: &Tally, rules: &Rules) -> &mut Reporter {
        let (hour, days) = (tally.hour, rules.half_life_days);
        if self.open.hour < hour {
            let mut over = std::mem::replace(&mut self.open, Tally::at(hour));
            over.cap(self.rules.hour_cap);
            self.settled.fade(over.hour, days);
            self.settled.add(&over);
        }
        self.open.add(tally);
        let name = self.place_of(reporter, tally, rules);
        let held = self.reporters.entry(name).or_default();
        held.tally.fade(hour, days);
        held.tally.add(tally);
        held.tally.cap(rules.reporter_cap);
        held
    }

    /// Under which name a reporter counts.
    fn place_of(&mut self, reporter: &str, tally: &Tally, rules: &Rules) -> String {
        let (hour, days) = (tally.hour, rules.half_life_days);
        if self.reporters.contains_key(reporter) || self.reporters.len() < MAX_REPORTERS {
            return reporter.to_owned();
        }
        self.reporters.retain(|_, held| {
            held.tally.fade(hour, days);
            !held.tally.is_empty() || held.reports.0 == hour
        });
        if self.reporters.len() < MAX_REPORTERS {
            return reporter.to_owned();
        }
        let Some(mildest) = self.mildest(hour).filter(|(bad, _)| *bad < tally.against()) else {
            return OTHERS.to_owned();
        };
        if let Some(gone) = self.reporters.remove(&mildest.1) {
            let others = &mut self.reporters.entry(OTHERS.to_owned()).or_default().tally;
            others.fade(hour, days);
            others.add(&gone.tally);
            others.cap(rules.reporter_cap);
        }
        reporter.to_owned()
    }

    /// Who of those that are told apart has the least to say against the agent, and how much that is. Who reported in this
    /// hour keeps the place: its reports are counted there.
    fn mildest(&self, hour: u64) -> Option<(u64, String)> {
        let mut all: Vec<_> = self.reporters.iter().collect();
        all.retain(|(name, held)| *name != OTHERS && held.reports.0 != hour);
        let mildest = all.into_iter().min_by_key(|(name, held)| (held.tally.against(), *name));
        mildest.map(|(name, held)| (held.tally.against(), name.clone()))
    }

    /// How many reports of `reporter` there are in the hour of `now`.
    pub fn reports_of(&self, reporter: &str, now: u64) -> u32 {
        let known = self.reporters.get(reporter).or_else(|| {
            let full = self.reporters.len() >= MAX_REPORTERS;
            full.then(|| self.reporters.get(OTHERS)).flatten()
        });
        match known.map(|r| r.reports) {
            Some((hour, n)) if hour == now / HOUR => n,
            _ => 0,
        }
    }
}

/// What a slash still takes off at `now`.
pub fn remaining(slash: &Slash, now: u64, half_life_days: u32) -> f64 {
    let hours = now.saturating_sub(slash.at) as f64 / HOUR as f64;
    slash.points.value() * left(hours, half_life_days)
}

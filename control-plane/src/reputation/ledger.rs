//! What all events of one agent come to. A ledger is nothing but a fold over its events: the same events, the same ledger.

use std::collections::BTreeMap;

use aip_api::resource::reputation::{Factor, Finding, ReputationSettings, Score, Slash};
use serde::{Deserialize, Serialize};

use super::event::{Event, Observation, Report, What};
use super::tally::{HOUR, Tally, UNIT, left, place};

/// Reporters of one agent that are told apart. All others are one together: who makes up reporters gains nothing by it.
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
    /// When that was, Unix seconds; never goes back.
    pub at: u64,
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
    /// Takes the next event in.
    pub fn apply(&mut self, event: &Event, settings: &ReputationSettings) {
        self.seq = event.seq;
        self.at = self.at.max(event.at);
        match &event.what {
            What::Report(report) => self.report(report, settings),
            What::Observed { by } => by.iter().for_each(|o| self.observed(o, settings)),
            What::Drift => {
                let mut tally = Tally::at(self.hour());
                tally.bad[place(Factor::Honesty)] = DRIFT_OBSERVATIONS * UNIT;
                self.count(CONTROL_PLANE, &tally, settings);
            }
            What::Imported { score, .. } => {
                // Of two statements the lower one holds.
                self.ceiling = Some(self.ceiling.map_or(*score, |held| held.min(*score)));
            }
            What::Reset { .. } => {
                let (seq, at) = (self.seq, self.at);
                *self = Self {
                    seq,
                    at,
                    ..Self::default()
                };
            }
        }
    }

    fn hour(&self) -> u64 {
        self.at / HOUR
    }

    fn report(&mut self, report: &Report, settings: &ReputationSettings) {
        let mut tally = Tally::at(self.hour());
        let worth = UNIT * u64::from(report.weight) / 100;
        let side = match report.finding {
            Finding::Confirmed => &mut tally.good,
            _ => &mut tally.bad,
        };
        side[place(report.finding.factor())] = worth;
        let hour = self.hour();
        let reporter = self.count(&report.reporter, &tally, settings);
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
            self.forget_lightest(settings);
        }
    }

    fn forget_lightest(&mut self, settings: &ReputationSettings) {
        let (now, days) = (self.at, settings.slash_half_life_days);
        let weighs = |slash: &Slash| remaining(slash, now, days);
        let lightest = (0..self.slashes.len()).min_by(|a, b| {
            let (a, b) = (&self.slashes[*a], &self.slashes[*b]);
            weighs(a).total_cmp(&weighs(b)).then_with(|| a.id.cmp(&b.id))
        });
        if let Some(lightest) = lightest {
            self.slashes.remove(lightest);
        }
    }

    fn observed(&mut self, observation: &Observation, settings: &ReputationSettings) {
        let mut tally = Tally::at(self.hour());
        let worth = |n: u32| u64::from(n) * UNIT * u64::from(observation.weight) / 100;
        for (factor, n) in &observation.good {
            tally.good[place(*factor)] = worth(*n);
        }
        for (factor, n) in &observation.bad {
            tally.bad[place(*factor)] = worth(*n);
        }
        self.count(&observation.peer, &tally, settings);
    }

    /// Counts observations once in their hour, and once with their reporter.
    fn count(&mut self, reporter: &str, tally: &Tally, settings: &ReputationSettings) -> &mut Reporter {
        let (hour, days) = (tally.hour, settings.half_life_days);
        if self.open.hour < hour {
            let mut over = std::mem::replace(&mut self.open, Tally::at(hour));
            over.cap(settings.hour_cap);
            self.settled.fade(over.hour, days);
            self.settled.add(&over);
        }
        self.open.add(tally);
        let name = self.place_of(reporter, hour, days);
        let held = self.reporters.entry(name).or_default();
        held.tally.fade(hour, days);
        held.tally.add(tally);
        held.tally.cap(settings.reporter_cap);
        held
    }

    fn place_of(&mut self, reporter: &str, hour: u64, half_life_days: u32) -> String {
        if self.reporters.contains_key(reporter) || self.reporters.len() < MAX_REPORTERS {
            return reporter.to_owned();
        }
        self.reporters.retain(|_, held| {
            held.tally.fade(hour, half_life_days);
            !held.tally.is_empty() || held.reports.0 == hour
        });
        let full = self.reporters.len() >= MAX_REPORTERS;
        if full { OTHERS.to_owned() } else { reporter.to_owned() }
    }

    /// How many reports of `reporter` there are in the hour of `now`.
    pub fn reports_of(&self, reporter: &str, now: u64) -> u32 {
        let known = self.reporters.get(reporter).or_else(|| {
            let full = self.reporters.len() >= MAX_REPORTERS;
            full.then(|| self.reporters.get(OTHERS)).flatten()
        });
        match known.map(|r| r.reports) {
            Some((hour, n)) if hour == now.max(self.at) / HOUR => n,
            _ => 0,
        }
    }
}

/// What a slash still takes off at `now`.
pub fn remaining(slash: &Slash, now: u64, half_life_days: u32) -> f64 {
    let hours = now.saturating_sub(slash.at) as f64 / HOUR as f64;
    slash.points.value() * left(hours, half_life_days)
}

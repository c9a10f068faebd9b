//! The score of a ledger, at a moment. Pure; `docs/reputation.md` has the formula.

use std::collections::BTreeMap;

use aip_api::AgentName;
use aip_api::resource::Reputation;
use aip_api::resource::reputation::{Factor, MAX_SLASHES, ReputationSettings, Score, Slash};

use super::ledger::{Ledger, remaining};
use super::tally::{HOUR, Tally, UNIT, left, place};

/// A slash that takes less than this off has worn off: half of the smallest step that a score has.
const WORN_OFF: f64 = 0.005;
/// How far past a level's border a score must have risen before that is told: a score that plays about the border would
/// be pushed at every turn. A fall is told at once.
const RISE: u16 = 10;

/// What speaks for and against an agent in one factor, in observations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// For.
    pub good: f64,
    /// Against.
    pub bad: f64,
}

/// What counts of a factor at `now`: the lesser of what the hours and what the reporters come to, each with its caps.
pub fn counted(ledger: &Ledger, settings: &ReputationSettings, factor: Factor, now: u64) -> Counted {
    let (place, days) = (place(factor), settings.half_life_days);
    let of = |amount: fn(&Tally, usize) -> u64| {
        let faded = |tally: &Tally, cap: Option<u32>| {
            let hours = now as f64 / HOUR as f64 - tally.hour as f64;
            let whole = amount(tally, place) as f64 / UNIT as f64;
            cap.map_or(whole, |cap| whole.min(f64::from(cap))) * left(hours, days)
        };
        let hour_cap = settings.hour_cap.min(ledger.rules.hour_cap);
        let hours = faded(&ledger.settled, None) + faded(&ledger.open, Some(hour_cap));
        let reporters: f64 = ledger
            .reporters
            .values()
            .map(|reporter| faded(&reporter.tally, Some(settings.reporter_cap)))
            .sum();
        hours.min(reporters)
    };
    Counted {
        good: of(|tally, place| tally.good[place]),
        bad: of(|tally, place| tally.bad[place]),
    }
}

/// A factor out of ten: the mean of what was observed and of the prior, which weighs as `settings.evidence` observations.
pub fn factor_of(counted: Counted, settings: &ReputationSettings) -> f64 {
    let prior_weight = f64::from(settings.evidence.max(1));
    let points = settings.prior.value() * prior_weight + 10.0 * counted.good;
    points / (prior_weight + counted.good + counted.bad)
}

/// The weighted mean of the factors.
pub fn mean(factors: &BTreeMap<Factor, f64>, settings: &ReputationSettings) -> f64 {
    let weight = |factor: &Factor| f64::from(settings.factors.of(*factor));
    let total: f64 = factors.keys().map(weight).sum();
    let sum: f64 = factors.iter().map(|(factor, value)| weight(factor) * value).sum();
    if total > 0.0 {
        sum / total
    } else {
        settings.prior.value()
    }
}

/// The reputation that a ledger comes to at `now`.
pub fn reputation(agent: &AgentName, ledger: &Ledger, settings: &ReputationSettings, now: u64) -> Reputation {
    let all: BTreeMap<Factor, Counted> = Factor::ALL
        .into_iter()
        .map(|factor| (factor, counted(ledger, settings, factor, now)))
        .collect();
    let factors: BTreeMap<Factor, f64> = all.iter().map(|(f, c)| (*f, factor_of(*c, settings))).collect();
    let prior_weight = f64::from(settings.evidence.max(1));
    let known = |c: &Counted| 100.0 * (c.good + c.bad) / (c.good + c.bad + prior_weight);
    let confidence = mean(&all.iter().map(|(f, c)| (*f, known(c))).collect(), settings);
    let slashes = in_force(ledger, settings, now);
    let off: f64 = slashes.iter().map(|(points, _)| points).sum();
    let score = Score::clamped(mean(&factors, settings) - off);
    let score = ledger.ceiling.map_or(score, |ceiling| score.min(ceiling));
    let heaviest = slashes.into_iter().take(MAX_SLASHES).map(|(_, slash)| slash.clone());
    Reputation {
        agent: agent.clone(),
        score,
        level: score.level(),
        // 0 to 100.
        confidence: confidence.round() as u8,
        factors: factors
            .into_iter()
            .map(|(f, value)| (f, Score::clamped(value)))
            .collect(),
        slashes: heaviest.collect(),
        events: ledger.seq,
        at: now,
    }
}

/// The slashes that still take something off, the heaviest first.
fn in_force<'a>(ledger: &'a Ledger, settings: &ReputationSettings, now: u64) -> Vec<(f64, &'a Slash)> {
    let days = settings.slash_half_life_days;
    let mut all: Vec<_> = ledger.slashes.iter().map(|s| (remaining(s, now, days), s)).collect();
    all.retain(|(points, _)| *points >= WORN_OFF);
    all.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| x.id.cmp(&y.id)));
    all
}

/// Whether sidecars must be told: another level of the score or of a factor, another side of the floor, or another slash.
/// Not at every event.
pub fn worth_telling(told: &Reputation, now: &Reputation, settings: &ReputationSettings) -> bool {
    let well_above = |now: Score, border: Score| now.hundredths() >= border.hundredths() + RISE || now == Score::MAX;
    let changes_level = |told: Score, now: Score| {
        let (was, is) = (told.level(), now.level());
        is < was || is > was && well_above(now, is.from())
    };
    let below = |reputation: &Reputation| reputation.score < settings.floor;
    let crosses_floor = match (below(told), below(now)) {
        (false, is_below) => is_below,
        (true, _) => well_above(now.score, settings.floor),
    };
    let mut factors = now.factors.iter();
    let factor_changes =
        factors.any(|(factor, now)| told.factors.get(factor).is_none_or(|was| changes_level(*was, *now)));
    let is_new = |slash: &Slash| told.slashes.iter().all(|known| known.id != slash.id);
    crosses_floor || changes_level(told.score, now.score) || factor_changes || now.slashes.iter().any(is_new)
}

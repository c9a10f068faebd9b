//! Observations, good and bad, by factor, that fade by half in a half-life. Integers and whole hours: what happens in the
//! same hour comes to the same in any order, to the last digit.

use aip_api::resource::reputation::Factor;
use serde::{Deserialize, Serialize};

/// One observation, in the millionths that are counted: so fine that fading by the hour loses nothing that matters.
pub const UNIT: u64 = 1_000_000;
/// What has faded below this is forgotten: a thousandth of an observation.
const FORGOTTEN: u64 = UNIT / 1_000;
/// Seconds of an hour.
pub const HOUR: u64 = 3_600;

/// Amounts by factor, in the order of [`Factor::ALL`].
pub type Amounts = [u64; 5];

/// Observations as of the beginning of an hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Unix hours.
    pub hour: u64,
    /// What speaks for the agent.
    pub good: Amounts,
    /// What speaks against it.
    pub bad: Amounts,
}

/// The place of a factor in [`Amounts`].
pub const fn place(factor: Factor) -> usize {
    factor as usize
}

/// What is left of an amount, between 0 and 1, `hours` later.
pub fn left(hours: f64, half_life_days: u32) -> f64 {
    let half_life = f64::from(half_life_days.max(1)) * 24.0;
    (-(hours.max(0.0) / half_life)).exp2()
}

impl Tally {
    /// Nothing, in this hour.
    pub const fn at(hour: u64) -> Self {
        Self {
            hour,
            good: [0; 5],
            bad: [0; 5],
        }
    }

    /// Fades to a later hour; an earlier one changes nothing.
    pub fn fade(&mut self, hour: u64, half_life_days: u32) {
        if hour <= self.hour {
            return;
        }
        let left = left((hour - self.hour) as f64, half_life_days);
        let faded = |amount: &mut u64| {
            // Downwards: what is looked at often must fade as what is not.
            *amount = (*amount as f64 * left) as u64;
            if *amount < FORGOTTEN {
                *amount = 0;
            }
        };
        self.good.iter_mut().chain(&mut self.bad).for_each(faded);
        self.hour = hour;
    }

    /// Adds another of the same hour.
    pub fn add(&mut self, other: &Self) {
        let both = |into: &mut Amounts, from: &Amounts| {
            for (a, b) in into.iter_mut().zip(from) {
                *a = a.saturating_add(*b);
            }
        };
        both(&mut self.good, &other.good);
        both(&mut self.bad, &other.bad);
    }

    /// Keeps no more than `cap` observations of each.
    pub fn cap(&mut self, cap: u32) {
        let most = u64::from(cap) * UNIT;
        self.good
            .iter_mut()
            .chain(&mut self.bad)
            .for_each(|a| *a = (*a).min(most));
    }

    /// All that speaks against the agent.
    pub fn against(&self) -> u64 {
        self.bad.iter().fold(0, |sum, amount| sum.saturating_add(*amount))
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.good == [0; 5] && self.bad == [0; 5]
    }
}

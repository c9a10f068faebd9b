//! How often a reporter may have the audit searched: what it finds nothing of costs as much as what it finds.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::tally::HOUR;
use crate::refusal::{Reason, Refusal};

/// Look-ups of one reporter in an hour: twelve for each report that it may make, since who reports a hop of this moment asks
/// again until its record has come.
pub const MAX_LOOKUPS_AN_HOUR: u32 = 7_200;

/// Look-ups of the running hour, by reporter: as many as there are tokens.
#[derive(Debug, Default)]
pub struct Lookups(Mutex<(u64, HashMap<String, u32>)>);

impl Lookups {
    /// Counts one of `sub` at `now` (Unix seconds), before it is made.
    ///
    /// # Errors
    /// It had as many in this hour as it may.
    pub fn charge(&self, sub: &str, now: u64) -> Result<(), Refusal> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != now / HOUR {
            *held = (now / HOUR, HashMap::new());
        }
        let count = held.1.entry(sub.to_owned()).or_default();
        if *count >= MAX_LOOKUPS_AN_HOUR {
            let detail = format!("{sub} asked for hops {MAX_LOOKUPS_AN_HOUR} times in this hour");
            return Err(Refusal::new(Reason::RateExceeded, detail));
        }
        *count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reporter_has_so_many_look_ups_an_hour() {
        let lookups = Lookups::default();
        for _ in 0..MAX_LOOKUPS_AN_HOUR {
            lookups.charge("checker", 10 * HOUR).unwrap();
        }
        let refused = lookups.charge("checker", 10 * HOUR + 3_599).unwrap_err();
        assert_eq!(refused.reason, Reason::RateExceeded);
        lookups.charge("other", 10 * HOUR).unwrap();
        lookups.charge("checker", 11 * HOUR).unwrap();
    }
}

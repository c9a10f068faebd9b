//! Refusals of parties that nobody knows, and of known ones beyond their rate: anybody can cause any number of these, so
//! they are counted by reason and recorded every few seconds, with one address of those that were seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aip_audit::record::{self, Event};

/// Longest sample, in bytes: a SPIFFE ID or an address.
const MAX_SAMPLE: usize = 300;

/// Counts by reason. Reasons are words of this program, so there are few.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<BTreeMap<&'static str, (u64, String)>>);

impl Strangers {
    pub(super) fn count(&self, reason: &'static str, sample: impl FnOnce() -> String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, _) = all.entry(reason).or_insert_with(|| {
            let mut sample = sample();
            sample.truncate(sample.floor_char_boundary(MAX_SAMPLE));
            (0, sample)
        });
        *count += 1;
    }

    /// What was counted since the last time.
    pub(super) fn take(&self) -> Vec<Event> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let event = |(reason, (count, sample)): (&'static str, (u64, String))| {
            Event::Strangers(record::Strangers {
                reason: reason.to_owned(),
                count,
                sample,
            })
        };
        all.into_iter().map(event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_record_for_each_reason() {
        let strangers = Strangers::default();
        for n in 0..10_000 {
            strangers.count("no_certificate", || format!("192.0.2.{}", n % 250));
        }
        strangers.count("proxy_auth_required", || "x".repeat(10_000));
        let taken = strangers.take();
        assert_eq!(taken.len(), 2);
        let Event::Strangers(first) = &taken[0] else { panic!() };
        assert_eq!((first.count, first.sample.as_str()), (10_000, "192.0.2.0"));
        assert!(strangers.take().is_empty());
    }
}

//! How a record gets into the log: at once, or with those that others gather in the same moment.

use std::collections::VecDeque;
use std::time::Instant;

use aip_audit::log::{LogError, Writer};
use aip_audit::record::Settled;

use super::{Book, Place, Unrecorded, word};

/// How many losses of gathered records are told apart. A disk that stays full is one; who had its place before more than this
/// counts as lost.
const MAX_LOSSES: usize = 1024;

/// Which places of a log are those of gathered records that could not be written. Others get the same places later.
#[derive(Debug, Default)]
pub(super) struct Undone {
    /// How often it happened.
    times: u64,
    /// At which times from which place on, as far as no later one reaches back further: both rise.
    from: VecDeque<(u64, u64)>,
    /// Up to this time it is not known any more from which place on.
    forgotten: u64,
    /// Records, since that was last asked, and why.
    uncounted: (u64, &'static str),
}

impl Undone {
    fn add(&mut self, from: u64, records: u64, why: &'static str) {
        self.times += 1;
        while self.from.back().is_some_and(|(_, known)| *known >= from) {
            self.from.pop_back();
        }
        self.from.push_back((self.times, from));
        if self.from.len() > MAX_LOSSES {
            self.forgotten = self.from.pop_front().map_or(self.forgotten, |(time, _)| time);
        }
        self.uncounted = (self.uncounted.0 + records, why);
    }

    /// Whether the record of this place, which it got after so many losses, was lost later.
    fn has(&self, seq: u64, after: u64) -> bool {
        let later = self.from.iter().find(|(time, _)| *time > after);
        after < self.forgotten || later.is_some_and(|(_, from)| *from <= seq)
    }
}

impl Book {
    pub(super) fn write(&mut self, event: &mut Settled, at: u64, gathers: bool) -> Result<Place, Unrecorded> {
        let Some(writer) = &mut self.writer else {
            return Err(Unrecorded(self.why));
        };
        let written = match gathers {
            true => writer.gather(event, at),
            false => writer.append_settled(event, at),
        };
        match written {
            Ok(seq) => {
                self.unsigned_since.get_or_insert_with(Instant::now);
                Ok(Place {
                    life: self.life,
                    seq,
                    undone: self.undone.times,
                })
            }
            Err(error) => Err(Unrecorded(self.failed(&error))),
        }
    }

    /// Writes what was gathered. What can't be written is lost.
    pub(in crate::audit) fn write_gathered(&mut self) {
        let written = self.writer.as_mut().map(Writer::write_gathered);
        if let Some(Err(error)) = written {
            self.failed(&error);
        }
    }

    /// Whether records wait for their write.
    pub(in crate::audit) fn has_gathered(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::has_gathered)
    }

    /// Whether this record was gathered and lost: it was counted then.
    pub(in crate::audit) fn has_lost(&self, place: Place) -> bool {
        place.life == self.life && self.undone.has(place.seq, place.undone)
    }

    /// How many gathered records were lost since this was last asked, and why.
    pub(in crate::audit) fn take_undone(&mut self) -> (u64, &'static str) {
        std::mem::take(&mut self.undone.uncounted)
    }

    /// A write failed: why, as a stable word.
    fn failed(&mut self, error: &LogError) -> &'static str {
        let (why, life) = (word(error), self.life);
        let poisoned = matches!(error, LogError::Poisoned);
        if !poisoned && self.lost.unsaid().is_none() {
            tracing::error!(reason = why, %error, "a record could not be written");
        }
        let undone = self.writer.as_mut().map_or(0, Writer::take_undone);
        if undone > 0 {
            self.lost.add(why, undone);
            self.undone.add(self.size(), undone, why);
        }
        if poisoned {
            self.broken(life, error);
        }
        why
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against every place that was ever given, kept one by one.
        #[test]
        fn a_lost_record_is_known_from_the_one_that_has_its_place(steps in proptest::collection::vec((0_u8..4, 1_u64..4), 0..200)) {
            let (mut undone, mut size, mut given) = (Undone::default(), 0_u64, Vec::<(u64, u64, bool)>::new());
            for (kind, many) in steps {
                if kind < 3 {
                    for _ in 0..many {
                        given.push((size, undone.times, false));
                        size += 1;
                    }
                } else {
                    size = size.saturating_sub(many);
                    undone.add(size, many, "disk_full");
                    given.iter_mut().filter(|(seq, ..)| *seq >= size).for_each(|(.., lost)| *lost = true);
                }
                for (seq, after, lost) in &given {
                    prop_assert_eq!(undone.has(*seq, *after), *lost);
                }
            }
        }
    }

    #[test]
    fn what_is_kept_of_losses_is_bounded_and_what_is_forgotten_counts_as_lost() {
        let mut undone = Undone::default();
        for n in 0..2 * MAX_LOSSES as u64 {
            undone.add(n, 1, "disk_full");
        }
        assert_eq!(undone.from.len(), MAX_LOSSES);
        assert!(undone.has(0, 0) && !undone.has(0, undone.times));
    }
}

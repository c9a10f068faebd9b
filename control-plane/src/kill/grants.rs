//! The leases by which one process may go: what it was granted and says that it took, and all that it was granted since,
//! which may still be on its way. Pure.
//!
//! The certain end of a process is the latest that any of them allows. A lease that was changed from `continue` to `deny`
//! bounds nothing until the process says that it has it.

use std::collections::VecDeque;
use std::time::Duration;

use aip_api::kill::{Lease, OnLost};

use super::bound::{Known, stopped_by};

/// Different leases that may wait for their process to say that it has one; past it two are taken for the longer one.
const WAITING: usize = 8;

/// A lease, as it was granted to beats in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grant {
    /// The `sequence` of the first and the last beat that it was granted to; 0 is before any.
    beats: (u64, u64),
    lease: Lease,
    /// When the last of them was answered, of the boot clock.
    answered: Duration,
}

/// What one process may go by, oldest first; never empty.
#[derive(Debug, Clone)]
pub struct Grants(VecDeque<Grant>);

/// What a process may hold that this control plane has granted nothing yet: it may go by what it has on disk.
const FROM_DISK: Lease = Lease {
    seconds: 0,
    on_lost: OnLost::Continue,
};

impl Grants {
    /// Of a process that has just come: what it has on disk may let it go on.
    pub fn unknown() -> Self {
        Self::noted(&[FROM_DISK], Duration::ZERO)
    }

    /// Of one that was granted these before this control plane began; it was answered at `now` (of the boot clock) at the
    /// latest.
    pub fn noted(leases: &[Lease], now: Duration) -> Self {
        let grant = |lease: &Lease| Grant {
            beats: (0, 0),
            lease: *lease,
            answered: now,
        };
        match leases {
            [] => Self::unknown(),
            leases => Self(leases.iter().map(grant).collect()),
        }
    }

    /// It says that it goes by what was granted to its beat `sequence`: by nothing older any more. What it was never
    /// granted says nothing.
    pub fn taken(&mut self, sequence: u64) {
        let of = |grant: &Grant| grant.beats.0 <= sequence && sequence <= grant.beats.1;
        if sequence == 0 {
            return;
        }
        if let Some(at) = self.0.iter().position(of) {
            self.0.drain(..at);
        }
    }

    /// Its beat `sequence` is answered at `now` with this lease.
    pub fn granted(&mut self, sequence: u64, lease: Lease, now: Duration) {
        match self.0.back_mut() {
            Some(last) if last.lease == lease && last.beats.0 > 0 => {
                last.beats.1 = last.beats.1.max(sequence);
                last.answered = now;
            }
            _ => self.0.push_back(Grant {
                beats: (sequence, sequence),
                lease,
                answered: now,
            }),
        }
        if self.0.len() > WAITING {
            self.merge_oldest();
        }
    }

    /// Two become the one that lets a process go on for longer.
    fn merge_oldest(&mut self) {
        let (Some(first), Some(second)) = (self.0.pop_front(), self.0.pop_front()) else {
            return;
        };
        let longest = longer(first.lease, second.lease);
        self.0.push_front(Grant {
            beats: (first.beats.0, second.beats.1),
            lease: longest,
            answered: second.answered,
        });
    }

    /// The leases that it may go by, each once, with one that it is about to be granted.
    pub fn leases(&self, with: Option<Lease>) -> Vec<Lease> {
        let mut leases = Vec::new();
        for lease in self.0.iter().map(|grant| grant.lease).chain(with) {
            if !leases.contains(&lease) {
                leases.push(lease);
            }
        }
        leases
    }

    /// Unix seconds by which it has certainly stopped, and what stops it.
    pub fn stopped_by(&self, asked: Duration, not_after: u64, now: u64) -> (u64, &'static str) {
        let each = self.0.iter().map(|grant| {
            let known = Known {
                lease: Some(grant.lease),
                silent: asked.saturating_sub(grant.answered),
                not_after,
            };
            stopped_by(known, now)
        });
        each.max_by_key(|(at, _)| *at).unwrap_or((not_after, "svid"))
    }
}

fn longer(a: Lease, b: Lease) -> Lease {
    let length = |lease: &Lease| match lease.on_lost {
        OnLost::Continue => u64::MAX,
        OnLost::Deny => lease.seconds,
    };
    if length(&a) >= length(&b) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;
    const SVID: u64 = 9_000;

    fn deny(seconds: u64) -> Lease {
        Lease {
            seconds,
            on_lost: OnLost::Deny,
        }
    }

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn bound(grants: &Grants, second: u64) -> (u64, &'static str) {
        grants.stopped_by(at(second), SVID, NOW)
    }

    #[test]
    fn a_lease_bounds_nothing_until_its_process_has_it() {
        let mut grants = Grants::unknown();
        assert_eq!(bound(&grants, 0), (SVID, "svid"));
        grants.granted(1, deny(30), at(10));
        assert_eq!(bound(&grants, 10), (SVID, "svid"), "it may go by what it has on disk");
        grants.taken(1);
        assert_eq!(bound(&grants, 10), (NOW + 32, "lease"));
        // Changed, and the answer may be lost: what was granted before holds.
        grants.granted(2, deny(5), at(11));
        grants.granted(3, deny(5), at(12));
        assert_eq!(bound(&grants, 12), (NOW + 30, "lease"));
        grants.taken(3);
        assert_eq!(bound(&grants, 12), (NOW + 7, "lease"));
        grants.granted(4, deny(500), at(13));
        assert_eq!(
            bound(&grants, 13),
            (NOW + 506, "lease"),
            "it may have the longer one already"
        );
    }

    #[test]
    fn what_it_was_never_granted_is_not_believed_and_what_waits_is_bounded() {
        let mut grants = Grants::unknown();
        grants.granted(1, deny(30), at(1));
        for sequence in [0, 9] {
            grants.taken(sequence);
            assert_eq!(bound(&grants, 1).1, "svid");
        }
        grants.taken(1);
        for sequence in 2..100 {
            grants.granted(sequence, deny(1_000 - sequence), at(1));
        }
        assert!(grants.0.len() <= WAITING);
        assert_eq!(bound(&grants, 1).0, NOW + 998 + 11, "the longest is kept");
        grants.taken(99);
        assert_eq!(grants.leases(Some(deny(3))), [deny(901), deny(3)]);
    }

    #[test]
    fn a_control_plane_that_begins_goes_by_all_that_was_noted() {
        let mut grants = Grants::noted(&[Lease::default(), deny(5)], at(3));
        assert_eq!(bound(&grants, 3), (SVID, "svid"));
        grants.granted(7, deny(5), at(4));
        grants.taken(6);
        assert_eq!(
            bound(&grants, 4).1,
            "svid",
            "6 was granted by another process of the control plane"
        );
        grants.taken(7);
        assert_eq!(bound(&grants, 4), (NOW + 7, "lease"));
    }
}

//! By when a sidecar that can't be reached has certainly stopped. Pure.
//!
//! With a lease that denies: it counts at the sidecar from when it sent the beat that was answered last, which is
//! before it was answered here, so that no two clocks have to agree; only their rates may differ a little. Otherwise,
//! and at the latest: when its SVID ends, since neither it nor its peers go on with one that has.

use std::time::Duration;

use aip_api::kill::{Lease, OnLost};

/// How much faster or slower one clock may run than another: a hundredth is fifty times what a quartz does.
const DRIFT: u32 = 100;
/// And a moment, for the fraction of a second that is lost in whole ones.
const MOMENT: Duration = Duration::from_secs(1);

/// What is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// What was granted to it last.
    pub lease: Option<Lease>,
    /// For how long no beat of it was answered, at least.
    pub silent: Duration,
    /// Unix seconds at which the last SVID ends that it may hold.
    pub not_after: u64,
}

/// Unix seconds by which it has certainly stopped, and what stops it.
pub fn stopped_by(known: Known, now: u64) -> (u64, &'static str) {
    let Some(lease) = known.lease else {
        // Not by this control plane; it may hold from disk what it was granted before.
        return (known.not_after, "svid");
    };
    if lease.on_lost == OnLost::Continue {
        return (known.not_after, "svid");
    }
    let length = Duration::from_secs(lease.seconds);
    let left = (length + length / DRIFT + MOMENT).saturating_sub(known.silent);
    let at = now + left.as_secs() + u64::from(left.subsec_nanos() > 0);
    match at < known.not_after {
        true => (at, "lease"),
        false => (known.not_after, "svid"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(on_lost: OnLost, silent: u64, not_after: u64) -> Known {
        Known {
            lease: Some(Lease { seconds: 100, on_lost }),
            silent: Duration::from_secs(silent),
            not_after,
        }
    }

    #[test]
    fn a_lease_that_denies_ends_it_and_an_svid_in_any_case() {
        assert_eq!(stopped_by(known(OnLost::Deny, 0, 5_000), 1_000), (1_102, "lease"));
        assert_eq!(stopped_by(known(OnLost::Deny, 90, 5_000), 1_000), (1_012, "lease"));
        assert_eq!(stopped_by(known(OnLost::Deny, 500, 5_000), 1_000), (1_000, "lease"));
        assert_eq!(stopped_by(known(OnLost::Deny, 0, 1_050), 1_000), (1_050, "svid"));
        assert_eq!(stopped_by(known(OnLost::Continue, 0, 5_000), 1_000), (5_000, "svid"));
    }

    #[test]
    fn whoever_was_granted_nothing_yet_may_hold_what_it_was_granted_before() {
        let known = Known {
            lease: None,
            ..known(OnLost::Deny, 0, 5_000)
        };
        assert_eq!(stopped_by(known, 1_000), (5_000, "svid"));
    }
}

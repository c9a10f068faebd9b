//! What a report of drift does to an agent's generation. Pure, and used alike by the control plane and by the model that
//! explores what restarts, lost connections and restored copies of a store do to it.

/// What a report means to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfReport {
    /// It was taken already: the answer was lost, or somebody says it again.
    Known,
    /// The SVIDs of its generation are revoked: it says nothing about those in use.
    Over,
    /// SVIDs below this generation are revoked from now on.
    Raises(u64),
}

/// What a report of a drift under generation `reported` means to a store that has the agent at `current`; `began` is the
/// generation that began with the last drift, where the store knows that the reported run drifted.
///
/// A store that was restored from a copy may have the agent at an earlier generation than the SVID that the report was
/// signed with: the generation then goes above that of the SVID, since peers know it.
pub const fn of_report(reported: u64, began: Option<u64>, current: u64) -> OfReport {
    match began {
        Some(began) if began > reported => OfReport::Known,
        _ if reported < current => OfReport::Over,
        _ => OfReport::Raises(reported.saturating_add(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_raises_once_and_never_lowers() {
        for (reported, began, current, then) in [
            (1, None, 1, OfReport::Raises(2)),
            (1, Some(2), 2, OfReport::Known),
            (1, None, 2, OfReport::Over),
            // Another run of before the last drift.
            (2, Some(2), 2, OfReport::Raises(3)),
            // A store of before the generation that the SVID is of.
            (3, None, 1, OfReport::Raises(4)),
            (3, Some(2), 2, OfReport::Raises(4)),
        ] {
            assert_eq!(
                of_report(reported, began, current),
                then,
                "{reported} {began:?} {current}"
            );
        }
    }
}

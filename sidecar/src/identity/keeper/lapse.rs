//! An SVID that expires is taken away, and laid aside: a clock that was wrong for a moment costs no identity.

use std::time::Duration;

use aip_runtime::svid::{Svid, SvidSource};
use aip_runtime::unix_now;

use super::Keeper;

/// Between two looks at the clock.
const LOOK: Duration = Duration::from_secs(1);

/// Where an SVID stands by the clock of now.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It ends in this many seconds.
    Lasts(u64),
    /// It is not valid yet.
    Early,
    Over,
}

fn standing(not_before: u64, not_after: u64, now: u64) -> Standing {
    match (not_before <= now, not_after.saturating_sub(now)) {
        (_, 0) => Standing::Over,
        (false, _) => Standing::Early,
        (true, left) => Standing::Lasts(left),
    }
}

fn of(svid: &Svid) -> Standing {
    standing(svid.identity.not_before, svid.identity.not_after, unix_now())
}

impl Keeper {
    /// Takes away an SVID that expires: nothing goes in or out without one, to agents or to outside hosts. Puts it back
    /// where the clock says that it is valid after all, and nobody has revoked it since.
    pub(super) async fn clear_expired(&self) {
        let aside = SvidSource::default();
        let mut changed = self.svid.subscribe();
        loop {
            let look = match (self.svid.current(), aside.current()) {
                (Some(svid), _) => match of(&svid) {
                    Standing::Over => {
                        tracing::error!(
                            reason = "svid_expired",
                            serial = svid.identity.serial,
                            "the SVID has expired; nothing is served until it is renewed"
                        );
                        self.svid.hand_over(&aside);
                        self.ready.set("identity", false);
                        continue;
                    }
                    // The clock may be set, and timers count nothing while a machine sleeps: it is looked at again.
                    Standing::Lasts(_) | Standing::Early => {
                        aside.clear();
                        LOOK
                    }
                },
                (None, Some(svid)) if self.revoked.is_said_of(&svid.identity.serial) => {
                    self.give_up(&aside);
                    continue;
                }
                (None, Some(svid)) => {
                    if let Standing::Lasts(seconds) = of(&svid) {
                        tracing::warn!(
                            reason = "svid_valid_again",
                            serial = svid.identity.serial,
                            seconds,
                            "the clock was set back: the SVID is valid after all"
                        );
                        aside.hand_over(&self.svid);
                        self.ready.set("identity", true);
                    }
                    LOOK
                }
                (None, None) => Duration::MAX,
            };
            tokio::select! {
                () = tokio::time::sleep(look) => {}
                heard = changed.changed() => if heard.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_by_a_wrong_clock_lasts_by_the_right_one() {
        assert_eq!(standing(100, 200, 150), Standing::Lasts(50));
        assert_eq!(standing(100, 200, 200), Standing::Over);
        assert_eq!(standing(100, 200, 86_500), Standing::Over);
        assert_eq!(standing(100, 200, 99), Standing::Early);
    }
}

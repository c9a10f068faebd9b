//! What is done over and over: forgetting what has expired, renewing our certificate, rotating the intermediate.

use std::sync::Arc;
use std::time::Duration;

use aip_api::resource::reputation::ReputationSettings;

use crate::ca::{Ca, SERVER_SECONDS};
use crate::kill::Board;
use crate::refusal::Refusal;
use crate::registry::{Actor, Registry};

/// Sweeps between two looks at all reputations: scores recover in days, so some minutes more do not matter.
const SWEEPS_PER_REVIEW: u32 = 5;
/// How often what has expired is forgotten, and certificates are looked at.
const SWEEP: Duration = Duration::from_secs(60);

/// Runs until the task is dropped.
pub(super) async fn upkeep(registry: Registry, ca: Arc<Ca>, board: Arc<Board>) {
    let mut served = Served::now();
    let mut reviewed = Reviewed::default();
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        reviewed.review(&registry).await;
        if let Err(refusal) = registry.sweep().await {
            tracing::warn!(reason = refusal.reason(), "expired rows were not removed; trying again");
        }
        if let Err(refusal) = registry.drifted().await {
            tracing::warn!(
                reason = refusal.reason(),
                "drifted agents were not counted; trying again"
            );
        }
        let swept = async {
            board.note_restored(&registry).await?;
            registry.sweep_kills().await?;
            registry.forget_granted(&board.forget_ended(&registry).await?).await
        };
        if let Err(refusal) = swept.await {
            tracing::warn!(
                reason = refusal.reason(),
                "ended orders and processes were not forgotten"
            );
        }
        if let Err(refusal) = registry.sweep_history().await {
            tracing::warn!(
                reason = refusal.reason(),
                "former policies were not removed; trying again"
            );
        }
        if ca.wants_rotation() {
            let rotated: Result<u64, Refusal> = ca.rotate(&registry, &Actor::control_plane()).await;
            if let Err(refusal) = rotated {
                tracing::error!(
                    reason = refusal.reason(),
                    "the intermediate was not rotated; trying again"
                );
            }
        }
        if served.is_due(&Served::now()) {
            match ca.renew_server() {
                Ok(()) => served = Served::now(),
                Err(error) => tracing::error!(%error, "our certificate was not renewed; trying again"),
            }
        }
    }
}

/// When our certificate was made: by the clock that stands in it, and by one that nobody sets.
struct Served {
    clock: u64,
    boottime: Duration,
}

impl Served {
    fn now() -> Self {
        Self {
            clock: aip_runtime::unix_now(),
            boottime: aip_runtime::boottime(),
        }
    }

    /// At half of its life, by either; and at once where it begins in a time to come, since the clock was set back.
    fn is_due(&self, now: &Self) -> bool {
        let half = Duration::from_secs(SERVER_SECONDS / 2);
        now.clock < self.clock
            || now.clock - self.clock >= half.as_secs()
            || now.boottime.saturating_sub(self.boottime) >= half
    }
}

/// When reputations were looked at, and by which settings.
#[derive(Default)]
struct Reviewed {
    settings: Option<ReputationSettings>,
    sweeps: u32,
}

impl Reviewed {
    /// Looks at them where it is time, or the settings are others.
    async fn review(&mut self, registry: &Registry) {
        let settings = registry.reputation_settings().await.ok();
        self.sweeps += 1;
        if self.sweeps < SWEEPS_PER_REVIEW && self.settings == settings {
            return;
        }
        match registry.review_reputations().await {
            Ok(_) => (self.settings, self.sweeps) = (settings, 0),
            Err(refusal) => tracing::warn!(
                reason = refusal.reason(),
                "reputations were not looked at; trying again"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_certificate_is_renewed_at_half_of_its_life_and_when_the_clock_was_set_back() {
        let at = |clock: u64, passed: u64| Served {
            clock,
            boottime: Duration::from_secs(passed),
        };
        let (half, day) = (SERVER_SECONDS / 2, 86_400);
        let made = at(1_000_000, 500);
        assert!(!made.is_due(&at(1_000_060, 560)));
        assert!(made.is_due(&at(1_000_000 + half, 500 + half)));
        assert!(made.is_due(&at(1_000_000 + day, 560)), "the clock was set ahead");
        assert!(made.is_due(&at(1_000_000, 500 + half)), "it stood still");
        // Made while it was a day ahead: peers take it for one of tomorrow.
        assert!(at(1_000_000 + day, 500).is_due(&at(1_000_060, 560)));
    }
}

//! The time of day, which tests can move.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aip_runtime::boottime;

/// Seconds by which the system's clock may run ahead of what has passed since this process began, in all, and still be
/// followed: what the mesh tolerates between any two clocks. A clock that is disciplined is slewed, and what passed with it.
pub const MAX_STEP_SECONDS: u64 = 300;

/// Unix seconds. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    passed: AtomicU64,
    stepped: AtomicU64,
    /// What the system's clock said when it was first asked, and what had passed since the boot. It stays as it is: else as
    /// many small steps as anybody likes would be followed, and after a step back what it was set back from would not.
    began: OnceLock<(u64, Duration)>,
}

impl Clock {
    /// Seconds since the Unix epoch, and what [`Self::advance`] added.
    pub fn now(&self) -> u64 {
        let added = self.0.passed.load(Ordering::Relaxed) + self.0.stepped.load(Ordering::Relaxed);
        aip_runtime::unix_now() + added
    }

    /// Like [`Self::now`], but a clock that steps ahead while this process runs is not followed by more than
    /// [`MAX_STEP_SECONDS`] in all, in however many steps: for what would be lost if a day passed in a moment. One that is
    /// set back is followed, and back again to where it began.
    pub fn steady(&self) -> u64 {
        let passed = boottime() + Duration::from_secs(self.0.passed.load(Ordering::Relaxed));
        let now = self.now();
        let (then, at) = *self.0.began.get_or_init(|| (now, passed));
        now.min(then + passed.saturating_sub(at).as_secs() + MAX_STEP_SECONDS)
    }

    /// Lets time pass. For tests of what expires: certificates go by the system's clock.
    pub fn advance(&self, seconds: u64) {
        self.0.passed.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Sets the clock to this many seconds ahead of the system's, though no time has passed. For tests of a wrong clock.
    pub fn step(&self, seconds: u64) {
        self.0.stepped.store(seconds, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ahead_is_not_followed_and_what_passes_is() {
        let clock = Clock::default();
        let before = clock.steady();
        clock.step(86_400);
        assert!(clock.now() >= before + 86_400);
        let held = clock.steady();
        assert!(held <= before + MAX_STEP_SECONDS + 60, "{held} after {before}");
        assert!(clock.steady() <= held + 60, "looking often does not carry it along");
        clock.advance(7 * 86_400);
        assert!(clock.steady() >= before + 7 * 86_400, "what passed, passed");
        clock.step(0);
        assert!(clock.steady() >= before + 7 * 86_400 && clock.steady() <= clock.now());
    }

    /// However often somebody looks in between.
    #[test]
    fn many_small_steps_are_followed_no_further_than_one() {
        let clock = Clock::default();
        let before = clock.steady();
        for steps in 1..=288 {
            clock.step(steps * MAX_STEP_SECONDS);
            let held = clock.steady();
            assert!(
                held <= before + MAX_STEP_SECONDS + 60,
                "{held} after {before}, {steps} steps"
            );
        }
        // Set right again, it is as if nothing had been.
        clock.step(0);
        assert!((before..before + 60).contains(&clock.steady()));
        // Set back by a day, and right again later: it is followed both ways, and what passed meanwhile has passed.
        let clock = Clock::default();
        clock.step(2 * 86_400);
        let before = clock.steady();
        clock.step(86_400);
        assert!(clock.steady() <= before - 86_400 + 60);
        clock.advance(3_600);
        clock.step(2 * 86_400);
        assert!((before + 3_600..before + 3_600 + 60).contains(&clock.steady()));
    }
}

//! Waits between attempts: exponential with full jitter, so that a fleet does not come back in step.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// The waits of one loop.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    attempt: u32,
    random: SystemRandom,
}

impl Backoff {
    /// Waits of at most `min`, then twice that, up to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            attempt: 0,
            random: SystemRandom::new(),
        }
    }

    /// The next wait: uniform between nothing and the current bound.
    #[allow(clippy::should_implement_trait)] // it never ends, and callers reset it
    pub fn next(&mut self) -> Duration {
        let bound = self.min.saturating_mul(1 << self.attempt.min(16)).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        bound.mul_f64(self.fraction())
    }

    /// Starts over after success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    fn fraction(&self) -> f64 {
        jitter(&self.random)
    }
}

/// A uniform number in [0, 1).
pub fn jitter(random: &SystemRandom) -> f64 {
    let mut bytes = [0u8; 4];
    // A system without randomness can't make keys either; here it only loses its jitter.
    if random.fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_start_over() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(3));
        let mut backoff = Backoff::new(min, max);
        assert!(backoff.next() <= min);
        for _ in 0..100 {
            assert!(backoff.next() <= max);
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}

//! How many messages a stream takes.

use tokio::time::Instant;

use crate::refusal::{Reason, Refusal};

/// How many at once, and how many a second after that.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

/// What is left of a rate.
pub(crate) struct Bucket {
    rate: Rate,
    tokens: f64,
    refilled: Instant,
}

impl Bucket {
    /// All of it.
    pub(crate) fn full(rate: Rate) -> Self {
        Self {
            rate,
            tokens: rate.burst,
            refilled: Instant::now(),
        }
    }

    /// One message less.
    pub(crate) fn spend(&mut self) -> Result<(), Refusal> {
        let now = Instant::now();
        let refill = (now - self.refilled).as_secs_f64() * self.rate.per_second;
        self.tokens = (self.tokens + refill).min(self.rate.burst);
        self.refilled = now;
        if self.tokens < 1.0 {
            return Err(Reason::RateExceeded.into());
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

//! How much comes in a time: messages of one stream, and what an agent's sidecars may cause together, on however many
//! streams.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::refusal::{Reason, Refusal};

/// Names from which on those are looked for whose bucket is full again.
const FEW: usize = 256;

/// How many at once, and how many a second after that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

/// What is left of a rate.
#[derive(Debug)]
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

    fn refill(&mut self) {
        let now = Instant::now();
        let refill = now.saturating_duration_since(self.refilled).as_secs_f64() * self.rate.per_second;
        self.tokens = (self.tokens + refill).min(self.rate.burst);
        self.refilled = now;
    }

    /// One less.
    ///
    /// # Errors
    /// None is left.
    pub(crate) fn spend(&mut self) -> Result<(), Refusal> {
        self.refill();
        if self.tokens < 1.0 {
            return Err(Reason::RateExceeded.into());
        }
        self.tokens -= 1.0;
        Ok(())
    }

    /// One less, also where none is left: how long to wait until that is made up for. Nobody owes more than once all of it,
    /// whatever others caused under the same name.
    fn owe(&mut self) -> Duration {
        self.refill();
        self.tokens = (self.tokens - 1.0).max(-self.rate.burst);
        Duration::from_secs_f64((-self.tokens).max(0.0) / self.rate.per_second)
    }
}

/// One rate for each of many, by name: an agent, or a log of one.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    held: Mutex<HashMap<String, Bucket>>,
}

impl Rates {
    /// Everybody's is full.
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            held: Mutex::default(),
        }
    }

    fn with<T>(&self, name: &str, change: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Whenever as many have come as there was room for: what is full again is what a new one would be.
        if held.len() >= FEW && held.len() == held.capacity() {
            held.retain(|_, bucket| {
                bucket.refill();
                bucket.tokens < bucket.rate.burst
            });
        }
        let bucket = held.entry(name.to_owned()).or_insert_with(|| Bucket::full(self.rate));
        change(bucket)
    }

    /// One less of this name's.
    ///
    /// # Errors
    /// None is left.
    pub(crate) fn spend(&self, name: &str) -> Result<(), Refusal> {
        self.with(name, Bucket::spend)
    }

    /// One less of this name's, also where none is left: how long whoever caused it is to wait.
    pub(crate) fn owe(&self, name: &str) -> Duration {
        self.with(name, Bucket::owe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 2.0,
        per_second: 4.0,
    };

    #[tokio::test(start_paused = true)]
    async fn each_name_has_its_own_and_gets_it_back() {
        let rates = Rates::new(RATE);
        assert!(rates.spend("a").is_ok() && rates.spend("a").is_ok());
        assert_eq!(rates.spend("a").unwrap_err().reason(), "rate_exceeded");
        assert!(rates.spend("b").is_ok());
        tokio::time::advance(Duration::from_millis(250)).await;
        assert!(rates.spend("a").is_ok() && rates.spend("a").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_owes_waits_the_longer_the_more_it_is() {
        let rates = Rates::new(RATE);
        let waits: Vec<u128> = (0..4).map(|_| rates.owe("a").as_millis()).collect();
        assert_eq!(waits, [0, 0, 250, 500]);
    }

    #[tokio::test(start_paused = true)]
    async fn whose_is_full_again_is_forgotten() {
        let rates = Rates::new(RATE);
        for n in 0..10_000 {
            rates.spend(&n.to_string()).unwrap();
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!(
            rates.held.lock().unwrap().len() < 4 * FEW,
            "those of the last second, and some"
        );
    }
}

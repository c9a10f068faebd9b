//! The time of day, which tests can move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Unix seconds. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// Seconds since the Unix epoch, and what [`Self::advance`] added.
    pub fn now(&self) -> u64 {
        aip_runtime::unix_now() + self.0.load(Ordering::Relaxed)
    }

    /// Moves the clock forward. For tests of what expires: certificates go by the system's clock.
    pub fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

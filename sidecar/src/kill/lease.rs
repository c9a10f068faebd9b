//! The lease: until when this sidecar may go on without hearing from the control plane. Read at every request and
//! every frame of an open stream, so that a process that was stopped and goes on does not pass a byte more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aip_api::kill::{Lease as Granted, OnLost};
use aip_runtime::boottime;
use tokio::sync::watch;

/// A lease without end: losing it changes nothing.
const ENDLESS: u64 = u64::MAX;

/// The lease of this process. At first it has none: everything is refused.
#[derive(Debug)]
pub struct Lease {
    /// Milliseconds of the boot clock.
    until: AtomicU64,
    changed: watch::Sender<()>,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            until: AtomicU64::new(0),
            changed: watch::Sender::new(()),
        }
    }
}

impl Lease {
    /// Takes what a heartbeat grants to the beat that was sent at `sent` (of the boot clock).
    pub fn grant(&self, granted: Granted, sent: Duration) {
        let until = match granted.on_lost {
            OnLost::Continue => ENDLESS,
            OnLost::Deny => millis(sent).saturating_add(granted.seconds.saturating_mul(1_000)),
        };
        self.until.store(until, Ordering::Release);
        self.changed.send_replace(());
    }

    /// Whether everything is refused.
    pub fn is_lost(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        until != ENDLESS && millis(boottime()) >= until
    }

    /// What is left of it; `None`: it has no end.
    pub fn left(&self) -> Option<Duration> {
        let until = self.until.load(Ordering::Acquire);
        (until != ENDLESS).then(|| Duration::from_millis(until.saturating_sub(millis(boottime()))))
    }

    /// Resolves when it is lost, or is lost already.
    pub async fn lost(&self) {
        let mut changed = self.changed.subscribe();
        loop {
            match self.left() {
                Some(left) if left.is_zero() => return,
                // A machine that slept counts no time in timers: what is left is looked at again.
                Some(left) => {
                    let _ = tokio::time::timeout(left, changed.changed()).await;
                }
                None => {
                    let _ = changed.changed().await;
                }
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(ENDLESS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(seconds: u64, on_lost: OnLost) -> Granted {
        Granted { seconds, on_lost }
    }

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for() {
        let lease = Lease::default();
        assert!(lease.is_lost(), "nothing was granted yet");
        lease.grant(granted(5, OnLost::Deny), boottime());
        assert!(!lease.is_lost());
        // The answer took its time: what it grants is over when it comes.
        lease.grant(
            granted(5, OnLost::Deny),
            boottime().saturating_sub(Duration::from_secs(6)),
        );
        assert!(lease.is_lost());
        lease.grant(granted(5, OnLost::Continue), Duration::ZERO);
        assert!(!lease.is_lost() && lease.left().is_none());
    }

    #[tokio::test]
    async fn whoever_waits_for_its_end_hears_of_it() {
        let lease = std::sync::Arc::new(Lease::default());
        lease.grant(granted(5, OnLost::Continue), boottime());
        let waiting = tokio::spawn({
            let lease = lease.clone();
            async move { lease.lost().await }
        });
        lease.grant(
            granted(5, OnLost::Deny),
            boottime().saturating_sub(Duration::from_secs(9)),
        );
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .unwrap()
            .unwrap();
    }
}

//! Connections to the outbound port on which nobody has shown the secret yet. They may have half of its places; past
//! that the oldest gives way to the next: a process that opens connections and says nothing does not keep the agent
//! out, which shows the secret with its first request.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use super::limits::MAX_OUTBOUND_STRANGERS;

/// The connections, oldest first.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<VecDeque<Weak<Stranger>>>);

/// One of them, until it is known.
#[derive(Debug, Default)]
pub(super) struct Stranger {
    known: AtomicBool,
    settled: Notify,
}

impl Stranger {
    /// The connection is the agent's from the first request on that shows the secret; whether it does is asked until
    /// then.
    pub(super) fn learns(&self, shows: impl FnOnce() -> bool) {
        if !self.known.load(Ordering::Relaxed) && shows() {
            self.known.store(true, Ordering::Relaxed);
            self.settled.notify_one();
        }
    }

    /// Resolves when it is settled what becomes of the connection: true, it is known and stays; false, it gives way.
    pub(super) async fn stays(&self) -> bool {
        self.settled.notified().await;
        self.known.load(Ordering::Relaxed)
    }
}

impl Strangers {
    /// One more; the oldest gives way if there are too many.
    pub(super) fn enter(&self) -> Arc<Stranger> {
        let stranger = Arc::new(Stranger::default());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_OUTBOUND_STRANGERS {
            all.retain(|one| one.upgrade().is_some_and(|one| !one.known.load(Ordering::Relaxed)));
        }
        if all.len() >= MAX_OUTBOUND_STRANGERS
            && let Some(oldest) = all.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.settled.notify_one();
        }
        all.push_back(Arc::downgrade(&stranger));
        stranger
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_oldest_stranger_gives_way_and_nobody_who_is_known() {
        let strangers = Strangers::default();
        let agent = strangers.enter();
        agent.learns(|| false);
        assert_eq!(agent.stays().now_or_never(), None, "not yet");
        agent.learns(|| true);
        assert_eq!(agent.stays().now_or_never(), Some(true));
        let flood: Vec<_> = (0..MAX_OUTBOUND_STRANGERS).map(|_| strangers.enter()).collect();
        assert!(flood.iter().all(|one| one.stays().now_or_never().is_none()));
        let _next = strangers.enter();
        let gone: Vec<_> = (0..flood.len())
            .filter(|i| flood[*i].stays().now_or_never() == Some(false))
            .collect();
        assert_eq!(gone, [0], "the oldest, and no other");
        drop(flood);
        let again: Vec<_> = (0..MAX_OUTBOUND_STRANGERS - 1).map(|_| strangers.enter()).collect();
        let settled = again.iter().any(|one| one.stays().now_or_never().is_some());
        assert!(!settled, "who has left holds no place");
        assert!(strangers.0.lock().unwrap().len() <= MAX_OUTBOUND_STRANGERS);
    }
}

//! A clock that a test moves, beside sockets that go on by themselves.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::task::{spawn_blocking, yield_now};

use crate::mesh::DEADLINE;

/// tokio's clock, paused (`start_paused = true`): it goes on where the test says so, and not by itself.
pub struct Paused {
    /// While a thread is busy the clock does not go on by itself; it ends with this.
    _busy: SyncSender<()>,
}

impl Paused {
    pub fn new() -> Self {
        let (busy, ends) = sync_channel::<()>(0);
        spawn_blocking(move || ends.recv().is_ok());
        Self { _busy: busy }
    }

    /// Waits by the clock on the wall: the other one stands still.
    pub async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < DEADLINE, "{what}");
            yield_now().await;
        }
    }

    /// Lets everything that is due happen.
    pub async fn settle(&self) {
        for _ in 0..1_000 {
            yield_now().await;
        }
    }

    /// So much time passes, and what was to happen by then has happened.
    pub async fn passes(&self, time: Duration) {
        self.settle().await;
        tokio::time::advance(time).await;
        self.settle().await;
    }
}

//! Draining: every live connection holds a [`DrainWatch`]; the process ends when all are dropped, or at the deadline.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Starts the drain and waits for it.
#[derive(Debug)]
pub struct Drain {
    signal: watch::Sender<bool>,
    // Nothing is ever sent: `recv` answers `None` once every watch has dropped its sender.
    idle: mpsc::Receiver<()>,
}

/// Held by whatever must end before the process does.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    signal: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

/// A drain and its first watch.
pub fn channel() -> (Drain, DrainWatch) {
    let (signal, seen) = watch::channel(false);
    let (alive, idle) = mpsc::channel(1);
    (
        Drain { signal, idle },
        DrainWatch {
            signal: seen,
            _alive: alive,
        },
    )
}

impl DrainWatch {
    /// Resolves when the drain starts.
    pub async fn draining(&mut self) {
        // An error means that the `Drain` is gone, and with it the process.
        let _ = self.signal.wait_for(|draining| *draining).await;
    }

    /// Whether the drain has started.
    pub fn is_draining(&self) -> bool {
        *self.signal.borrow()
    }
}

impl Drain {
    /// Tells all watches.
    pub fn start(&self) {
        self.signal.send_replace(true);
    }

    /// Waits until all watches are dropped: true, or false at the deadline.
    pub async fn idle(mut self, deadline: Duration) -> bool {
        tokio::time::timeout(deadline, self.idle.recv()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_every_watch_but_not_past_the_deadline() {
        let (drain, watch) = channel();
        let mut held = watch.clone();
        drop(watch);
        let task = tokio::spawn(async move {
            held.draining().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        drain.start();
        assert!(drain.idle(Duration::from_secs(5)).await);
        task.await.unwrap();

        let (drain, watch) = channel();
        drain.start();
        assert!(watch.is_draining());
        assert!(
            !drain.idle(Duration::from_secs(5)).await,
            "a stuck connection is left behind"
        );
    }
}

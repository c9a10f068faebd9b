//! The signals that end a supervisor: caught from the start, so that none of them leaves a child behind.

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

/// SIGTERM, SIGINT and SIGHUP. Children stand in process groups of their own, so a terminal's signals reach only us.
pub(crate) struct Signals {
    term: unix::Signal,
    int: unix::Signal,
    hup: unix::Signal,
}

impl Signals {
    /// From here on they no longer end this process.
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            term: unix::signal(SignalKind::terminate())?,
            int: unix::signal(SignalKind::interrupt())?,
            hup: unix::signal(SignalKind::hangup())?,
        })
    }

    /// The next of them.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::TERM,
            _ = self.int.recv() => Signal::INT,
            _ = self.hup.recv() => Signal::HUP,
        }
    }
}

/// SIGCHLD, which ends nothing: a child of ours has ended.
pub(crate) struct Children(unix::Signal);

impl Children {
    /// From here on.
    pub(crate) fn catch() -> std::io::Result<Self> {
        unix::signal(SignalKind::child()).map(Self)
    }

    /// Resolves when one has ended.
    pub(crate) async fn ended(&mut self) {
        let _ = self.0.recv().await;
    }
}

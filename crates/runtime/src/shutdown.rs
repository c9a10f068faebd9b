//! Signals that end the process.

/// Resolves to the signal's name at SIGTERM or SIGINT. A second SIGINT finds the default action again only if the
/// caller stops waiting; binaries end at their drain deadline anyway.
pub async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        // Without handlers the default action applies: the process ends at once.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}

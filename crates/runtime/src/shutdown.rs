//! What ends the process: signals, and the end of whoever supervises it.

use std::io::Read as _;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// The longest a process may take to end by itself once its supervisor is gone: nobody is left to end it harder. Longer
/// than the default drain (20 s).
pub const ORPHANED: Duration = Duration::from_secs(40);

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

/// From here on the end of standard input is a SIGTERM to this process: a supervisor holds the other end of a pipe, and
/// the kernel closes it however the supervisor ends. What is not over after [`ORPHANED`] is killed.
///
/// # Errors
/// The system has no thread to spare.
pub fn follow_standard_input() -> std::io::Result<()> {
    std::thread::Builder::new().name("lifeline".into()).spawn(|| {
        let (mut input, mut bytes) = (std::io::stdin().lock(), [0; 64]);
        loop {
            match input.read(&mut bytes) {
                Ok(1..) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
        let _ = kill_process(getpid(), Signal::TERM);
        std::thread::sleep(ORPHANED);
        let _ = kill_process(getpid(), Signal::KILL);
    })?;
    Ok(())
}

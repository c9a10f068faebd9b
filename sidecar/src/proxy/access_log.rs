//! The access log: one JSON line a request. Lines are gathered and written by a thread of their own, so that a slow
//! reader of standard output never holds up a request; what does not fit is dropped and counted.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::limits::{LOG_GATHER, MAX_LOG_BUFFER};

/// Where access log lines go. Cloning shares it; the last clone to be dropped writes what is left.
#[derive(Clone)]
pub struct AccessLog(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    closed: bool,
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessLog")
    }
}

impl AccessLog {
    /// To standard output.
    pub fn stdout() -> Self {
        Self::to(std::io::stdout())
    }

    /// To `out`.
    pub fn to(mut out: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let mine = shared.clone();
        let thread = std::thread::Builder::new().name("access-log".into());
        let thread = thread.spawn(move || {
            while let Some(lines) = mine.next() {
                // Nobody reads: there is nowhere to say so.
                let _ = out.write_all(&lines).and_then(|()| out.flush());
            }
        });
        if let Err(error) = &thread {
            tracing::error!(%error, "no thread for the access log: lines will be dropped");
        }
        Self(Arc::new(Inner {
            shared,
            thread: thread.ok(),
        }))
    }

    /// Adds a line, which ends in a newline. False when it was dropped.
    pub(crate) fn write(&self, line: &[u8]) -> bool {
        let shared = &self.0.shared;
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lines.len() + line.len() > MAX_LOG_BUFFER {
            return false;
        }
        let first = state.lines.is_empty();
        state.lines.extend_from_slice(line);
        drop(state);
        if first {
            shared.filled.notify_one();
        }
        true
    }
}

impl Shared {
    /// What has gathered; `None` at the end.
    fn next(&self) -> Option<Vec<u8>> {
        let wait_for = |state: &mut State| state.lines.is_empty() && !state.closed;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self
            .filled
            .wait_while(state, wait_for)
            .unwrap_or_else(PoisonError::into_inner);
        // One write for what comes in the next moment, too; an end is not made to wait.
        let gathered = self.filled.wait_timeout_while(state, LOG_GATHER, |state| !state.closed);
        let (mut state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        if state.lines.is_empty() {
            return None;
        }
        let room = state.lines.len().min(64 * 1024);
        Some(std::mem::replace(&mut state.lines, Vec::with_capacity(room)))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.filled.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_last_lines_are_written_before_the_end() {
        let sink = Sink::default();
        let log = AccessLog::to(sink.clone());
        for i in 0..1_000 {
            assert!(log.write(format!("{i}\n").as_bytes()));
        }
        drop(log);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1_000);
    }

    #[test]
    fn a_reader_that_is_stuck_costs_lines_and_not_memory() {
        struct Stuck(std::sync::mpsc::Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = std::sync::mpsc::sync_channel(0);
        let log = AccessLog::to(Stuck(stuck));
        let line = vec![b'x'; 1024 * 1024];
        let taken = (0..64).filter(|_| log.write(&line)).count();
        assert!(taken <= 10, "{taken} MiB are held");
        drop(release);
    }
}

//! Asking whoever supervises the agent to end its process, or to let it run again.
//!
//! `aip run` gives its sidecar one end of a socket pair as standard input: its end tells the sidecar that the supervisor
//! is gone, and on it the sidecar says what is to become of the agent, one JSON object a line:
//! `{"agent":"stop","order":"<id>","reason":"…"}` or `{"agent":"run"}`. What was said last counts; a sidecar that was
//! restarted says it again. Before it has an SVID it says `{"waits":"<fingerprint>"}` of the measurement that a person must
//! approve, and that again where another one came to lie there. Where it needs a join token that was not used, it says
//! `{"token":"<id of the one it has>"}`, with no id where it has none.
//!
//! A supervisor that does not read holds nobody up: what it could not be told is said again at the next beat.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};

use aip_api::Digest;
use rustix::fs::FileType;
use rustix::net::SendFlags;
use serde_json::json;

/// The way to the supervisor, where there is one.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    listens: bool,
    said: Arc<Mutex<Said>>,
}

/// What it was told.
#[derive(Debug, Default)]
struct Said {
    /// The whole line that was said last.
    line: Option<String>,
    /// Part of a line was said, which must not run into the next.
    broken: bool,
}

impl Supervisor {
    /// Whoever holds the other end of standard input, where that is a socket.
    pub fn on_standard_input() -> Self {
        let stat = rustix::fs::fstat(std::io::stdin());
        Self {
            listens: stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket),
            said: Arc::default(),
        }
    }

    /// Says what is to become of the agent: stopped by this order (its id and reason), or run. Said once.
    pub(crate) fn tell(&self, order: Option<(&str, &str)>) {
        if !self.listens {
            return;
        }
        let message = match order {
            Some((id, reason)) => json!({ "agent": "stop", "order": id, "reason": reason }),
            None => json!({ "agent": "run" }),
        };
        if let Err(error) = self.say(&message) {
            tracing::error!(%error, "the supervisor can't be asked; the agent's process is as it was");
        }
    }

    /// Says that a person must approve this measurement before there is an SVID.
    pub(crate) fn waits_for(&self, measurement: Digest) {
        if !self.listens {
            return;
        }
        if let Err(error) = self.say(&json!({ "waits": measurement })) {
            tracing::warn!(%error, "the supervisor can't be told what waits for approval");
        }
    }

    /// Says that another join token is needed than this one; at each attempt, since it may be heard at none of them.
    pub(crate) fn needs_token(&self, used: Option<&str>) {
        if !self.listens {
            return;
        }
        self.said.lock().unwrap_or_else(PoisonError::into_inner).line = None;
        if let Err(error) = self.say(&json!({ "token": used.unwrap_or_default() })) {
            tracing::warn!(%error, "the supervisor can't be asked for a join token");
        }
    }

    fn say(&self, message: &serde_json::Value) -> std::io::Result<()> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.say(std::io::stdin().as_fd(), format!("{message}\n"))
    }
}

impl Said {
    /// Says a line, unless it was said last. Never waits.
    fn say(&mut self, socket: std::os::fd::BorrowedFd<'_>, line: String) -> std::io::Result<()> {
        if self.line.as_ref() == Some(&line) {
            return Ok(());
        }
        let bytes = format!("{}{line}", if self.broken { "\n" } else { "" }).into_bytes();
        // What was said before does not hold any more, whatever comes of this.
        self.line = None;
        let sent = rustix::net::send(socket, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        self.broken = sent < bytes.len();
        if self.broken {
            return Err(std::io::Error::from(std::io::ErrorKind::WouldBlock));
        }
        self.line = Some(line);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_supervisor_that_does_not_read_holds_nobody_up_and_is_told_again() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut said = Said::default();
        let line = |n: usize| format!("{{\"n\":{n}}}{}\n", " ".repeat(1_000));
        let refused = (0..100_000).find(|n| said.say(ours.as_fd(), line(*n)).is_err());
        let refused = refused.expect("the socket takes everything");
        theirs.set_nonblocking(true).unwrap();
        let mut read = Vec::new();
        assert!(theirs.read_to_end(&mut read).is_err(), "open still");
        said.say(ours.as_fd(), line(refused)).unwrap();
        said.say(ours.as_fd(), line(refused)).unwrap();
        let before = read.len();
        assert!(theirs.read_to_end(&mut read).is_err());
        assert!(read.len() <= before + 1_100, "said once");
        let text = String::from_utf8(read).unwrap();
        assert_eq!(text.lines().last(), Some(line(refused).trim_end_matches('\n')));
    }
}

//! Asking whoever supervises the agent to end its process, or to let it run again.
//!
//! `aip run` gives its sidecar one end of a socket pair as standard input: its end tells the sidecar that the supervisor
//! is gone, and on it the sidecar says what is to become of the agent, one JSON object a line:
//! `{"agent":"stop","order":"<id>","reason":"…"}` or `{"agent":"run"}`. What was said last counts; a sidecar that was
//! restarted says it again.

use std::sync::Arc;

use rustix::fs::FileType;
use serde_json::json;

/// The way to the supervisor, where there is one.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    listens: bool,
    said: Arc<tokio::sync::Mutex<Option<String>>>,
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
    pub(crate) async fn tell(&self, order: Option<(&str, &str)>) {
        if !self.listens {
            return;
        }
        let message = match order {
            Some((id, reason)) => json!({ "agent": "stop", "order": id, "reason": reason }),
            None => json!({ "agent": "run" }),
        };
        let line = format!("{message}\n");
        let mut said = self.said.lock().await;
        if said.as_ref() == Some(&line) {
            return;
        }
        let bytes = line.clone().into_bytes();
        let written = tokio::task::spawn_blocking(move || rustix::io::write(std::io::stdin(), &bytes)).await;
        match written {
            Ok(Ok(_)) => *said = Some(line),
            Ok(Err(error)) => {
                tracing::error!(%error, "the supervisor can't be asked; the agent's process is as it was")
            }
            Err(error) => tracing::error!(%error, "the supervisor can't be asked; the agent's process is as it was"),
        }
    }
}

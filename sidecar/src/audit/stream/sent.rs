//! What the control plane has, by its own word.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::files::Held;

/// What the control plane has, by log.
#[derive(Debug, Clone, Default)]
pub(in crate::audit) struct Sent {
    pub(super) connected: bool,
    /// Something was refused that may be taken later, and why.
    pub(super) asks_again: Option<String>,
    pub(super) logs: BTreeMap<String, Held>,
}

impl Sent {
    /// The segment from which on the control plane does not have this log, by its word on the stream of now: what it had
    /// before, it may have lost since.
    pub(in crate::audit) fn segment_of(&self, dir: &Path) -> u64 {
        if !self.connected {
            return 0;
        }
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.logs.get(name).map_or(0, |held| held.segment)
    }

    /// Whether the control plane said, on the stream of now, that it has all of a log.
    pub(in crate::audit) fn has_all(&self, log: &str) -> bool {
        self.connected && self.logs.get(log).is_some_and(|held| held.has_all)
    }

    /// Logs beside these of which the control plane was asked, and of which it did not say that it has all.
    pub(super) fn again(&self, beside: &[(String, PathBuf)], root: &Path) -> Vec<(String, PathBuf)> {
        let greeted = self
            .logs
            .iter()
            .filter(|(_, held)| !held.has_all && held.refused.is_none());
        let others = greeted.filter(|(log, _)| !beside.iter().any(|(known, _)| known == *log));
        others.map(|(log, _)| (log.clone(), root.join(log))).collect()
    }

    #[cfg(test)]
    pub(in crate::audit) fn says_it_has_all(&mut self, log: &str) {
        self.connected = true;
        self.logs.entry(log.to_owned()).or_default().has_all = true;
    }

    /// A log is gone.
    pub(in crate::audit) fn forget(&mut self, log: &str) {
        self.logs.remove(log);
    }

    pub(in crate::audit) fn page(&self) -> Value {
        let logs: serde_json::Map<_, _> = self.logs.iter().map(|(log, held)| (log.clone(), held.page())).collect();
        json!({ "connected": self.connected, "logs": logs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_on_the_stream_of_now_may_be_dropped() {
        let mut sent = Sent::default();
        let held = sent.logs.entry("log".to_owned()).or_default();
        held.resume(7, 0);
        held.has_all = true;
        assert_eq!(
            (sent.segment_of(Path::new("/audit/log")), sent.has_all("log")),
            (0, false)
        );
        sent.connected = true;
        assert_eq!(
            (sent.segment_of(Path::new("/audit/log")), sent.has_all("log")),
            (7, true)
        );
        assert_eq!(
            (sent.segment_of(Path::new("/audit/other")), sent.has_all("other")),
            (0, false)
        );
    }
}

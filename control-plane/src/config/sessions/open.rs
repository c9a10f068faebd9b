//! One open session.

use std::sync::Arc;
use std::time::Instant;

use aip_api::resource::ResourceId;
use tokio_util::sync::CancellationToken;

use super::{ACKS, MAX_LEFT, MAX_NACKS, Nack, Sessions};

/// One open session; dropping it marks the sidecar as gone.
#[derive(Debug)]
pub(in crate::config) struct Session {
    pub(super) sessions: Arc<Sessions>,
    pub(in crate::config) id: u64,
    /// Cancelled when a newer stream of the same instance opens.
    pub(in crate::config) cancel: CancellationToken,
}

impl Session {
    pub(in crate::config) fn outstanding(&self) {
        self.sessions.update(self.id, |h| h.shown.outstanding = true);
    }

    pub(in crate::config) fn leased(&self, endpoint: Option<String>) {
        self.sessions.update(self.id, |h| h.shown.endpoint = endpoint);
    }

    /// The sidecar drained, and closed its stream: nothing is waited for from it.
    pub(in crate::config) fn ended(&self) {
        self.sessions.update(self.id, |h| h.shown.ended = true);
    }

    /// A push was answered.
    pub(in crate::config) fn answered(&self, taken: &[(ResourceId, u64)], nacks: Vec<Nack>) {
        let now = self.sessions.clock.now();
        self.sessions.update(self.id, |h| {
            h.shown.outstanding = false;
            h.shown.last_ack_at = Some(now);
            h.shown.nacks.retain(|n| {
                !taken
                    .iter()
                    .any(|(id, _)| id.kind.as_str() == n.kind && id.name == n.name)
            });
            for nack in nacks {
                h.shown.nacks.retain(|n| (&n.kind, &n.name) != (&nack.kind, &nack.name));
                if h.shown.nacks.len() < MAX_NACKS {
                    h.shown.nacks.push(nack);
                }
            }
        });
    }

    /// Everything up to `revision` was answered.
    pub(in crate::config) fn at(&self, revision: u64) {
        self.sessions.update(self.id, |h| {
            if h.shown.revision < revision {
                h.shown.revision = revision;
                if h.acks.len() == ACKS {
                    h.acks.pop_front();
                }
                h.acks.push_back((revision, Instant::now()));
            }
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        metrics::gauge!("aip_config_sessions").decrement(1.0);
        let now = self.sessions.clock.now();
        self.sessions.update(self.id, |h| {
            h.shown.connected = false;
            h.shown.outstanding = false;
            h.shown.disconnected_at = Some(now);
        });
        let mut by_id = self.sessions.lock();
        // A network that went away lets the successor connect before anybody notices that this stream is dead.
        let superseded = by_id.get(&self.id).is_some_and(|gone| {
            let mut later = by_id.range(self.id + 1..);
            later.any(|(_, h)| h.shown.connected && h.shown.agent == gone.shown.agent && gone.left_before(&h.shown))
        });
        if superseded {
            by_id.remove(&self.id);
        }
        let left: Vec<u64> = by_id
            .iter()
            .filter(|(_, h)| !h.shown.connected)
            .map(|(id, _)| *id)
            .collect();
        for id in left.iter().take(left.len().saturating_sub(MAX_LEFT)) {
            by_id.remove(id);
        }
        drop(by_id);
        // Whoever waits for acknowledgements waits for one less.
        self.sessions.acked.send_replace(());
    }
}

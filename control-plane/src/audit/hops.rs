//! Hops whose both ends have been heard: what the caller's sidecar and the callee's say of the same request.

pub mod join;

use std::sync::Arc;

use aip_api::AgentName;
use aip_api::id::{DecisionId, HopId};
use aip_audit::hop::Mark;
use aip_audit::record::End;
use tokio::sync::broadcast;

/// Matched hops that a slow subscriber may be behind: seconds of a busy mesh. Who falls further behind is told how many
/// it missed (`Lagged`), and nobody waits for it.
pub const SUBSCRIBER_LAG: usize = 16_384;

/// What one end recorded of how the hop ended, so far as it counts once the two were compared: of fixed size, since many wait
/// for their other end, and what they say is their sidecar's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HopEnd {
    /// The decision that it ends.
    pub id: DecisionId,
    /// The status that the caller was given; 0 where none was.
    pub status: u16,
    /// Stands for how it ended, a stable word.
    pub end: Mark,
    /// Stands for whose doing a failure was; for none where nothing failed.
    pub blame: Mark,
    /// Milliseconds from the request's head to its end.
    pub ms: u64,
}

impl HopEnd {
    /// Of a record.
    pub fn of(end: &End) -> Self {
        Self {
            id: end.id,
            status: end.status,
            end: Mark::of(&end.end),
            blame: Mark::of(&end.blame),
            ms: end.ms,
        }
    }
}

/// A hop whose both ends have been heard.
#[derive(Debug, Clone, PartialEq)]
pub struct Matched {
    /// The hop, equal at both ends.
    pub hop: HopId,
    /// Whose sidecar sent the request: the one to whose log the record belongs, by the key that signed it.
    pub caller: AgentName,
    /// Whose sidecar took it, likewise.
    pub callee: AgentName,
    /// What the caller's sidecar recorded.
    pub caller_end: HopEnd,
    /// What the callee's sidecar recorded.
    pub callee_end: HopEnd,
    /// Whether the hop came to its end at both sides, and both say the same of it: bytes, digests, status.
    pub agreed: bool,
    /// Whether a policy of the callee's side refused it, which is then how it ended.
    pub denied: bool,
    /// In what they contradict each other beyond what a cut explains; empty where they do not.
    pub contradicts: Vec<&'static str>,
    /// When the later of the two records was made, in Unix milliseconds by its sidecar's clock.
    pub at: u64,
}

/// Tells matched hops to whoever subscribes.
#[derive(Debug, Clone)]
pub struct Hops(broadcast::Sender<Arc<Matched>>);

impl Default for Hops {
    fn default() -> Self {
        Self(broadcast::Sender::new(SUBSCRIBER_LAG))
    }
}

impl Hops {
    /// Matched hops from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Matched>> {
        self.0.subscribe()
    }

    /// Tells of one.
    pub fn tell(&self, matched: Matched) {
        // An error says only that nobody listens.
        let _ = self.0.send(Arc::new(matched));
    }
}

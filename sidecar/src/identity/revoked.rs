//! An SVID that the control plane takes no more, which it says when it ends or refuses the configuration stream.
//!
//! Peers hear of a revocation and refuse; this sidecar's own way out to hosts outside of the mesh has no peer. So it gives
//! the SVID up, the kept copy too, and serves nothing until a join token gets it another. What was given up stays in memory
//! for one thing: to be told of orders to stop.

use aip_runtime::svid::SvidSource;
use tokio::sync::watch;

/// What the control plane said, and of which SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Of this serial number.
    pub serial: String,
    /// The stable reason.
    pub reason: String,
}

/// Where it is said, and heard. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Revoked {
    said: watch::Sender<Option<Said>>,
    given_up: SvidSource,
}

impl Default for Revoked {
    fn default() -> Self {
        Self {
            said: watch::Sender::new(None),
            given_up: SvidSource::default(),
        }
    }
}

/// Whether a reason of the control plane, on a stream or in a handshake, means that the SVID it was shown is worth nothing
/// any more. Only a revocation does: a control plane that was restored from a copy does not know whom it has let in since,
/// or at which generation, and is not believed that. One that expired does not either: this sidecar has its own clock.
pub fn means_revoked(reason: &str) -> bool {
    matches!(reason, "svid_revoked" | "revoked_serial" | "revoked_generation")
}

impl Revoked {
    /// Says it.
    pub fn say(&self, said: Said) {
        self.said.send_replace(Some(said));
    }

    /// Whether it was said of this serial number last.
    pub fn is_said_of(&self, serial: &str) -> bool {
        self.said.borrow().as_ref().is_some_and(|said| said.serial == serial)
    }

    /// The SVID that was given up, for who asks for orders to stop and for nobody else.
    pub fn given_up(&self) -> &SvidSource {
        &self.given_up
    }

    /// Waits until it is said of the SVID that is held.
    pub async fn of(&self, svid: &SvidSource) -> Said {
        let mut heard = self.said.subscribe();
        loop {
            let said = heard.borrow_and_update().clone();
            let held = svid.current();
            if let Some(said) = said
                && held.is_some_and(|svid| svid.identity.serial == said.serial)
            {
                return said;
            }
            if heard.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_revocation_costs_an_identity() {
        for reason in ["svid_revoked", "revoked_serial", "revoked_generation"] {
            assert!(means_revoked(reason), "{reason}");
        }
        // What a control plane says, too, whose store was restored from before it let this sidecar in.
        for reason in [
            "agent_unknown",
            "generation_mismatch",
            "svid_expired",
            "refused_by_peer",
        ] {
            assert!(!means_revoked(reason), "{reason}");
        }
    }
}

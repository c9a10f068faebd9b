//! Phase 5, limit: concurrency and deadline.

use std::time::Duration;

use super::classify::Classified;
use super::refusal::{Refusal, Refused};
use super::told::End;
use super::{Arrived, From};
use crate::proxy::gate::{Full, Permit};
use crate::proxy::limits::OUTBOUND_RESPONSE_TIMEOUT;

/// What a request may take.
pub(crate) struct Limits {
    /// Its place among those that the agent works on.
    pub(crate) permit: Option<Permit>,
    /// Until the response begins.
    pub(crate) response: Duration,
    /// Silence after which it is cut.
    pub(crate) idle: Option<Duration>,
}

/// Inbound, the agent's own limits hold. Outbound, the callee's sidecar applies the callee's, and ours are a net.
pub(crate) fn limit(arrived: &Arrived, classified: &Classified) -> Result<Limits, Refused> {
    let traffic = &classified.pair.snapshot.traffic;
    let From::Peer(peer) = &arrived.via.from else {
        // Outside the mesh nobody else watches.
        let idle = matches!(classified.end, End::Outside(..)).then(|| Duration::from_millis(traffic.idle_timeout_ms));
        return Ok(Limits {
            permit: None,
            response: OUTBOUND_RESPONSE_TIMEOUT,
            idle,
        });
    };
    let permit = arrived.proxy.in_flight.enter(&peer.share, traffic);
    let permit = permit.map_err(|full| match full {
        Full::Share => Refusal::ShareUsedUp,
        Full::All => Refusal::Overloaded,
    })?;
    Ok(Limits {
        permit: Some(permit),
        response: Duration::from_millis(traffic.response_timeout_ms),
        idle: Some(Duration::from_millis(traffic.idle_timeout_ms)),
    })
}

//! Phase 6, route: from whom is meant to where it goes. Pure.

use std::net::SocketAddr;
use std::sync::Arc;

use aip_api::AgentName;
use http::Method;

use super::Arrived;
use super::classify::Classified;
use super::refusal::{Refusal, Refused};
use super::told::End;
use crate::proxy::Proxy;
use crate::proxy::limits::MAX_ATTEMPTS;
use crate::snapshot::Snapshot;
use crate::wellknown::WellKnown;

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Route {
    /// This sidecar answers for its agent.
    WellKnown,
    /// To the agent behind this sidecar.
    Agent,
    /// To a sidecar of this agent: these endpoints, in this order.
    Peer(AgentName, Vec<SocketAddr>),
    /// To an outside host, in the clear.
    Outside(Arc<str>, u16),
}

/// Finds it.
pub(crate) fn route(arrived: &Arrived, classified: &Classified) -> Result<Route, Refused> {
    match &classified.end {
        End::Caller(_) => {
            let asked = matches!(arrived.head.method, Method::GET | Method::HEAD);
            let own = asked && classified.upgrade.is_none() && WellKnown::owns(arrived.head.uri.path());
            Ok(if own { Route::WellKnown } else { Route::Agent })
        }
        End::Callee(agent, _) => {
            // One turn for each request: where it is connected by now, it has had it.
            let endpoints = match &classified.connection {
                Some(connected) => connected.endpoints.clone(),
                None => endpoints(&arrived.proxy, &classified.pair.snapshot, agent)?,
            };
            Ok(Route::Peer(agent.clone(), endpoints))
        }
        End::Outside(host, port) => Ok(Route::Outside(host.clone(), *port)),
    }
}

/// The endpoints of an agent to try, in order: those that answer before those that failed a moment ago, and equals in
/// turn.
pub(crate) fn endpoints(proxy: &Proxy, snapshot: &Snapshot, agent: &AgentName) -> Result<Vec<SocketAddr>, Refused> {
    let mut all: Vec<SocketAddr> = snapshot.addresses(agent).collect();
    match all.len() {
        0 => return Err(Refusal::NoEndpoint.into()),
        1 => return Ok(all),
        many => all.rotate_left(proxy.turn() % many),
    }
    all.sort_by_key(|address| proxy.peers.here().is_failing(agent, *address));
    all.truncate(MAX_ATTEMPTS);
    Ok(all)
}

//! A request, phase by phase. `pipeline` is the list; each phase is a file of its own.
//!
//! | # | phase | does |
//! |---|---|---|
//! | 1 | `accept` | may this connection's next request come in at all? |
//! | 2 | `classify` | who is meant, what is said, in which version of the world |
//! | 3 | `admit` | what the mesh requires of both ends |
//! | 4 | `decide` | policy |
//! | 5 | `limit` | concurrency and deadline |
//! | 6 | `route` | which endpoints |
//! | 7 | `call` | the request goes out |
//! | 8 | `relay` | the response comes back |
//! | 9 | `record` | what is written when all is over |

pub(crate) mod accept;
pub(crate) mod admit;
pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod classify;
pub(crate) mod decide;
pub(crate) mod limit;
pub(crate) mod pipeline;
pub(crate) mod record;
pub mod refusal;
pub(crate) mod relay;
pub(crate) mod route;
pub(crate) mod told;
pub(crate) mod trace;

use std::sync::Arc;

use aip_api::AgentName;
use aip_policy::Direction;
use aip_runtime::drain::DrainWatch;

use crate::proxy::Proxy;
use crate::proxy::backlog::Backlog;
use crate::proxy::connections::Live;
use crate::proxy::gate::{Gate, Share};
use crate::proxy::hops::Seen;
use crate::proxy::outbound::Place;
use crate::proxy::stalled::OpenEnd;
use body::Body;
use record::Record;

/// The way that a request came in. One per connection, or per tunnel inside one.
pub(crate) struct Via {
    pub(crate) from: From,
    /// Held by what outlives a connection's requests, such as an upgraded stream.
    pub(crate) drain: Option<DrainWatch>,
    /// Its place among the connections of the agent, held by the same.
    pub(crate) place: Option<Arc<Place>>,
    /// Of a tunnel, held by the same: it is open for as long as any of them.
    pub(crate) tunnel: Option<Arc<OpenEnd>>,
}

/// Who sent it.
pub(crate) enum From {
    /// A peer's sidecar.
    Peer(Peer),
    /// Our own agent.
    Agent,
    /// Our own agent, inside a CONNECT.
    Tunnel(Target),
}

/// A peer's connection.
pub(crate) struct Peer {
    pub(crate) live: Arc<Live>,
    pub(crate) gate: arc_swap::ArcSwap<Gate>,
    /// What it has of what all peers share.
    pub(crate) share: Arc<Share>,
    pub(crate) seen: Arc<Seen>,
    /// What it has not taken of its answers.
    pub(crate) backlog: Arc<Backlog>,
}

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// An agent of the mesh.
    Agent(AgentName),
    /// A host outside, in lower case.
    Outside(Arc<str>, u16),
}

impl Via {
    pub(crate) fn direction(&self) -> Direction {
        match self.from {
            From::Peer(_) => Direction::Inbound,
            From::Agent | From::Tunnel(_) => Direction::Outbound,
        }
    }
}

/// A request that has come in, with its record.
pub(crate) struct Arrived {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) via: Arc<Via>,
    pub(crate) head: http::request::Parts,
    /// Taken when it is sent on.
    pub(crate) body: Option<Body>,
    pub(crate) record: Record,
}

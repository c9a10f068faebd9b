//! What requests and open streams are asked against. Never only observed.

use std::sync::Arc;

use aip_api::AgentName;
use aip_api::attestation::AttestationResult;
use aip_api::kill::{Mode, Order};
use aip_policy::Direction;
use aip_runtime::unix_now;
use arc_swap::ArcSwapOption;

use super::lease::Lease;
use super::orders::{Named, Orders};
use crate::request::classify::protocol;
use crate::request::refusal::{Cut, Refusal, Refused};
use crate::request::told::{Decided, End, Told};
use crate::snapshot::Snapshot;

/// The orders that hold, and the lease. Cloning shares it. At first it knows nothing, and everything is refused.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    orders: ArcSwapOption<Orders>,
    lease: Arc<Lease>,
}

/// Both ends of a hop, as orders select them.
struct Ends<'a> {
    own: Named<'a>,
    other: Option<Named<'a>>,
    direction: Direction,
}

impl Gate {
    /// These orders hold from now on.
    pub fn put(&self, orders: Orders) {
        self.0.orders.store(Some(Arc::new(orders)));
    }

    /// The orders that hold, once any set is held.
    pub fn orders(&self) -> Option<Arc<Orders>> {
        self.0.orders.load_full()
    }

    /// The lease.
    pub fn lease(&self) -> &Arc<Lease> {
        &self.0.lease
    }

    /// The orders that a request must be held against; `None`: there are none.
    ///
    /// # Errors
    /// Nothing may go on: no set was received yet, or the lease is lost.
    pub(crate) fn any(&self) -> Result<Option<Arc<Orders>>, Refused> {
        let orders = self.0.orders.load();
        let Some(orders) = &*orders else {
            return Err(Refusal::KillStateUnknown.into());
        };
        if self.0.lease.is_lost() {
            return Err(Refusal::LeaseLost.into());
        }
        Ok((!orders.all().is_empty()).then(|| orders.clone()))
    }

    /// Whether an order stops this agent, or the peer that calls it.
    pub(crate) fn accept(&self, own: Named<'_>, peer: Option<Named<'_>>) -> Result<(), Refused> {
        let Some(orders) = self.any()? else { return Ok(()) };
        let now = unix_now();
        let named = peer.into_iter().chain([own]);
        let found = named.filter_map(|agent| orders.of_agent(agent, now));
        found
            .max_by_key(|order| order.mode == Mode::Kill)
            .map_or(Ok(()), |order| Err(refused(order, now)))
    }

    /// Whether what a request calls must be known, since a tool of its destination is stopped.
    pub(crate) fn names_tools(&self, snapshot: &Snapshot, end: &End) -> bool {
        let orders = self.0.orders.load();
        let Some(orders) = orders.as_ref().filter(|orders| !orders.all().is_empty()) else {
            return false;
        };
        destination(snapshot, end).is_some_and(|agent| orders.names_tools_of(agent, unix_now()))
    }

    /// Whether an order stops this request.
    pub(crate) fn admit(
        &self,
        snapshot: &Snapshot,
        own: &AttestationResult,
        end: &End,
        told: &Told,
    ) -> Result<(), Refused> {
        let Some(orders) = self.any()? else { return Ok(()) };
        let now = unix_now();
        match stopped(&orders, snapshot, own, end, told, now) {
            Some(order) => Err(refused(&order, now)),
            None => Ok(()),
        }
    }

    /// Why an open request must be cut, if it must: a pause lets it go on.
    pub(crate) fn cut(&self, snapshot: &Snapshot, own: &AttestationResult, decided: &Decided) -> Option<Cut> {
        let orders = match self.any() {
            Ok(orders) => orders?,
            Err(_) => return Some(Cut::LeaseLost),
        };
        let order = stopped(&orders, snapshot, own, &decided.end, &decided.told, unix_now())?;
        (order.mode == Mode::Kill).then_some(Cut::Killed)
    }

    /// Whether an order kills this agent: then nothing of it goes on.
    pub(crate) fn kills(&self, agent: Named<'_>) -> Option<Order> {
        let orders = self.orders()?;
        let order = orders.of_agent(agent, unix_now())?;
        (order.mode == Mode::Kill).then(|| order.clone())
    }
}

/// This sidecar's agent.
pub(crate) fn own<'a>(snapshot: &'a Snapshot, result: Option<&'a AttestationResult>) -> Named<'a> {
    Named {
        name: &snapshot.id.agent,
        registered: Some(&snapshot.me.labels),
        certified: result.map(|result| &result.labels),
    }
}

/// A peer, with what its certificate says where it has shown one.
pub(crate) fn peer<'a>(
    snapshot: &'a Snapshot,
    name: &'a AgentName,
    result: Option<&'a AttestationResult>,
) -> Named<'a> {
    Named {
        name,
        registered: snapshot.agent(name).map(|agent| &agent.labels),
        certified: result.map(|result| &result.labels),
    }
}

fn destination<'a>(snapshot: &'a Snapshot, end: &'a End) -> Option<&'a AgentName> {
    match end {
        End::Caller(_) => Some(&snapshot.id.agent),
        End::Callee(name, _) => Some(name),
        End::Outside(..) => None,
    }
}

impl<'a> Ends<'a> {
    fn of(snapshot: &'a Snapshot, result: &'a AttestationResult, end: &'a End) -> Self {
        let (direction, other) = match end {
            End::Caller(live) => {
                let (name, result) = (&live.peer.id.agent, &live.peer.result);
                (Direction::Inbound, Some(peer(snapshot, name, Some(result))))
            }
            End::Callee(name, live) => {
                let result = live.as_ref().map(|live| &*live.peer.result);
                (Direction::Outbound, Some(peer(snapshot, name, result)))
            }
            End::Outside(..) => (Direction::Outbound, None),
        };
        Self {
            own: own(snapshot, Some(result)),
            other,
            direction,
        }
    }

    fn pair(&self) -> Option<(&'a AgentName, &'a AgentName)> {
        let other = self.other?;
        Some(match self.direction {
            Direction::Inbound => (other.name, self.own.name),
            Direction::Outbound => (self.own.name, other.name),
        })
    }
}

/// The strictest order on this hop and on what it calls.
fn stopped(
    orders: &Orders,
    snapshot: &Snapshot,
    own: &AttestationResult,
    end: &End,
    told: &Told,
    now: u64,
) -> Option<Order> {
    let ends = Ends::of(snapshot, own, end);
    let named = [Some(ends.own), ends.other].into_iter().flatten();
    let mut found: Vec<&Order> = named.filter_map(|agent| orders.of_agent(agent, now)).collect();
    if let Some((source, destination)) = ends.pair() {
        found.extend(orders.of_pair(source, destination, now));
        if orders.names_tools_of(destination, now) {
            let facts = protocol::facts(told.carrier, &told.headers, told.body.content());
            found.extend(orders.of_tool(destination, [&facts.tool, &facts.skill], now));
        }
    }
    found.into_iter().max_by_key(|order| order.mode == Mode::Kill).cloned()
}

fn refused(order: &Order, now: u64) -> Refused {
    let refusal = match order.mode {
        Mode::Kill => Refusal::Killed,
        Mode::Pause => Refusal::Paused,
    };
    let mut refused = refusal.because(format!(
        "{} is stopped (order {}): {}",
        order.scope, order.id, order.reason
    ));
    refused.retry_after = order.expires.map(|expires| expires.saturating_sub(now).max(1));
    refused
}

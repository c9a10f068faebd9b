//! What the copies of sidecars' logs have of a hop, or of a decision.
//!
//! Each agent's logs are read for themselves, so far and no further: whoever fills its own with the ids of others hides
//! nothing but what it says itself. What can't be read is passed over, and hides nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aip_api::id::{DecisionId, HopId};
use aip_api::{AgentName, SpiffeId, TrustDomain};
use aip_audit::index::{Bounds, Filter, Hit, Log, find};
use aip_audit::record::{Decision, Direction, End, Event};

use crate::audit::Audit;

/// Records that are read at a time: each may be as long as a record can be.
const PAGE: usize = 16;
/// Pages of one agent's logs that are looked through: a hop has two records in them, a decision as many.
const MAX_PAGES: usize = 16;
/// Peers that are asked before all others, as an agent's own log names them.
const MAX_PEERS: usize = 16;

/// What one decision says of its ends.
pub(super) struct Claim {
    /// Whose sidecar says it.
    pub(super) by: AgentName,
    pub(super) id: DecisionId,
    pub(super) caller: AgentName,
    pub(super) callee: AgentName,
    pub(super) hop: Option<HopId>,
    /// When, Unix milliseconds by its sidecar's clock.
    pub(super) at: u64,
    /// Whether it let the request go on.
    pub(super) passed: bool,
    /// How it ended, so far as that is known.
    pub(super) end: Option<End>,
}

impl Claim {
    /// Whether this agent is one of its ends.
    pub(super) fn names(&self, agent: &AgentName) -> bool {
        self.caller == *agent || self.callee == *agent
    }

    fn of(by: &AgentName, at: u64, decision: &Decision, domain: &TrustDomain) -> Option<Self> {
        let agent = |id: &str| {
            let id: SpiffeId = id.parse().ok()?;
            (id.trust_domain == *domain).then_some(id.agent)
        };
        let claim = Self {
            by: by.clone(),
            id: decision.id,
            caller: agent(&decision.source.id)?,
            callee: agent(&decision.destination.id)?,
            hop: decision.hop,
            at,
            passed: decision.reason.is_empty() || decision.observed,
            end: None,
        };
        let own = match decision.direction {
            Direction::Outbound => &claim.caller,
            Direction::Inbound => &claim.callee,
        };
        // Of another agent a sidecar can't say what that one did.
        (*own == claim.by).then_some(claim)
    }
}

/// The copies of all logs, by agent.
pub(super) struct Copies<'a> {
    logs: BTreeMap<AgentName, Vec<Log>>,
    domain: &'a TrustDomain,
    unreadable: Option<String>,
}

impl<'a> Copies<'a> {
    pub(super) fn of(audit: &Audit, domain: &'a TrustDomain) -> Self {
        let mut logs: BTreeMap<AgentName, Vec<Log>> = BTreeMap::new();
        for log in audit.copies(None) {
            if let Ok(agent) = log.agent.parse() {
                logs.entry(agent).or_default().push(log);
            }
        }
        Self {
            logs,
            domain,
            unreadable: None,
        }
    }

    /// What is said of what `filter` asks for: by the agent's own sidecar, by those of the peers that it names, and, where
    /// no two ends of a hop are then known, by everybody's.
    pub(super) fn claims(&mut self, agent: &AgentName, filter: &Filter) -> Vec<Claim> {
        let mut asked = BTreeSet::from([agent.clone()]);
        let mut claims = self.claims_of(agent, filter);
        let peers: BTreeSet<AgentName> = claims
            .iter()
            .map(|claim| {
                if claim.caller == *agent {
                    &claim.callee
                } else {
                    &claim.caller
                }
            })
            .filter(|peer| *peer != agent)
            .cloned()
            .collect();
        for peer in peers.into_iter().take(MAX_PEERS) {
            claims.extend(self.claims_of(&peer, filter));
            asked.insert(peer);
        }
        let by_peers = claims.iter().any(|claim| claim.by != *agent && claim.names(agent));
        if !by_peers {
            let others: Vec<_> = self
                .logs
                .keys()
                .filter(|name| !asked.contains(*name))
                .cloned()
                .collect();
            for other in others {
                claims.extend(self.claims_of(&other, filter));
            }
        }
        claims
    }

    fn claims_of(&mut self, agent: &AgentName, filter: &Filter) -> Vec<Claim> {
        let (mut claims, mut ends) = (Vec::new(), HashMap::new());
        let mut pages = MAX_PAGES;
        for log in self.logs.get(agent).into_iter().flatten() {
            let mut after = None;
            while pages > 0 {
                pages -= 1;
                let bounds = Bounds {
                    limit: PAGE,
                    bytes: usize::MAX,
                    rows: u64::MAX,
                    after: after.as_ref(),
                };
                let found = match find(std::slice::from_ref(log), filter, &bounds) {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::warn!(%agent, %error, "a copy of a log can't be read, and is passed over");
                        self.unreadable = Some(format!("a copy of a log of {agent}"));
                        break;
                    }
                };
                let is_empty = found.hits.is_empty();
                after = found.next;
                for Hit { record, .. } in found.hits {
                    match record.event {
                        Event::Decision(decision) => claims.extend(Claim::of(agent, record.at, &decision, self.domain)),
                        Event::End(end) => {
                            ends.insert(end.id, *end);
                        }
                        Event::Strangers(_) | Event::Gap(_) | Event::Dropped(_) => {}
                    }
                }
                if after.is_none() {
                    // A log that has none takes nothing of what the others of its agent may.
                    pages += usize::from(is_empty);
                    break;
                }
            }
        }
        for claim in &mut claims {
            claim.end = ends.remove(&claim.id);
        }
        claims
    }

    /// What could not be read, if something could not: what was not found may stand there.
    pub(super) fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }
}

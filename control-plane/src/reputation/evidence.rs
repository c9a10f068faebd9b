//! Whether what a report is about happened: looked up in what sidecars recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aip_api::id::HopId;
use aip_api::resource::reputation::Evidence;
use aip_api::{AgentName, SpiffeId, TrustDomain};
use aip_audit::index::{Filter, Hit, Log, find};
use aip_audit::record::{Decision, Direction, Event};

use crate::audit::Audit;
use crate::refusal::{Reason, Refusal};

/// Records that are read at a time: each may be as long as a record can be.
const PAGE: usize = 16;
/// Pages that are looked through. A hop has four records; who writes the id of somebody else's hop into its own log many
/// times over can hide it no deeper.
const MAX_PAGES: usize = 16;

/// A hop that an agent was an end of, by what sidecars recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id; of what never became a hop, that of the decision.
    pub hop: String,
    /// The ends whose sidecars recorded it: one or both.
    pub by: Vec<AgentName>,
}

/// What one decision says of its ends.
struct Claim {
    by: AgentName,
    caller: AgentName,
    callee: AgentName,
    hop: Option<HopId>,
    /// Whether it let the request go on.
    passed: bool,
}

/// Looks up what a report of `agent` is about.
///
/// # Errors
/// The audit has nothing of it, or has it, and the agent was no end of it or never heard of it; or the copies of logs
/// can't be read.
pub async fn look_up(
    audit: &Arc<Audit>,
    domain: &TrustDomain,
    agent: &AgentName,
    evidence: &Evidence,
) -> Result<Seen, Refusal> {
    let (audit, domain, agent, evidence) = (audit.clone(), domain.clone(), agent.clone(), evidence.clone());
    let looked = tokio::task::spawn_blocking(move || search(&audit.copies(None), &domain, &agent, &evidence));
    looked
        .await
        .map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?
}

fn search(logs: &[Log], domain: &TrustDomain, agent: &AgentName, evidence: &Evidence) -> Result<Seen, Refusal> {
    let filter = match evidence.kind_and_id() {
        ("hop", id) => Filter {
            hop: Some(id.to_owned()),
            ..Filter::default()
        },
        (_, id) => Filter {
            decision: Some(id.to_owned()),
            ..Filter::default()
        },
    };
    let mut claims = claims(logs, domain, &filter)?;
    // What one end decided the other end recorded under the same hop.
    if let (Some(_), Some(hop)) = (&filter.decision, claims.iter().find_map(|claim| claim.hop)) {
        let filter = Filter {
            hop: Some(hop.to_string()),
            ..Filter::default()
        };
        claims = self::claims(logs, domain, &filter)?;
    }
    if claims.is_empty() {
        let detail = format!("no sidecar's record of {evidence} is here; a record is sent within seconds of its hop");
        return Err(Refusal::new(Reason::HopUnknown, detail));
    }
    seen(claims, agent, evidence)
}

/// The decisions that `filter` asks for, as far as each says of its own agent what its log is: another's it can't vouch for.
fn claims(logs: &[Log], domain: &TrustDomain, filter: &Filter) -> Result<Vec<Claim>, Refusal> {
    let (mut claims, mut after) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let hits = find(logs, filter, PAGE, after.as_ref());
        let hits = hits.map_err(|e| Refusal::new(Reason::AuditCopyFailed, e.to_string()))?;
        let is_last = hits.len() < PAGE;
        after = hits.last().map(|hit| hit.place.clone());
        claims.extend(hits.into_iter().filter_map(|hit| claim(hit, domain)));
        if is_last {
            break;
        }
    }
    Ok(claims)
}

fn claim(hit: Hit, domain: &TrustDomain) -> Option<Claim> {
    let Event::Decision(decision) = hit.record.event else {
        return None;
    };
    let agent = |id: &str| {
        let id: SpiffeId = id.parse().ok()?;
        (id.trust_domain == *domain).then_some(id.agent)
    };
    let Decision {
        source,
        destination,
        direction,
        hop,
        ..
    } = &*decision;
    let claim = Claim {
        by: hit.agent.parse().ok()?,
        caller: agent(&source.id)?,
        callee: agent(&destination.id)?,
        hop: *hop,
        passed: decision.reason.is_empty() || decision.observed,
    };
    let own = match direction {
        Direction::Outbound => &claim.caller,
        Direction::Inbound => &claim.callee,
    };
    (*own == claim.by).then_some(claim)
}

fn seen(claims: Vec<Claim>, agent: &AgentName, evidence: &Evidence) -> Result<Seen, Refusal> {
    let others = |why: String| Refusal::new(Reason::HopOfOthers, why);
    let mut hops: BTreeMap<(AgentName, AgentName), Vec<Claim>> = BTreeMap::new();
    for claim in claims {
        if claim.caller == *agent || claim.callee == *agent {
            let ends = (claim.caller.clone(), claim.callee.clone());
            hops.entry(ends).or_default().push(claim);
        }
    }
    let by = |claims: &[Claim]| claims.iter().map(|claim| claim.by.clone()).collect::<BTreeSet<_>>();
    // Of several under one id, that which both of its ends recorded.
    let best = hops.into_iter().max_by_key(|(_, claims)| by(claims).len());
    let Some(((_, callee), claims)) = best else {
        return Err(others(format!("{agent} is no end of {evidence}")));
    };
    let by_callee: Vec<&Claim> = claims.iter().filter(|claim| claim.by == callee).collect();
    let passed = match by_callee.is_empty() {
        true => claims.iter().any(|claim| claim.passed),
        false => by_callee.iter().any(|claim| claim.passed),
    };
    if callee == *agent && !passed {
        let why = format!("{evidence} was refused before {agent} heard of it: it says nothing of what {agent} does");
        return Err(others(why));
    }
    let hop = claims.iter().find_map(|claim| claim.hop).map(|hop| hop.to_string());
    Ok(Seen {
        hop: hop.unwrap_or_else(|| evidence.kind_and_id().1.to_owned()),
        by: by(&claims).into_iter().collect(),
    })
}

//! Whether what a report is about happened: looked up in what sidecars recorded.

mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aip_api::id::HopId;
use aip_api::resource::reputation::Evidence;
use aip_api::{AgentName, TrustDomain};
use aip_audit::index::Filter;
use aip_audit::record::End;

use records::{Claim, Copies};

use crate::audit::Audit;
use crate::refusal::{Reason, Refusal};

/// Hops to which one decision's id may lead by the word of one sidecar: by that of its own there is one.
const MAX_HOPS_EACH: usize = 2;
/// And by that of all.
const MAX_HOPS: usize = 32;
/// Seconds by which a record may be earlier than the id of its hop says: a callee's sidecar takes no hop that is five
/// minutes ahead, and its clock may be off by as much again.
const SLACK_SECONDS: u64 = 900;

/// A hop that an agent was an end of, by what sidecars recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id; of what never became a hop, that of the decision.
    pub hop: String,
    /// The ends whose sidecars recorded it: one or both.
    pub by: Vec<AgentName>,
}

/// Looks up what a report of `agent` is about. `place` is held for as long as it reads, whoever waits for the answer.
///
/// # Errors
/// The audit has nothing of it, or has it, and the agent was no end of it or never heard of it.
pub async fn look_up(
    audit: &Arc<Audit>,
    domain: &TrustDomain,
    agent: &AgentName,
    evidence: &Evidence,
    place: impl Send + 'static,
) -> Result<Seen, Refusal> {
    let (audit, domain, agent, evidence) = (audit.clone(), domain.clone(), agent.clone(), evidence.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let _place = place;
        search(&mut Copies::of(&audit, &domain), &agent, &evidence)
    });
    looked
        .await
        .map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?
}

fn search(copies: &mut Copies<'_>, agent: &AgentName, evidence: &Evidence) -> Result<Seen, Refusal> {
    let (kind, id) = evidence.kind_and_id();
    let claims = match kind {
        "hop" => {
            let made = evidence.made_at().unwrap_or_default();
            let since = made.saturating_sub(SLACK_SECONDS).saturating_mul(1_000);
            copies.claims(agent, &of_hop(id.to_owned(), Some(since)))
        }
        _ => of_decision(copies, agent, id),
    };
    if claims.is_empty() {
        let mut detail =
            format!("no sidecar's record of {evidence} is here; a record is sent within seconds of its hop");
        if let Some(unreadable) = copies.unreadable() {
            detail = format!("{detail}; {unreadable} can't be read, and may have it");
        }
        return Err(Refusal::new(Reason::HopUnknown, detail));
    }
    seen(claims, agent, evidence)
}

fn of_hop(hop: String, since: Option<u64>) -> Filter {
    Filter {
        hop: Some(hop),
        since,
        ..Filter::default()
    }
}

/// What one end decided, and what the other end recorded under the same hop.
fn of_decision(copies: &mut Copies<'_>, agent: &AgentName, id: &str) -> Vec<Claim> {
    let filter = Filter {
        decision: Some(id.to_owned()),
        ..Filter::default()
    };
    let mut claims = copies.claims(agent, &filter);
    for hop in hops_of(&claims, agent) {
        let known: BTreeSet<_> = claims.iter().map(|claim| (claim.by.clone(), claim.id)).collect();
        let more = copies.claims(agent, &of_hop(hop.to_string(), None)).into_iter();
        claims.extend(more.filter(|claim| !known.contains(&(claim.by.clone(), claim.id))));
    }
    claims
}

/// The hops that claims of one decision lead to. Anybody can write the id of another's decision into its own log, under
/// hops of its own: each has so many, and none hides those of others.
fn hops_of(claims: &[Claim], agent: &AgentName) -> BTreeSet<HopId> {
    let mut by: BTreeMap<&AgentName, BTreeSet<HopId>> = BTreeMap::new();
    for claim in claims.iter().filter(|claim| claim.names(agent)) {
        let own = by.entry(&claim.by).or_default();
        if own.len() < MAX_HOPS_EACH {
            own.extend(claim.hop);
        }
    }
    by.into_values().flatten().take(MAX_HOPS).collect()
}

fn seen(claims: Vec<Claim>, agent: &AgentName, evidence: &Evidence) -> Result<Seen, Refusal> {
    let others = |why: String| Refusal::new(Reason::HopOfOthers, why);
    let mut hops: BTreeMap<(AgentName, AgentName, Option<HopId>), Vec<Claim>> = BTreeMap::new();
    for claim in claims.into_iter().filter(|claim| claim.names(agent)) {
        let ends = (claim.caller.clone(), claim.callee.clone(), claim.hop);
        hops.entry(ends).or_default().push(claim);
    }
    if hops.is_empty() {
        return Err(others(format!("{agent} is no end of {evidence}")));
    }
    let by = |claims: &[Claim]| claims.iter().map(|claim| claim.by.clone()).collect::<BTreeSet<_>>();
    // Of several under one id, that which both of its ends recorded; of those that one end did, the agent's own word; and
    // of others' the earliest, since whoever takes an id for its own has to hear of it first.
    let heard = hops
        .into_iter()
        .filter(|((_, callee, _), claims)| callee != agent || was_heard(claims, callee));
    let best = heard.max_by_key(|(_, claims)| {
        let by = by(claims);
        let first = claims.iter().map(|claim| claim.at).min();
        (by.len(), by.contains(agent), std::cmp::Reverse(first))
    });
    let Some(((_, _, hop), claims)) = best else {
        let why = format!("{evidence} was refused before {agent} heard of it: it says nothing of what {agent} does");
        return Err(others(why));
    };
    let hop = hop.map(|hop| hop.to_string());
    Ok(Seen {
        hop: hop.unwrap_or_else(|| evidence.kind_and_id().1.to_owned()),
        by: by(&claims).into_iter().collect(),
    })
}

/// Whether the callee heard of a hop. Its sidecar's word that it refused it holds so far as nothing contradicts it: the
/// answer that it says it gave is a refusal, and the caller's sidecar was given no other.
fn was_heard(claims: &[Claim], callee: &AgentName) -> bool {
    let (theirs, callers): (Vec<&Claim>, Vec<&Claim>) = claims.iter().partition(|claim| claim.by == *callee);
    let went_out = callers.iter().any(|claim| claim.passed);
    if theirs.is_empty() {
        return went_out;
    }
    let answered = |claim: &&Claim| claim.passed && claim.end.as_ref().is_some_and(is_answer);
    theirs.iter().any(|claim| match &claim.end {
        _ if claim.passed => true,
        Some(end) => is_answer(end),
        // A refusal is over in a moment: one that never ends is none.
        None => went_out,
    }) || callers.iter().any(answered)
}

/// Whether an end says that something was answered. What a sidecar says in place of its agent has the status of a refusal,
/// or, in gRPC, no body. In A2A it has the form of an answer, with which nobody can tell it from one.
fn is_answer(end: &End) -> bool {
    (100..400).contains(&end.status) && end.response_out.bytes > 0
}

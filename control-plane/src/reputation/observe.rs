//! What hops say of their agents: only where both ends saw the same, gathered in memory and written every few seconds.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aip_api::AgentName;
use aip_api::resource::reputation::{Factor, ReputationSettings};
use aip_api::resource::{Agent, Reputation};
use aip_audit::hop::Mark;
use tokio::sync::broadcast::{self, error::RecvError};

use super::event::{Observation, What};
use super::ledger::{MAX_REPORTERS, OTHERS};
use crate::audit::hops::join::COMPLETE;
use crate::audit::hops::{HopEnd, Matched};
use crate::refusal::{Reason, Refusal};
use crate::registry::{Actor, Registry, retrying};

/// How often what was gathered is written. A crash loses no more than that of it: automatic signals only.
pub const FLUSH: Duration = Duration::from_secs(15);
/// Agents of which observations are gathered between two writes; those of further ones are dropped, and counted.
pub const MAX_AGENTS: usize = 10_000;
/// Agents in one transaction.
const AGENTS_AT_ONCE: usize = 200;

/// What the callee's sidecar says when its agent failed a hop, by the stable reason. All other reasons count against
/// nobody: they are the caller's doing, the mesh's, or that of whoever runs it (`overloaded`, `audit_unavailable`, `killed`).
pub const AGENT_FAILED: [(&str, Ended); 4] = [
    ("agent_unreachable", Ended::Failed),
    ("connection_broken", Ended::Failed),
    ("upgrade_failed", Ended::Failed),
    ("response_timeout", Ended::TooLate),
];

/// The status of what policy refused.
const DENIED: u16 = 403;

/// How a hop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The callee answered, and said no failure of its own.
    Answered,
    /// The callee answered that it failed (5xx), was not there, or broke off.
    Failed,
    /// The callee did not begin to answer in time.
    TooLate,
    /// A policy of the callee's side refused it: `policy_denied`, in 403, and no other refusal.
    Denied,
}

/// One hop, as both of its ends saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Who asked.
    pub caller: AgentName,
    /// Who was asked.
    pub callee: AgentName,
    /// How it ended.
    pub ended: Ended,
    /// Milliseconds that it took the callee.
    pub ms: u64,
}

/// One thing that a hop says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Of the caller; else of the callee.
    pub of_caller: bool,
    /// In what.
    pub factor: Factor,
    /// For it, or against it.
    pub good: bool,
}

/// What a hop says. A refusal by the callee's policy is no failure of the callee: it says something of the caller.
pub fn said(outcome: &Outcome, settings: &ReputationSettings) -> Vec<Said> {
    let say = |of_caller, factor, good| Said {
        of_caller,
        factor,
        good,
    };
    // Who talks to itself says nothing.
    if outcome.caller == outcome.callee {
        return Vec::new();
    }
    match outcome.ended {
        Ended::Denied => vec![say(true, Factor::Cooperativeness, false)],
        Ended::Failed => vec![say(false, Factor::Reliability, false)],
        Ended::TooLate => vec![
            say(false, Factor::Reliability, false),
            say(false, Factor::Responsiveness, false),
        ],
        Ended::Answered => {
            let mut all = vec![
                say(false, Factor::Reliability, true),
                say(true, Factor::Cooperativeness, true),
            ];
            // A stream that stays open is not slow: that an answer was late is what its deadline says.
            if outcome.ms <= settings.responsive_ms {
                all.push(say(false, Factor::Responsiveness, true));
            }
            all
        }
    }
}

type Counts = (BTreeMap<Factor, u32>, BTreeMap<Factor, u32>);

/// What was said since the last write, by agent and by the peer that saw it.
#[derive(Debug, Default)]
pub struct Gathered(HashMap<AgentName, BTreeMap<String, Counts>>);

impl Gathered {
    /// Takes a hop.
    pub fn take(&mut self, outcome: &Outcome, settings: &ReputationSettings) {
        for said in said(outcome, settings) {
            let (agent, peer) = match said.of_caller {
                true => (&outcome.caller, &outcome.callee),
                false => (&outcome.callee, &outcome.caller),
            };
            if !self.0.contains_key(agent) && self.0.len() >= MAX_AGENTS {
                metrics::counter!("aip_reputation_dropped_total").increment(1);
                continue;
            }
            let peers = self.0.entry(agent.clone()).or_default();
            let known =
                peers.contains_key(peer.as_str()) || peers.len() < MAX_REPORTERS || !said.good && made_room(peers);
            let peer = if known { peer.as_str() } else { OTHERS };
            let (good, bad) = peers.entry(peer.to_owned()).or_default();
            let side = if said.good { good } else { bad };
            let count = side.entry(said.factor).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Lets one that only praised be one of the others, for somebody who complains; answers whether there was one.
fn made_room(peers: &mut BTreeMap<String, Counts>) -> bool {
    let mut names = peers
        .iter()
        .filter(|(name, (_, bad))| *name != OTHERS && bad.is_empty());
    let Some(name) = names.next().map(|(name, _)| name.clone()) else {
        return false;
    };
    let (good, _) = peers.remove(&name).unwrap_or_default();
    let others = &mut peers.entry(OTHERS.to_owned()).or_default().0;
    for (factor, n) in good {
        let count = others.entry(factor).or_default();
        *count = count.saturating_add(n);
    }
    true
}

impl Registry {
    /// Writes what was gathered: one event an agent, many agents in a transaction.
    ///
    /// # Errors
    /// The store fails; what was not written is lost.
    pub async fn observed_reputations(&self, gathered: Gathered) -> Result<(), Refusal> {
        let all: Vec<_> = gathered.0.into_iter().collect();
        for some in all.chunks(AGENTS_AT_ONCE) {
            retrying(async || self.observed_some(some).await).await?;
        }
        Ok(())
    }

    async fn observed_some(&self, some: &[(AgentName, BTreeMap<String, Counts>)]) -> Result<(), Refusal> {
        let settings = self.reputation_settings().await?;
        let subject = format!("{} agents", some.len());
        let mut draft = self
            .change(&Actor::control_plane(), "reputation.observe", subject)
            .routine();
        let mut any = false;
        for (agent, peers) in some {
            let (registered, check) = match self.still_registered(agent).await {
                Ok(registered) => registered,
                // Removed meanwhile.
                Err(refusal) if refusal.reason == Reason::AgentUnknown => continue,
                Err(refusal) => return Err(refusal),
            };
            let by = self.observations(&registered.value, peers, &settings).await?;
            if by.is_empty() {
                continue;
            }
            let mut book = self.reputation_book(agent).await?;
            let what = What::Observed { by };
            draft = self.reputation_ops(draft, &mut book, what, &settings).await?.0;
            draft = draft.ops([check]);
            any = true;
        }
        if any {
            draft.commit().await?;
        }
        Ok(())
    }

    async fn is_below_floor(&self, agent: &str, settings: &ReputationSettings) -> Result<bool, Refusal> {
        let held = self.resource::<Reputation>(agent).await?;
        Ok(held.is_some_and(|held| held.value.score < settings.floor))
    }

    async fn observations(
        &self,
        agent: &Agent,
        peers: &BTreeMap<String, Counts>,
        settings: &ReputationSettings,
    ) -> Result<Vec<Observation>, Refusal> {
        let mut all = Vec::new();
        let own_falls = self.is_below_floor(agent.name.as_str(), settings).await?;
        for (peer, (good, bad)) in peers {
            let owner = self.resource::<Agent>(peer).await?.map(|held| held.value.owner);
            // Those of one owner don't vouch for each other; against each other they may speak. Whose somebody is who is not
            // registered any more, or is one of many others, nobody knows.
            let vouches = agent.owner.is_empty() || owner.is_some_and(|owner| owner != agent.owner);
            let mut bad = bad.clone();
            if own_falls || self.is_below_floor(peer, settings).await? {
                // That the floor refuses it must not push an agent, or whoever calls it, further down.
                bad.remove(&Factor::Cooperativeness);
            }
            let observation = Observation {
                peer: peer.clone(),
                weight: settings.reporters.get(peer).copied().unwrap_or(100),
                good: if vouches { good.clone() } else { BTreeMap::new() },
                bad,
            };
            if !observation.good.is_empty() || !observation.bad.is_empty() {
                all.push(observation);
            }
        }
        Ok(all)
    }
}

impl Outcome {
    /// What both ends say, where they say the same: the same bytes, the same status, and no other end of it than a failure
    /// at one side explains at the other. Else there is no telling who is right, and nothing counts.
    pub fn of(matched: &Matched) -> Option<Self> {
        let (caller, callee) = (&matched.caller_end, &matched.callee_end);
        if !matched.contradicts.is_empty() || caller.status != callee.status {
            return None;
        }
        Some(Self {
            caller: matched.caller.clone(),
            callee: matched.callee.clone(),
            ended: ended(caller, callee, matched.denied)?,
            ms: callee.ms,
        })
    }
}

fn ended(caller: &HopEnd, callee: &HopEnd, denied: bool) -> Option<Ended> {
    let is = |end: &HopEnd, word: &str, blame: &str| (end.end, end.blame) == (Mark::of(word), Mark::of(blame));
    if is(callee, "aborted", "agent") && is(caller, "aborted", "callee") {
        return Some(Ended::Failed);
    }
    // A refusal of the callee's sidecar is an answer that the caller's passes on whole.
    if !is(caller, COMPLETE, "") {
        return None;
    }
    let blames = |word: &str| callee.blame == Mark::of(word);
    if denied {
        // In the status of a refusal: one that is said in 200 (A2A, gRPC) can't be told from an answer.
        return (blames("policy") && callee.status == DENIED).then_some(Ended::Denied);
    }
    if blames("agent") {
        let known = AGENT_FAILED.iter().find(|(reason, _)| Mark::of(reason) == callee.end);
        return known.map(|(_, ended)| *ended);
    }
    match callee.status {
        _ if !is(callee, COMPLETE, "") => None,
        100..400 => Some(Ended::Answered),
        500.. => Some(Ended::Failed),
        // What the caller did wrong, and what the mesh did.
        _ => None,
    }
}

/// Gathers what hops say, and writes it every [`FLUSH`], until the control plane ends.
pub async fn follow(mut hops: broadcast::Receiver<Arc<Matched>>, registry: Registry) {
    let mut gathered = Gathered::default();
    let mut tick = tokio::time::interval(FLUSH);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut settings = ReputationSettings::default();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                settings = registry.reputation_settings().await.unwrap_or(settings);
                write(&registry, std::mem::take(&mut gathered)).await;
            }
            hop = hops.recv() => match hop {
                Ok(matched) => {
                    if let Some(outcome) = Outcome::of(&matched) {
                        gathered.take(&outcome, &settings);
                    }
                }
                Err(RecvError::Lagged(missed)) => metrics::counter!("aip_reputation_dropped_total").increment(missed),
                Err(RecvError::Closed) => return write(&registry, gathered).await,
            },
        }
    }
}

async fn write(registry: &Registry, gathered: Gathered) {
    if gathered.is_empty() {
        return;
    }
    if let Err(refusal) = registry.observed_reputations(gathered).await {
        metrics::counter!("aip_reputation_dropped_total").increment(1);
        tracing::warn!(
            reason = refusal.reason(),
            "what hops say of agents was not written, and is lost"
        );
    }
}

#[cfg(test)]
mod tests;

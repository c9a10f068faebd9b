//! The second person: in a `prod` mesh, some changes are proposed by one and approved by another.

use aip_api::resource::{Agent, MeshConfig, Policy, Resource};

use super::admins::admin_ops;
use super::records::{Action, Proposal, Withdrawn};
use super::{Actor, Draft, Outcome, Registry, Versioned, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::Expect;

/// How long a proposal waits: a weekend and a Monday.
pub const PROPOSAL_SECONDS: u64 = 4 * 86_400;
/// Proposals that wait at once, and of one person, so that nobody takes the room of all; people read them.
pub const MAX_PROPOSALS: usize = 200;
/// Of one person.
pub const MAX_PROPOSALS_EACH: usize = 50;

impl Registry {
    /// Does the action in a `dev` mesh; proposes it in a `prod` one.
    pub(crate) async fn do_or_propose(&self, sub: &str, action: Action) -> Result<Outcome, Refusal> {
        if self.needs_second_person() {
            return self.propose(sub, action).await;
        }
        self.do_now(sub, action).await
    }

    /// Does the action.
    pub(super) async fn do_now(&self, sub: &str, action: Action) -> Result<Outcome, Refusal> {
        let actor = Actor::admin(sub);
        retrying(async || {
            let draft = self.change(&actor, action.word(), action.subject());
            let draft = draft.detail(action.summary());
            let revision = self.act(draft, &actor, &action).await?.commit().await?;
            Ok(Outcome::Done { revision })
        })
        .await
    }

    async fn propose(&self, sub: &str, action: Action) -> Result<Outcome, Refusal> {
        let now = self.clock.now();
        let waiting = self.all::<Proposal>(keys::PROPOSALS, MAX_PROPOSALS).await?;
        let all = waiting.len();
        let own = waiting
            .into_iter()
            .map(|(_, held)| held)
            .filter(|h| h.value.proposed_by == sub);
        let own: Vec<_> = own.filter(|h| h.value.expires_at > now).collect();
        if let Some(same) = own.iter().find(|h| h.value.action == action) {
            return Ok(Outcome::Proposed {
                id: same.value.id.clone(),
                revision: same.revision,
            });
        }
        if all >= MAX_PROPOSALS || own.len() >= MAX_PROPOSALS_EACH {
            let detail = format!(
                "{all} proposals wait, {} of {sub}; decide or refuse some first",
                own.len()
            );
            return Err(Refusal::new(Reason::LimitReached, detail));
        }
        let id = uuid::Uuid::now_v7().hyphenated().to_string();
        let proposal = Proposal {
            id: id.clone(),
            action,
            proposed_by: sub.to_owned(),
            proposed_at: now,
            expires_at: now + PROPOSAL_SECONDS,
        };
        let draft = self.change(&Actor::admin(sub), "proposal.create", &id);
        let draft = draft.detail(proposal.action.summary());
        let revision = draft
            .put(keys::proposal(&id), &proposal, Expect::Absent)
            .commit()
            .await?;
        Ok(Outcome::Proposed { id, revision })
    }

    async fn proposal(&self, id: &str) -> Result<Versioned<Proposal>, Refusal> {
        let held = self.record::<Proposal>(keys::proposal(id)).await?;
        held.filter(|p| p.value.expires_at > self.clock.now())
            .ok_or_else(|| Refusal::new(Reason::NotFound, format!("no proposal {id:?} waits")))
    }

    /// Approves a proposal, and does it in the same transaction.
    ///
    /// # Errors
    /// By who proposed it; what it is about was changed since; or whatever the change itself meets.
    pub async fn approve_proposal(&self, sub: &str, id: &str) -> Result<u64, Refusal> {
        let actor = Actor::admin(sub);
        retrying(async || {
            let held = self.proposal(id).await?;
            let Proposal {
                action, proposed_by, ..
            } = &held.value;
            if proposed_by == sub {
                let detail = format!("{sub} proposed this; somebody else must approve it");
                return Err(Refusal::new(Reason::SecondPersonRequired, detail));
            }
            if let Action::ResetReputation { agent, .. } = action {
                // Neither of the two is one whom it helps, by now.
                self.may_judge(proposed_by, agent).await?;
                self.may_judge(sub, agent).await?;
            }
            self.still_stands(&held.value).await?;
            let draft = self.change(&actor, "proposal.approve", id);
            let draft = draft.detail(format!("{} (proposed by {proposed_by})", action.summary()));
            let draft = self.act(draft, &actor, action).await?;
            draft
                .delete(keys::proposal(id), Expect::At(held.revision))
                .commit()
                .await
        })
        .await
    }

    async fn revision_of<R: Resource>(&self, name: &str) -> Result<u64, Refusal> {
        Ok(self.resource::<R>(name).await?.map_or(0, |held| held.revision))
    }

    /// Whether what the proposer saw is what is there: else the second person would approve something else.
    async fn still_stands(&self, proposal: &Proposal) -> Result<(), Refusal> {
        let (name, seen, now) = match &proposal.action {
            Action::ApproveMeasurement { measurement, agent } => {
                let taken_back = keys::withdrawn(&measurement.agent, &measurement.fingerprint());
                let taken_back = self.record::<Withdrawn>(taken_back).await?;
                if taken_back.is_some_and(|w| w.value.at >= proposal.proposed_at) {
                    let detail = "the approval was taken back after this was proposed: propose it anew";
                    return Err(Refusal::new(Reason::ProposalLapsed, detail));
                }
                let name = measurement.agent.as_str();
                (name, *agent, self.revision_of::<Agent>(name).await?)
            }
            Action::PutAgent { agent, replaces } => {
                let name = agent.name.as_str();
                (name, *replaces, self.revision_of::<Agent>(name).await?)
            }
            Action::PutPolicy { policy, replaces } => {
                let name = policy.name.as_str();
                (name, *replaces, self.revision_of::<Policy>(name).await?)
            }
            Action::DeletePolicy { name, removes } => {
                let name = name.as_str();
                (name, *removes, self.revision_of::<Policy>(name).await?)
            }
            Action::PutMeshConfig { replaces, .. } => {
                let name = MeshConfig::NAME;
                (name, *replaces, self.revision_of::<MeshConfig>(name).await?)
            }
            Action::ResetReputation { agent, events, .. } => {
                let now = self.worst_since(agent, *events).await?;
                (agent.as_str(), *events, now)
            }
            // Each says all that it does: an order never changes, and one that is to end must be in force, which is looked at
            // when it does; a lift rewrites what stands; what would issue a token to somebody who was revoked since is gone.
            Action::IssueAdmin { .. } | Action::Stop { .. } | Action::Resume { .. } | Action::Lift { .. } => {
                return Ok(());
            }
        };
        if seen == now {
            return Ok(());
        }
        let detail = format!("{name} was changed after this was proposed: propose it anew");
        Err(Refusal::new(Reason::ProposalLapsed, detail))
    }

    /// Refuses a proposal; its proposer can, too.
    ///
    /// # Errors
    /// No such proposal, or the store fails.
    pub async fn refuse_proposal(&self, sub: &str, id: &str) -> Result<u64, Refusal> {
        let held = self.proposal(id).await?;
        let draft = self
            .change(&Actor::admin(sub), "proposal.refuse", id)
            .detail(held.value.action.summary());
        draft
            .delete(keys::proposal(id), Expect::At(held.revision))
            .commit()
            .await
    }

    /// Adds what an action does to a draft.
    async fn act(&self, draft: Draft, actor: &Actor, action: &Action) -> Result<Draft, Refusal> {
        match action {
            Action::ApproveMeasurement { measurement, agent } => {
                self.approval_ops(draft, actor, measurement, *agent).await
            }
            Action::PutAgent { agent, replaces } => self.agent_ops(draft, agent, *replaces).await,
            Action::PutPolicy { policy, replaces } => self.put_policy_ops(draft, actor, policy, *replaces).await,
            Action::DeletePolicy { name, removes } => self.delete_policy_ops(draft, actor, name, *removes).await,
            Action::PutMeshConfig { config, replaces } => self.mesh_config_ops(draft, config, *replaces).await,
            Action::IssueAdmin { wanted } => {
                self.room_for_admin().await?;
                Ok(admin_ops(draft, &self.admin_record(wanted)))
            }
            Action::ResetReputation { agent, reason, .. } => self.reset_ops(draft, actor, agent, reason).await,
            Action::Stop { order, seconds } => self.stop_ops(draft, actor, order, *seconds).await,
            Action::Resume { orders } => self.resume_ops(draft, actor, orders).await,
            Action::Lift { above } => self.lift_ops(draft, *above).await,
        }
    }
}

impl Action {
    /// The stable word in the audit.
    fn word(&self) -> &'static str {
        match self {
            Self::ApproveMeasurement { .. } => "measurement.approve",
            Self::PutAgent { .. } => "agent.update",
            Self::PutPolicy { .. } => "policy.put",
            Self::DeletePolicy { .. } => "policy.delete",
            Self::PutMeshConfig { .. } => "mesh_config.put",
            Self::IssueAdmin { .. } => "admin_token.issue",
            Self::ResetReputation { .. } => "reputation.reset",
            Self::Stop { .. } => "kill.order",
            Self::Resume { .. } => "kill.resume",
            Self::Lift { .. } => "store.lift",
        }
    }

    /// What it is about.
    fn subject(&self) -> String {
        match self {
            Self::ApproveMeasurement { measurement, .. } => measurement.name(),
            Self::PutAgent { agent, .. } => agent.name.to_string(),
            Self::PutPolicy { policy, .. } => policy.name.to_string(),
            Self::DeletePolicy { name, .. } => name.to_string(),
            Self::PutMeshConfig { config, .. } => config.name(),
            Self::IssueAdmin { wanted } => wanted.sub.clone(),
            Self::ResetReputation { agent, .. } => agent.to_string(),
            Self::Stop { order, .. } => order.scope.to_string(),
            Self::Resume { orders } => orders.join(" "),
            Self::Lift { above } => format!("above revision {above}"),
        }
    }
}

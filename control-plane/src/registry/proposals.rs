//! The second person: in a `prod` mesh, some changes are proposed by one and approved by another.

use aip_api::resource::{Kind, Resource as _};

use super::measurements::MAX_APPROVED;
use super::records::{Action, Proposal};
use super::{Actor, Draft, Outcome, Registry, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::Expect;

/// How long a proposal waits: a weekend and a Monday.
pub const PROPOSAL_SECONDS: u64 = 4 * 86_400;
/// Proposals that wait at once; people read them.
pub const MAX_PROPOSALS: usize = 200;

impl Registry {
    /// Does the action in a `dev` mesh; proposes it in a `prod` one.
    pub(super) async fn do_or_propose(&self, sub: &str, action: Action) -> Result<Outcome, Refusal> {
        if !self.needs_second_person() {
            let actor = Actor::admin(sub);
            return retrying(async || {
                let draft = self.change(&actor, action_word(&action), subject(&action));
                let revision = self.act(draft, &actor, &action).await?.commit().await?;
                Ok(Outcome::Done { revision })
            })
            .await;
        }
        if self.store.scan(keys::PROPOSALS, "", MAX_PROPOSALS).await?.len() >= MAX_PROPOSALS {
            return Err(Refusal::new(
                Reason::LimitReached,
                format!("{MAX_PROPOSALS} proposals wait; decide some first"),
            ));
        }
        let now = self.clock.now();
        let id = uuid::Uuid::now_v7().hyphenated().to_string();
        let proposal = Proposal {
            id: id.clone(),
            action,
            proposed_by: sub.to_owned(),
            proposed_at: now,
            expires_at: now + PROPOSAL_SECONDS,
        };
        let draft = self
            .change(&Actor::admin(sub), "proposal.create", &id)
            .detail(proposal.action.summary());
        let revision = draft
            .put(keys::proposal(&id), &proposal, Expect::Absent)
            .commit()
            .await?;
        Ok(Outcome::Proposed { id, revision })
    }

    async fn proposal(&self, id: &str) -> Result<super::Versioned<Proposal>, Refusal> {
        let held = self.record::<Proposal>(keys::proposal(id)).await?;
        held.filter(|p| p.value.expires_at > self.clock.now())
            .ok_or_else(|| Refusal::new(Reason::NotFound, format!("no proposal {id:?} waits")))
    }

    /// Approves a proposal, and does it in the same transaction.
    ///
    /// # Errors
    /// By who proposed it; the policy was changed since; or whatever the change itself meets.
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
            if let Action::PutPolicy { policy, replaces } = action {
                let now = self.resource::<aip_api::resource::Policy>(policy.name.as_str()).await?;
                if now.map_or(0, |p| p.revision) != *replaces {
                    let detail = format!(
                        "policy {} was changed after this was proposed: propose it anew",
                        policy.name
                    );
                    return Err(Refusal::new(Reason::Immutable, detail));
                }
            }
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
            Action::ApproveMeasurement { measurement } => {
                let agent = &measurement.agent;
                if self.measurements_of(agent).await?.len() >= MAX_APPROVED {
                    let detail = format!("{agent} has {MAX_APPROVED} approved measurements; take some back");
                    return Err(Refusal::new(Reason::MeasurementLimit, detail));
                }
                let registered = keys::resource(Kind::Agent, agent.as_str());
                let held = self
                    .store
                    .get(registered.clone())
                    .await?
                    .ok_or(Refusal::from(Reason::AgentUnknown))?;
                let mut approved = measurement.clone();
                approved.approved_by.clone_from(&actor.0);
                approved.approved_at = self.clock.now();
                let print = approved.fingerprint();
                let draft = draft
                    .check(registered, Expect::At(held.revision))
                    .resource(&approved, Expect::Any);
                let draft = draft.delete(keys::pending(agent, &print), Expect::Any);
                Ok(draft.delete(keys::withdrawn(agent, &print), Expect::Any))
            }
            Action::PutPolicy { policy, .. } => self.policy_ops(draft, actor, &policy.name, Some(policy)).await,
            Action::DeletePolicy { name } => self.policy_ops(draft, actor, name, None).await,
            Action::PutMeshConfig { config } => Ok(draft.resource(config, Expect::Any)),
        }
    }
}

fn action_word(action: &Action) -> &'static str {
    match action {
        Action::ApproveMeasurement { .. } => "measurement.approve",
        Action::PutPolicy { .. } => "policy.put",
        Action::DeletePolicy { .. } => "policy.delete",
        Action::PutMeshConfig { .. } => "mesh_config.put",
    }
}

fn subject(action: &Action) -> String {
    match action {
        Action::ApproveMeasurement { measurement } => measurement.name(),
        Action::PutPolicy { policy, .. } => policy.name.to_string(),
        Action::DeletePolicy { name } => name.to_string(),
        Action::PutMeshConfig { config } => config.name(),
    }
}

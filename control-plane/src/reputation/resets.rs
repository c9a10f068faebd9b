//! Forgetting what counts for and against an agent: by two people in a `prod` mesh, neither of whom answers for it.

use aip_api::AgentName;
use aip_api::problem::FieldError;

use super::event::What;
use crate::refusal::Refusal;
use crate::registry::records::Action;
use crate::registry::{Actor, Draft, Outcome, Registry, says_why};

/// Longest reason of a reset.
const MAX_REASON_BYTES: usize = 500;

impl Registry {
    /// Forgets all that counts for or against an agent, or proposes to.
    ///
    /// # Errors
    /// Unknown agent, somebody who answers for it, a reason that is missing or too long, or the store fails.
    pub async fn reset_reputation(&self, sub: &str, agent: &AgentName, reason: &str) -> Result<Outcome, Refusal> {
        says_why(reason)?;
        if reason.len() > MAX_REASON_BYTES {
            let message = format!("{} bytes; at most {MAX_REASON_BYTES}", reason.len());
            return Err(Refusal::invalid(vec![FieldError::new("reason", message)]));
        }
        self.may_judge(sub, agent).await?;
        let events = self.reputation_book(agent).await?.ledger.seq;
        let action = Action::ResetReputation {
            agent: agent.clone(),
            reason: reason.to_owned(),
            events,
        };
        self.do_or_propose(sub, action).await
    }

    /// The last event since `events` that a reset would forget unseen: a report, a drift, an import or a reset; `events`
    /// where there was none. What hops say goes on all the time, and is not what a second person decides about.
    pub(crate) async fn worst_since(&self, agent: &AgentName, events: u64) -> Result<u64, Refusal> {
        let noted = self.reputation_book(agent).await?.ledger.noted;
        Ok(noted.max(events))
    }

    /// Adds what a reset does.
    pub(crate) async fn reset_ops(
        &self,
        draft: Draft,
        actor: &Actor,
        agent: &AgentName,
        reason: &str,
    ) -> Result<Draft, Refusal> {
        let settings = self.reputation_settings().await?;
        let (_, registered) = self.still_registered(agent).await?;
        let draft = draft.ops([registered]);
        let mut book = self.reputation_book(agent).await?;
        let what = What::Reset {
            by: actor.0.clone(),
            reason: reason.to_owned(),
        };
        let (draft, _) = self.reputation_ops(draft, &mut book, what, &settings).await?;
        Ok(draft.noting(format!("at event {}", book.ledger.seq)))
    }
}

#[cfg(test)]
mod tests;

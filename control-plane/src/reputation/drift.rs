//! What a drift does to an agent's reputation.

use aip_api::AgentName;
use aip_api::resource::Reputation;

use super::event::What;
use crate::refusal::Refusal;
use crate::registry::{Draft, Registry};

impl Registry {
    /// Adds to a draft that what the agent runs was no longer what was approved. The draft is the one that blocks it.
    ///
    /// # Errors
    /// The store fails.
    pub async fn drift_ops(&self, draft: Draft, agent: &AgentName) -> Result<Draft, Refusal> {
        let read = async {
            let settings = self.reputation_settings().await?;
            self.resource::<Reputation>(agent.as_str()).await?;
            Ok::<_, Refusal>((self.reputation_book(agent).await?, settings))
        };
        match read.await {
            Ok((mut book, settings)) => Ok(self.reputation_ops(draft, &mut book, What::Drift, &settings).await?.0),
            // That a drifted agent is blocked must not hang on its reputation.
            Err(refusal) => {
                tracing::error!(%agent, reason = refusal.reason(), "the drift is not counted in the reputation");
                Ok(draft)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use aip_api::resource::reputation::Factor;
    use aip_api::resource::{Agent, MeshMode};

    use super::*;
    use crate::registry::Actor;
    use crate::testing::mesh;

    /// What a drift does, in the transaction that blocks the agent.
    #[tokio::test]
    async fn a_drift_counts_against_honesty() {
        let registry = mesh(MeshMode::Dev).await.registry;
        let planner: AgentName = "planner".parse().unwrap();
        let agent = Agent::new(planner.clone());
        registry.create_agent(&Actor::admin("alice"), agent).await.unwrap();
        let draft = registry.change(&Actor::sidecar(&planner), "test", "planner");
        let draft = registry.drift_ops(draft, &planner).await.unwrap();
        draft.commit().await.unwrap();
        let settings = registry.reputation_settings().await.unwrap();
        let book = registry.reputation_book(&planner).await.unwrap();
        let now = book.reputation(&settings, registry.clock.steady());
        for factor in Factor::ALL {
            let fell = now.factors[&factor] < settings.prior;
            assert_eq!(fell, factor == Factor::Honesty, "{factor:?}");
        }
    }
}

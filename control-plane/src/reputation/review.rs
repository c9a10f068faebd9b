//! Looking at all reputations now and then: scores recover with time, and settings change.

use aip_api::AgentName;
use aip_api::resource::reputation::{ReputationSettings, Score};
use aip_api::resource::{Kind, Reputation};

use super::score;
use crate::refusal::{Reason, Refusal};
use crate::registry::{Actor, Registry, keys};
use crate::store::Expect;

/// Rows of agents that are read in one step.
const PAGE: usize = 500;
/// Agents that are told of in one transaction: after a change of settings that may be all of them.
const AGENTS_AT_ONCE: usize = 100;

/// An agent's name, and the revision at which it is registered.
type Registered = (AgentName, u64);

/// What a look at some agents came to.
#[derive(Debug, Default)]
struct Looked {
    told: usize,
    /// Agents that sidecars refuse by what they hold now.
    below: u32,
    unreadable: u32,
}

impl Looked {
    fn add(&mut self, other: &Self) {
        self.told += other.told;
        self.below += other.below;
        self.unreadable += other.unreadable;
    }
}

impl Registry {
    /// Looks at all agents with a history, and tells of those whose level is another by now. Agents that have none (a store
    /// of an earlier version) are given one. One whose rows can't be read is left as it was told. Answers how many were told.
    ///
    /// # Errors
    /// The store fails.
    pub async fn review_reputations(&self) -> Result<usize, Refusal> {
        self.look_at_clock();
        let settings = self.reputation_settings().await?;
        let (mut after, mut all) = (String::new(), Looked::default());
        let prefix = keys::of_kind(Kind::Agent);
        loop {
            let rows = self.store.scan(prefix.clone(), after.clone(), PAGE).await?;
            let Some(last) = rows.last() else { break };
            after.clone_from(&last.key);
            let agents = rows.iter().filter_map(|row| {
                let name = row.key.strip_prefix(&prefix)?;
                Some((name.parse().ok()?, row.revision))
            });
            let agents: Vec<Registered> = agents.collect();
            for some in agents.chunks(AGENTS_AT_ONCE) {
                all.add(&self.review_some(some, &settings).await?);
            }
        }
        metrics::gauge!("aip_reputation_below_floor").set(all.below);
        metrics::gauge!("aip_reputation_unreadable").set(all.unreadable);
        Ok(all.told)
    }

    /// Says where the system's clock has stepped ahead.
    fn look_at_clock(&self) {
        let ahead = self.clock.now().saturating_sub(self.clock.steady());
        metrics::gauge!("aip_clock_ahead_seconds").set(ahead as f64);
        if ahead > 0 {
            tracing::warn!(
                ahead,
                "the clock stepped ahead: reputations fade by what has passed, not by what it says"
            );
        }
    }

    /// All of them in one transaction; one by one where somebody else wrote one of them meanwhile.
    async fn review_some(&self, agents: &[Registered], settings: &ReputationSettings) -> Result<Looked, Refusal> {
        match self.review_at_once(agents, settings).await {
            Err(refusal) if refusal.reason == Reason::Conflict => {}
            done => return done,
        }
        let mut all = Looked::default();
        for agent in agents {
            match self.review_at_once(std::slice::from_ref(agent), settings).await {
                Ok(looked) => all.add(&looked),
                // Who wrote it looked at it.
                Err(refusal) if refusal.reason == Reason::Conflict => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(all)
    }

    async fn review_at_once(&self, agents: &[Registered], settings: &ReputationSettings) -> Result<Looked, Refusal> {
        let subject = match agents {
            [(agent, _)] => agent.to_string(),
            more => format!("{} agents", more.len()),
        };
        let mut draft = self
            .change(&Actor::control_plane(), "reputation.review", subject)
            .routine();
        let (mut looked, mut detail) = (Looked::default(), Vec::new());
        for (agent, at) in agents {
            let (expect, told, now) = match self.now_and_told(agent, settings).await {
                Ok(read) => read,
                Err(refusal) => {
                    looked.unreadable += 1;
                    tracing::error!(%agent, reason = refusal.reason(), "a reputation can't be read: what was told of it stands");
                    continue;
                }
            };
            let tell = told
                .as_ref()
                .is_none_or(|told| score::worth_telling(told, &now, settings));
            let holds: Score = told.filter(|_| !tell).map_or(now.score, |told| told.score);
            looked.below += u32::from(holds < settings.floor);
            if tell {
                looked.told += 1;
                detail.push(format!("{agent}: {} ({})", now.score, now.level.as_str()));
                draft = draft
                    .resource(&now, expect)
                    .check(keys::resource(Kind::Agent, agent.as_str()), Expect::At(*at));
            }
        }
        if looked.told > 0 {
            draft.detail(detail.join(", ")).commit().await?;
        }
        Ok(looked)
    }

    /// What sidecars were told of an agent, and what they would be now.
    async fn now_and_told(
        &self,
        agent: &AgentName,
        settings: &ReputationSettings,
    ) -> Result<(Expect, Option<Reputation>, Reputation), Refusal> {
        let held = self.resource::<Reputation>(agent.as_str()).await?;
        let expect = held.as_ref().map_or(Expect::Absent, |held| Expect::At(held.revision));
        let book = self.reputation_book(agent).await?;
        let now = book.reputation(settings, self.clock.steady());
        Ok((expect, held.map(|held| held.value), now))
    }
}

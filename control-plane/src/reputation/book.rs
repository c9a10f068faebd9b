//! Ledgers in the store: a base, and the events since. Reading is folding, so that what a restart finds is what was
//! there; what is old moves from the events into the base.

use aip_api::AgentName;
use aip_api::resource::reputation::ReputationSettings;
use aip_api::resource::{Agent, Kind, Reputation};

use super::event::{Event, Rules, What};
use super::ledger::Ledger;
use super::score;
use crate::refusal::{Reason, Refusal};
use crate::registry::{Draft, Registry, Versioned, keys};
use crate::store::{Expect, Op};

/// Seconds by which the clock may have been set back without an event being earlier than the one before: as much as any
/// clock of the mesh may be off.
const CLOCK_SLACK: u64 = 300;

/// Events that are kept of an agent at least, where there were as many: what a person who asks why looks through.
pub const KEPT_EVENTS: usize = 64;
/// Events of an agent at which the older ones move into its base: twice as many, so that it is rarely done.
const MAX_EVENTS: usize = 2 * KEPT_EVENTS;

/// An agent's ledger, as the store holds it.
#[derive(Debug, Clone)]
pub struct Book {
    /// Whose.
    pub agent: AgentName,
    /// What all events come to.
    pub ledger: Ledger,
    /// The events that are kept, the oldest first.
    pub events: Vec<Event>,
    base: Option<Versioned<Ledger>>,
}

/// What an event did.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The agent's reputation with it.
    pub reputation: Reputation,
    /// Whether sidecars are told.
    pub told: bool,
}

impl Book {
    fn folded(base: Option<&Ledger>, events: &[Event]) -> Ledger {
        let mut ledger = base.cloned().unwrap_or_default();
        events.iter().for_each(|event| ledger.apply(event));
        ledger
    }

    /// The agent's reputation at `now`.
    pub fn reputation(&self, settings: &ReputationSettings, now: u64) -> Reputation {
        score::reputation(&self.agent, &self.ledger, settings, now)
    }

    /// Takes the next event, and answers the operations that write it: only where nobody else wrote one meanwhile.
    fn append(&mut self, what: What, now: u64, settings: &ReputationSettings) -> Result<Vec<Op>, Refusal> {
        let event = Event {
            seq: self.ledger.seq + 1,
            at: match self.ledger.at {
                before if before > now + CLOCK_SLACK => now,
                before => now.max(before),
            },
            rules: Rules::from(settings),
            what,
        };
        self.ledger.apply(&event);
        let mut ops = vec![Op::Put {
            key: keys::reputation_event(&self.agent, event.seq),
            value: crate::registry::encode(&event)?,
            expect: Expect::Absent,
        }];
        self.events.push(event);
        let key = keys::reputation_base(&self.agent);
        let expect = self.base.as_ref().map_or(Expect::Absent, |b| Expect::At(b.revision));
        if self.base.is_some() && self.events.len() < MAX_EVENTS {
            ops.push(Op::Check { key, expect });
            return Ok(ops);
        }
        // The first event writes an empty base: by the bases it is known who has a history.
        let old: Vec<Event> = match self.events.len() {
            n if n < MAX_EVENTS => Vec::new(),
            n => self.events.drain(..n - KEPT_EVENTS).collect(),
        };
        let base = Self::folded(self.base.as_ref().map(|b| &b.value), &old);
        ops.push(Op::Put {
            key,
            value: crate::registry::encode(&base)?,
            expect,
        });
        ops.extend(old.iter().map(|event| Op::Delete {
            key: keys::reputation_event(&self.agent, event.seq),
            expect: Expect::Any,
        }));
        Ok(ops)
    }
}

impl Registry {
    /// The settings that scores are made by.
    ///
    /// # Errors
    /// The store fails.
    pub async fn reputation_settings(&self) -> Result<ReputationSettings, Refusal> {
        Ok(self.mesh_config().await?.value.reputation)
    }

    /// An agent's ledger; empty where nothing happened yet.
    ///
    /// # Errors
    /// The store fails.
    pub async fn reputation_book(&self, agent: &AgentName) -> Result<Book, Refusal> {
        // The events first: between the two reads the older ones may move into the base, and none is then missing.
        let events = self
            .all::<Event>(keys::reputation_events(agent), MAX_EVENTS + 1)
            .await?;
        let base = self.record::<Ledger>(keys::reputation_base(agent)).await?;
        let from = base.as_ref().map_or(0, |b| b.value.seq);
        let after = events.into_iter().map(|(_, held)| held.value).filter(|e| e.seq > from);
        let events: Vec<Event> = after.collect();
        let ledger = Book::folded(base.as_ref().map(|b| &b.value), &events);
        Ok(Book {
            agent: agent.clone(),
            ledger,
            events,
            base,
        })
    }

    /// Adds an event to a draft, and what sidecars are told of it. That the agent is registered is the caller's to see to.
    ///
    /// # Errors
    /// The store fails.
    pub async fn reputation_ops(
        &self,
        draft: Draft,
        book: &mut Book,
        what: What,
        settings: &ReputationSettings,
    ) -> Result<(Draft, Recorded), Refusal> {
        let now = self.clock.steady();
        let is_reset = matches!(what, What::Reset { .. });
        let agent = book.agent.clone();
        let draft = draft.ops(book.append(what, now, settings)?);
        let reputation = book.reputation(settings, now);
        let held = self.resource::<Reputation>(agent.as_str()).await?;
        let told = held
            .as_ref()
            .is_none_or(|held| score::worth_telling(&held.value, &reputation, settings));
        if !told && !is_reset {
            return Ok((draft, Recorded { reputation, told }));
        }
        let expect = held.map_or(Expect::Absent, |held| Expect::At(held.revision));
        let draft = draft.resource(&reputation, expect);
        Ok((draft, Recorded { reputation, told: true }))
    }

    /// The agent, and what a change expects of it: that it is still registered, and the same.
    pub(super) async fn still_registered(&self, agent: &AgentName) -> Result<(Versioned<Agent>, Op), Refusal> {
        let unknown = || Refusal::new(Reason::AgentUnknown, format!("{agent} is not registered"));
        let held = self.resource::<Agent>(agent.as_str()).await?.ok_or_else(unknown)?;
        let check = Op::Check {
            key: keys::resource(Kind::Agent, agent.as_str()),
            expect: Expect::At(held.revision),
        };
        Ok((held, check))
    }

    /// The reputation with which an agent is registered: that of its name, so that nobody is rid of one by
    /// registering anew.
    ///
    /// # Errors
    /// The store fails.
    pub async fn reputation_at_registration(&self, agent: &AgentName) -> Result<Reputation, Refusal> {
        let settings = self.reputation_settings().await?;
        let book = self.reputation_book(agent).await?;
        Ok(book.reputation(&settings, self.clock.steady()))
    }
}

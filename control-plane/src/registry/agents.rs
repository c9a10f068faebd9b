//! Agents: registered, changed, revoked, removed.

use aip_api::AgentName;
use aip_api::problem::FieldError;
use aip_api::resource::{Agent, Endpoint, Kind, Measurement, Mode, Revocation, Traffic};

use super::records::{Action, TokenRecord};
use super::{Actor, Draft, Outcome, Registry, Versioned, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::{Expect, Op};

/// Longest time for which an SVID can still be good after it was revoked: the longest lifetime that the settings
/// allow, and the clock skew that peers tolerate.
pub const REVOCATION_SECONDS: u64 = 86_400 + 300;
/// Longest time for which an agent may only be observed, in seconds: a week is what learning its traffic takes, and
/// nobody forgets for longer that policy refuses nothing there.
pub const MAX_OBSERVE_SECONDS: u64 = 7 * 86_400;
/// Endpoints of one agent: those of as many streams as it may have, and as many that are still to be withdrawn. Every sidecar
/// that calls it holds all of them.
pub(super) const MAX_ENDPOINTS: usize = 512;
/// Rows of one agent that are removed with it, of each kind.
pub(super) const MAX_ROWS: usize = 1_000;

/// A serial that was revoked, or a generation that was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// The agent's generation from now on.
    pub generation: u64,
    /// The store's revision.
    pub revision: u64,
}

impl Registry {
    /// Registers an agent. A name that was used before begins above the generations that were revoked. In a `prod` mesh
    /// one person registers no more than a name, or one that was removed as it was.
    ///
    /// # Errors
    /// It exists, has mistakes, or the store fails.
    pub async fn create_agent(&self, actor: &Actor, agent: Agent) -> Result<Versioned<Agent>, Refusal> {
        let mistakes = aip_api::resource::Resource::validate(&agent);
        if !mistakes.is_empty() {
            return Err(Refusal::invalid(mistakes));
        }
        check_mode(&agent.mode, self.clock.now())?;
        retrying(async || {
            let name = agent.name.to_string();
            if self.resource::<Agent>(&name).await?.is_some() {
                let detail = format!("agent {name} is registered already");
                return Err(Refusal::new(Reason::AgentExists, detail));
            }
            let mut agent = self.as_one_may(agent.clone()).await?;
            agent.generation = self.revoked_below(&agent.name).await?.max(1);
            let draft = self
                .change(actor, "agent.create", &name)
                .resource(&agent, Expect::Absent)
                .resource(&self.reputation_at_registration(&agent.name).await?, Expect::Any)
                .delete(keys::former(&agent.name), Expect::Any);
            let draft = self.alias_ops(draft, &agent.name, &[], &agent.aliases).await?;
            let revision = draft.commit().await?;
            Ok(Versioned { value: agent, revision })
        })
        .await
    }

    async fn revoked_below(&self, agent: &AgentName) -> Result<u64, Refusal> {
        let revocation = self.resource::<Revocation>(&format!("generation/{agent}")).await?;
        Ok(match revocation.map(|r| r.value) {
            Some(Revocation::Generation { below, .. }) => below,
            _ => 0,
        })
    }

    /// Changes an agent, or proposes to. Its generation is the control plane's: what the document says of it is not
    /// taken.
    ///
    /// # Errors
    /// Unknown, not at the expected revision, mistakes, or the store fails.
    pub async fn update_agent(&self, sub: &str, agent: Agent, expected: Option<u64>) -> Result<Outcome, Refusal> {
        let mistakes = aip_api::resource::Resource::validate(&agent);
        if !mistakes.is_empty() {
            return Err(Refusal::invalid(mistakes));
        }
        retrying(async || {
            let held = self.existing::<Agent>(agent.name.as_str()).await?;
            let revision = held.revision;
            at_expected(revision, expected)?;
            let agent = Agent {
                generation: held.value.generation,
                ..agent.clone()
            };
            if agent == held.value {
                return Ok(Outcome::Unchanged { revision });
            }
            // What stands already may be over: another change of the agent does not begin it anew.
            if agent.mode != held.value.mode {
                check_mode(&agent.mode, self.clock.now())?;
            }
            self.aliases_free(&agent.name, &agent.aliases).await?;
            let action = Action::PutAgent {
                agent: Box::new(agent),
                replaces: revision,
            };
            self.do_or_propose(sub, action).await
        })
        .await
    }

    /// Adds what changes an agent that is at revision `replaces`.
    pub(super) async fn agent_ops(&self, draft: Draft, agent: &Agent, replaces: u64) -> Result<Draft, Refusal> {
        let held = self.existing::<Agent>(agent.name.as_str()).await?;
        let agent = Agent {
            generation: held.value.generation,
            ..agent.clone()
        };
        let draft = draft.resource(&agent, Expect::At(replaces));
        self.alias_ops(draft, &agent.name, &held.value.aliases, &agent.aliases)
            .await
    }

    /// Raises the agent's generation and revokes the earlier ones, in one transaction.
    ///
    /// # Errors
    /// Unknown, or the store fails.
    pub async fn revoke_agent(&self, actor: &Actor, agent: &AgentName, why: &str) -> Result<Raised, Refusal> {
        retrying(async || {
            let held = self.existing::<Agent>(agent.as_str()).await?;
            let draft = self.change(actor, "agent.revoke", agent.as_str()).detail(why);
            let (draft, generation) = self.raised(draft, held).await?;
            let draft = draft.noting(format!("generation {generation} begins"));
            let revision = draft.commit().await?;
            Ok(Raised { generation, revision })
        })
        .await
    }

    /// Adds what raises the generation of an agent and revokes the earlier ones; answers the new one, too.
    pub(super) async fn raised(&self, draft: Draft, held: Versioned<Agent>) -> Result<(Draft, u64), Refusal> {
        let (name, generation) = (held.value.name.clone(), held.value.generation + 1);
        let raised = Agent {
            generation,
            ..held.value
        };
        let draft = draft.resource(&raised, Expect::At(held.revision));
        // Whoever holds one of its tokens is not let back in by it, spent or not.
        let draft = draft.ops(self.tokens_gone(&name, |_| true).await?);
        let draft = draft.resource(&self.generation_revoked(&name, generation), Expect::Any);
        Ok((draft, generation))
    }

    fn generation_revoked(&self, agent: &AgentName, below: u64) -> Revocation {
        Revocation::Generation {
            agent: agent.clone(),
            below,
            expires: self.clock.now() + REVOCATION_SECONDS,
        }
    }

    /// Revokes one SVID.
    ///
    /// # Errors
    /// No such SVID, or the store fails.
    pub async fn revoke_serial(
        &self,
        actor: &Actor,
        agent: &AgentName,
        serial: &str,
        why: &str,
    ) -> Result<u64, Refusal> {
        let key = keys::svid(agent, serial);
        let held = self.record::<super::records::SvidRecord>(key).await?.ok_or_else(|| {
            let detail = format!("{agent} holds no SVID with serial {serial:?}; those that have expired are forgotten");
            Refusal::new(Reason::NotFound, detail)
        })?;
        let svid = held.value;
        let revocation = Revocation::Serial {
            issuer: svid.issuer,
            serial: svid.serial,
            expires: svid.not_after,
        };
        retrying(async || {
            let subject = format!("{agent}/{serial}");
            let draft = self.change(actor, "svid.revoke", subject).detail(why);
            // A spent token answers its key again: for a key whose SVID is revoked it must not.
            let draft = draft.ops(self.tokens_gone(agent, |token| token.spent.is_some()).await?);
            draft.resource(&revocation, Expect::Any).commit().await
        })
        .await
    }

    /// The operations that forget an agent's tokens.
    async fn tokens_gone(&self, agent: &AgentName, which: impl Fn(&TokenRecord) -> bool) -> Result<Vec<Op>, Refusal> {
        let all = self.all::<TokenRecord>(keys::TOKENS, super::tokens::MAX_TOKENS).await?;
        let own = all
            .into_iter()
            .filter(|(_, held)| held.value.agent == *agent && which(&held.value));
        let gone = own.map(|(key, held)| Op::Delete {
            key,
            expect: Expect::At(held.revision),
        });
        Ok(gone.collect())
    }

    /// Removes an agent with its measurements, endpoints, traffic and tokens, and revokes what it holds.
    ///
    /// # Errors
    /// Unknown, or the store fails.
    pub async fn delete_agent(&self, actor: &Actor, agent: &AgentName) -> Result<u64, Refusal> {
        retrying(async || {
            let held = self.existing::<Agent>(agent.as_str()).await?;
            let mut gone = Vec::new();
            for prefix in [
                keys::resource(Kind::Measurement, &format!("{agent}/")),
                keys::resource(Kind::Endpoint, &format!("{agent}/")),
                format!("{}{agent}/", keys::PENDING),
                format!("{}{agent}/", keys::WITHDRAWN),
            ] {
                let rows = self.store.scan(prefix, "", MAX_ROWS).await?;
                gone.extend(rows.into_iter().map(|e| Op::Delete {
                    key: e.key,
                    expect: Expect::Any,
                }));
            }
            let draft = self.change(actor, "agent.delete", agent.as_str()).ops(gone);
            let draft = draft.delete_resource(Kind::Agent, agent.as_str(), Expect::At(held.revision));
            let draft = draft.delete_resource(Kind::Traffic, agent.as_str(), Expect::Any);
            // Its events stay: who is registered again under this name begins where it ended.
            let draft = draft.delete_resource(Kind::Reputation, agent.as_str(), Expect::Any);
            let draft = draft.ops(self.tokens_gone(agent, |_| true).await?);
            let draft = draft.delete(keys::drift(agent), Expect::Any);
            let draft = self.alias_ops(draft, agent, &held.value.aliases, &[]).await?;
            self.remember(draft, &held.value)
                .resource(&self.generation_revoked(agent, held.value.generation + 1), Expect::Any)
                .commit()
                .await
        })
        .await
    }

    /// Records or replaces an endpoint; answers without a change where it stands already.
    ///
    /// # Errors
    /// Too many of this agent, or the store fails.
    pub async fn put_endpoint(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        use aip_api::resource::Resource as _;
        let name = endpoint.name();
        match self.resource::<Endpoint>(&name).await? {
            Some(held) if held.value == *endpoint => return Ok(()),
            Some(_) => {}
            None => {
                let all = keys::resource(Kind::Endpoint, &format!("{}/", endpoint.agent));
                if self.store.scan(all, "", MAX_ENDPOINTS).await?.len() >= MAX_ENDPOINTS {
                    let detail = format!(
                        "{} has {MAX_ENDPOINTS} endpoints, the most of one agent",
                        endpoint.agent
                    );
                    return Err(Refusal::new(Reason::LimitReached, detail));
                }
            }
        }
        let draft = self
            .change(&Actor::sidecar(&endpoint.agent), "endpoint.lease", &name)
            .routine();
        // The agent must still be registered when the endpoint appears.
        let agent = keys::resource(Kind::Agent, endpoint.agent.as_str());
        let held = self
            .store
            .get(agent.clone())
            .await?
            .ok_or(Refusal::from(Reason::AgentUnknown))?;
        draft
            .resource(endpoint, Expect::Any)
            .check(agent, Expect::At(held.revision))
            .commit()
            .await?;
        Ok(())
    }

    /// Withdraws an endpoint.
    ///
    /// # Errors
    /// The store fails.
    pub async fn withdraw_endpoint(&self, name: &str, why: &'static str) -> Result<(), Refusal> {
        if self.resource::<Endpoint>(name).await?.is_none() {
            return Ok(());
        }
        let draft = self
            .change(&Actor::control_plane(), "endpoint.withdraw", name)
            .routine()
            .detail(why);
        draft
            .delete_resource(Kind::Endpoint, name, Expect::Any)
            .commit()
            .await?;
        Ok(())
    }

    /// Writes an agent's limits, or the default ones.
    ///
    /// # Errors
    /// Unknown agent, mistakes, or the store fails.
    pub async fn put_traffic(
        &self,
        actor: &Actor,
        traffic: &Traffic,
        expected: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        retrying(async || {
            if traffic.agent != Traffic::DEFAULT && self.resource::<Agent>(&traffic.agent).await?.is_none() {
                return Err(Reason::AgentUnknown.into());
            }
            let held = self.resource::<Traffic>(&traffic.agent).await?;
            at_expected(held.as_ref().map_or(0, |h| h.revision), expected)?;
            let expect = match held {
                Some(held) if held.value == *traffic => {
                    let revision = held.revision;
                    return Ok(Outcome::Unchanged { revision });
                }
                Some(held) => Expect::At(held.revision),
                None => Expect::Absent,
            };
            let draft = self.change(actor, "traffic.put", traffic.agent.as_str());
            let revision = draft.resource(traffic, expect).commit().await?;
            Ok(Outcome::Done { revision })
        })
        .await
    }

    /// How many approved measurements an agent has.
    ///
    /// # Errors
    /// The store fails.
    pub async fn measurements_of(&self, agent: &AgentName) -> Result<Vec<(String, Versioned<Measurement>)>, Refusal> {
        self.all(keys::resource(Kind::Measurement, &format!("{agent}/")), MAX_ROWS)
            .await
    }
}

/// Observing ends by itself, and soon enough.
fn check_mode(mode: &Mode, now: u64) -> Result<(), Refusal> {
    let Mode::Observe { until } = mode else {
        return Ok(());
    };
    let latest = now + MAX_OBSERVE_SECONDS;
    if (now + 1..=latest).contains(until) {
        return Ok(());
    }
    let message = format!(
        "{until}; Unix seconds from {} to {latest}: at most 7 days from now",
        now + 1
    );
    Err(Refusal::invalid(vec![FieldError::new("mode.until", message)]))
}

/// Whether what is held is at the revision that the client saw (`If-Match`).
///
/// # Errors
/// It is not. Told apart from a collision in the store by its detail; repeating does not help.
pub fn at_expected(held: u64, expected: Option<u64>) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != held => {
            let detail = format!("it is at revision {held}, not {expected}: read it again");
            Err(Refusal::new(Reason::Conflict, detail))
        }
        _ => Ok(()),
    }
}

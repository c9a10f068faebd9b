//! Agents: registered, changed, revoked, removed.

use aip_api::AgentName;
use aip_api::resource::{Agent, Endpoint, Kind, Measurement, Revocation, Traffic};

use super::{Actor, Registry, Versioned, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::{Expect, Op};

/// Longest time for which an SVID can still be good after it was revoked: the longest lifetime that the settings
/// allow, and the clock skew that peers tolerate.
pub const REVOCATION_SECONDS: u64 = 86_400 + 300;
/// Rows of one agent that are removed with it, of each kind.
const MAX_ROWS: usize = 1_000;

/// A serial that was revoked, or a generation that was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// The agent's generation from now on.
    pub generation: u64,
    /// The store's revision.
    pub revision: u64,
}

impl Registry {
    /// Registers an agent. A name that was used before begins above the generations that were revoked.
    ///
    /// # Errors
    /// It exists, has mistakes, or the store fails.
    pub async fn create_agent(&self, actor: &Actor, mut agent: Agent) -> Result<Versioned<Agent>, Refusal> {
        let name = agent.name.to_string();
        let exists = || Refusal::new(Reason::AgentExists, format!("agent {name} is registered already"));
        if self.resource::<Agent>(&name).await?.is_some() {
            return Err(exists());
        }
        agent.generation = self.revoked_below(&agent.name).await?.max(1);
        let draft = self
            .change(actor, "agent.create", &name)
            .resource(&agent, Expect::Absent);
        match draft.commit().await {
            Ok(revision) => Ok(Versioned { value: agent, revision }),
            Err(refusal) if refusal.reason == Reason::Conflict => Err(exists()),
            Err(refusal) => Err(refusal),
        }
    }

    async fn revoked_below(&self, agent: &AgentName) -> Result<u64, Refusal> {
        let revocation = self.resource::<Revocation>(&format!("generation/{agent}")).await?;
        Ok(match revocation.map(|r| r.value) {
            Some(Revocation::Generation { below, .. }) => below,
            _ => 0,
        })
    }

    /// Changes an agent. Its generation is the control plane's: what the document says of it is not taken.
    ///
    /// # Errors
    /// Unknown, not at the expected revision, mistakes, or the store fails.
    pub async fn update_agent(
        &self,
        actor: &Actor,
        agent: Agent,
        expected: Option<u64>,
    ) -> Result<Versioned<Agent>, Refusal> {
        retrying(async || {
            let held = self.existing::<Agent>(agent.name.as_str()).await?;
            at_expected(held.revision, expected)?;
            let agent = Agent {
                generation: held.value.generation,
                ..agent.clone()
            };
            let draft = self.change(actor, "agent.update", agent.name.as_str());
            let revision = draft.resource(&agent, Expect::At(held.revision)).commit().await?;
            Ok(Versioned { value: agent, revision })
        })
        .await
    }

    /// Raises the agent's generation and revokes the earlier ones, in one transaction.
    ///
    /// # Errors
    /// Unknown, or the store fails.
    pub async fn revoke_agent(&self, actor: &Actor, agent: &AgentName, why: &str) -> Result<Raised, Refusal> {
        retrying(async || {
            let held = self.existing::<Agent>(agent.as_str()).await?;
            let generation = held.value.generation + 1;
            let raised = Agent {
                generation,
                ..held.value
            };
            let draft = self.change(actor, "agent.revoke", agent.as_str()).detail(why);
            let draft = draft.resource(&raised, Expect::At(held.revision));
            let revision = draft
                .resource(&self.generation_revoked(agent, generation), Expect::Any)
                .commit()
                .await?;
            Ok(Raised { generation, revision })
        })
        .await
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
        let draft = self
            .change(actor, "svid.revoke", format!("{agent}/{serial}"))
            .detail(why);
        draft.resource(&revocation, Expect::Any).commit().await
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
            draft
                .resource(&self.generation_revoked(agent, held.value.generation + 1), Expect::Any)
                .commit()
                .await
        })
        .await
    }

    /// Records or replaces an endpoint; answers without a change where it stands already.
    ///
    /// # Errors
    /// Mistakes, or the store fails.
    pub async fn put_endpoint(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        use aip_api::resource::Resource as _;
        let name = endpoint.name();
        if self
            .resource::<Endpoint>(&name)
            .await?
            .is_some_and(|held| held.value == *endpoint)
        {
            return Ok(());
        }
        let draft = self.change(&Actor::sidecar(&endpoint.agent), "endpoint.lease", &name);
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
    pub async fn put_traffic(&self, actor: &Actor, traffic: &Traffic, expected: Option<u64>) -> Result<u64, Refusal> {
        retrying(async || {
            if traffic.agent != Traffic::DEFAULT && self.resource::<Agent>(&traffic.agent).await?.is_none() {
                return Err(Reason::AgentUnknown.into());
            }
            let held = self
                .resource::<Traffic>(&traffic.agent)
                .await?
                .map(|held| held.revision);
            if let Some(expected) = expected {
                at_expected(held.unwrap_or(0), Some(expected))?;
            }
            let expect = held.map_or(Expect::Absent, Expect::At);
            self.change(actor, "traffic.put", traffic.agent.as_str())
                .resource(traffic, expect)
                .commit()
                .await
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

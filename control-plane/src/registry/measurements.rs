//! Measurements: seen, approved, taken back.

use aip_api::evidence::Evidence;
use aip_api::resource::{Agent, Kind, Measurement, Resource as _};
use aip_api::{AgentName, Digest};

use super::agents::MAX_ROWS;
use super::records::{Action, PendingMeasurement, Withdrawn};
use super::{Actor, Draft, Outcome, Registry, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::Expect;

/// Approved measurements of one agent: each is a version that may run; past it, old ones should be taken back.
pub const MAX_APPROVED: usize = 256;
/// Waiting measurements of one agent: a person reads them.
pub const MAX_PENDING: usize = 16;
/// What a person is shown of a command line.
const MAX_ARGV: usize = 32;
const MAX_ARGUMENT: usize = 200;

impl Registry {
    /// Records that a measurement waits. Answers the refusal that the sidecar gets.
    ///
    /// # Errors
    /// Too many wait for this agent, or the store fails.
    pub async fn record_pending(&self, evidence: &Evidence) -> Result<Refusal, Refusal> {
        let (measurement, now) = (Measurement::of(evidence), self.clock.now());
        let (agent, fingerprint) = (&evidence.agent, measurement.fingerprint());
        let key = keys::pending(agent, &fingerprint);
        let name = measurement.name();
        retrying(async || {
            let held = self.record::<PendingMeasurement>(key.clone()).await?;
            if held.is_none() {
                let waiting = self
                    .store
                    .scan(format!("{}{agent}/", keys::PENDING), "", MAX_PENDING)
                    .await?;
                if waiting.len() >= MAX_PENDING {
                    let detail = format!("{MAX_PENDING} measurements of {agent} wait already; refuse some of them");
                    return Err(Refusal::new(Reason::MeasurementUnknown, detail));
                }
            }
            let argv = evidence.argv.iter().flatten().take(MAX_ARGV);
            let pending = PendingMeasurement {
                measurement: measurement.clone(),
                assurance: evidence.assurance,
                enforcement: evidence.enforcement,
                files: evidence.files.len(),
                argv: argv.map(|a| a.chars().take(MAX_ARGUMENT).collect()).collect(),
                first_seen: held.as_ref().map_or(now, |h| h.value.first_seen),
                last_seen: now,
            };
            let expect = held.map_or(Expect::Absent, |h| Expect::At(h.revision));
            let draft = self
                .change(&Actor::sidecar(agent), "measurement.pending", &name)
                .routine();
            draft.put(key.clone(), &pending, expect).commit().await?;
            Ok(())
        })
        .await?;
        let detail = format!(
            "measurement {fingerprint} of {agent} waits for approval: aip attest approve {agent} {fingerprint}"
        );
        Ok(Refusal::new(Reason::MeasurementPending, detail))
    }

    /// Approves a measurement: one that waits, or one that was taken elsewhere (`aip attest measure`).
    ///
    /// # Errors
    /// Unknown agent, mistakes, too many, or the store fails.
    pub async fn approve_measurement(&self, sub: &str, measurement: Measurement) -> Result<Outcome, Refusal> {
        let mistakes = measurement.validate();
        if !mistakes.is_empty() {
            return Err(Refusal::invalid(mistakes));
        }
        retrying(async || {
            let agent = self.resource::<Agent>(measurement.agent.as_str()).await?;
            let agent = agent.ok_or(Refusal::from(Reason::AgentUnknown))?.revision;
            // Its name holds the digest of all that it says, but for who approved it, and when.
            let again = self.awaits_clearance(&measurement).await?;
            if !again && let Some(held) = self.resource::<Measurement>(&measurement.name()).await? {
                let revision = held.revision;
                return Ok(Outcome::Unchanged { revision });
            }
            let measurement = measurement.clone();
            self.do_or_propose(sub, Action::ApproveMeasurement { measurement, agent })
                .await
        })
        .await
    }

    /// Adds what approves a measurement of an agent that is at revision `registered`.
    pub(super) async fn approval_ops(
        &self,
        draft: Draft,
        actor: &Actor,
        measurement: &Measurement,
        registered: u64,
    ) -> Result<Draft, Refusal> {
        let agent = &measurement.agent;
        let known = self.measurements_of(agent).await?;
        let again = known.iter().any(|(_, held)| held.value.name() == measurement.name());
        if !again && known.len() >= MAX_APPROVED {
            let detail = format!("{agent} has {MAX_APPROVED} approved measurements; take some back");
            return Err(Refusal::new(Reason::MeasurementLimit, detail));
        }
        let mut approved = measurement.clone();
        approved.approved_by.clone_from(&actor.0);
        approved.approved_at = self.clock.now();
        let print = approved.fingerprint();
        let draft = draft
            .check(keys::resource(Kind::Agent, agent.as_str()), Expect::At(registered))
            .resource(&approved, Expect::Any);
        let draft = self.cleared(draft, actor, agent, print).await?;
        let draft = draft.delete(keys::pending(agent, &print), Expect::Any);
        Ok(draft.delete(keys::withdrawn(agent, &print), Expect::Any))
    }

    /// What a person may approve under this fingerprint: what waits, or what was approved before. An agent that drifted needs
    /// that anew, and shows nothing while it is not started again.
    ///
    /// # Errors
    /// There is neither, or the store fails.
    pub async fn approvable(&self, agent: &AgentName, print: &Digest) -> Result<Measurement, Refusal> {
        if let Some(waits) = self.record::<PendingMeasurement>(keys::pending(agent, print)).await? {
            return Ok(waits.value.measurement);
        }
        let known = self.resource::<Measurement>(&format!("{agent}/{print}")).await?;
        let known = known.ok_or_else(|| Refusal::new(Reason::NotFound, "no such measurement waits or is approved"))?;
        Ok(Measurement {
            approved_by: String::new(),
            approved_at: 0,
            ..known.value
        })
    }

    /// What waits for `agent` under this fingerprint.
    ///
    /// # Errors
    /// Nothing does, or the store fails.
    pub async fn pending_measurement(&self, agent: &AgentName, print: &Digest) -> Result<PendingMeasurement, Refusal> {
        let held = self.record(keys::pending(agent, print)).await?;
        held.map(|h| h.value)
            .ok_or_else(|| Refusal::new(Reason::NotFound, "no such measurement waits"))
    }

    /// Whether an approval that covered this evidence was taken back.
    ///
    /// # Errors
    /// The store fails.
    pub async fn was_withdrawn(&self, evidence: &Evidence) -> Result<bool, Refusal> {
        let prefix = format!("{}{}/", keys::WITHDRAWN, evidence.agent);
        let all = self.all::<Withdrawn>(prefix, MAX_ROWS).await?;
        Ok(all.iter().any(|(_, held)| held.value.measurement.matches(evidence)))
    }

    /// Refuses a measurement that waits.
    ///
    /// # Errors
    /// Nothing waits, or the store fails.
    pub async fn refuse_pending(&self, actor: &Actor, agent: &AgentName, print: &Digest) -> Result<u64, Refusal> {
        self.pending_measurement(agent, print).await?;
        let draft = self.change(actor, "measurement.refuse", format!("{agent}/{print}"));
        draft.delete(keys::pending(agent, print), Expect::Any).commit().await
    }

    /// Takes an approval back. SVIDs that were issued for it stay good until they expire, unless the agent is revoked.
    ///
    /// # Errors
    /// Not approved, or the store fails.
    pub async fn withdraw_measurement(&self, actor: &Actor, agent: &AgentName, print: &Digest) -> Result<u64, Refusal> {
        let name = format!("{agent}/{print}");
        let held = self.existing::<Measurement>(&name).await?;
        let withdrawn = Withdrawn {
            measurement: held.value,
            by: actor.0.clone(),
            at: self.clock.now(),
        };
        let draft = self.change(actor, "measurement.withdraw", &name);
        let draft = draft.delete_resource(Kind::Measurement, &name, Expect::At(held.revision));
        draft
            .put(keys::withdrawn(agent, print), &withdrawn, Expect::Any)
            .commit()
            .await
    }
}

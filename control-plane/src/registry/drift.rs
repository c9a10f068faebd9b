//! Drift: an agent runs something else than was approved. Its earlier SVIDs are revoked in the transaction that blocks
//! new ones; it gets one again for a measurement that a person approved after that, in another run of the agent.

use std::collections::{BTreeMap, BTreeSet};

use aip_api::evidence::{Drift, Evidence, MAX_DRIFTED_NAMED};
use aip_api::generation::{OfReport, of_report};
use aip_api::resource::{Agent, Measurement, Resource as _};
use aip_api::{AgentName, Digest};
use aip_runtime::x509::PeerIdentity;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::agents::Raised;
use super::measurements::MAX_PENDING;
use super::records::{PendingMeasurement, SvidRecord};
use super::{Actor, Draft, Registry, Versioned, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::Expect;

/// Runs that are remembered as drifted: of as many sidecars of one agent as an edit reaches at once.
pub const MAX_RUNS: usize = 256;

/// How many generations evidence may say that a store lacks, which was restored from a copy: more than an agent goes through
/// between two copies. It is the agent's own word, and its generations are not to run out by it.
const MAX_LACKED: u64 = 1_000;

/// What a person approved after a drift.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cleared {
    /// Which measurement.
    #[schema(value_type = String)]
    pub fingerprint: Digest,
    /// Who.
    pub by: String,
    /// Unix seconds.
    pub at: u64,
}

/// The last drift of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriftRecord {
    /// Whose.
    #[schema(value_type = String)]
    pub agent: AgentName,
    /// The generation that began with it; SVIDs of earlier ones are revoked.
    pub generation: u64,
    /// The run of the agent that drifted last.
    pub run: String,
    /// All runs that drifted, the last [`MAX_RUNS`]: none of them gets an SVID again. Several, where the agent has several
    /// sidecars.
    #[serde(default)]
    pub runs: Vec<String>,
    /// The lines of SVIDs whose sidecars reported a drift, the last [`MAX_RUNS`], each by the serial of its first: these
    /// sidecars have suspended themselves, and no others.
    #[serde(default)]
    pub lines: Vec<String>,
    /// The digest that was approved.
    #[schema(value_type = Option<String>)]
    pub was: Option<Digest>,
    /// The digest that was found, where it could be measured.
    #[schema(value_type = Option<String>)]
    pub found: Option<Digest>,
    /// Paths that changed, the first of them.
    pub paths: Vec<String>,
    /// How many changed.
    pub changed: u64,
    /// When its sidecar found it, Unix seconds by the sidecar's clock.
    pub at: u64,
    /// When it was reported, Unix seconds.
    pub reported_at: u64,
    /// What may run from now on, once a person said so.
    #[serde(default)]
    pub cleared: Option<Cleared>,
    /// When it was let back in, Unix seconds.
    #[serde(default)]
    pub recovered_at: Option<u64>,
}

impl DriftRecord {
    /// Whether this run of the agent drifted.
    pub fn knows(&self, run: &str) -> bool {
        self.run == run || self.runs.iter().any(|known| known == run)
    }

    /// The runs that drifted, with one more.
    fn runs_and(held: Option<&Versioned<Self>>, run: &str) -> Vec<String> {
        with_one_more(held.map(|held| &held.value.runs), run)
    }

    /// What happened, in a line for the audit.
    fn summary(&self) -> String {
        let (run, generation) = (&self.run, self.generation);
        let what = match (self.paths.is_empty(), self.changed) {
            (true, 0) => "said in evidence alone".to_owned(),
            (_, changed) => format!("{changed} changed: {}", self.paths.join(" ")),
        };
        let found = self
            .found
            .map_or("what can't be measured".into(), |found| found.to_string());
        format!("generation {generation} begins; run {run}; {found} was found; {what}")
    }

    /// Whether the agent still gets no SVID.
    pub fn blocks(&self) -> bool {
        self.recovered_at.is_none()
    }
}

/// The last [`MAX_RUNS`] of these and of this one.
fn with_one_more(known: Option<&Vec<String>>, one: &str) -> Vec<String> {
    let mut all = known.cloned().unwrap_or_default();
    all.retain(|known| known != one);
    all.push(one.to_owned());
    let surplus = all.len().saturating_sub(MAX_RUNS);
    all.drain(..surplus);
    all
}

/// Whether an issuance may go on, as far as drift is concerned.
pub enum Passage {
    /// Nothing stands against it.
    Free,
    /// It ends this drift.
    Recovers(Box<Versioned<DriftRecord>>),
}

impl Passage {
    /// Adds to the issuing transaction what the issuance ends.
    pub fn ends(self, draft: Draft, now: u64) -> Draft {
        match self {
            Self::Free => draft,
            Self::Recovers(held) => {
                let Versioned { value, revision } = *held;
                let recovered = DriftRecord {
                    recovered_at: Some(now),
                    ..value
                };
                let key = keys::drift(&recovered.agent);
                draft.put(key, &recovered, Expect::At(revision))
            }
        }
    }
}

impl Registry {
    /// Takes a drift report whose signature and peer were checked. A report that was taken before changes nothing. One of
    /// a later generation than the store knows is of an SVID that this mesh issued after the copy from which the store was
    /// restored: the generation goes above that, too.
    ///
    /// # Errors
    /// Not the agent's current generation but an earlier one, or the store fails.
    pub async fn report_drift(&self, peer: &PeerIdentity, drift: &Drift) -> Result<Raised, Refusal> {
        retrying(async || {
            let agent = self.resource::<Agent>(drift.agent.as_str()).await?;
            let mut agent = agent.ok_or(Refusal::from(Reason::AgentUnknown))?;
            let held = self.record::<DriftRecord>(keys::drift(&drift.agent)).await?;
            let line = self.line_of(&drift.agent, &peer.serial).await?;
            let began = held.as_ref().filter(|held| held.value.knows(&drift.run));
            let began = began.map(|held| (held.value.generation, held.revision));
            let to = match of_report(drift.generation, began.map(|(began, _)| began), agent.value.generation) {
                OfReport::Known => {
                    return Ok(Raised {
                        generation: agent.value.generation,
                        revision: began.map_or(agent.revision, |(_, revision)| revision),
                    });
                }
                OfReport::Over => {
                    let detail = format!(
                        "the report is of generation {}, the agent is at {}",
                        drift.generation, agent.value.generation
                    );
                    return Err(Refusal::new(Reason::GenerationMismatch, detail));
                }
                OfReport::Raises(to) => to,
            };
            // What it is raised from; the SVIDs of everything before are revoked.
            agent.value.generation = drift.generation;
            let record = DriftRecord {
                agent: drift.agent.clone(),
                generation: to,
                run: drift.run.clone(),
                runs: DriftRecord::runs_and(held.as_ref(), &drift.run),
                lines: with_one_more(held.as_ref().map(|held| &held.value.lines), &line),
                was: Some(drift.was),
                found: drift.found,
                paths: drift.paths.iter().take(MAX_DRIFTED_NAMED).cloned().collect(),
                changed: drift.changed,
                at: drift.at,
                reported_at: self.clock.now(),
                cleared: None,
                recovered_at: None,
            };
            let waits = self.found_in(peer, drift).await?;
            self.block(agent, held, record, waits).await
        })
        .await
    }

    /// Blocks what a sidecar says in its evidence has drifted, where no report of it came: a sidecar can lose its key, or
    /// its SVID can expire, before the report gets through.
    ///
    /// # Errors
    /// The store fails.
    async fn drifted_unreported(&self, evidence: &Evidence, run: &str) -> Result<(), Refusal> {
        retrying(async || {
            let agent = self.resource::<Agent>(evidence.agent.as_str()).await?;
            let mut agent = agent.ok_or(Refusal::from(Reason::AgentUnknown))?;
            let held = self.record::<DriftRecord>(keys::drift(&evidence.agent)).await?;
            if held.as_ref().is_some_and(|held| held.value.knows(run)) {
                return Ok(());
            }
            let runs = DriftRecord::runs_and(held.as_ref(), run);
            // Another sidecar of the agent reported the same edit: the SVIDs of this one are revoked already, and raising
            // the generation once more would only knock out those that are back.
            let revoked = evidence
                .drifted_generation
                .is_some_and(|of| of < agent.value.generation);
            if let Some(held) = held.as_ref().filter(|_| revoked) {
                let record = DriftRecord {
                    runs,
                    ..held.value.clone()
                };
                let actor = Actor::sidecar(&evidence.agent);
                let draft = self.change(&actor, "agent.drift", evidence.agent.as_str()).routine();
                let draft = draft.put(keys::drift(&evidence.agent), &record, Expect::At(held.revision));
                return draft.commit().await.map(|_| ());
            }
            let now = self.clock.now();
            let later = evidence
                .drifted_generation
                .filter(|of| *of <= agent.value.generation + MAX_LACKED);
            agent.value.generation = later.unwrap_or(0).max(agent.value.generation);
            let record = DriftRecord {
                agent: evidence.agent.clone(),
                generation: agent.value.generation + 1,
                run: run.to_owned(),
                runs,
                // Whoever asks for an SVID is another process than the one that drifted.
                lines: held.as_ref().map(|held| held.value.lines.clone()).unwrap_or_default(),
                was: None,
                found: None,
                paths: Vec::new(),
                changed: 0,
                at: now,
                reported_at: now,
                cleared: None,
                recovered_at: None,
            };
            self.block(agent, held, record, None).await.map(|_| ())
        })
        .await
    }

    async fn block(
        &self,
        agent: Versioned<Agent>,
        held: Option<Versioned<DriftRecord>>,
        record: DriftRecord,
        waits: Option<PendingMeasurement>,
    ) -> Result<Raised, Refusal> {
        let actor = Actor::sidecar(&record.agent);
        let expect = held.map_or(Expect::Absent, |held| Expect::At(held.revision));
        let draft = self
            .change(&actor, "agent.drift", record.agent.as_str())
            .detail(record.summary())
            .put(keys::drift(&record.agent), &record, expect);
        let draft = match waits {
            Some(waits) => {
                let print = waits.measurement.fingerprint();
                draft.put(keys::pending(&record.agent, &print), &waits, Expect::Any)
            }
            None => draft,
        };
        let draft = self.drift_ops(draft, &record.agent).await?;
        let (draft, generation) = self.raised(draft, agent).await?;
        let revision = draft.commit().await?;
        metrics::counter!("aip_drift_reports_total").increment(1);
        // Only counted: what was committed stays so.
        let _ = self.drifted().await;
        Ok(Raised { generation, revision })
    }

    /// What was found, for a person to look at; none where it can't be approved, or as many wait as may.
    async fn found_in(&self, peer: &PeerIdentity, drift: &Drift) -> Result<Option<PendingMeasurement>, Refusal> {
        let Some(measurement) = drift.measurement.clone() else {
            return Ok(None);
        };
        let prefix = format!("{}{}/", keys::PENDING, drift.agent);
        let room = self.store.scan(prefix, "", MAX_PENDING).await?.len() < MAX_PENDING;
        if !room || measurement.agent != drift.agent || !measurement.validate().is_empty() {
            return Ok(None);
        }
        let now = self.clock.now();
        Ok(Some(PendingMeasurement {
            measurement: Measurement {
                approved_by: String::new(),
                approved_at: 0,
                ..measurement
            },
            assurance: peer.result.assurance,
            enforcement: peer.result.enforcement,
            files: drift.files,
            argv: Vec::new(),
            first_seen: now,
            last_seen: now,
        }))
    }

    /// Whether this evidence gets an SVID as far as drift is concerned. What waits for a person is recorded.
    ///
    /// # Errors
    /// Blocked, and why; or the store fails.
    pub async fn passage(&self, evidence: &Evidence) -> Result<Passage, Refusal> {
        if let Some(run) = &evidence.drifted {
            self.drifted_unreported(evidence, run).await?;
        }
        let held = self.record::<DriftRecord>(keys::drift(&evidence.agent)).await?;
        let Some(held) = held else {
            return Ok(Passage::Free);
        };
        let agent = &evidence.agent;
        // Known by its name alone, so that no clock decides: a run that drifted stays out.
        let fresh = evidence.run.as_ref().is_some_and(|run| !held.value.knows(run));
        if !held.value.blocks() {
            return match (fresh, &evidence.drifted) {
                // Of a sidecar that drifted beside others a person must have approved what it runs now, since.
                (true, Some(_)) if !self.approved_since(evidence, held.value.reported_at).await? => {
                    let waits = self.record_pending(evidence).await?;
                    let detail = format!("{agent} drifted; {}", waits.detail);
                    Err(Refusal::new(Reason::AgentDrifted, detail))
                }
                (true, _) => Ok(Passage::Free),
                (false, _) if evidence.run.is_none() => Ok(Passage::Free),
                (false, _) => {
                    let detail = format!("this run of {agent} drifted; restart it, so that it runs what is approved");
                    Err(Refusal::new(Reason::AgentDrifted, detail))
                }
            };
        }
        if let Some(cleared) = &held.value.cleared {
            let name = format!("{agent}/{}", cleared.fingerprint);
            let approved = self.resource::<Measurement>(&name).await?;
            if approved.is_some_and(|approved| approved.value.matches(evidence)) {
                return match fresh {
                    true => Ok(Passage::Recovers(Box::new(held))),
                    false => {
                        let detail = format!("what {agent} is to run is approved; restart it, so that it runs that");
                        Err(Refusal::new(Reason::AgentDrifted, detail))
                    }
                };
            }
        }
        let waits = self.record_pending(evidence).await?;
        let detail = format!("{agent} drifted; {}", waits.detail);
        Err(Refusal::new(Reason::AgentDrifted, detail))
    }

    /// How many agents get no SVID because they drifted.
    ///
    /// # Errors
    /// The store fails.
    pub async fn drifted(&self) -> Result<usize, Refusal> {
        let blocked = self.drifted_agents().await?.len();
        metrics::gauge!("aip_agents_drifted").set(blocked as f64);
        Ok(blocked)
    }

    /// Which agents get no SVID because they drifted.
    ///
    /// # Errors
    /// The store fails.
    pub async fn drifted_agents(&self) -> Result<BTreeSet<AgentName>, Refusal> {
        let all = self.all::<DriftRecord>(keys::DRIFTS, usize::MAX).await?;
        let blocked = all.into_iter().filter(|(_, held)| held.value.blocks());
        Ok(blocked.map(|(_, held)| held.value.agent).collect())
    }

    /// The lines of SVIDs whose sidecars reported a drift, also of agents that were let back in: it was another process then.
    ///
    /// # Errors
    /// The store fails.
    pub async fn drifted_lines(&self) -> Result<BTreeMap<AgentName, BTreeSet<String>>, Refusal> {
        let all = self.all::<DriftRecord>(keys::DRIFTS, usize::MAX).await?;
        let lines = all
            .into_iter()
            .map(|(_, held)| (held.value.agent, held.value.lines.into_iter().collect()));
        Ok(lines.collect())
    }

    /// The line of an SVID.
    ///
    /// # Errors
    /// The store fails.
    pub async fn line_of(&self, agent: &AgentName, serial: &str) -> Result<String, Refusal> {
        let held = self.record::<SvidRecord>(keys::svid(agent, serial)).await?;
        Ok(held
            .and_then(|held| held.value.line)
            .unwrap_or_else(|| serial.to_owned()))
    }

    /// Whether a person approved what this evidence shows, no earlier than then.
    async fn approved_since(&self, evidence: &Evidence, then: u64) -> Result<bool, Refusal> {
        let all = self.measurements_of(&evidence.agent).await?;
        let by_a_person = |m: &Measurement| m.approved_by != "dev" && m.approved_at >= then;
        Ok(all
            .iter()
            .any(|(_, held)| by_a_person(&held.value) && held.value.matches(evidence)))
    }

    /// Whether approving this measurement would let a drifted agent run it, also where it was approved before.
    ///
    /// # Errors
    /// The store fails.
    pub(super) async fn awaits_clearance(&self, measurement: &Measurement) -> Result<bool, Refusal> {
        let held = self.record::<DriftRecord>(keys::drift(&measurement.agent)).await?;
        let Some(held) = held else { return Ok(false) };
        if !held.value.blocks() {
            // Also for a sidecar that drifted beside others, of which one is back.
            let approved = self.resource::<Measurement>(&measurement.name()).await?;
            let since = |m: &Measurement| m.approved_by != "dev" && m.approved_at >= held.value.reported_at;
            return Ok(approved.is_some_and(|approved| !since(&approved.value)));
        }
        let print = measurement.fingerprint();
        Ok(held.value.cleared.is_none_or(|cleared| cleared.fingerprint != print))
    }

    /// Adds to an approval what it means for an agent that drifted.
    pub(super) async fn cleared(
        &self,
        draft: Draft,
        actor: &Actor,
        agent: &AgentName,
        fingerprint: Digest,
    ) -> Result<Draft, Refusal> {
        let held = self.record::<DriftRecord>(keys::drift(agent)).await?;
        let Some(held) = held.filter(|held| held.value.blocks()) else {
            return Ok(draft);
        };
        let record = DriftRecord {
            cleared: Some(Cleared {
                fingerprint,
                by: actor.0.clone(),
                at: self.clock.now(),
            }),
            ..held.value
        };
        let draft = draft.noting(format!("{agent}, which drifted, may run it once it is started again"));
        Ok(draft.put(keys::drift(agent), &record, Expect::At(held.revision)))
    }
}

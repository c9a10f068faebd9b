//! What people and programs do to an agent's reputation: report, import, reset.

use aip_api::problem::FieldError;
use aip_api::resource::reputation::{
    Evidence, Finding, MAX_CLAIM_BYTES, MAX_STATEMENT_BYTES, STATEMENT_TYP, Score, Severity, Statement,
};
use aip_api::resource::{Agent, KeyPurpose, MeshConfig, Reputation};
use aip_api::{AgentName, Digest, SpiffeId};
use aip_runtime::jws;
use serde::{Deserialize, Serialize};

use super::book::Recorded;
use super::event::{Report, What};
use crate::ca::Ca;
use crate::refusal::{Reason, Refusal};
use crate::registry::records::Action;
use crate::registry::{Actor, Draft, Outcome, Registry, keys, retrying};
use crate::store::Expect;

/// Reports of one reporter about one agent in an hour: more than any person writes, and a program that finds more has
/// found enough with these.
pub const MAX_REPORTS_AN_HOUR: u32 = 30;
/// How long a statement is good, in seconds: a day, as long as the longest SVID.
pub const STATEMENT_SECONDS: u64 = 86_400;
/// How long a report is remembered, in seconds, so that the same one is not counted again: what a critical slash by the
/// default half-life needs to wear off is nine half-lives.
pub const REPORT_MEMORY_SECONDS: u64 = 400 * 86_400;
/// Longest reason of a reset.
const MAX_REASON_BYTES: usize = 500;

/// What a verifier says.
#[derive(Debug, Clone)]
pub struct NewReport {
    /// Of whom.
    pub agent: AgentName,
    /// What was found.
    pub finding: Finding,
    /// How bad it was.
    pub severity: Severity,
    /// What it is about.
    pub evidence: Evidence,
    /// In words; at most [`MAX_CLAIM_BYTES`].
    pub claim: String,
}

/// A report that was counted, so that it is counted once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The report's id.
    pub id: String,
    /// Unix seconds.
    pub at: u64,
}

/// What a report did.
#[derive(Debug, Clone)]
pub struct Reported {
    /// The report's id; that of the first one, where it had been made before.
    pub id: String,
    /// Whether it had been made before: then nothing was counted.
    pub repeated: bool,
    /// The store's revision.
    pub revision: u64,
    /// What came of it; `None` where nothing was counted.
    pub recorded: Option<Recorded>,
}

/// What an import did.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Whether the statement said less than was known, and holds from now on.
    pub adopted: bool,
    /// The store's revision.
    pub revision: u64,
}

/// Nobody speaks of itself: neither the agent, nor who answers for it.
fn is_self(reporter: &str, agent: &Agent) -> bool {
    reporter == agent.name.as_str() || !agent.owner.is_empty() && reporter == agent.owner
}

impl Registry {
    /// Takes a verifier's report: counted once for each reporter and evidence, and told to all sidecars at once.
    ///
    /// # Errors
    /// Unknown agent, a reporter that speaks of itself, too many reports, mistakes, or the store fails.
    pub async fn report_reputation(&self, sub: &str, report: NewReport) -> Result<Reported, Refusal> {
        if report.claim.len() > MAX_CLAIM_BYTES {
            let message = format!("{} bytes; at most {MAX_CLAIM_BYTES}", report.claim.len());
            return Err(Refusal::invalid(vec![FieldError::new("claim", message)]));
        }
        retrying(async || self.report_once(sub, &report).await).await
    }

    async fn report_once(&self, sub: &str, report: &NewReport) -> Result<Reported, Refusal> {
        let (agent, registered) = self.still_registered(&report.agent).await?;
        if is_self(sub, &agent.value) {
            let detail = format!(
                "{sub} is {}, or answers for it: somebody else must report",
                report.agent
            );
            return Err(Refusal::new(Reason::SelfReport, detail));
        }
        let once = Digest::of_parts(&[sub.as_bytes(), b"\0", report.evidence.as_str().as_bytes()]);
        let once = keys::reputation_report(&report.agent, &once);
        if let Some(before) = self.record::<Counted>(once.clone()).await? {
            return Ok(Reported {
                id: before.value.id,
                repeated: true,
                revision: before.revision,
                recorded: None,
            });
        }
        let settings = self.reputation_settings().await?;
        let mut book = self.reputation_book(&report.agent, &settings).await?;
        let now = self.clock.now();
        if book.ledger.reports_of(sub, now) >= MAX_REPORTS_AN_HOUR {
            let detail = format!(
                "{sub} reported {} {MAX_REPORTS_AN_HOUR} times in this hour",
                report.agent
            );
            return Err(Refusal::new(Reason::RateExceeded, detail));
        }
        let id = uuid::Uuid::now_v7().hyphenated().to_string();
        let weight = settings.reporters.get(sub).copied().unwrap_or(100);
        let points = match report.finding {
            Finding::Confirmed => Score::default(),
            _ => Score::clamped(settings.slash.of(report.severity).value() * f64::from(weight) / 100.0),
        };
        let what = What::Report(Report {
            id: id.clone(),
            reporter: sub.to_owned(),
            finding: report.finding,
            severity: report.severity,
            points,
            weight,
            evidence: report.evidence.clone(),
            claim: report.claim.clone(),
        });
        let (finding, severity) = (report.finding.as_str(), report.severity.as_str());
        let draft = self
            .change(&Actor::admin(sub), "reputation.report", report.agent.as_str())
            .detail(format!("{finding}, {severity}, {}: {points} off", report.evidence))
            .put(
                once,
                &Counted {
                    id: id.clone(),
                    at: now,
                },
                Expect::Absent,
            )
            .ops([registered]);
        let (draft, recorded) = self.reputation_ops(draft, &mut book, what, &settings).await?;
        let revision = draft.commit().await?;
        metrics::counter!("aip_reputation_reports_total", "finding" => finding, "severity" => severity).increment(1);
        Ok(Reported {
            id,
            repeated: false,
            revision,
            recorded: Some(recorded),
        })
    }

    /// Adds to a draft that what the agent runs was no longer what was approved. The draft is the one that blocks it.
    ///
    /// # Errors
    /// The store fails.
    pub async fn drift_ops(&self, draft: Draft, agent: &AgentName) -> Result<Draft, Refusal> {
        let read = async {
            let settings = self.reputation_settings().await?;
            self.resource::<Reputation>(agent.as_str()).await?;
            Ok::<_, Refusal>((self.reputation_book(agent, &settings).await?, settings))
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

    /// Forgets all that counts for or against an agent, or proposes to.
    ///
    /// # Errors
    /// Unknown agent, a reason that is missing or too long, or the store fails.
    pub async fn reset_reputation(&self, sub: &str, agent: &AgentName, reason: &str) -> Result<Outcome, Refusal> {
        if reason.trim().is_empty() || reason.len() > MAX_REASON_BYTES {
            let message = format!("say why, in 1 to {MAX_REASON_BYTES} bytes");
            return Err(Refusal::invalid(vec![FieldError::new("reason", message)]));
        }
        let (registered, _) = self.still_registered(agent).await?;
        if is_self(sub, &registered.value) {
            let detail = format!("{sub} is {agent}, or answers for it: somebody else must reset its reputation");
            return Err(Refusal::new(Reason::SelfReport, detail));
        }
        let settings = self.reputation_settings().await?;
        let events = self.reputation_book(agent, &settings).await?.ledger.seq;
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
        let settings = self.reputation_settings().await?;
        let book = self.reputation_book(agent, &settings).await?;
        let first = book.events.first().map_or(book.ledger.seq + 1, |e| e.seq);
        // Older ones than are kept can't be told apart any more.
        if first > events + 1 {
            return Ok(book.ledger.seq);
        }
        let counts = |e: &&super::event::Event| e.seq > events && !matches!(e.what, What::Observed { .. });
        Ok(book.events.iter().rev().find(counts).map_or(events, |e| e.seq))
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
        let mut book = self.reputation_book(agent, &settings).await?;
        let what = What::Reset {
            by: actor.0.clone(),
            reason: reason.to_owned(),
        };
        let (draft, _) = self.reputation_ops(draft, &mut book, what, &settings).await?;
        Ok(draft.detail(format!("{reason} (at event {})", book.ledger.seq)))
    }

    /// The signed statement of an agent's reputation now.
    ///
    /// # Errors
    /// Unknown agent, or the store fails.
    pub async fn reputation_statement(&self, ca: &Ca, agent: &AgentName) -> Result<(Statement, String), Refusal> {
        let MeshConfig { reputation, .. } = self.mesh_config().await?.value;
        let now = self.clock.now();
        self.still_registered(agent).await?;
        let book = self.reputation_book(agent, &reputation).await?;
        let statement = Statement {
            iss: issuer(ca),
            sub: SpiffeId::new(ca.trust_domain().clone(), agent.clone()),
            iat: now,
            exp: now + STATEMENT_SECONDS,
            reputation: book.reputation(&reputation, now),
        };
        let signed = jws::sign_eddsa(&ca.signer(KeyPurpose::Attestation), STATEMENT_TYP, &statement);
        let signed = signed.map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
        Ok((statement, signed))
    }

    /// Takes a statement that this mesh's control plane signed and may have forgotten, as a store that was restored from a
    /// copy has. The lower score holds, until a reset: a higher one changes nothing.
    ///
    /// # Errors
    /// Not signed by this mesh, over, of another agent, or the store fails.
    pub async fn import_reputation(
        &self,
        ca: &Ca,
        sub: &str,
        agent: &AgentName,
        text: &str,
    ) -> Result<Imported, Refusal> {
        let told = self.read_statement(ca, agent, text)?;
        retrying(async || {
            let settings = self.reputation_settings().await?;
            let mut book = self.reputation_book(agent, &settings).await?;
            let known = book.reputation(&settings, self.clock.now());
            // What follows from fewer events than are known here is history, and not a contradiction.
            if told.score >= known.score || told.events < known.events {
                let revision = self.store.revision();
                return Ok(Imported {
                    adopted: false,
                    revision,
                });
            }
            let what = What::Imported {
                score: told.score,
                events: told.events,
                by: sub.to_owned(),
            };
            let (_, registered) = self.still_registered(agent).await?;
            let draft = self
                .change(&Actor::admin(sub), "reputation.import", agent.as_str())
                .ops([registered])
                .detail(format!("{} instead of {}", told.score, known.score));
            let (draft, _) = self.reputation_ops(draft, &mut book, what, &settings).await?;
            let revision = draft.commit().await?;
            Ok(Imported {
                adopted: true,
                revision,
            })
        })
        .await
    }

    fn read_statement(&self, ca: &Ca, agent: &AgentName, text: &str) -> Result<Reputation, Refusal> {
        let refuse = |why: &str| Refusal::new(Reason::StatementInvalid, why.to_owned());
        if text.len() > MAX_STATEMENT_BYTES {
            return Err(refuse("longer than any statement is"));
        }
        let signer = ca.signer(KeyPurpose::Attestation);
        let key_of = |kid: &str| (kid == signer.kid()).then(|| signer.public_key());
        let statement: Statement =
            jws::verify_eddsa(text, STATEMENT_TYP, key_of).map_err(|e| refuse(&e.to_string()))?;
        let about = SpiffeId::new(ca.trust_domain().clone(), agent.clone());
        if statement.iss != issuer(ca) || statement.sub != about || statement.reputation.agent != *agent {
            return Err(refuse("of another mesh, or of another agent"));
        }
        if statement.exp <= self.clock.now() {
            return Err(refuse("it is over"));
        }
        Ok(statement.reputation)
    }
}

fn issuer(ca: &Ca) -> String {
    format!("spiffe://{}/control-plane", ca.trust_domain())
}

#[cfg(test)]
mod tests;

//! What verifiers report of agents: authorised, about something that happened, counted once, and told to all at once.

use std::collections::BTreeSet;

use aip_api::problem::FieldError;
use aip_api::resource::Agent;
use aip_api::resource::reputation::{Evidence, Factor, Finding, MAX_CLAIM_BYTES, ReputationSettings, Score, Severity};
use aip_api::{AgentName, Digest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::book::{Book, Recorded};
use super::event::{Report, What};
use super::evidence::Seen;
use super::signed::Signed;
use super::tally::HOUR;
use crate::refusal::{Reason, Refusal};
use crate::registry::{Actor, Draft, Registry, Versioned, keys, retrying};
use crate::store::{Expect, Op};

/// Reports of one reporter about one agent in an hour: more than any person writes, and a program that finds more has
/// found enough with these.
pub const MAX_REPORTS_AN_HOUR: u32 = 30;
/// Reports of one reporter about all agents in an hour: one every six seconds. A token that was stolen harms so many
/// agents until somebody looks, and not all of them.
pub const MAX_REPORTS_OF_ALL_AN_HOUR: u32 = 600;
/// How long a report is remembered, in seconds, so that the same one is not counted again: what a critical slash by the
/// default half-life needs to wear off is nine half-lives.
pub const REPORT_MEMORY_SECONDS: u64 = 400 * 86_400;

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
    /// What the audit has of it.
    pub seen: Seen,
    /// As its reporter signed it, by [`super::signed::check`].
    pub signed: Option<Signed>,
}

/// A report that was counted, so that it is counted once, and can be checked when its event is no longer kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counted {
    /// Unix seconds.
    pub at: u64,
    /// What was reported.
    #[serde(flatten)]
    pub report: Report,
    /// As its reporter signed it; absent where its token alone vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signed>,
}

/// What all reports of one hop came to, so that it counts once, whoever reports it: by the worst of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfHop {
    /// When the last of them came, Unix seconds.
    pub at: u64,
    /// What they took off together.
    pub points: Score,
    /// In what they counted against the agent.
    pub against: BTreeSet<Factor>,
}

/// What a reporter reported lately, of whomever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporting {
    /// When the last of them came, Unix seconds.
    pub at: u64,
    /// How many came in that hour.
    pub count: u32,
}

/// What a report did.
#[derive(Debug, Clone)]
pub struct Reported {
    /// The report's id; that of the first one, where it had been made before.
    pub id: String,
    /// Whether it had been made before: then nothing was counted.
    pub repeated: bool,
    /// What it took off at once.
    pub points: Score,
    /// The store's revision.
    pub revision: u64,
    /// What came of it; `None` where nothing was counted.
    pub recorded: Option<Recorded>,
}

/// What a report is worth beside those of the same hop that came before.
pub(super) struct Worth {
    pub(super) points: Score,
    pub(super) weight: u8,
    pub(super) of_hop: OfHop,
}

impl Registry {
    /// Takes a verifier's report: counted once for each hop, and told to all sidecars at once.
    ///
    /// # Errors
    /// Unknown agent, a reporter that answers for it, too many reports, mistakes, or the store fails.
    pub async fn report_reputation(&self, sub: &str, report: NewReport) -> Result<Reported, Refusal> {
        if report.claim.len() > MAX_CLAIM_BYTES {
            let message = format!("{} bytes; at most {MAX_CLAIM_BYTES}", report.claim.len());
            return Err(Refusal::invalid(vec![FieldError::new("claim", message)]));
        }
        retrying(async || self.report_once(sub, &report).await).await
    }

    /// Whether this reporter may report this agent now: asked before anything is looked up for it.
    ///
    /// # Errors
    /// Unknown agent, a reporter that answers for it, too many reports, or the store fails.
    pub async fn may_report(&self, sub: &str, agent: &AgentName) -> Result<(), Refusal> {
        self.may_judge(sub, agent).await?;
        let now = self.clock.steady();
        self.reporting(sub, now).await?;
        few_about(&self.reputation_book(agent).await?, sub, now)
    }

    async fn report_once(&self, sub: &str, report: &NewReport) -> Result<Reported, Refusal> {
        let registered = self.may_judge(sub, &report.agent).await?;
        let once = keys::reputation_report(&report.agent, sub, &report.seen.hop);
        if let Some(before) = self.record::<Counted>(once.clone()).await? {
            return Ok(Reported {
                id: before.value.report.id,
                repeated: true,
                points: Score::default(),
                revision: before.revision,
                recorded: None,
            });
        }
        let settings = self.reputation_settings().await?;
        let mut book = self.reputation_book(&report.agent).await?;
        let now = self.clock.steady();
        few_about(&book, sub, now)?;
        let hop = keys::reputation_hop(&report.agent, &report.seen.hop);
        let before = self.record::<OfHop>(hop.clone()).await?;
        let expect = before.as_ref().map_or(Expect::Absent, |held| Expect::At(held.revision));
        let known = before.map(|held| held.value);
        let worth = worth(known.as_ref(), sub, report, &settings, now);
        let id = uuid::Uuid::now_v7().hyphenated().to_string();
        let (finding, severity) = (report.finding.as_str(), report.severity.as_str());
        let event = report.event(&id, sub, &worth);
        let counted = Counted {
            at: now,
            report: event.clone(),
            signed: report.signed.clone(),
        };
        let draft = self
            .change(&Actor::admin(sub), "reputation.report", report.agent.as_str())
            .detail(format!(
                "{finding}, {severity}, {}: {} off",
                report.evidence, worth.points
            ))
            .put(once, &counted, Expect::Absent)
            .put(hop, &worth.of_hop, expect)
            .ops([registered]);
        let draft = self.reports_once_more(draft, sub, now).await?;
        let (draft, recorded) = self
            .reputation_ops(draft, &mut book, What::Report(event), &settings)
            .await?;
        let revision = draft.commit().await?;
        metrics::counter!("aip_reputation_reports_total", "finding" => finding, "severity" => severity).increment(1);
        Ok(Reported {
            id,
            repeated: false,
            points: worth.points,
            revision,
            recorded: Some(recorded),
        })
    }

    /// The agent, and what a change expects of it, for whoever may judge it: neither it, nor who answers for it, nor another
    /// agent of the same owner.
    ///
    /// # Errors
    /// Unknown agent, one of those, or the store fails.
    pub(crate) async fn may_judge(&self, sub: &str, agent: &AgentName) -> Result<Op, Refusal> {
        let (held, registered) = self.still_registered(agent).await?;
        let owner = &held.value.owner;
        let other: Option<Versioned<Agent>> = match sub.parse::<AgentName>() {
            Ok(_) => self.resource(sub).await?,
            Err(_) => None,
        };
        let answers = sub == owner || other.is_some_and(|other| other.value.owner == *owner);
        if sub == agent.as_str() || !owner.is_empty() && answers {
            let detail =
                format!("{sub} is {agent}, answers for it, or is another agent of its owner: somebody else must");
            return Err(Refusal::new(Reason::SelfReport, detail));
        }
        Ok(registered)
    }

    /// Counts a report with its reporter.
    async fn reports_once_more(&self, draft: Draft, sub: &str, now: u64) -> Result<Draft, Refusal> {
        let (count, expect) = self.reporting(sub, now).await?;
        let reporting = Reporting {
            at: now,
            count: count + 1,
        };
        Ok(draft.put(keys::reputation_reporter(sub), &reporting, expect))
    }

    /// How many reports of a reporter came in this hour, and what a change of that number expects.
    async fn reporting(&self, sub: &str, now: u64) -> Result<(u32, Expect), Refusal> {
        let held = self.record::<Reporting>(keys::reputation_reporter(sub)).await?;
        let expect = held.as_ref().map_or(Expect::Absent, |held| Expect::At(held.revision));
        let in_hour = held.filter(|held| held.value.at / HOUR == now / HOUR);
        let count = in_hour.map_or(0, |held| held.value.count);
        if count >= MAX_REPORTS_OF_ALL_AN_HOUR {
            return Err(too_many(sub, "agents", MAX_REPORTS_OF_ALL_AN_HOUR));
        }
        Ok((count, expect))
    }
}

fn few_about(book: &Book, sub: &str, now: u64) -> Result<(), Refusal> {
    match book.ledger.reports_of(sub, now) >= MAX_REPORTS_AN_HOUR {
        true => Err(too_many(sub, &book.agent, MAX_REPORTS_AN_HOUR)),
        false => Ok(()),
    }
}

fn too_many(sub: &str, about: impl std::fmt::Display, most: u32) -> Refusal {
    let detail = format!("{sub} reported {about} {most} times in this hour");
    Refusal::new(Reason::RateExceeded, detail)
}

/// What counts of a report: of several about one hop the worst, and of two that contradict each other the lower one.
pub(super) fn worth(
    known: Option<&OfHop>,
    sub: &str,
    report: &NewReport,
    settings: &ReputationSettings,
    now: u64,
) -> Worth {
    let weight = settings.reporters.get(sub).copied().unwrap_or(100);
    let mut of_hop = known.cloned().unwrap_or_default();
    of_hop.at = now;
    let factor = report.finding.factor();
    let counts = match report.finding {
        Finding::Confirmed => known.is_none(),
        _ => of_hop.against.insert(factor),
    };
    let off = match report.finding {
        Finding::Confirmed => Score::default(),
        _ => Score::clamped(settings.slash.of(report.severity).value() * f64::from(weight) / 100.0),
    };
    let points = Score::of_hundredths(off.hundredths().saturating_sub(of_hop.points.hundredths()));
    of_hop.points = of_hop.points.max(off);
    Worth {
        points,
        weight: if counts { weight } else { 0 },
        of_hop,
    }
}

impl NewReport {
    fn event(&self, id: &str, sub: &str, worth: &Worth) -> Report {
        Report {
            id: id.to_owned(),
            reporter: sub.to_owned(),
            finding: self.finding,
            severity: self.severity,
            points: worth.points,
            weight: worth.weight,
            evidence: self.evidence.clone(),
            hop: self.seen.hop.clone(),
            seen_by: self.seen.by.clone(),
            signed_by: self.signed.as_ref().map(|signed| Digest::sha256(signed.key.as_bytes())),
            claim: self.claim.clone(),
        }
    }
}

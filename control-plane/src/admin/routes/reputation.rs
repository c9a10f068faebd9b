//! Reputation: scores and what they rest on, verifiers' reports, imports and resets.

use std::sync::Arc;

use aip_api::AgentName;
use aip_api::resource::reputation::{Evidence, Finding, Level, Severity};
use aip_api::resource::{Kind, Reputation};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page;
use crate::admin::answer::{Answer, Body, Changed, Name, Page, PageQuery, Params};
use crate::admin::auth::Caller;
use crate::admin::{Api, documents};
use crate::refusal::{Reason, Refusal};
use crate::registry::{decode, keys};
use crate::reputation::event::Event;
use crate::reputation::evidence;
use crate::reputation::reports::{Counted, NewReport};
use crate::reputation::signed;

/// Every path has the agent before the verb: so no agent's name can hide a route, nor a route an agent.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(reports, report))
        .routes(routes!(import))
        .routes(routes!(reset))
}

/// An agent's score now, and what sidecars were told.
#[derive(Serialize, ToSchema)]
struct Scored {
    /// Whose.
    #[schema(value_type = String)]
    agent: AgentName,
    /// Out of ten, now.
    score: f64,
    /// `exemplary` from 8, `trusted` from 6, `standard` from 4, `doubtful` from 2, `untrusted` below.
    #[schema(value_type = String)]
    level: Level,
    /// Whether this score is below the mesh's floor.
    below_floor: bool,
    /// Whether sidecars refuse requests from and to it: they go by the score that they were told.
    refused: bool,
    /// How much evidence it rests on, in percent.
    confidence: u8,
    /// The whole document, as it would be told now.
    #[schema(value_type = documents::Reputation)]
    reputation: Reputation,
    /// The score that sidecars hold: it is pushed when a level changes, not at every event.
    told: f64,
    /// The revision that they hold.
    revision: u64,
}

/// An agent's score with its history.
#[derive(Serialize, ToSchema)]
struct ScoredFully {
    #[serde(flatten)]
    scored: Scored,
    /// The latest events, the newest first.
    history: Vec<Event>,
    /// A signed statement of the score: a JWS, EdDSA by the attestation key of `/v1/trust`, typ `aip-rep+jwt`.
    statement: String,
}

async fn scored(api: &Api, told: &Reputation, revision: u64) -> Result<(Scored, Vec<Event>), Refusal> {
    let settings = api.registry.reputation_settings().await?;
    let book = api.registry.reputation_book(&told.agent).await?;
    let reputation = book.reputation(&settings, api.registry.clock.steady());
    let scored = Scored {
        agent: told.agent.clone(),
        score: reputation.score.value(),
        level: reputation.level,
        below_floor: reputation.score < settings.floor,
        refused: told.score < settings.floor,
        confidence: reputation.confidence,
        told: told.score.value(),
        revision,
        reputation,
    };
    Ok((scored, book.events))
}

/// The agents' scores.
#[utoipa::path(get, path = "/v1/reputation", tag = "reputation", params(PageQuery), responses((status = 200, body = Page<Scored>)))]
async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Scored>>> {
    let prefix = keys::of_kind(Kind::Reputation);
    let told = page(&api, &prefix, &query, |_, entry| Ok(Some(decode::<Reputation>(entry)?)));
    let Page { items, next, revision } = told.await?;
    let mut shown = Vec::with_capacity(items.len());
    for held in items {
        shown.push(scored(&api, &held.value, held.revision).await?.0);
    }
    Ok(Json(Page {
        items: shown,
        next,
        revision,
    }))
}

/// An agent's score, out of ten and as a level, with its latest events and a signed statement.
#[utoipa::path(get, path = "/v1/reputation/{agent}", tag = "reputation", params(("agent" = String, Path)), responses((status = 200, body = ScoredFully)))]
async fn show(State(api): State<Arc<Api>>, Name(agent): Name<AgentName>) -> Answer<Json<ScoredFully>> {
    let held = api.registry.existing::<Reputation>(agent.as_str()).await?;
    let (scored, mut history) = scored(&api, &held.value, held.revision).await?;
    history.reverse();
    let (_, statement) = api.registry.reputation_statement(&api.ca, &agent).await?;
    Ok(Json(ScoredFully {
        scored,
        history,
        statement,
    }))
}

/// The reports about an agent that were counted within the last 400 days, with what their reporters signed.
#[utoipa::path(get, path = "/v1/reputation/{agent}/reports", tag = "reputation", params(("agent" = String, Path), PageQuery),
    responses((status = 200, body = Page<Counted>)))]
async fn reports(
    State(api): State<Arc<Api>>,
    Name(agent): Name<AgentName>,
    Params(query): Params<PageQuery>,
) -> Answer<Json<Page<Counted>>> {
    let prefix = keys::reputation_reports(&agent);
    let shown = page(&api, &prefix, &query, |_, entry| {
        Ok(Some(decode::<Counted>(entry)?.value))
    });
    Ok(Json(shown.await?))
}

/// What a verifier found.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reported {
    /// `hallucination`, `contract_breach`, `false_claim`, `unreliable`, `slow`, or `confirmed` for what was checked and
    /// is right.
    #[schema(value_type = String)]
    finding: Finding,
    /// `low`, `medium`, `high` or `critical`.
    #[schema(value_type = String)]
    severity: Severity,
    /// What it is about: `hop:<uuid>` or `decision:<uuid>`, as `x-aip-decision` of the answer says.
    #[schema(value_type = String)]
    evidence: Evidence,
    /// In words; at most 1,000 bytes.
    #[serde(default)]
    claim: String,
    /// The same, signed: a JWS, ES256 by the key that was enrolled with the token, typ `aip-report+jwt`, with the claims
    /// `aud` (`spiffe://<trust domain>/control-plane`), `sub` (the agent's SPIFFE ID), `iat`, and those above. Required where
    /// a key was enrolled.
    statement: Option<String>,
}

/// What a report did.
#[derive(Serialize, ToSchema)]
struct Taken {
    /// The report's id; that of the first, where the same reporter reported the same evidence before.
    id: String,
    /// True where it did: nothing was counted then.
    repeated: bool,
    /// What it took off the score: less than its severity says where another report of the same hop did before.
    points: f64,
    /// The store's revision; `/v1/revisions/{revision}/acks` says which sidecars act on it.
    revision: u64,
    /// The score with it; absent where nothing was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    /// The score as a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    level: Option<Level>,
    /// Whether sidecars are told.
    told: bool,
}

/// Reports what a verifier found in what an agent said or did. The audit must have the hop, with the agent as one of its
/// ends; it counts once, by the worst of all reports about it.
#[utoipa::path(post, path = "/v1/reputation/{agent}/reports", tag = "reputation", params(("agent" = String, Path)), request_body = Reported,
    responses((status = 200, body = Taken), (status = 201, body = Taken)))]
async fn report(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(agent): Name<AgentName>,
    Body(reported): Body<Reported>,
) -> Answer<Response> {
    api.registry.may_report(&caller.sub, &agent).await?;
    // It reads the rows of many segments, as a search does: counted before, and with a place until it is over.
    api.lookups.charge(&caller.sub, api.registry.clock.now())?;
    let place = api.watchers.try_take(&caller.sub);
    let place = place.ok_or_else(|| Refusal::new(Reason::Overloaded, "too many searches; ask again"))?;
    let domain = api.ca.trust_domain();
    let seen = evidence::look_up(&api.audit, domain, &agent, &reported.evidence, place).await?;
    let mut report = NewReport {
        agent,
        finding: reported.finding,
        severity: reported.severity,
        evidence: reported.evidence,
        claim: reported.claim,
        seen,
        signed: None,
    };
    let at = (api.ca.trust_domain(), api.registry.clock.now());
    report.signed = signed::check(&report, reported.statement.as_deref(), caller.key.as_deref(), at)?;
    let done = api.registry.report_reputation(&caller.sub, report).await?;
    let reputation = done.recorded.as_ref().map(|recorded| &recorded.reputation);
    let taken = Taken {
        id: done.id,
        repeated: done.repeated,
        points: done.points.value(),
        revision: done.revision,
        score: reputation.map(|r| r.score.value()),
        level: reputation.map(|r| r.level),
        told: done.recorded.as_ref().is_some_and(|recorded| recorded.told),
    };
    let status = if taken.repeated {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Ok((status, Json(taken)).into_response())
}

/// A statement to import.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Import {
    /// A statement that this mesh's control plane signed.
    statement: String,
}

/// What an import did.
#[derive(Serialize, ToSchema)]
struct ImportDone {
    /// Whether the statement said less than was known. It holds from then on, until a reset.
    adopted: bool,
    /// The store's revision.
    revision: u64,
}

/// Takes a signed statement that this control plane may have forgotten. The lower score holds; a higher one changes nothing.
#[utoipa::path(post, path = "/v1/reputation/{agent}/import", tag = "reputation", params(("agent" = String, Path)), request_body = Import,
    responses((status = 200, body = ImportDone)))]
async fn import(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(agent): Name<AgentName>,
    Body(import): Body<Import>,
) -> Answer<Json<ImportDone>> {
    let done = api
        .registry
        .import_reputation(&api.ca, &caller.sub, &agent, &import.statement)
        .await?;
    Ok(Json(ImportDone {
        adopted: done.adopted,
        revision: done.revision,
    }))
}

/// Why a reputation is reset.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reset {
    /// For the audit; 1 to 500 bytes.
    reason: String,
}

/// Forgets what counts for and against an agent. In a `prod` mesh: proposes to (202).
#[utoipa::path(post, path = "/v1/reputation/{agent}/reset", tag = "reputation", params(("agent" = String, Path)), request_body = Reset,
    responses((status = 200, body = Changed), (status = 202, body = Changed)))]
async fn reset(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(agent): Name<AgentName>,
    Body(reset): Body<Reset>,
) -> Answer<Response> {
    let done = api.registry.reset_reputation(&caller.sub, &agent, &reset.reason);
    Ok(done.await?.into_response())
}

//! Agents, their limits, SVIDs and revocations.

use std::sync::Arc;

use aip_api::AgentName;
use aip_api::problem::FieldError;
use aip_api::resource::{Agent, Kind, Traffic};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{page, resources};
use crate::admin::Api;
use crate::admin::answer::{Answer, Body, Changed, Held, IfMatch, Name, Page, PageQuery, Params};
use crate::admin::auth::Caller;
use crate::admin::documents;
use crate::refusal::{Reason, Refusal};
use crate::registry::records::SvidRecord;
use crate::registry::{Actor, Outcome, decode, keys, says_why};
use crate::store::Expect;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, update, remove))
        .routes(routes!(svids))
        .routes(routes!(revoke))
        .routes(routes!(traffic))
        .routes(routes!(one_traffic, put_traffic, remove_traffic))
        .routes(routes!(revocations))
        .routes(routes!(endpoints))
}

/// The agents.
#[utoipa::path(get, path = "/v1/agents", tag = "agents", params(PageQuery), responses((status = 200, body = Page<Held>)))]
async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Held>>> {
    Ok(Json(resources(&api, Kind::Agent, &query).await?))
}

/// Registers an agent.
#[utoipa::path(post, path = "/v1/agents", tag = "agents", request_body = documents::Agent, responses((status = 201, body = Held)))]
async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(agent): Body<Agent>,
) -> Answer<(StatusCode, Json<Held>)> {
    let created = api.registry.create_agent(&Actor::admin(&caller.sub), agent).await?;
    Ok((StatusCode::CREATED, Json(Held::of(&created)?)))
}

/// One agent.
#[utoipa::path(get, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path)), responses((status = 200, body = Held)))]
async fn show(State(api): State<Arc<Api>>, Name(name): Name<AgentName>) -> Answer<Json<Held>> {
    Ok(Json(Held::of(&api.registry.existing::<Agent>(name.as_str()).await?)?))
}

/// Changes an agent. `generation` is not taken from the document. In a `prod` mesh: proposes to (202).
#[utoipa::path(put, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path)), request_body = documents::Agent,
    responses((status = 200, body = Held), (status = 202, body = Changed)))]
async fn update(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name<AgentName>,
    IfMatch(expected): IfMatch,
    Body(agent): Body<Agent>,
) -> Answer<Response> {
    named(name.as_str(), agent.name.as_str())?;
    let outcome = api.registry.update_agent(&caller.sub, agent, expected).await?;
    let unchanged = match outcome {
        Outcome::Proposed { .. } => return Ok(outcome.into_response()),
        Outcome::Unchanged { .. } => true,
        Outcome::Done { .. } => false,
    };
    let held = Held::of(&api.registry.existing::<Agent>(name.as_str()).await?)?;
    Ok(Json(Held { unchanged, ..held }).into_response())
}

pub(super) fn named(path: &str, document: &str) -> Result<(), Refusal> {
    if path == document {
        return Ok(());
    }
    Err(Refusal::invalid(vec![FieldError::new(
        "name",
        format!("{document:?}, but the path says {path:?}"),
    )]))
}

/// Removes an agent with all that is its own, and revokes its SVIDs.
#[utoipa::path(delete, path = "/v1/agents/{name}", tag = "agents", params(("name" = String, Path)), responses((status = 200, body = Changed)))]
async fn remove(State(api): State<Arc<Api>>, caller: Caller, Name(name): Name<AgentName>) -> Answer<Json<Changed>> {
    Ok(Changed::at(
        api.registry.delete_agent(&Actor::admin(&caller.sub), &name).await?,
    ))
}

/// The SVIDs that were issued to an agent and have not expired.
#[utoipa::path(get, path = "/v1/agents/{name}/svids", tag = "agents", params(("name" = String, Path), PageQuery),
    responses((status = 200, body = Page<SvidRecord>)))]
async fn svids(
    State(api): State<Arc<Api>>,
    Name(name): Name<AgentName>,
    Params(query): Params<PageQuery>,
) -> Answer<Json<Page<SvidRecord>>> {
    Ok(Json(
        page(&api, &keys::svid(&name, ""), &query, |_, e| Ok(Some(decode(e)?.value))).await?,
    ))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Revoke {
    /// Only the SVID with this serial; absent: all of them, by raising the agent's generation.
    serial: Option<String>,
    /// Why, for the audit; not blank.
    #[schema(required = false)]
    reason: Option<String>,
}

/// What a revocation did.
#[derive(Serialize, ToSchema)]
struct Revoked {
    /// The store's revision.
    revision: u64,
    /// The agent's generation from now on; absent where one SVID was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
}

/// Revokes an agent's SVIDs: peers refuse them, live connections are cut. To come back it needs a new token.
#[utoipa::path(post, path = "/v1/agents/{name}/revoke", tag = "agents", params(("name" = String, Path)), request_body = Revoke,
    responses((status = 200, body = Revoked)))]
async fn revoke(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name<AgentName>,
    Body(revoke): Body<Revoke>,
) -> Answer<Json<Revoked>> {
    let actor = Actor::admin(&caller.sub);
    revoke.reason.as_deref().map_or(Ok(()), says_why)?;
    let reason = revoke.reason.unwrap_or_default();
    if let Some(serial) = revoke.serial {
        let revision = api.registry.revoke_serial(&actor, &name, &serial, &reason).await?;
        return Ok(Json(Revoked {
            revision,
            generation: None,
        }));
    }
    let raised = api.registry.revoke_agent(&actor, &name, &reason).await?;
    Ok(Json(Revoked {
        revision: raised.revision,
        generation: Some(raised.generation),
    }))
}

/// The limits of agents, and the default ones.
#[utoipa::path(get, path = "/v1/traffic", tag = "traffic", params(PageQuery), responses((status = 200, body = Page<Held>)))]
async fn traffic(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Held>>> {
    Ok(Json(resources(&api, Kind::Traffic, &query).await?))
}

/// The limits of one agent, or `default`.
#[utoipa::path(get, path = "/v1/traffic/{agent}", tag = "traffic", params(("agent" = String, Path)), responses((status = 200, body = Held)))]
async fn one_traffic(State(api): State<Arc<Api>>, Name(agent): Name<AgentName>) -> Answer<Json<Held>> {
    Ok(Json(Held::of(
        &api.registry.existing::<Traffic>(agent.as_str()).await?,
    )?))
}

/// Writes the limits of an agent, or `default`.
#[utoipa::path(put, path = "/v1/traffic/{agent}", tag = "traffic", params(("agent" = String, Path)), request_body = documents::Traffic,
    responses((status = 200, body = Changed)))]
async fn put_traffic(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(agent): Name<AgentName>,
    IfMatch(expected): IfMatch,
    Body(traffic): Body<Traffic>,
) -> Answer<Response> {
    named(agent.as_str(), &traffic.agent)?;
    let actor = Actor::admin(&caller.sub);
    Ok(api
        .registry
        .put_traffic(&actor, &traffic, expected)
        .await?
        .into_response())
}

/// Removes the limits of an agent; the default ones hold for it again.
#[utoipa::path(delete, path = "/v1/traffic/{agent}", tag = "traffic", params(("agent" = String, Path)), responses((status = 200, body = Changed)))]
async fn remove_traffic(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(agent): Name<AgentName>,
) -> Answer<Json<Changed>> {
    let name = agent.as_str();
    if name == Traffic::DEFAULT {
        return Err(Refusal::new(Reason::Immutable, "the default limits can be replaced, not removed").into());
    }
    let held = api.registry.existing::<Traffic>(name).await?;
    let draft = api.registry.change(&Actor::admin(&caller.sub), "traffic.delete", name);
    Ok(Changed::at(
        draft
            .delete_resource(Kind::Traffic, name, Expect::At(held.revision))
            .commit()
            .await?,
    ))
}

/// What is revoked and has not expired.
#[utoipa::path(get, path = "/v1/revocations", tag = "agents", params(PageQuery), responses((status = 200, body = Page<Held>)))]
async fn revocations(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Held>>> {
    Ok(Json(resources(&api, Kind::Revocation, &query).await?))
}

/// Where sidecars serve.
#[utoipa::path(get, path = "/v1/endpoints", tag = "agents", params(PageQuery), responses((status = 200, body = Page<Held>)))]
async fn endpoints(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<Held>>> {
    Ok(Json(resources(&api, Kind::Endpoint, &query).await?))
}

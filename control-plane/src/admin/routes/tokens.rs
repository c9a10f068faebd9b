//! Join tokens.

use std::sync::Arc;

use aip_api::AgentName;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page;
use crate::admin::Api;
use crate::admin::answer::{Answer, Body, Changed, Name, Page, PageQuery, Params};
use crate::admin::auth::Caller;
use crate::registry::records::TokenRecord;
use crate::registry::tokens::DEFAULT_TTL;
use crate::registry::{Actor, decode, keys};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(revoke))
}

/// A join token, without its secret.
#[derive(Serialize, ToSchema)]
struct TokenShown {
    /// Its id.
    id: String,
    /// Whom it lets in.
    #[schema(value_type = String)]
    agent: AgentName,
    /// Unix seconds.
    created_at: u64,
    /// Unix seconds.
    expires_at: u64,
    /// Who made it.
    created_by: String,
    /// Unix seconds at which it was spent.
    #[serde(skip_serializing_if = "Option::is_none")]
    spent_at: Option<u64>,
}

fn shown(id: &str, record: TokenRecord) -> TokenShown {
    let TokenRecord {
        agent,
        created_at,
        expires_at,
        created_by,
        spent,
        ..
    } = record;
    TokenShown {
        id: id.to_owned(),
        agent,
        created_at,
        expires_at,
        created_by,
        spent_at: spent.map(|s| s.at),
    }
}

/// The join tokens.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(PageQuery), responses((status = 200, body = Page<TokenShown>)))]
async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<TokenShown>>> {
    Ok(Json(
        page(&api, keys::TOKENS, &query, |id, e| {
            Ok(Some(shown(id, decode(e)?.value)))
        })
        .await?,
    ))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenWanted {
    /// Whom it lets in.
    #[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    agent: AgentName,
    /// 1 to 86,400; 600 if absent.
    #[schema(minimum = 1, maximum = 86_400)]
    ttl_seconds: Option<u64>,
}

/// A join token that was just made.
#[derive(Serialize, ToSchema)]
struct TokenMade {
    /// The token. Shown once, never again.
    token: String,
    /// Its id.
    id: String,
    /// Unix seconds.
    expires_at: u64,
    /// The store's revision.
    revision: u64,
}

/// Makes a join token: single use, for one agent.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = TokenWanted, responses((status = 201, body = TokenMade)))]
async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(wanted): Body<TokenWanted>,
) -> Answer<(StatusCode, Json<TokenMade>)> {
    let ttl = wanted.ttl_seconds.unwrap_or(DEFAULT_TTL);
    let actor = Actor::admin(&caller.sub);
    let made = api
        .registry
        .create_token(&actor, &wanted.agent, ttl, api.ca.root_digest())
        .await?;
    let (id, token) = (made.token.id_text(), made.token.reveal());
    Ok((
        StatusCode::CREATED,
        Json(TokenMade {
            token,
            id,
            expires_at: made.record.expires_at,
            revision: made.revision,
        }),
    ))
}

/// Revokes a join token. What was issued for it stays good.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)), responses((status = 200, body = Changed)))]
async fn revoke(State(api): State<Arc<Api>>, caller: Caller, Name(id): Name<String>) -> Answer<Json<Changed>> {
    Ok(Changed::at(
        api.registry.revoke_token(&Actor::admin(&caller.sub), &id).await?,
    ))
}

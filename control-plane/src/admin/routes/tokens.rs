//! Join tokens and admin tokens.

use std::sync::Arc;

use aip_api::AgentName;
use aip_api::problem::FieldError;
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
use crate::admin::auth::{self, Caller, MAX_TTL};
use crate::admin::roles::Role;
use crate::refusal::{Reason, Refusal};
use crate::registry::records::{AdminTokenRecord, TokenRecord};
use crate::registry::tokens::DEFAULT_TTL;
use crate::registry::{Actor, Versioned, decode, keys};
use crate::store::Expect;

/// Lifetime of an admin token, unless asked otherwise: a working day.
const ADMIN_TTL: u64 = 8 * 3_600;
/// Admin tokens that are known at once.
const MAX_ADMIN_TOKENS: usize = 1_000;
/// Longest `sub`.
const MAX_SUB: usize = 64;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(revoke))
        .routes(routes!(admins, issue_admin))
        .routes(routes!(revoke_admin))
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
    #[schema(value_type = String)]
    agent: AgentName,
    /// 1 to 86,400; 600 if absent.
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

/// The admin tokens.
#[utoipa::path(get, path = "/v1/admin-tokens", tag = "admin", params(PageQuery), responses((status = 200, body = Page<AdminTokenRecord>)))]
async fn admins(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<AdminTokenRecord>>> {
    Ok(Json(
        page(&api, keys::ADMIN_TOKENS, &query, |_, e| Ok(Some(decode(e)?.value))).await?,
    ))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AdminWanted {
    /// Whose: 1 to 64 of a-z, 0-9, `.`, `_`, `-`, `@`.
    sub: String,
    /// What it may.
    role: Role,
    /// 60 to 7,776,000; 28,800 if absent.
    ttl_seconds: Option<u64>,
}

/// An admin token that was just issued.
#[derive(Serialize, ToSchema)]
struct AdminMade {
    /// The token. Shown once, never again.
    token: String,
    /// Its id.
    jti: String,
    /// Unix seconds.
    expires_at: u64,
    /// The store's revision.
    revision: u64,
}

fn check(wanted: &AdminWanted) -> Result<u64, Refusal> {
    let ttl = wanted.ttl_seconds.unwrap_or(ADMIN_TTL);
    let mut mistakes = Vec::new();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-@".contains(&b);
    if !(1..=MAX_SUB).contains(&wanted.sub.len()) || !wanted.sub.bytes().all(word) {
        mistakes.push(FieldError::new("sub", "1 to 64 of a-z, 0-9, '.', '_', '-', '@'"));
    }
    if !(60..=MAX_TTL).contains(&ttl) {
        mistakes.push(FieldError::new(
            "ttl_seconds",
            format!("{ttl} is out of bounds: 60 to {MAX_TTL}"),
        ));
    }
    if mistakes.is_empty() {
        Ok(ttl)
    } else {
        Err(Refusal::invalid(mistakes))
    }
}

/// Issues an admin token.
#[utoipa::path(post, path = "/v1/admin-tokens", tag = "admin", request_body = AdminWanted, responses((status = 201, body = AdminMade)))]
async fn issue_admin(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(wanted): Body<AdminWanted>,
) -> Answer<(StatusCode, Json<AdminMade>)> {
    let ttl = check(&wanted)?;
    if api
        .registry
        .store
        .scan(keys::ADMIN_TOKENS, "", MAX_ADMIN_TOKENS)
        .await?
        .len()
        >= MAX_ADMIN_TOKENS
    {
        return Err(Refusal::new(
            Reason::LimitReached,
            format!("{MAX_ADMIN_TOKENS} admin tokens are known"),
        )
        .into());
    }
    let now = api.registry.clock.now();
    let record = AdminTokenRecord {
        jti: uuid::Uuid::now_v7().hyphenated().to_string(),
        sub: wanted.sub,
        role: wanted.role,
        issued_at: now,
        expires_at: now + ttl,
        issued_by: caller.sub.clone(),
        revoked_at: None,
    };
    let draft = api
        .registry
        .change(&Actor::admin(&caller.sub), "admin_token.issue", &record.jti);
    let draft = draft.detail(format!("{} as {}", record.sub, record.role.as_str()));
    let revision = draft
        .put(keys::admin_token(&record.jti), &record, Expect::Absent)
        .commit()
        .await?;
    let token = auth::token(&api.ca, &record)?;
    Ok((
        StatusCode::CREATED,
        Json(AdminMade {
            token,
            jti: record.jti,
            expires_at: record.expires_at,
            revision,
        }),
    ))
}

/// Revokes an admin token; requests with it are refused from now on.
#[utoipa::path(delete, path = "/v1/admin-tokens/{jti}", tag = "admin", params(("jti" = String, Path)), responses((status = 200, body = Changed)))]
async fn revoke_admin(State(api): State<Arc<Api>>, caller: Caller, Name(jti): Name<String>) -> Answer<Json<Changed>> {
    let key = keys::admin_token(&jti);
    let held: Option<Versioned<AdminTokenRecord>> = api.registry.record(key.clone()).await?;
    let held = held.ok_or_else(|| Refusal::new(Reason::NotFound, "no such admin token"))?;
    let revoked = AdminTokenRecord {
        revoked_at: Some(api.registry.clock.now()),
        ..held.value
    };
    let draft = api
        .registry
        .change(&Actor::admin(&caller.sub), "admin_token.revoke", &jti);
    Ok(Changed::at(
        draft.put(key, &revoked, Expect::At(held.revision)).commit().await?,
    ))
}

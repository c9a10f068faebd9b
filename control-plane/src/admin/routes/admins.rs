//! Admin tokens: issued, handed out for a secret, revoked.

use std::sync::Arc;

use aip_api::Digest;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page;
use crate::admin::Api;
use crate::admin::answer::{Answer, Body, Changed, Name, Page, PageQuery, Params};
use crate::admin::auth::{self, Caller};
use crate::admin::roles::Role;
use crate::registry::admins::{Issued, NewAdmin};
use crate::registry::records::AdminTokenRecord;
use crate::registry::{Actor, decode, keys};

/// Lifetime of an admin token, unless asked otherwise: a working day.
const ADMIN_TTL: u64 = 8 * 3_600;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list, issue))
        .routes(routes!(revoke))
}

/// The one route whose caller has no token yet.
pub(super) fn open() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(claim))
}

/// The admin tokens.
#[utoipa::path(get, path = "/v1/admin-tokens", tag = "admin", params(PageQuery), responses((status = 200, body = Page<AdminTokenRecord>)))]
async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Answer<Json<Page<AdminTokenRecord>>> {
    Ok(Json(
        page(&api, keys::ADMIN_TOKENS, &query, |_, e| Ok(Some(decode(e)?.value))).await?,
    ))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Whose: 1 to 64 of a-z, 0-9, `.`, `_`, `-`, `@`.
    #[schema(pattern = "^[a-z0-9._@-]{1,64}$")]
    sub: String,
    /// What it may.
    role: Role,
    /// 60 to 7,776,000; 28,800 if absent.
    #[schema(minimum = 60, maximum = 7_776_000)]
    ttl_seconds: Option<u64>,
    /// SHA-256 of the secret that the person made (64 hex digits, hashed as text): the token is handed out for the
    /// secret alone. Required in a `prod` mesh; absent in a `dev` one, the token is in the answer.
    #[schema(value_type = Option<String>, pattern = "^[0-9a-f]{64}$")]
    claim: Option<Digest>,
    /// The point of a P-256 key, uncompressed, in base64 (65 bytes): reports under this token are taken where they are signed
    /// by it, and no others. Absent: reports are authenticated by the token alone.
    key: Option<String>,
}

/// An admin token that was issued.
#[derive(Serialize, ToSchema)]
struct Made {
    /// The token. Shown once, never again; absent where it is handed out for a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// Its id.
    jti: String,
    /// Unix seconds.
    expires_at: u64,
    /// The store's revision.
    revision: u64,
}

/// Issues an admin token. In a `prod` mesh: proposes to (202), but for the mesh's very first second person.
#[utoipa::path(post, path = "/v1/admin-tokens", tag = "admin", request_body = Wanted,
    responses((status = 201, body = Made), (status = 202, body = Changed)))]
async fn issue(State(api): State<Arc<Api>>, caller: Caller, Body(wanted): Body<Wanted>) -> Answer<Response> {
    let wanted = NewAdmin {
        sub: wanted.sub,
        role: wanted.role,
        ttl_seconds: wanted.ttl_seconds.unwrap_or(ADMIN_TTL),
        claim: wanted.claim,
        key: wanted.key,
        asked_by: caller.sub,
    };
    let (record, revision) = match api.registry.issue_admin(wanted).await? {
        Issued::Proposed(outcome) => return Ok(outcome.into_response()),
        Issued::Done { record, revision } => (record, revision),
    };
    let token = match record.claim {
        Some(_) => None,
        None => Some(auth::token(&api.ca, &record)?),
    };
    let made = Made {
        token,
        jti: record.jti,
        expires_at: record.expires_at,
        revision,
    };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Secret {
    /// The secret whose digest the token was issued for: 64 hex digits.
    #[schema(pattern = "^[0-9A-Fa-f]{64}$")]
    secret: String,
}

/// A token that was handed out.
#[derive(Serialize, ToSchema)]
struct Claimed {
    /// The token. Shown once, never again.
    token: String,
    /// Its id.
    jti: String,
    /// Unix seconds.
    expires_at: u64,
}

/// Hands out a token to whoever knows the secret that it was issued for; once. Needs no other token.
#[utoipa::path(post, path = "/v1/admin-tokens/claim", tag = "admin", request_body = Secret, security(()),
    responses((status = 201, body = Claimed)))]
async fn claim(State(api): State<Arc<Api>>, Body(claim): Body<Secret>) -> Answer<(StatusCode, Json<Claimed>)> {
    let record = api.registry.claim_admin(&claim.secret).await?;
    let claimed = Claimed {
        token: auth::token(&api.ca, &record)?,
        jti: record.jti,
        expires_at: record.expires_at,
    };
    Ok((StatusCode::CREATED, Json(claimed)))
}

/// Revokes an admin token; requests with it are refused from now on.
#[utoipa::path(delete, path = "/v1/admin-tokens/{jti}", tag = "admin", params(("jti" = String, Path)), responses((status = 200, body = Changed)))]
async fn revoke(State(api): State<Arc<Api>>, caller: Caller, Name(jti): Name<String>) -> Answer<Json<Changed>> {
    let actor = Actor::admin(&caller.sub);
    Ok(Changed::at(api.registry.revoke_admin(&actor, &jti).await?))
}

//! Admin tokens: JWT, EdDSA by the admin key, and who may call which route.

use std::sync::Arc;

use aip_api::resource::KeyPurpose;
use aip_runtime::jws;
use aip_runtime::signing::Signer;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::answer::ApiError;
use super::roles::{Role, may};
use super::serve::Visitor;
use super::{Api, ROUTES};
use crate::ca::Ca;
use crate::refusal::{Reason, Refusal};
use crate::registry::records::AdminTokenRecord;
use crate::registry::{Registry, keys};

/// The `typ` of an admin token.
pub const TYP: &str = "aip-admin+jwt";
/// The `aud` of an admin token.
pub const AUDIENCE: &str = "aip-admin";
/// Lifetime of the first token of a `dev` mesh: a month of trying things out.
pub const FIRST_TTL_DEV: u64 = 30 * 86_400;
/// Lifetime of the first token of a `prod` mesh: a day to issue the real ones.
pub const FIRST_TTL_PROD: u64 = 86_400;
/// Longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 2_048;

/// The claims of an admin token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    /// `spiffe://<trust-domain>/control-plane`.
    pub iss: String,
    /// Whose.
    pub sub: String,
    /// [`AUDIENCE`].
    pub aud: String,
    /// Its id, by which it is revoked.
    pub jti: String,
    /// Unix seconds.
    pub iat: u64,
    /// Unix seconds.
    pub exp: u64,
    /// What it may.
    pub role: Role,
}

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose token.
    pub sub: String,
    /// What it may.
    pub role: Role,
    /// Its id.
    pub jti: String,
    /// Unix seconds at which it ends.
    pub exp: u64,
    /// The key by which its reports are signed.
    pub key: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // Put there by `authorize`; a route outside of it has no caller.
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Refusal::from(Reason::CredentialMissing).into())
    }
}

/// Signs the token of a record.
///
/// # Errors
/// Can't be written as JSON.
pub fn token(ca: &Ca, record: &AdminTokenRecord) -> Result<String, Refusal> {
    let claims = Claims {
        iss: issuer(ca),
        sub: record.sub.clone(),
        aud: AUDIENCE.into(),
        jti: record.jti.clone(),
        iat: record.issued_at,
        exp: record.expires_at,
        role: record.role,
    };
    let signer = ca.signer(KeyPurpose::Admin);
    jws::sign_eddsa(&signer, TYP, &claims).map_err(|e| Refusal::new(Reason::Internal, e.to_string()))
}

fn issuer(ca: &Ca) -> String {
    format!("spiffe://{}/control-plane", ca.trust_domain())
}

/// The caller of a token, if it is good now.
///
/// # Errors
/// Not of ours, expired, revoked, or not known.
pub async fn verify(registry: &Registry, ca: &Ca, token: &str) -> Result<Caller, Refusal> {
    let claims = claims(token, &ca.signer(KeyPurpose::Admin), &issuer(ca))?;
    still_good(registry, &claims.jti, claims.exp).await
}

/// What a token says, if `signer` signed it for us as `issuer`. Whether it is still good is another question.
///
/// # Errors
/// Too long, not of ours, or for somebody else.
pub fn claims(token: &str, signer: &Signer, issuer: &str) -> Result<Claims, Refusal> {
    let invalid = |why: &str| Refusal::new(Reason::AdminTokenInvalid, why.to_owned());
    if token.len() > MAX_TOKEN_BYTES {
        return Err(invalid("too long"));
    }
    let key_of = |kid: &str| (kid == signer.kid()).then(|| signer.public_key());
    let claims: Claims = jws::verify_eddsa(token, TYP, key_of).map_err(|e| invalid(&e.to_string()))?;
    if claims.aud != AUDIENCE || claims.iss != issuer {
        return Err(invalid("made for another audience or by another issuer"));
    }
    Ok(claims)
}

/// The caller of the token `jti`, which was verified before, if it has neither expired nor been revoked since.
///
/// # Errors
/// Expired, revoked, or not known.
pub async fn still_good(registry: &Registry, jti: &str, exp: u64) -> Result<Caller, Refusal> {
    if exp <= registry.clock.now() {
        let detail = "the token has expired: have another issued";
        return Err(Refusal::new(Reason::AdminTokenExpired, detail));
    }
    let held = registry.record::<AdminTokenRecord>(keys::admin_token(jti)).await?;
    // One that waits for its claim was given to nobody.
    let good = |r: &AdminTokenRecord| r.revoked_at.is_none() && r.claim.is_none();
    let record = held.map(|h| h.value).filter(good);
    let record = record.ok_or(Refusal::from(Reason::AdminTokenRevoked))?;
    // The record counts: a token says no more than what was issued.
    Ok(Caller {
        sub: record.sub,
        role: record.role,
        jti: record.jti,
        exp: record.expires_at.min(exp),
        key: record.key,
    })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    // Of two, another reader would take the other one.
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(only), None) = (all.next(), all.next()) else {
        return None;
    };
    let text = only.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Lets a request through whose caller may do what its route does. A route that is not in the table is nobody's.
pub(super) async fn authorize(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map(|p| p.as_str().to_owned())
        .unwrap_or_default();
    let (headers, method) = (request.headers().clone(), request.method().clone());
    match allowed(&api, &headers, &method, &path).await {
        Ok(caller) => {
            if let Some(visitor) = request.extensions().get::<Visitor>() {
                visitor.is_known();
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => ApiError(refusal).into_response(),
    }
}

async fn allowed(api: &Api, headers: &HeaderMap, method: &Method, path: &str) -> Result<Caller, Refusal> {
    let missing = || {
        Refusal::new(
            Reason::CredentialMissing,
            "send Authorization: Bearer <token> (<data>/admin.jwt)",
        )
    };
    let token = bearer(headers).ok_or_else(missing)?;
    let caller = verify(&api.registry, &api.ca, token).await?;
    // HEAD is answered by GET's handler.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let route = ROUTES.iter().find(|r| r.path == path && r.method == method.as_str());
    let permission = route.ok_or(Refusal::from(Reason::NotFound))?.permission;
    if may(caller.role, permission) {
        return Ok(caller);
    }
    let role = caller.role.as_str();
    Err(Refusal::new(
        Reason::RoleForbidden,
        format!("{role} may not: this needs {}", permission.as_str()),
    ))
}

//! `Idempotency-Key` on POST: the same key with the same request gets the first answer again.
//!
//! Kept in memory: answers hold tokens, which are never written to disk. After a restart a repeated request is a new one.
//! Only answers of requests that succeeded are kept: one that was refused did nothing, and may succeed later.

mod answers;

use std::sync::Arc;

use aip_api::Digest;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::{ApiError, BODY_DEADLINE};
use super::auth::Caller;
use super::{Api, MAX_BODY};
use crate::refusal::{Reason, Refusal};

pub(super) use answers::Answers;
use answers::{Answer, Running};

/// Longest answer that is read at all: a policy's diagnostics.
const MAX_READ_BYTES: usize = 4 * 1024 * 1024;
/// Longest key: a UUID with room for a prefix.
const MAX_KEY: usize = 128;

/// Answers a POST with a key that was answered before; does every other request.
pub(super) async fn once(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let key = request.headers().get("idempotency-key").cloned();
    match key {
        Some(key) if request.method() == Method::POST => match keyed(&api, key.to_str().ok(), request, next).await {
            Ok(response) => response,
            Err(refusal) => ApiError(refusal).into_response(),
        },
        _ => next.run(request).await,
    }
}

async fn keyed(api: &Api, key: Option<&str>, request: Request, next: Next) -> Result<Response, Refusal> {
    let bad = || {
        let detail = format!("Idempotency-Key: 1 to {MAX_KEY} visible ASCII characters");
        Refusal::new(Reason::Malformed, detail)
    };
    let key = key.filter(|k| (1..=MAX_KEY).contains(&k.len())).ok_or_else(bad)?;
    let caller = request.extensions().get::<Caller>();
    let sub = caller.ok_or(Refusal::from(Reason::CredentialMissing))?.sub.clone();
    let (parts, body) = request.into_parts();
    let bytes = tokio::time::timeout(BODY_DEADLINE, to_bytes(body, MAX_BODY)).await;
    let bytes = bytes
        .map_err(|_| Refusal::from(Reason::BodyTimeout))?
        .map_err(|_| Refusal::from(Reason::TooLarge))?;
    let target = parts.uri.path_and_query().map(|p| p.as_str()).unwrap_or_default();
    let digest = Digest::of_parts(&[target.as_bytes(), b"\0", &bytes]);
    let now = api.registry.clock.now();
    let running = match Running::begin(&api.idempotency, (sub, key.to_owned()), digest, now)? {
        Ok(running) => running,
        Err(Answer { status, headers, body }) => return Ok((status, headers, body).into_response()),
    };
    let response = next.run(Request::from_parts(parts, Body::from(bytes))).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, MAX_READ_BYTES)
        .await
        .map_err(|_| Refusal::from(Reason::Internal))?;
    if parts.status.is_success() {
        running.keep(Answer {
            status: parts.status,
            headers: parts.headers.clone(),
            body: body.clone(),
        });
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

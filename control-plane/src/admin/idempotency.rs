//! `Idempotency-Key` on POST: the same key with the same request gets the first answer again.
//!
//! Kept in memory: answers hold tokens, which are never written to disk. After a restart a repeated request is a new one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aip_api::Digest;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::ApiError;
use super::auth::Caller;
use super::{Api, MAX_BODY};
use crate::refusal::{Reason, Refusal};

/// Answers that are kept, in number, bytes and seconds: a client's retries of the last hour.
const MAX_ANSWERS: usize = 4_096;
const MAX_ANSWER_BYTES: usize = 64 * 1024;
const SECONDS: u64 = 3_600;
/// Longest key: a UUID with room for a prefix.
const MAX_KEY: usize = 128;

type Id = (String, String);

#[derive(Debug, Clone)]
enum State_ {
    Running,
    Done(StatusCode, HeaderMap, Bytes),
}

#[derive(Debug, Default)]
struct Kept {
    by_id: HashMap<Id, (Digest, u64, State_)>,
    by_age: BTreeMap<(u64, Id), ()>,
}

/// What was answered under which key.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Kept>);

impl Answers {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: go on, and say the answer; else the answer that was given.
    fn begin(&self, id: &Id, request: Digest, now: u64) -> Result<Option<State_>, Refusal> {
        let mut kept = self.lock();
        while let Some(((at, oldest), ())) = kept.by_age.first_key_value() {
            if at + SECONDS > now && kept.by_id.len() < MAX_ANSWERS {
                break;
            }
            let (at, oldest) = (*at, oldest.clone());
            kept.by_age.remove(&(at, oldest.clone()));
            kept.by_id.remove(&oldest);
        }
        match kept.by_id.get(id) {
            Some((held, ..)) if *held != request => Err(Reason::IdempotencyMismatch.into()),
            Some((_, _, State_::Running)) => Err(Reason::IdempotencyInProgress.into()),
            Some((_, _, done)) => Ok(Some(done.clone())),
            None => {
                kept.by_id.insert(id.clone(), (request, now, State_::Running));
                kept.by_age.insert((now, id.clone()), ());
                Ok(None)
            }
        }
    }

    fn end(&self, id: &Id, state: Option<State_>) {
        let mut kept = self.lock();
        match state {
            Some(state) => {
                if let Some(held) = kept.by_id.get_mut(id) {
                    held.2 = state;
                }
            }
            None => {
                if let Some((_, at, _)) = kept.by_id.remove(id) {
                    kept.by_age.remove(&(at, id.clone()));
                }
            }
        }
    }
}

/// Forgets a key whose request ended without an answer: cancelled, or with a mistake of ours.
struct Running<'a>(&'a Answers, Id, bool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.2 {
            self.0.end(&self.1, None);
        }
    }
}

/// Answers a POST with an idempotency key once.
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
        Refusal::new(
            Reason::Malformed,
            format!("Idempotency-Key: 1 to {MAX_KEY} visible ASCII characters"),
        )
    };
    let key = key.filter(|k| (1..=MAX_KEY).contains(&k.len())).ok_or_else(bad)?;
    let sub = request
        .extensions()
        .get::<Caller>()
        .map(|c| c.sub.clone())
        .unwrap_or_default();
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| Refusal::from(Reason::TooLarge))?;
    let target = parts.uri.path_and_query().map(|p| p.as_str()).unwrap_or_default();
    let digest = Digest::of_parts(&[target.as_bytes(), b"\0", &bytes]);
    let id = (sub, key.to_owned());
    if let Some(State_::Done(status, headers, body)) = api.idempotency.begin(&id, digest, api.registry.clock.now())? {
        return Ok((status, headers, body).into_response());
    }
    let mut running = Running(&api.idempotency, id.clone(), false);
    let response = next.run(Request::from_parts(parts, Body::from(bytes))).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, MAX_ANSWER_BYTES)
        .await
        .map_err(|_| Refusal::from(Reason::Internal))?;
    // What may succeed later is not an answer to keep.
    if !parts.status.is_server_error() {
        api.idempotency.end(
            &id,
            Some(State_::Done(parts.status, parts.headers.clone(), body.clone())),
        );
        running.2 = true;
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

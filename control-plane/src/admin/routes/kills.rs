//! Orders to stop: given, listed, taken back, and how far they have come.

use std::sync::Arc;
use std::time::Duration;

use aip_api::kill::{Mode, Order, Scope};
use aip_api::problem::FieldError;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::status::MAX_WAIT_MS;
use crate::admin::answer::{Answer, Body, Changed, Params};
use crate::admin::auth::Caller;
use crate::admin::{Api, documents};
use crate::kill::{Progress, Standing};
use crate::refusal::{Reason, Refusal};
use crate::registry::Outcome;
use crate::registry::kills::Wanted;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list, stop))
        .routes(routes!(resume))
        .routes(routes!(progress))
        .routes(routes!(sidecars))
}

/// The orders in force.
#[derive(Serialize, ToSchema)]
struct Kills {
    /// Term of the set.
    term: u64,
    /// Epoch of the set.
    epoch: u64,
    /// Unix seconds at which it was issued.
    issued_at: u64,
    /// The orders; a pause that is over stays until the next change.
    #[schema(value_type = Vec<documents::Order>)]
    items: Vec<Order>,
}

/// The orders in force.
#[utoipa::path(get, path = "/v1/kills", tag = "kill", responses((status = 200, body = Kills)))]
async fn list(State(api): State<Arc<Api>>) -> Answer<Json<Kills>> {
    let now = api.registry.clock.now();
    let set = api.registry.kill_set().await?.set;
    Ok(Json(Kills {
        term: set.term,
        epoch: set.epoch,
        issued_at: set.issued_at,
        items: set.orders.into_iter().filter(|order| order.in_force(now)).collect(),
    }))
}

/// An order as it is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Stop {
    /// Whom it stops.
    #[schema(value_type = documents::Scope)]
    scope: Scope,
    /// `pause` or `kill`.
    #[schema(value_type = String, pattern = "^(pause|kill)$")]
    mode: Mode,
    /// Why: callers see it; not blank, at most 500 bytes.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
    /// How long, of a pause: 1 to 604,800; absent: until it is resumed.
    #[schema(required = false, minimum = 1, maximum = 604_800)]
    seconds: Option<u64>,
}

/// What an order, or taking orders back, answers.
#[derive(Serialize, ToSchema)]
struct Ordered {
    /// The store's revision.
    revision: u64,
    /// The proposal that waits for a second person (status 202); absent when it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    proposal: Option<String>,
    /// The order's id; absent where orders were taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<String>,
    /// Term of the set that has it; absent while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    /// Epoch of the set that has it; absent while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
}

async fn ordered(api: &Api, outcome: Outcome, order: Option<String>) -> Answer<Response> {
    let set = api.registry.kill_set().await?.set;
    let (status, answer) = match outcome {
        Outcome::Proposed { id, revision } => (
            StatusCode::ACCEPTED,
            Ordered {
                revision,
                proposal: Some(id),
                order,
                term: None,
                epoch: None,
            },
        ),
        Outcome::Done { revision } | Outcome::Unchanged { revision } => (
            StatusCode::OK,
            Ordered {
                revision,
                proposal: None,
                order,
                // Or a later one, which has it as well.
                term: Some(set.term),
                epoch: Some(set.epoch),
            },
        ),
    };
    Ok((status, Json(answer)).into_response())
}

/// Stops something. In a `prod` mesh whose settings ask for a second person, an order that stops more than one agent is
/// proposed (202).
#[utoipa::path(post, path = "/v1/kills", tag = "kill", request_body = Stop,
    responses((status = 200, body = Ordered), (status = 202, body = Ordered)))]
async fn stop(State(api): State<Arc<Api>>, caller: Caller, Body(stop): Body<Stop>) -> Answer<Response> {
    let wanted = Wanted {
        scope: stop.scope,
        mode: stop.mode,
        reason: stop.reason,
        seconds: stop.seconds,
    };
    let (outcome, order) = api.registry.stop(&caller.sub, wanted).await?;
    ordered(&api, outcome, Some(order)).await
}

/// Orders that are to end.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Resume {
    /// Their ids.
    orders: Vec<String>,
}

/// Takes orders back. In a `prod` mesh: proposes to (202).
#[utoipa::path(post, path = "/v1/kills/resume", tag = "kill", request_body = Resume,
    responses((status = 200, body = Ordered), (status = 202, body = Changed)))]
async fn resume(State(api): State<Arc<Api>>, caller: Caller, Body(resume): Body<Resume>) -> Answer<Response> {
    let outcome = api.registry.resume(&caller.sub, resume.orders).await?;
    ordered(&api, outcome, None).await
}

/// Sidecars that may run, as far as orders to stop are concerned.
#[derive(Serialize, ToSchema)]
struct Sidecars {
    /// All of them.
    items: Vec<Standing>,
}

/// What each sidecar has enforced, until when it may go on unheard, and since when it is out of reach.
#[utoipa::path(get, path = "/v1/kills/sidecars", tag = "kill", responses((status = 200, body = Sidecars)))]
async fn sidecars(State(api): State<Arc<Api>>) -> Answer<Json<Sidecars>> {
    let items = api.kills.board.standing(&api.registry).await?;
    Ok(Json(Sidecars { items }))
}

/// Which set, and how long to wait for it.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Which {
    /// The set's term; absent: the one in force.
    term: Option<u64>,
    /// The set's epoch; absent: the one in force.
    epoch: Option<u64>,
    /// Milliseconds to wait until nobody is missing: at most 55,000.
    #[param(maximum = 55_000)]
    wait_ms: Option<u64>,
}

/// Which sidecars have enforced a set, how long it took, and by when each of the others has certainly stopped.
#[utoipa::path(get, path = "/v1/kills/progress", tag = "kill", params(Which), responses((status = 200, body = Progress)))]
async fn progress(State(api): State<Arc<Api>>, caller: Caller, Params(which): Params<Which>) -> Answer<Json<Progress>> {
    let set = api.registry.kill_set().await?.set;
    let version = match (which.term, which.epoch) {
        (Some(term), Some(epoch)) => (term, epoch),
        (None, None) => set.version(),
        _ => return Err(Refusal::invalid(vec![FieldError::new("epoch", "term and epoch come together")]).into()),
    };
    if version > set.version() {
        return Err(Refusal::new(Reason::NotFound, "there is no such set yet").into());
    }
    let ms = which.wait_ms.unwrap_or(0);
    if ms > MAX_WAIT_MS {
        return Err(Refusal::invalid(vec![FieldError::new("wait_ms", format!("{ms}; at most {MAX_WAIT_MS}"))]).into());
    }
    let place = api.watchers.try_take(&caller.sub);
    if ms > 0 && place.is_none() {
        return Err(Refusal::new(Reason::Overloaded, "too many wait; ask without waiting, or again").into());
    }
    if !api.sessions.ahead_of(api.world.revision()).is_empty() {
        api.kills.board.saw_restored();
    }
    let wait = Duration::from_millis(ms);
    let progress = api
        .kills
        .board
        .wait(&api.registry, version, &api.kills.publisher, wait)
        .await?;
    Ok(Json(progress))
}

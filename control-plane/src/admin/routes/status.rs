//! Who runs what.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use aip_api::problem::FieldError;
use aip_api::resource::Kind;

use crate::admin::Api;
use crate::admin::answer::{Answer, Name, Params};
use crate::admin::auth::Caller;
use crate::admin::roles::{MATRIX, Permission, Role};
use crate::config::sessions::{Acks, Ahead, Sidecar};
use crate::refusal::{Reason, Refusal};
use crate::registry::{keys, proposals};

/// Longest wait of a long poll: below what proxies between usually cut.
pub(super) const MAX_WAIT_MS: u64 = 55_000;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(sidecars))
        .routes(routes!(status))
        .routes(routes!(acks))
        .routes(routes!(roles))
}

/// All sidecars, connected ones and ones that left in the last 10 minutes.
#[derive(Serialize, ToSchema)]
struct Sidecars {
    items: Vec<Sidecar>,
}

/// The sidecars.
#[utoipa::path(get, path = "/v1/sidecars", tag = "status", responses((status = 200, body = Sidecars)))]
async fn sidecars(State(api): State<Arc<Api>>) -> Json<Sidecars> {
    Json(Sidecars {
        items: api.sessions.list(),
    })
}

/// The mesh at a glance.
#[derive(Serialize, ToSchema)]
struct Status {
    /// `dev` or `prod`.
    mode: &'static str,
    /// The store's revision.
    revision: u64,
    /// The revision that sidecars are pushed.
    pushed: u64,
    /// Registered agents.
    agents: usize,
    /// Leased endpoints.
    endpoints: usize,
    /// Policies.
    policies: usize,
    /// Revocations in force.
    revocations: usize,
    /// Agents that drifted and get no SVID.
    drifted: usize,
    /// Proposals that wait for a second person.
    approvals: usize,
    /// Sidecars that are refused, since they have seen a later revision: the store was restored from an older copy, and is to be
    /// lifted above what they have seen (`POST /v1/mesh/lift`).
    restored: Vec<Ahead>,
    /// Open config streams.
    connected: usize,
    /// The sidecars.
    sidecars: Vec<Sidecar>,
}

/// The mesh at a glance, and every sidecar.
#[utoipa::path(get, path = "/v1/status", tag = "status", responses((status = 200, body = Status)))]
async fn status(State(api): State<Arc<Api>>) -> Answer<Json<Status>> {
    let approvals = api
        .registry
        .store
        .scan(keys::PROPOSALS, "", proposals::MAX_PROPOSALS)
        .await?
        .len();
    let count = |kind| api.world.names(kind, "").len();
    Ok(Json(Status {
        mode: if api.registry.needs_second_person() {
            "prod"
        } else {
            "dev"
        },
        revision: api.registry.store.revision(),
        pushed: api.world.revision(),
        agents: count(Kind::Agent),
        endpoints: count(Kind::Endpoint),
        policies: count(Kind::Policy),
        revocations: count(Kind::Revocation),
        drifted: api.registry.drifted().await?,
        approvals,
        restored: api.sessions.ahead_of(api.world.revision()),
        connected: api.sessions.connected(),
        sidecars: api.sessions.list(),
    }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wait {
    /// Wait so many milliseconds for all to acknowledge; at most 55,000, 0 if absent.
    #[param(maximum = 55_000)]
    wait_ms: Option<u64>,
}

/// Which sidecars have acknowledged a revision, and how long it took.
#[utoipa::path(get, path = "/v1/revisions/{revision}/acks", tag = "status", params(("revision" = u64, Path), Wait), responses((status = 200, body = Acks)))]
async fn acks(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(revision): Name<String>,
    Params(wait): Params<Wait>,
) -> Answer<Json<Acks>> {
    let revision: u64 = revision
        .parse()
        .map_err(|_| Refusal::new(Reason::NameInvalid, "a revision is a number"))?;
    if revision > api.registry.store.revision() {
        return Err(Refusal::new(Reason::NotFound, "there is no such revision yet").into());
    }
    let ms = wait.wait_ms.unwrap_or(0);
    if ms > MAX_WAIT_MS {
        return Err(Refusal::invalid(vec![FieldError::new("wait_ms", format!("{ms}; at most {MAX_WAIT_MS}"))]).into());
    }
    let place = api.watchers.try_take(&caller.sub);
    if ms > 0 && place.is_none() {
        return Err(Refusal::new(Reason::Overloaded, "too many wait; ask without waiting, or again").into());
    }
    let committed = api.registry.store.committed_at(revision);
    let wait = Duration::from_millis(ms);
    let acks = api.sessions.wait_acks(&api.registry, revision, committed, wait).await?;
    Ok(Json(acks))
}

/// What a permission allows, and to whom.
#[derive(Serialize, ToSchema)]
struct Allowed {
    permission: Permission,
    roles: &'static [Role],
}

/// The matrix of roles.
#[derive(Serialize, ToSchema)]
struct Roles {
    items: Vec<Allowed>,
}

/// Which role may do what.
#[utoipa::path(get, path = "/v1/roles", tag = "admin", responses((status = 200, body = Roles)))]
async fn roles() -> Json<Roles> {
    Json(Roles {
        items: MATRIX
            .iter()
            .map(|(permission, roles)| Allowed {
                permission: *permission,
                roles,
            })
            .collect(),
    })
}

//! The mesh: what it is, its settings, recovery.

use std::sync::Arc;

use aip_api::Digest;
use aip_api::resource::MeshConfig;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin::Api;
use crate::admin::answer::{Answer, Body, Changed, Held, IfMatch, Parts};
use crate::admin::auth::Caller;
use crate::admin::documents;
use crate::registry::Actor;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(mesh))
        .routes(routes!(config, put_config))
        .routes(routes!(former_config))
        .routes(routes!(lift))
        .routes(routes!(rotate))
}

/// What the mesh is.
#[derive(Serialize, ToSchema)]
struct Mesh {
    /// Its trust domain.
    trust_domain: String,
    /// `dev` or `prod`.
    mode: &'static str,
    /// Unix seconds.
    created_at: u64,
    /// SHA-256 of the root's SubjectPublicKeyInfo, as join tokens carry it.
    #[schema(value_type = String)]
    root: Digest,
    /// The store's revision.
    revision: u64,
    /// The control plane's version.
    version: &'static str,
}

/// What the mesh is.
#[utoipa::path(get, path = "/v1/mesh", tag = "mesh", responses((status = 200, body = Mesh)))]
async fn mesh(State(api): State<Arc<Api>>) -> Json<Mesh> {
    Json(Mesh {
        trust_domain: api.ca.trust_domain().to_string(),
        mode: if api.registry.needs_second_person() {
            "prod"
        } else {
            "dev"
        },
        created_at: api.created_at,
        root: api.ca.root_digest(),
        revision: api.registry.store.revision(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// The mesh's settings.
#[utoipa::path(get, path = "/v1/mesh-config", tag = "mesh", responses((status = 200, body = Held)))]
async fn config(State(api): State<Arc<Api>>) -> Answer<Json<Held>> {
    Ok(Json(Held::of(&api.registry.mesh_config().await?)?))
}

/// The settings as one of their revisions was: kept as long as records may name it (`audit.retention.days`).
#[utoipa::path(get, path = "/v1/mesh-config/revisions/{revision}", tag = "mesh", params(("revision" = u64, Path)), responses((status = 200, body = Held)))]
async fn former_config(State(api): State<Arc<Api>>, Parts((revision,)): Parts<(u64,)>) -> Answer<Json<Held>> {
    let held = api
        .registry
        .resource_at::<MeshConfig>(MeshConfig::NAME, revision)
        .await?;
    Ok(Json(Held::of(&held)?))
}

/// Changes the settings. In a `prod` mesh: proposes to (202).
#[utoipa::path(put, path = "/v1/mesh-config", tag = "mesh", request_body = documents::MeshConfig,
    responses((status = 200, body = Changed), (status = 202, body = Changed)))]
async fn put_config(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IfMatch(expected): IfMatch,
    Body(config): Body<MeshConfig>,
) -> Answer<Response> {
    Ok(api
        .registry
        .put_mesh_config(&caller.sub, config, expected)
        .await?
        .into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Lift {
    /// The highest revision that a sidecar has seen.
    above: u64,
}

/// Lifts a store that was restored from a copy above what sidecars have seen; they then take it as the newer one. In a
/// `prod` mesh: proposes to (202).
#[utoipa::path(post, path = "/v1/mesh/lift", tag = "mesh", request_body = Lift,
    responses((status = 200, body = Changed), (status = 202, body = Changed)))]
async fn lift(State(api): State<Arc<Api>>, caller: Caller, Body(lift): Body<Lift>) -> Answer<Response> {
    Ok(api.registry.lift(&caller.sub, lift.above).await?.into_response())
}

/// Makes the ready intermediate sign, and a fresh one ready.
#[utoipa::path(post, path = "/v1/mesh/rotate-ca", tag = "mesh", responses((status = 200, body = Changed)))]
async fn rotate(State(api): State<Arc<Api>>, caller: Caller) -> Answer<Json<Changed>> {
    Ok(Changed::at(
        api.ca.rotate(&api.registry, &Actor::admin(&caller.sub)).await?,
    ))
}

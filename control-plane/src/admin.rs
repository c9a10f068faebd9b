//! The admin API: REST under `/v1`, described by `/openapi.json`. `aip` uses nothing else.
//!
//! In the order of a request: [`serve`] (connections, TLS, time limits), [`guard`] (Host and Origin), [`auth`] (token,
//! role), [`idempotency`], one of the [`routes`], and [`answer`] for how it is said.

pub mod admission;
pub mod answer;
pub mod auth;
mod docs;
mod guard;
mod idempotency;
pub mod roles;
mod routes;
pub mod serve;

use std::path::PathBuf;
use std::sync::Arc;

use aip_runtime::ready::Readiness;
use aip_runtime::telemetry::Metrics;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::ca::Ca;
use crate::config::sessions::Sessions;
use crate::config::world::World;
use crate::registry::Registry;

pub use docs::openapi;
pub use routes::{ROUTES, Route};

/// Largest body: a policy with its data and tests, as JSON.
pub const MAX_BODY: usize = 1024 * 1024;
/// Watchers at once: people and dashboards.
const MAX_WATCHERS: usize = 64;

/// What the API works on.
#[derive(Debug)]
pub struct Api {
    /// The mesh's documents.
    pub registry: Registry,
    /// The CA.
    pub ca: Arc<Ca>,
    /// All resources.
    pub world: Arc<World>,
    /// Who is connected.
    pub sessions: Arc<Sessions>,
    /// The program that checks policies: this one.
    pub program: PathBuf,
    /// When the mesh was made.
    pub created_at: u64,
    idempotency: idempotency::Answers,
    checks: Semaphore,
    watchers: Arc<Semaphore>,
    /// Cancelled when the process stops: watches end.
    pub stopping: CancellationToken,
}

impl Api {
    /// The API over these parts.
    pub fn new(
        registry: Registry,
        ca: Arc<Ca>,
        world: Arc<World>,
        sessions: Arc<Sessions>,
        program: PathBuf,
        created_at: u64,
    ) -> Self {
        Self {
            registry,
            ca,
            world,
            sessions,
            program,
            created_at,
            idempotency: idempotency::Answers::default(),
            checks: Semaphore::new(admission::MAX_CHECKS),
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
            stopping: CancellationToken::new(),
        }
    }
}

/// The whole server: API, probes and metrics. `loopback`: it is reached by loopback names only.
pub fn router(api: Arc<Api>, ready: Readiness, metrics: Metrics, loopback: bool) -> Router {
    let (routes, _) = OpenApiRouter::with_openapi(docs::Description::openapi())
        .merge(routes::all())
        .split_for_parts();
    let v1 = routes
        .route_layer(from_fn_with_state(api.clone(), idempotency::once))
        .route_layer(from_fn_with_state(api.clone(), auth::authorize))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api);
    let open = Router::new().route("/openapi.json", axum::routing::get(docs::serve));
    v1.merge(open)
        .merge(aip_runtime::admin::probes(ready))
        .merge(aip_runtime::admin::metrics(metrics))
        .fallback(answer::not_found)
        .method_not_allowed_fallback(answer::not_found)
        .layer(from_fn(move |request, next| guard::check(loopback, request, next)))
        .layer(CatchPanicLayer::custom(answer::panicked))
}

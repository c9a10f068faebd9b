//! The admin API: REST under `/v1`, described by `/openapi.json`. `aip` uses nothing else.
//!
//! In the order of a request: [`serve`] (port and [`socket`], TLS, time limits), [`guard`] (Host, Origin, where changes
//! may come from), [`auth`] (token, role), [`idempotency`], one of the [`routes`], and [`answer`] for how it is said.

pub mod admission;
pub mod answer;
pub mod auth;
mod docs;
mod documents;
pub mod guard;
mod idempotency;
pub mod roles;
mod routes;
pub mod serve;
pub mod socket;

use std::path::PathBuf;
use std::sync::Arc;

use aip_runtime::ready::Readiness;
use aip_runtime::telemetry::Metrics;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::audit::Audit;
use crate::ca::Ca;
use crate::config::sessions::Sessions;
use crate::config::world::World;
use crate::kill::{Board, Publisher};
use crate::quota::Quota;
use crate::registry::Registry;
use crate::reputation::lookups::Lookups;

pub use docs::openapi;
pub use routes::{OPEN, ROUTES, Route};

use guard::Port;

/// Largest body: a policy with its data and tests, as JSON.
pub const MAX_BODY: usize = 1024 * 1024;
/// Watches and long polls at once: people and dashboards; and of one person, so that nobody takes the places of all.
const MAX_WATCHERS: usize = 128;
const MAX_WATCHERS_EACH: usize = 32;

/// Orders to stop, as the API sees them.
#[derive(Debug, Clone)]
pub struct Kills {
    /// The set in force.
    pub publisher: Arc<Publisher>,
    /// Who has taken it.
    pub board: Arc<Board>,
}

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
    /// Orders to stop.
    pub kills: Kills,
    /// What was recorded.
    pub audit: Arc<Audit>,
    /// The program that checks policies: this one.
    pub program: PathBuf,
    /// When the mesh was made.
    pub created_at: u64,
    /// The Unix socket, as refusals name it.
    pub socket: PathBuf,
    idempotency: idempotency::Answers,
    checks: Quota,
    watchers: Quota,
    lookups: Lookups,
    /// Cancelled when the process stops: watches end.
    pub stopping: CancellationToken,
}

/// What of the control plane the API shows and changes.
#[derive(Debug)]
pub struct Parts {
    /// The mesh's documents.
    pub registry: Registry,
    /// The CA.
    pub ca: Arc<Ca>,
    /// All resources.
    pub world: Arc<World>,
    /// Who is connected.
    pub sessions: Arc<Sessions>,
    /// Orders to stop.
    pub kills: Kills,
    /// What was recorded.
    pub audit: Arc<Audit>,
}

impl Api {
    /// The API over these parts.
    pub fn new(parts: Parts, program: PathBuf, created_at: u64, socket: PathBuf) -> Self {
        Self {
            registry: parts.registry,
            ca: parts.ca,
            world: parts.world,
            sessions: parts.sessions,
            kills: parts.kills,
            audit: parts.audit,
            program,
            created_at,
            socket,
            idempotency: idempotency::Answers::default(),
            checks: Quota::new(admission::MAX_CHECKS, admission::MAX_CHECKS_EACH),
            watchers: Quota::new(MAX_WATCHERS, MAX_WATCHERS_EACH),
            lookups: Lookups::default(),
            stopping: CancellationToken::new(),
        }
    }
}

/// The whole server: API, probes and metrics, as one listener gives it.
pub fn router(api: Arc<Api>, ready: Readiness, metrics: Metrics, port: Port) -> Router {
    let plain = |routes| {
        OpenApiRouter::with_openapi(docs::Description::openapi())
            .merge(routes)
            .split_for_parts()
            .0
    };
    let socket = api.socket.clone();
    let changes = from_fn(move |request: Request, next: Next| {
        let socket = socket.clone();
        async move { guard::changes(port, &socket, request, next).await }
    });
    // The layer that was added last sees a request first.
    let v1: Router<Arc<Api>> = plain(routes::all());
    let v1 = v1
        .route_layer(from_fn_with_state(api.clone(), idempotency::once))
        .route_layer(changes.clone())
        .route_layer(from_fn_with_state(api.clone(), auth::authorize));
    let claims: Router<Arc<Api>> = plain(routes::open());
    let open = Router::new().route("/openapi.json", axum::routing::get(docs::serve));
    v1.merge(claims.route_layer(changes))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
        .merge(open)
        .merge(aip_runtime::admin::probes(ready))
        .merge(aip_runtime::admin::metrics(metrics))
        .fallback(answer::not_found)
        .method_not_allowed_fallback(answer::not_allowed)
        .layer(from_fn(move |request, next| guard::check(port, request, next)))
        .layer(CatchPanicLayer::custom(answer::panicked))
}

//! The process: opens the mesh, starts what serves it, and stops it in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip_api::Digest;
use aip_runtime::drain::{self, Drain, DrainWatch};
use aip_runtime::grpc::config_server::ConfigServer;
use aip_runtime::grpc::identity_server::IdentityServer;
use aip_runtime::grpc::{MAX_MESSAGE_BYTES, incoming};
use aip_runtime::ready::Readiness;
use aip_runtime::settings::listen;
use aip_runtime::tls::{ALPN_H2, Clients, server_config};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Server;

use crate::admin::serve::{Transport, serve};
use crate::admin::{Api, router};
use crate::bootstrap::{Mesh, StartError, open, write};
use crate::ca::{CaError, SERVER_SECONDS};
use crate::clock::Clock;
use crate::config::ConfigService;
use crate::config::leases::Leases;
use crate::config::sessions::Sessions;
use crate::config::world::World;
use crate::identity::IdentityService;
use crate::refusal::Refusal;
use crate::registry::{Actor, Registry};
use crate::settings::Settings;

/// Where a running control plane says how it is reached.
pub const RUN_FILE: &str = "run.json";
/// How long open requests may take after SIGTERM.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// HTTP/2 pings find a sidecar that vanished without a word.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Streams on one connection: one Config stream, and Identity calls beside it.
const MAX_STREAMS: u32 = 16;
/// HTTP/2 windows: evidence of 3 MiB comes in few round trips, and one connection holds little.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// Largest message from a sidecar: evidence, or a Hello that lists all it may hold.
const MAX_REQUEST_BYTES: usize = 8 * 1024 * 1024;
/// How often what has expired is forgotten, and certificates are looked at.
const SWEEP: Duration = Duration::from_secs(60);

/// What `run.json` says.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The process.
    pub pid: u32,
    /// Where sidecars connect.
    pub mesh: SocketAddr,
    /// Where the admin API is.
    pub admin: SocketAddr,
    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub root: Digest,
}

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where it is reached.
    pub run: Run,
    /// Its documents.
    pub registry: Registry,
    /// Its time.
    pub clock: Clock,
    /// What the admin API works on.
    pub api: Arc<Api>,
    drain: Drain,
    tasks: JoinSet<()>,
    // Dropped last: the directory is free when everything is closed.
    lock: aip_runtime::files::DirLock,
}

impl ControlPlane {
    /// Starts: when this returns, both ports answer.
    ///
    /// # Errors
    /// As [`StartError`] lists.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let clock = Clock::default();
        let mesh = open(&settings, clock.clone()).await?;
        let store = mesh.registry.store.clone();
        let started = Self::serve(settings, mesh, clock).await;
        if started.is_err() {
            // Tasks that were begun may linger; the file must not.
            store.close().await;
        }
        started
    }

    async fn serve(settings: Settings, mesh: Mesh, clock: Clock) -> Result<Self, StartError> {
        let metrics = aip_runtime::telemetry::init_metrics();
        crate::metrics::describe();
        let ready = Readiness::new(&["store", "mesh", "admin"]);
        ready.set("store", true);
        let Mesh {
            registry,
            ca,
            record,
            lock,
        } = mesh;
        let trust = ca.trust()?.shared();
        let world = World::new(&registry.store, ca.clone(), trust.clone()).await?;
        let sessions = Sessions::new(clock.clone());
        let (drain, watch) = drain::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(world.clone().follow(registry.store.clone()));
        tasks.spawn(upkeep(registry.clone(), ca.clone()));

        let leases = Leases::new(
            registry.clone(),
            settings.lease_grace,
            settings.mesh_listen.ip().is_loopback(),
        );
        tasks.spawn(leases.clone().reap(world.clone()));
        let config = ConfigService {
            world: world.clone(),
            sessions: sessions.clone(),
            leases,
            clock: clock.clone(),
            limits: settings.limits,
            drain: watch.clone(),
        };
        let identity = IdentityService::new(registry.clone(), ca.clone())?;
        let mesh = TcpListener::from_std(listen("sidecars", "--mesh-listen", settings.mesh_listen)?)?;
        let admin = TcpListener::from_std(listen("the admin API", "--admin-listen", settings.admin_listen)?)?;
        let run = Run {
            pid: std::process::id(),
            mesh: mesh.local_addr()?,
            admin: admin.local_addr()?,
            root: ca.root_digest(),
        };
        let tls = server_config(&ca.server, &trust, Clients::Optional, ALPN_H2)
            .map_err(|e| CaError::Certificate(e.to_string()))?;
        tasks.spawn(mesh_port(
            identity,
            config,
            incoming(mesh, tls, trust.clone()),
            watch.clone(),
        ));
        ready.set("mesh", true);

        let transport = Transport::of(run.admin, &ca, &trust)?;
        let api = Api::new(
            registry.clone(),
            ca,
            world,
            sessions,
            settings.program.clone(),
            record.created_at,
        );
        let api = Arc::new(api);
        let routes = router(api.clone(), ready.clone(), metrics, run.admin.ip().is_loopback());
        tasks.spawn(serve(admin, routes, transport, watch));
        ready.set("admin", true);

        write(&settings.data.join(RUN_FILE), &crate::registry::encode(&run)?)?;
        tracing::info!(mesh = %run.mesh, admin = %run.admin, root = %run.root, "control plane is up");
        Ok(Self {
            run,
            registry,
            clock,
            api,
            drain,
            tasks,
            lock,
        })
    }

    /// Stops: no new work, open requests up to a deadline; answers whether all were finished.
    pub async fn shutdown(mut self) -> bool {
        self.api.stopping.cancel();
        self.drain.start();
        let idle = self.drain.idle(DRAIN_DEADLINE).await;
        self.tasks.shutdown().await;
        self.registry.store.close().await;
        drop(self.lock);
        idle
    }

    /// Ends at once, as if the process died; for tests of what survives.
    pub async fn kill(mut self) {
        self.api.stopping.cancel();
        self.drain.start();
        self.tasks.shutdown().await;
        self.registry.store.close().await;
    }
}

async fn mesh_port(
    identity: IdentityService,
    config: ConfigService,
    connections: aip_runtime::grpc::Incoming,
    mut watch: DrainWatch,
) {
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(IdentityServer::new(identity).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(
            ConfigServer::new(config)
                .max_decoding_message_size(MAX_REQUEST_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        );
    let served = server
        .serve_with_incoming_shutdown(connections, async move { watch.draining().await })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the mesh port ended");
    }
}

/// Forgets what has expired, renews our certificate, rotates the intermediate in time.
async fn upkeep(registry: Registry, ca: Arc<crate::ca::Ca>) {
    let mut renewed = aip_runtime::unix_now();
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(refusal) = registry.sweep().await {
            tracing::warn!(reason = refusal.reason(), "expired rows were not removed; trying again");
        }
        if ca.wants_rotation() {
            let rotated: Result<u64, Refusal> = ca.rotate(&registry, &Actor::control_plane()).await;
            if let Err(refusal) = rotated {
                tracing::error!(
                    reason = refusal.reason(),
                    "the intermediate was not rotated; trying again"
                );
            }
        }
        let now = aip_runtime::unix_now();
        if now.saturating_sub(renewed) >= SERVER_SECONDS / 2 {
            match ca.renew_server() {
                Ok(()) => renewed = now,
                Err(error) => tracing::error!(%error, "our certificate was not renewed; trying again"),
            }
        }
    }
}

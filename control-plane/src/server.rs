//! The process: binds its ports, opens the mesh, starts what serves it, and stops it in order.

mod ports;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use aip_runtime::drain::{self, Drain, DrainWatch};
use aip_runtime::files::lock_dir;
use aip_runtime::grpc::audit_server::AuditServer;
use aip_runtime::grpc::config_server::ConfigServer;
use aip_runtime::grpc::identity_server::IdentityServer;
use aip_runtime::grpc::kill_server::KillServer;
use aip_runtime::grpc::{Incoming, MAX_MESSAGE_BYTES, incoming};
use aip_runtime::ready::Readiness;
use aip_runtime::tls::MeshTls;
use aip_runtime::trust::Trust;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::admin::guard::Port;
use crate::admin::serve::{Listener, serve};
use crate::admin::socket::{Socket, SocketPath};
use crate::admin::{self, Api, Kills, router};
use crate::audit::Audit;
use crate::audit::service::AuditService;
use crate::bootstrap::{Mesh, StartError, open, write};
use crate::ca::{Ca, CaError};
use crate::clock::Clock;
use crate::config::later::Small;
use crate::config::leases::Leases;
use crate::config::sessions::Sessions;
use crate::config::world::World;
use crate::config::{ASKED, ConfigService};
use crate::hello::Hellos;
use crate::identity::{IdentityService, Places};
use crate::kill::webhook::Teller;
use crate::kill::{Board, Causes, KillService, OrdersOnly, Publisher};
use crate::rate::Rates;
use crate::registry::Registry;
use crate::settings::Settings;

use ports::Ports;
pub use ports::{RUN_FILE, Run};

/// How long open requests may take after SIGTERM.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// HTTP/2 pings find a sidecar that vanished without a word.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Streams on one connection: a Config, a Kill and an Audit stream, and Identity calls beside them.
const MAX_STREAMS: u32 = 8;
/// Streams of a connection that a peer may open and reset before we have looked at them (CVE-2023-44487, rapid reset).
const MAX_PENDING_RESETS: usize = 20;
/// Streams that we may have reset because of a peer's errors before its connection is closed (CVE-2025-8671): where nobody says how
/// many, the library counts none.
const MAX_LOCAL_RESETS: usize = 256;
/// Bytes of a head: of what sidecars say in one, generously.
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// How long a request may take until its answer begins: evidence of 3 MiB on a bad line.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// HTTP/2 windows: evidence of 3 MiB comes in some round trips, and what one connection makes us hold unread is little beside
/// how many one agent may have.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Largest request of whoever joins: evidence of 3 MiB, and what is around it.
const MAX_JOIN_BYTES: usize = 4 * 1024 * 1024;
/// Largest message of a sidecar that has joined: a Hello that lists all it may hold. What comes after it is small.
const MAX_REQUEST_BYTES: usize = 8 * 1024 * 1024;
/// Largest message of an Audit stream: a chunk of 1 MiB, and what is around it.
const MAX_AUDIT_BYTES: usize = 1024 * 1024 + 64 * 1024;
/// Largest message of a kill stream: the set that a sidecar holds, one that it could not write, and what is around them.
const MAX_KILL_BYTES: usize = 3 * aip_api::kill::MAX_KILL_SET_BYTES;

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
    /// What was recorded.
    pub audit: Arc<Audit>,
    drain: Drain,
    tasks: JoinSet<()>,
    socket: SocketPath,
    // Dropped last: the directory is free when everything is closed.
    lock: aip_runtime::files::DirLock,
}

/// What both sides of the process work with.
struct Parts {
    settings: Settings,
    registry: Registry,
    ca: Arc<Ca>,
    trust: Trust,
    world: Arc<World>,
    sessions: Arc<Sessions>,
    kills: Kills,
    clock: Clock,
    audit: Arc<Audit>,
    watch: DrainWatch,
}

impl ControlPlane {
    /// Starts: when this returns, both ports and the socket answer.
    ///
    /// # Errors
    /// As [`StartError`] lists. Where a port or the socket is taken, no mesh was made.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let ports = Ports::bind(&settings)?;
        let lock = lock_dir(&settings.data)?;
        let socket = ports::socket(&settings)?;
        let clock = Clock::default();
        let mesh = open(&settings, clock.clone(), lock).await?;
        let store = mesh.registry.store.clone();
        let started = Self::serve(settings, ports, socket, mesh, clock).await;
        if started.is_err() {
            // Tasks that were begun may linger; the file must not.
            store.close().await;
        }
        started
    }

    async fn serve(
        settings: Settings,
        ports: Ports,
        socket: Socket,
        mesh: Mesh,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let ready = Readiness::new(&["store", "mesh", "admin"]);
        ready.set("store", true);
        let run = ports.run(&socket, mesh.ca.root_digest())?;
        let (drain, watch) = drain::channel();
        let trust = mesh.ca.trust()?.shared();
        let world = World::new(&mesh.registry.store, mesh.ca.clone(), trust.clone()).await?;
        let known = (mesh.registry.clone(), mesh.ca.clone(), world.clone(), trust.clone());
        let (audit, writing) = Audit::open(&settings.data, known.0, known.1, known.2, known.3).await?;
        let parts = Parts {
            world,
            audit,
            sessions: Sessions::new(clock.clone()),
            kills: Kills {
                publisher: Publisher::new(mesh.registry.clone(), mesh.ca.clone()).await?,
                board: Board::restore(&mesh.registry).await?,
            },
            registry: mesh.registry,
            ca: mesh.ca,
            settings,
            trust,
            clock,
            watch,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(writing.run());
        parts.follow(&mut tasks);
        parts.mesh_side(ports.mesh, &mut tasks)?;
        ready.set("mesh", true);
        let api = parts.api(mesh.record.created_at, &run);
        let socket_path = parts.admin_side(&api, &ready, (ports.admin, socket), &mut tasks)?;
        ready.set("admin", true);

        write(&parts.settings.data.join(RUN_FILE), &crate::registry::encode(&run)?)?;
        tracing::info!(mesh = %run.mesh, admin = %run.admin, socket = %run.socket.display(), root = %run.root, "control plane is up");
        Ok(Self {
            run,
            registry: parts.registry,
            clock: parts.clock,
            api,
            audit: parts.audit,
            drain,
            tasks,
            socket: socket_path,
            lock: mesh.lock,
        })
    }

    /// Stops: no new work, open requests up to a deadline; answers whether all were finished.
    pub async fn shutdown(mut self) -> bool {
        self.api.stopping.cancel();
        drop(self.socket);
        self.drain.start();
        let idle = self.drain.idle(DRAIN_DEADLINE).await;
        self.tasks.shutdown().await;
        self.audit.ledger.close().await;
        self.registry.store.close().await;
        drop(self.lock);
        idle
    }

    /// Ends at once, as if the process died; for tests of what survives.
    pub async fn kill(mut self) {
        self.api.stopping.cancel();
        self.drain.start();
        self.tasks.shutdown().await;
        self.audit.ledger.close().await;
        self.registry.store.close().await;
    }
}

impl Parts {
    /// What goes on by itself.
    fn follow(&self, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.world.clone().follow(self.registry.store.clone()));
        tasks.spawn(upkeep::upkeep(
            self.registry.clone(),
            self.ca.clone(),
            self.kills.board.clone(),
        ));
        tasks.spawn(self.kills.publisher.clone().follow());
        let secrets = self.settings.secrets.clone();
        let teller = Teller {
            registry: self.registry.clone(),
            secrets: secrets.unwrap_or_else(|| self.settings.data.join("secrets")),
            publisher: self.kills.publisher.clone(),
        };
        tasks.spawn(teller.run());
        tasks.spawn(self.audit.clone().retain());
        let hops = self.audit.hops.subscribe();
        tasks.spawn(crate::reputation::observe::follow(hops, self.registry.clone()));
    }

    /// What sidecars connect to.
    fn mesh_side(&self, listener: TcpListener, tasks: &mut JoinSet<()>) -> Result<(), StartError> {
        let loopback = self.settings.mesh_listen.ip().is_loopback();
        let leases = Leases::new(self.registry.clone(), self.settings.lease_grace, loopback);
        tasks.spawn(leases.clone().reap(self.world.clone()));
        let hellos = Arc::new(Hellos::default());
        let config = ConfigService {
            hellos: hellos.clone(),
            asked: Arc::new(Rates::new(ASKED)),
            world: self.world.clone(),
            sessions: self.sessions.clone(),
            leases,
            clock: self.clock.clone(),
            limits: self.settings.limits,
            drain: self.watch.clone(),
        };
        let kill = KillService {
            world: self.world.clone(),
            registry: self.registry.clone(),
            ca: self.ca.clone(),
            trust: self.trust.clone(),
            publisher: self.kills.publisher.clone(),
            board: self.kills.board.clone(),
            ordinary: Causes::with(hellos.clone()),
            orders_only: Causes::with(Arc::default()),
            drain: self.watch.clone(),
        };
        let identity = IdentityService::new(self.registry.clone(), self.ca.clone())?;
        let tls = MeshTls::new(&self.ca.server, &self.trust).map_err(|e| CaError::Certificate(e.to_string()))?;
        let connections = incoming(listener, tls, self.trust.clone());
        let audit = AuditService::new(self.audit.clone(), hellos, self.watch.clone());
        tasks.spawn(mesh_port(
            identity,
            config,
            kill,
            audit,
            connections,
            self.watch.clone(),
        ));
        Ok(())
    }

    fn api(&self, created_at: u64, run: &Run) -> Arc<Api> {
        let parts = admin::Parts {
            registry: self.registry.clone(),
            ca: self.ca.clone(),
            world: self.world.clone(),
            sessions: self.sessions.clone(),
            kills: self.kills.clone(),
            audit: self.audit.clone(),
        };
        let program = self.settings.program.clone();
        Arc::new(Api::new(parts, program, created_at, run.socket.clone()))
    }

    /// What people and programs connect to: a port, and the socket.
    fn admin_side(
        &self,
        api: &Arc<Api>,
        ready: &Readiness,
        (port, socket): (TcpListener, Socket),
        tasks: &mut JoinSet<()>,
    ) -> Result<SocketPath, StartError> {
        let metrics = aip_runtime::telemetry::init_metrics();
        crate::metrics::describe();
        let address = port.local_addr()?;
        let of_port = Port::tcp(address, self.registry.needs_second_person());
        let routes = |port| router(api.clone(), ready.clone(), metrics.clone(), port);
        let listener = Listener::tcp(port, address, &self.ca, &self.trust)?;
        tasks.spawn(serve(listener, routes(of_port), self.watch.clone()));
        let listener = Listener::Socket(socket.listener);
        tasks.spawn(serve(listener, routes(Port::socket()), self.watch.clone()));
        Ok(socket.path)
    }
}

async fn mesh_port(
    identity: IdentityService,
    config: ConfigService,
    kill: KillService,
    audit: AuditService,
    connections: Incoming,
    mut watch: DrainWatch,
) {
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .timeout(REQUEST_DEADLINE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .layer(tower::layer::layer_fn(OrdersOnly))
        .add_service(InterceptedService::new(
            IdentityServer::new(identity).max_decoding_message_size(MAX_JOIN_BYTES),
            Places::default(),
        ))
        .add_service(Small(
            ConfigServer::new(config)
                .max_decoding_message_size(MAX_REQUEST_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        ))
        .add_service(KillServer::new(kill).max_decoding_message_size(MAX_KILL_BYTES))
        .add_service(AuditServer::new(audit).max_decoding_message_size(MAX_AUDIT_BYTES));
    let served = server
        .serve_with_incoming_shutdown(connections, async move { watch.draining().await })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the mesh port ended");
    }
}

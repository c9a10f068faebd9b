//! How it all starts and ends: settings, identity, configuration, listeners; then drain.

mod listeners;
mod secret;
mod separation;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aip_audit::log::{Options, SEGMENT_BYTES};
use aip_runtime::fault;
use aip_runtime::files::{self, DirLock};
use aip_runtime::ready::Readiness;
use aip_runtime::spans::Spans;
use aip_runtime::svid::SvidSource;
use aip_runtime::telemetry::Metrics;
use aip_runtime::trust::{Trust, TrustState};
use aip_runtime::{admin, drain, shutdown, telemetry, unix_now};
use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::audit::{Audit, checkpoint, stream};
use crate::config::Config;
use crate::drift::report::Reporter;
use crate::drift::watcher::{self, Watcher};
use crate::drift::{Alarm, Suspension};
use crate::identity::keeper::Keeper;
use crate::identity::revoked::Revoked;
use crate::identity::{JoinError, Vault};
use crate::kill;
use crate::kill::disk::Disk;
use crate::kill::supervisor::Supervisor;
use crate::mesh::Mesh;
use crate::mesh::cache::Cache;
use crate::mesh::client::{self, Client};
use crate::mesh::world::{Origin, World};
use crate::proxy::workers::Workers;
use crate::proxy::{self, Proxy, ProxySettings};
use crate::wellknown::WellKnown;
use listeners::Listeners;

/// Gates of readiness: an SVID, a complete configuration, what is stopped, the listeners, and a watch over what was
/// measured.
const GATES: [&str; 5] = ["identity", "config", "kill", "listeners", watcher::GATE];

/// How long the end of the streams may take: one message to the control plane and back, or to the collector of spans.
const GOODBYE: Duration = Duration::from_secs(2);

/// What all parts of a sidecar share.
struct Shared {
    config: Arc<Config>,
    svid: SvidSource,
    revoked: Revoked,
    trust: Trust,
    ready: Readiness,
    vault: Option<Vault>,
    audit: Audit,
    spans: Spans,
    /// This process, on its streams.
    instance: String,
    alarm: Alarm,
}

/// Runs a sidecar until a signal ends it.
///
/// # Errors
/// It can't start: settings, ports, directories, or an identity that can't be had. Or it may not go on: in a `prod` mesh
/// its agent runs as its own user.
pub async fn run(config: Config, supervisor: Supervisor) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&config)?;
    let _locks = lock_directories(&config)?;
    let secret = secret::of(&config.access)?;
    listeners.announce(&config)?;
    // Before whatever keeps handles of them.
    let metrics = telemetry::init_metrics();
    crate::metrics::describe();
    let shared = Shared::new(config)?;
    let addresses = listeners.addresses()?;
    // Probes answer from the first moment: "not ready, waiting for identity" is an answer.
    let probes = admin::probes(shared.ready.clone());
    let _probes = admin::serve_on_own_thread("probes", listeners.probes, probes)?;

    let (keeper, origins) = shared.keeper(supervisor.clone());
    let origin = tokio::select! {
        origin = keeper.first() => origin.map_err(explain)?,
        name = shutdown::signal() => {
            tracing::info!(signal = name, "ended before there was an identity");
            return Ok(());
        }
    };
    let (send_lease, lease) = watch::channel(None);
    let (answered, answers) = watch::channel(0);
    let (mesh, followed) = shared.follow_mesh(origin, origins, lease.clone(), answered);
    let keeper_of_orders = shared.orders(supervisor);
    tokio::spawn(keeper.keep());
    let audit = shared.follow_audit(&mesh);
    tokio::spawn(shared.reporter(answers).run());
    tokio::spawn(shared.watcher().run());

    let workers = Workers::start(shared.config.workers).context("no threads to serve connections")?;
    let settings = ProxySettings::new(shared.config.agent, secret)
        .served_by(workers)
        .recording_to(shared.audit.clone())
        .traced_to(shared.spans.clone())
        .of_user(shared.config.access.agent_uid)
        .serving(shared.config.serves)
        .unless(shared.alarm.suspension().clone())
        .saying(shared.revoked.clone())
        .stopped_by(keeper_of_orders.gate())
        .reserving([shared.config.control_plane, addresses.admin, addresses.probes]);
    let proxy = shared.proxy(&mesh, settings);
    let obeyed = shared.obey(keeper_of_orders, &proxy, lease);
    let pages = shared.pages(&mesh, &proxy, metrics);
    let _admin = admin::serve_on_own_thread("admin", listeners.admin, pages)?;
    let serving = Serving {
        inbound: listeners.inbound,
        outbound: listeners.outbound,
        proxy,
        lease: shared.config.advertise.unwrap_or(addresses.inbound),
        send_lease,
        followed,
        audit,
        obeyed,
    };
    serve(&shared, &mesh, serving).await
}

/// The data and the runtime directory, for this process alone.
fn lock_directories(config: &Config) -> anyhow::Result<(DirLock, Option<DirLock>)> {
    let data = files::lock_dir(&config.data)?;
    // Below the data directory, whose lock covers it.
    let covered = config.runtime_dir.starts_with(&config.data) && config.runtime_dir != config.data;
    let runtime = match covered {
        true => private_dir(&config.runtime_dir).map(|()| None)?,
        false => Some(files::lock_dir(&config.runtime_dir)?),
    };
    Ok((data, runtime))
}

fn private_dir(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// A refusal that trying again can't mend is the end, and says what to do.
fn explain(error: JoinError) -> anyhow::Error {
    let reason = error.reason().to_owned();
    anyhow::Error::new(error).context(format!("this sidecar can't get an identity ({reason})"))
}

impl Shared {
    /// What there is before anything runs; a suspension is as the process before left it.
    fn new(config: Config) -> anyhow::Result<Self> {
        let (config, svid) = (Arc::new(config), SvidSource::default());
        let suspension = Suspension::open(&config.data);
        let spans = config.otlp.as_ref().map(Spans::start).transpose();
        Ok(Self {
            spans: spans.context("spans can't be sent")?.unwrap_or_default(),
            alarm: Alarm::new(config.clone(), svid.clone(), suspension),
            svid,
            revoked: Revoked::default(),
            trust: TrustState::new(aip_api::name::DEFAULT_TRUST_DOMAIN.parse()?, Vec::new()).shared(),
            ready: Readiness::new(&GATES),
            vault: Vault::open(&config)?,
            audit: Audit::open(&config.data.join("audit"), quota(&config)).context("no thread for the audit")?,
            instance: uuid::Uuid::now_v7().to_string(),
            config,
        })
    }

    /// What gets and keeps the SVID, and the roots and keys that come with each.
    fn keeper(&self, supervisor: Supervisor) -> (Keeper, mpsc::Receiver<Origin>) {
        let (send, origins) = mpsc::channel(1);
        let keeper = Keeper::new(
            self.config.clone(),
            self.svid.clone(),
            self.trust.clone(),
            self.vault.clone(),
            self.ready.clone(),
            send,
            self.alarm.clone(),
        );
        (keeper.told_by(self.revoked.clone()).telling(supervisor), origins)
    }

    fn reporter(&self, answers: watch::Receiver<u64>) -> Reporter {
        Reporter {
            config: self.config.clone(),
            svid: self.svid.clone(),
            trust: self.trust.clone(),
            suspension: self.alarm.suspension().clone(),
            answers,
        }
    }

    fn watcher(&self) -> Watcher {
        let declared = self.config.measured.clone();
        Watcher::new(self.alarm.clone(), declared, self.ready.clone())
    }

    /// The world, from the cache at first, and kept up to date by a task from then on.
    fn follow_mesh(
        &self,
        origin: Origin,
        origins: mpsc::Receiver<Origin>,
        lease: watch::Receiver<Option<SocketAddr>>,
        answered: watch::Sender<u64>,
    ) -> (Mesh, JoinHandle<()>) {
        let (world, cache) = self.restore(origin);
        let (mesh, asked) = Mesh::new(world.snapshot());
        let stream = Client {
            control_plane: self.config.control_plane,
            svid: self.svid.clone(),
            revoked: self.revoked.clone(),
            trust: self.trust.clone(),
            ready: self.ready.clone(),
            instance: self.instance.clone(),
            cache,
            lease,
            origins,
            asked,
            answered,
        };
        let followed = tokio::spawn(client::run(stream, mesh.clone(), world));
        (mesh, followed)
    }

    /// The last good configuration, where one is kept.
    fn restore(&self, origin: Origin) -> (World, Option<Arc<Cache>>) {
        let mut world = World::new(origin, self.trust.clone());
        let Some(vault) = &self.vault else {
            return (world, None);
        };
        let cache = Arc::new(Cache::new(
            &self.config.data,
            &self.config.runtime_dir,
            vault.key.clone(),
        ));
        match cache.load() {
            Ok((revision, resources)) => {
                let push = aip_api::wire::ConfigResponse {
                    resources,
                    revision,
                    ..Default::default()
                };
                let rejected = world.apply(&push, unix_now());
                for refused in &rejected {
                    tracing::warn!(reason = refused.reason, "cached: {refused}");
                }
                world.raise_revision(revision);
                // Complete as of its revision, or it would not have been written: enough to serve from.
                let usable = rejected.is_empty() && world.is_usable();
                self.ready.set("config", usable);
                tracing::info!(revision, usable, "configuration restored from the cache");
            }
            Err(error) => tracing::info!(%error, "no configuration from the cache; waiting for the control plane"),
        }
        (world, Some(cache))
    }

    /// The log is signed every few seconds, and sent.
    fn follow_audit(&self, mesh: &Mesh) -> AuditTasks {
        // Before the first signature, and before anything is served.
        self.audit.rests_on(&mesh.snapshot().id, &self.trust.load());
        let (closing, closed) = watch::channel(false);
        let client = stream::Client {
            control_plane: self.config.control_plane,
            svid: self.svid.clone(),
            trust: self.trust.clone(),
            instance: self.instance.clone(),
            audit: self.audit.clone(),
            closing: closed,
        };
        AuditTasks {
            signing: tokio::spawn(checkpoint::run(self.audit.clone(), self.svid.clone(), mesh.clone())),
            sending: tokio::spawn(stream::run(client)),
            closing,
        }
    }

    /// Ends the log in order, and sends the rest.
    async fn end_audit(&self, tasks: AuditTasks) {
        tasks.signing.abort();
        checkpoint::close(&self.audit, &self.svid).await;
        tasks.closing.send_replace(true);
        // What it does not get now it gets from the next life.
        let _ = tokio::time::timeout(GOODBYE, tasks.sending).await;
    }

    /// What is stopped, as far as the disk knows.
    fn orders(&self, supervisor: Supervisor) -> kill::keeper::Keeper {
        let disk = Disk::new(&self.config.data);
        kill::keeper::Keeper::restore(disk, self.trust.clone(), self.ready.clone(), supervisor)
            .naming_by(self.revoked.given_up().clone())
    }

    /// Enforces orders from now on.
    fn obey(
        &self,
        keeper: kill::keeper::Keeper,
        proxy: &Arc<Proxy>,
        drained: watch::Receiver<Option<SocketAddr>>,
    ) -> JoinHandle<()> {
        let stream = kill::client::Client {
            control_plane: self.config.control_plane,
            trust: self.trust.clone(),
            instance: self.instance.clone(),
            proxy: proxy.clone(),
            revoked: self.revoked.clone(),
            drained,
        };
        tokio::spawn(kill::client::run(stream, keeper))
    }

    fn proxy(&self, mesh: &Mesh, settings: ProxySettings) -> Arc<Proxy> {
        let wellknown = WellKnown::new(self.svid.clone());
        Proxy::new(mesh.clone(), self.svid.clone(), self.trust.clone(), settings, wellknown)
    }

    fn pages(&self, mesh: &Mesh, proxy: &Arc<Proxy>, metrics: Metrics) -> axum::Router {
        let (config, svid) = (self.config.clone(), self.svid.clone());
        crate::admin::router(config, mesh.clone(), svid, proxy.clone(), metrics)
    }
}

struct Serving {
    inbound: std::net::TcpListener,
    outbound: std::net::TcpListener,
    proxy: Arc<Proxy>,
    lease: SocketAddr,
    send_lease: watch::Sender<Option<SocketAddr>>,
    followed: JoinHandle<()>,
    obeyed: JoinHandle<()>,
    audit: AuditTasks,
}

/// Segments that a log has room for: each is dropped as a whole.
const SEGMENTS: u64 = 8;

/// The bounds of the audit's logs. Each step that makes something durable is a point at which a test ends the process.
fn quota(config: &Config) -> Options {
    let total_bytes = config.audit_mib * 1024 * 1024;
    Options {
        segment_bytes: SEGMENT_BYTES.min(total_bytes / SEGMENTS),
        total_bytes,
        step: |name| fault::point(|| name.to_owned()),
        ..Options::default()
    }
}

/// What sees to the audit.
struct AuditTasks {
    signing: JoinHandle<()>,
    sending: JoinHandle<()>,
    closing: watch::Sender<bool>,
}

async fn serve(shared: &Shared, mesh: &Mesh, serving: Serving) -> anyhow::Result<()> {
    let (drain, watch) = drain::channel();
    let inbound = tokio::net::TcpListener::from_std(serving.inbound)?;
    let outbound = tokio::net::TcpListener::from_std(serving.outbound)?;
    let violated = separation::violated(&shared.config, mesh);
    tokio::pin!(violated);
    // Once before anything is served: what came from the cache may say already that it may not be.
    if let Some(shared) = separation::now(&shared.config, mesh) {
        return Err(shared.into());
    }
    tokio::spawn(proxy::serve_inbound(inbound, serving.proxy.clone(), watch.clone()));
    tokio::spawn(proxy::serve_outbound(outbound, serving.proxy.clone(), watch));
    shared.ready.set("listeners", true);
    let (send_lease, lease) = (serving.send_lease, serving.lease);
    let mut suspended = shared.alarm.suspension().subscribe();
    // Peers are told of this endpoint only once it can answer them.
    let offer = async {
        shared.ready.ready().await;
        tracing::info!(inbound = %lease, "ready");
        send_lease.send_replace(Some(lease));
        let _ = suspended.wait_for(|on| *on).await;
        send_lease.send_replace(None);
        std::future::pending::<()>().await;
    };
    let name = tokio::select! {
        name = shutdown::signal() => name,
        found = &mut violated => return Err(found.into()),
        () = offer => "",
    };
    let seconds = shared.config.drain_seconds;
    tracing::info!(signal = name, seconds, "draining");
    shared.ready.set("listeners", false);
    send_lease.send_replace(None);
    drain.start();
    let idle = drain.idle(Duration::from_secs(seconds)).await;
    serving.proxy.end_streams().await;
    drop(send_lease);
    tokio::join!(
        async { drop(tokio::time::timeout(GOODBYE, serving.followed).await) },
        async { drop(tokio::time::timeout(GOODBYE, serving.obeyed).await) },
        shared.end_audit(serving.audit),
        shared.spans.close(GOODBYE),
    );
    tracing::info!(idle, "ended");
    Ok(())
}

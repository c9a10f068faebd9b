//! How it all starts and ends: settings, identity, configuration, listeners; then drain.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aip_runtime::ready::Readiness;
use aip_runtime::svid::SvidSource;
use aip_runtime::trust::{Trust, TrustState};
use aip_runtime::{admin, drain, files, settings, shutdown, telemetry, unix_now};
use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::identity::keeper::Keeper;
use crate::identity::{JoinError, Vault};
use crate::mesh::Mesh;
use crate::mesh::cache::Cache;
use crate::mesh::client::{self, Client};
use crate::mesh::world::{Origin, World};
use crate::proxy::workers::Workers;
use crate::proxy::{self, Proxy, ProxySettings};
use crate::wellknown::WellKnown;

/// Gates of readiness: an SVID, a complete configuration, and the listeners.
const GATES: [&str; 3] = ["identity", "config", "listeners"];

/// The listening sockets: taken before anything else, so that a taken port is the first thing said.
struct Listeners {
    inbound: std::net::TcpListener,
    outbound: std::net::TcpListener,
    admin: std::net::TcpListener,
    probes: std::net::TcpListener,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, settings::SettingsError> {
        Ok(Self {
            inbound: settings::listen("calls from peers", "--inbound", config.inbound)?,
            outbound: settings::listen("calls of the agent", "--outbound", config.outbound)?,
            admin: settings::listen("admin", "--admin", config.admin)?,
            probes: settings::listen("probes", "--probes", config.probes)?,
        })
    }

    /// Where each listens, for whoever started this process with port 0.
    fn announce(&self, path: &Path) -> anyhow::Result<()> {
        let run = serde_json::json!({
            "pid": std::process::id(),
            "inbound": self.inbound.local_addr()?,
            "outbound": self.outbound.local_addr()?,
            "admin": self.admin.local_addr()?,
            "probes": self.probes.local_addr()?,
        });
        files::write_private(path, run.to_string().as_bytes()).context("run.json can't be written")
    }
}

/// Runs a sidecar until a signal ends it.
///
/// # Errors
/// It can't start: settings, ports, directories, or an identity that can't be had.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let listeners = Listeners::bind(&config)?;
    let _data = files::lock_dir(&config.data)?;
    let _runtime = match config.runtime_dir.starts_with(&config.data) && config.runtime_dir != config.data {
        true => private_dir(&config.runtime_dir).map(|()| None)?,
        false => Some(files::lock_dir(&config.runtime_dir)?),
    };
    listeners.announce(&config.data.join("run.json"))?;
    let vault = Vault::open(&config)?;
    let ready = Readiness::new(&GATES);
    let metrics = telemetry::init_metrics();
    // Probes answer from the first moment: "not ready, waiting for identity" is an answer.
    let _probes = admin::serve_on_own_thread("probes", listeners.probes, admin::probes(ready.clone()))?;

    let svid = SvidSource::default();
    let placeholder: aip_api::TrustDomain = aip_api::name::DEFAULT_TRUST_DOMAIN.parse()?;
    let trust = TrustState::new(placeholder, Vec::new()).shared();
    let (send_origin, origins) = mpsc::channel(1);
    let keeper = Keeper::new(
        config.clone(),
        svid.clone(),
        trust.clone(),
        vault.clone(),
        ready.clone(),
        send_origin,
    );
    let origin = tokio::select! {
        origin = keeper.first() => origin.map_err(explain)?,
        name = shutdown::signal() => {
            tracing::info!(signal = name, "ended before there was an identity");
            return Ok(());
        }
    };
    let (world, cache) = restore(&config, origin, &trust, vault.as_ref(), &ready);
    let (mesh, asked) = Mesh::new(world.snapshot());
    let (send_lease, lease) = watch::channel(None);
    let stream = Client {
        control_plane: config.control_plane,
        svid: svid.clone(),
        trust: trust.clone(),
        ready: ready.clone(),
        instance: uuid::Uuid::now_v7().to_string(),
        cache,
        lease,
        origins,
        asked,
    };
    tokio::spawn(client::run(stream, mesh.clone(), world));
    tokio::spawn(keeper.keep());

    let workers = Workers::start(config.workers).context("no threads to serve connections")?;
    let settings = ProxySettings::new(config.agent, proxy_secret(&config)?).served_by(workers);
    let proxy = Proxy::new(
        mesh.clone(),
        svid.clone(),
        trust,
        settings,
        WellKnown::new(svid.clone()),
    );
    let pages = crate::admin::router(config.clone(), mesh, svid, proxy.clone(), metrics);
    let _admin = admin::serve_on_own_thread("admin", listeners.admin, pages)?;
    let lease = config.advertise.map_or_else(|| listeners.inbound.local_addr(), Ok)?;
    serve(
        &config,
        Serving {
            inbound: listeners.inbound,
            outbound: listeners.outbound,
            proxy,
            ready,
            lease,
            send_lease,
        },
    )
    .await
}

/// Below the data directory, whose lock covers it.
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

/// The last good configuration, where one is kept.
fn restore(
    config: &Config,
    origin: Origin,
    trust: &Trust,
    vault: Option<&Vault>,
    ready: &Readiness,
) -> (World, Option<Arc<Cache>>) {
    let mut world = World::new(origin, trust.clone());
    let Some(vault) = vault else { return (world, None) };
    let cache = Arc::new(Cache::new(&config.data, vault.key.clone()));
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
            ready.set("config", usable);
            tracing::info!(revision, usable, "configuration restored from the cache");
        }
        Err(error) => tracing::info!(%error, "no configuration from the cache; waiting for the control plane"),
    }
    (world, Some(cache))
}

fn proxy_secret(config: &Config) -> anyhow::Result<Option<Zeroizing<String>>> {
    let Some(path) = &config.proxy_secret_file else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--proxy-secret-file {} can't be read", path.display()))?;
    let secret = Zeroizing::new(text.trim().to_owned());
    // Guessing is local and cheap: 128 bits, as hex or base64.
    anyhow::ensure!(
        secret.len() >= 22,
        "--proxy-secret-file {} holds fewer than 22 characters",
        path.display()
    );
    Ok(Some(secret))
}

struct Serving {
    inbound: std::net::TcpListener,
    outbound: std::net::TcpListener,
    proxy: Arc<Proxy>,
    ready: Readiness,
    lease: SocketAddr,
    send_lease: watch::Sender<Option<SocketAddr>>,
}

async fn serve(config: &Config, serving: Serving) -> anyhow::Result<()> {
    let (drain, watch) = drain::channel();
    let inbound = tokio::net::TcpListener::from_std(serving.inbound)?;
    let outbound = tokio::net::TcpListener::from_std(serving.outbound)?;
    tokio::spawn(proxy::serve_inbound(inbound, serving.proxy.clone(), watch.clone()));
    tokio::spawn(proxy::serve_outbound(outbound, serving.proxy, watch));
    serving.ready.set("listeners", true);
    let ready = serving.ready.clone();
    let (send_lease, lease) = (serving.send_lease, serving.lease);
    // Peers are told of this endpoint only once it can answer them.
    let offer = async {
        ready.ready().await;
        tracing::info!(inbound = %lease, "ready");
        send_lease.send_replace(Some(lease));
        std::future::pending::<()>().await;
    };
    let name = tokio::select! {
        name = shutdown::signal() => name,
        () = offer => "",
    };
    tracing::info!(signal = name, seconds = config.drain_seconds, "draining");
    serving.ready.set("listeners", false);
    send_lease.send_replace(None);
    drain.start();
    let idle = drain.idle(Duration::from_secs(config.drain_seconds)).await;
    tracing::info!(idle, "ended");
    Ok(())
}

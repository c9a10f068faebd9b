//! Our pair: a control plane and two sidecars, joined as an operator would join them, through the admin API.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::SetUp;
use super::admin::{Admin, answers_ok};
use crate::children::Child;
use crate::load::Target;
use crate::meter::Group;

/// The agents: `caller` sends the load, `worker` stands in front of the agent.
const AGENTS: [&str; 2] = ["caller", "worker"];
/// What both ends decide by, at the worth of the Envoy pair's RBAC rule: who calls, and how.
const POLICY: &str = r#"package aip.policy.bench

rules contains {"rule": "caller_to_worker", "verdict": "allow", "reason": "the bench's own call"} if {
	input.source.id == "spiffe://aip.internal/agent/caller"
	input.destination.id == "spiffe://aip.internal/agent/worker"
	input.request.method in {"GET", "POST"}
}
"#;
/// Longest time for joining and for the first push to arrive.
const JOIN: Duration = Duration::from_secs(30);
/// How often we look whether it has.
const POLL: Duration = Duration::from_millis(50);

/// `<data>/run.json` of the control plane.
#[derive(Deserialize)]
pub(super) struct ControlPlane {
    pub(super) mesh: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// `<data>/run.json` of a sidecar.
#[derive(Deserialize)]
struct Sidecar {
    outbound: SocketAddr,
    probes: SocketAddr,
}

pub(super) async fn start(dir: &Path, bin_dir: &Path, agent: SocketAddr) -> anyhow::Result<SetUp> {
    let bin_dir = bin_dir.canonicalize()?;
    let (control_plane, at) = control_plane(dir, &bin_dir).await?;
    let jwt = std::fs::read_to_string(dir.join("control-plane/admin.jwt"))?;
    let admin = Admin::new(at.admin, jwt.trim());
    admin
        .put("/v1/policies/bench", &json!({"name": "bench", "rego": POLICY}))
        .await?;
    admin.put("/v1/traffic/default", &unthrottled()).await?;

    let mut children = vec![control_plane];
    let mut sidecars = Vec::new();
    for name in AGENTS {
        admin.post("/v1/agents", &json!({"name": name})).await?;
        let token = admin.post("/v1/tokens", &json!({"agent": name})).await?;
        let token = token["token"]
            .as_str()
            .with_context(|| format!("no token in {token}"))?;
        let (child, run) = sidecar(dir, &bin_dir, name, at.mesh, agent, token).await?;
        children.push(child);
        sidecars.push(run);
    }
    for (name, sidecar) in AGENTS.iter().zip(&sidecars) {
        ready(&admin, name, sidecar.probes).await?;
    }

    let groups = vec![
        Group::of("pair", &[children[1].pid(), children[2].pid()])?,
        Group::of("control-plane", &[children[0].pid()])?,
    ];
    let secret = std::fs::read_to_string(secret_file(dir, AGENTS[0]))?;
    let proxy_auth = format!("Basic {}", STANDARD.encode(format!("aip:{}", secret.trim())));
    let target = Target {
        addr: sidecars[0].outbound,
        path: "/mcp".to_owned(),
        host: format!("{}.aip.internal", AGENTS[1]),
        headers: vec![(http::header::PROXY_AUTHORIZATION, proxy_auth.parse()?)],
    };
    Ok(SetUp {
        target,
        children,
        groups,
        admin: Some(admin),
    })
}

/// Limits that the load stays under, as the peers' configurations have none: what is measured is the way, not a refusal.
fn unthrottled() -> serde_json::Value {
    json!({"agent": "default", "peer_rate_per_second": 1_000_000, "peer_burst": 1_000_000, "max_concurrency": 100_000})
}

pub(super) async fn control_plane(dir: &Path, bin_dir: &Path) -> anyhow::Result<(Child, ControlPlane)> {
    let data = dir.join("control-plane");
    let mut command = Command::new(bin_dir.join("aip-control-plane"));
    command
        .arg("--data")
        .arg(&data)
        .args(["--mode", "dev", "--trust-domain", "aip.internal"]);
    command.args(["--mesh-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let mut child = Child::start("aip-control-plane", &mut command, dir)?;
    let run = child
        .until("write run.json", || read_json(&data.join("run.json")))
        .await?;
    Ok((child, run))
}

async fn sidecar(
    dir: &Path,
    bin_dir: &Path,
    name: &str,
    control_plane: SocketAddr,
    agent: SocketAddr,
    token: &str,
) -> anyhow::Result<(Child, Sidecar)> {
    let home = dir.join(name);
    std::fs::create_dir_all(home.join("code"))?;
    std::fs::write(home.join("code/agent.conf"), format!("the declared code of {name}\n"))?;
    std::fs::write(home.join("join-token"), token)?;
    std::fs::write(secret_file(dir, name), format!("bench-secret-of-{name}-0123456789"))?;
    for folder in ["data", "runtime"] {
        private_dir(&home.join(folder))?;
    }
    let mut command = Command::new(bin_dir.join("aip-sidecar"));
    command.args([
        "--name",
        name,
        "--control-plane",
        &control_plane.to_string(),
        "--agent",
        &agent.to_string(),
    ]);
    for listener in ["--inbound", "--outbound", "--admin", "--probes"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    for (flag, path) in [
        ("--join-token-file", home.join("join-token")),
        ("--proxy-secret-file", secret_file(dir, name)),
        ("--data", home.join("data")),
        ("--runtime-dir", home.join("runtime")),
        ("--root", home.join("code")),
    ] {
        command.arg(flag).arg(path);
    }
    command.args(["--code", "**"]);
    let mut child = Child::start(&format!("sidecar-{name}"), &mut command, dir)?;
    let run = child
        .until("write run.json", || read_json(&home.join("data/run.json")))
        .await?;
    Ok((child, run))
}

/// Approves what the sidecar measured, and waits until it serves.
async fn ready(admin: &Admin, name: &str, probes: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + JOIN;
    while !answers_ok(probes, "/readyz").await {
        ensure!(
            Instant::now() < deadline,
            "the sidecar of {name} was not ready within {JOIN:?}"
        );
        approve_pending(admin).await?;
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

pub(super) async fn approve_pending(admin: &Admin) -> anyhow::Result<()> {
    let pending = admin.get("/v1/measurements?state=pending").await?;
    for item in pending["items"].as_array().into_iter().flatten() {
        let named = item["measurement"]["agent"].as_str().zip(item["fingerprint"].as_str());
        let (agent, fingerprint) = named.with_context(|| format!("a pending measurement without a name: {item}"))?;
        admin
            .post(&format!("/v1/measurements/{agent}/{fingerprint}/approve"), &json!({}))
            .await?;
    }
    Ok(())
}

fn secret_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join("proxy-secret")
}

/// A folder that only we can read: sidecars refuse others for what they keep.
fn private_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| path.display().to_string())
}

/// A file's content once it is there and whole.
fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

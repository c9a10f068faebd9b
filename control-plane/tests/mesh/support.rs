//! A running control plane, an HTTP client for its admin API, and a sidecar's side of gRPC.

pub mod audit;
pub mod evidence;
pub mod http;
pub mod process;
pub mod sidecar;

use std::path::{Path, PathBuf};
use std::time::Duration;

use aip_api::resource::MeshMode;
use aip_control_plane::server::ControlPlane;
use aip_control_plane::settings::Settings;
use serde_json::{Value, json};

pub use http::Admin;
pub use process::Process;
pub use sidecar::Sidecar;

/// Anything that is waited for comes within this, or the test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct Mesh {
    pub plane: ControlPlane,
    pub admin: Admin,
    pub data: PathBuf,
    pub dir: Option<tempfile::TempDir>,
}

pub fn settings(data: &Path) -> Settings {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_aip-control-plane"));
    let mut settings = Settings::on_loopback(data, program);
    settings.lease_grace = Duration::from_millis(100);
    settings
}

impl Mesh {
    pub async fn dev() -> Self {
        Self::of(MeshMode::Dev).await
    }

    pub async fn of(mode: MeshMode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut settings = settings(&data);
        settings.mode = Some(mode);
        settings.key_file = Some(dir.path().join("sealing.key"));
        let mut mesh = Self::start(settings).await;
        mesh.dir = Some(dir);
        mesh
    }

    pub async fn start(settings: Settings) -> Self {
        let data = settings.data.clone();
        let plane = ControlPlane::start(settings).await.unwrap();
        let token = std::fs::read_to_string(data.join("admin.jwt")).unwrap();
        let admin = Admin::new(plane.run.admin, token);
        Self {
            plane,
            admin,
            data,
            dir: None,
        }
    }

    /// The same mesh, after its control plane was killed and started again.
    pub async fn restarted(mut self) -> Self {
        let dir = self.dir.take();
        self.plane.kill().await;
        let mut settings = settings(&self.data);
        settings.key_file = dir.as_ref().map(|dir| dir.path().join("sealing.key"));
        let mut mesh = Self::start(settings).await;
        mesh.dir = dir;
        mesh
    }

    /// Registers an agent and makes a join token for it.
    pub async fn token(&self, agent: &str) -> String {
        self.admin.ok("POST", "/v1/agents", json!({"name": agent})).await;
        self.another_token(agent).await
    }

    pub async fn another_token(&self, agent: &str) -> String {
        let made = self.admin.ok("POST", "/v1/tokens", json!({"agent": agent})).await;
        made["token"].as_str().unwrap().to_owned()
    }

    /// A sidecar of a fresh agent that has joined.
    pub async fn joined(&self, agent: &str) -> Sidecar {
        let token = self.token(agent).await;
        let mut sidecar = Sidecar::new(self.plane.run.mesh, agent, &token).await;
        sidecar.join(&token).await.unwrap();
        sidecar
    }
}

/// Waits until `check` answers something.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The reason in a problem document.
pub fn reason(problem: &Value) -> &str {
    problem["reason"].as_str().unwrap_or_default()
}

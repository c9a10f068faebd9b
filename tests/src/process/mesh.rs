//! A mesh: one control plane, and sidecars as tests need them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::child::Process;
use super::sidecar::read_run;
use super::{Admin, FREE, Sidecar, SidecarSpec, binary};
use crate::wait;

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    pub process: Process,
    pub dir: PathBuf,
    pub mesh: SocketAddr,
    pub admin: Admin,
}

impl ControlPlane {
    /// The command line; ports of 0 are chosen by the system.
    pub fn command(data: &Path, mesh: SocketAddr, admin: SocketAddr, flags: &[&str]) -> Command {
        let mut command = Command::new(binary("aip-control-plane"));
        command.arg("--data").arg(data);
        command.args(["--mesh-listen", &mesh.to_string(), "--admin-listen", &admin.to_string()]);
        command.args(flags);
        command
    }

    /// Starts it on `<dir>/data`.
    pub async fn start(dir: &Path, flags: &[&str]) -> Self {
        Self::start_at(dir, ANY, ANY, flags).await
    }

    async fn start_at(dir: &Path, mesh: SocketAddr, admin: SocketAddr, flags: &[&str]) -> Self {
        let command = Self::command(&Self::data(dir), mesh, admin, flags);
        let mut process = Self::begin(dir, &command);
        let run = read_run(&Self::data(dir).join("run.json"), &mut process).await;
        Self::of(process, dir, &run)
    }

    /// Where its data lies.
    pub fn data(dir: &Path) -> PathBuf {
        dir.join("data")
    }

    /// Starts it by this command, made from [`Self::command`], and waits for nothing.
    pub fn begin(dir: &Path, command: &Command) -> Process {
        let data = Self::data(dir);
        std::fs::create_dir_all(&data).unwrap();
        let _ = std::fs::remove_file(data.join("run.json"));
        Process::start("control-plane", command, dir)
    }

    /// The running one that says of itself what `run` has.
    pub fn of(process: Process, dir: &Path, run: &Value) -> Self {
        let data = Self::data(dir);
        let port = |field: &str| {
            run[field]
                .as_str()
                .and_then(|p| p.parse().ok())
                .unwrap_or_else(|| panic!("{field} in {run}"))
        };
        let token = std::fs::read_to_string(data.join("admin.jwt"))
            .unwrap()
            .trim()
            .to_owned();
        Self {
            process,
            dir: dir.to_owned(),
            mesh: port("mesh"),
            admin: Admin {
                address: port("admin"),
                token,
            },
        }
    }

    /// Copies its data to the directory `to`, as a backup would: it does not run meanwhile.
    pub fn copy_to(&self, to: &Path) {
        copied(&Self::data(&self.dir), to);
    }

    /// Puts a copy in the place of its data: it does not run meanwhile.
    pub fn restore_from(&self, copy: &Path) {
        copied(copy, &Self::data(&self.dir));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again where it was, after [`Self::kill`].
    pub async fn revive(&mut self, flags: &[&str]) {
        let command = Self::command(&Self::data(&self.dir), self.mesh, self.admin.address, flags);
        self.revive_as(&command).await;
    }

    /// As [`Self::revive`], by this command: of the same data and ports.
    pub async fn revive_as(&mut self, command: &Command) {
        let dir = self.dir.clone();
        *self = wait::until("the control plane has its ports again", async || {
            Self::unless_taken(&dir, command).await
        })
        .await;
    }

    /// Starts it by this command; none where one of its ports was given to somebody who connects out meanwhile.
    async fn unless_taken(dir: &Path, command: &Command) -> Option<Self> {
        let mut process = Self::begin(dir, command);
        let file = Self::data(dir).join("run.json");
        let run = wait::until("it listens or ends", async || {
            if process.ended().is_some() {
                let taken = process.stderr().contains("is taken by another process");
                assert!(taken, "{}", process.last_words());
                return Some(None);
            }
            let run: Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
            Some(Some(run))
        })
        .await?;
        Some(Self::of(process, dir, &run))
    }
}

/// Copies a directory into the place of another, with all that its files are.
fn copied(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("cp runs").success());
}

/// A free port on loopback.
const ANY: SocketAddr = FREE[0];

/// Flags of every control plane that the tests start.
pub const DEV: &[&str] = &["--mode", "dev", "--log-format", "json"];

/// A mesh.
#[derive(Debug)]
pub struct Mesh {
    pub control_plane: ControlPlane,
    dir: Mutex<Option<TempDir>>,
    path: PathBuf,
}

impl Mesh {
    /// A dev mesh with the default policy.
    pub async fn start() -> Self {
        Self::start_at(ANY).await
    }

    /// As [`Self::start`], whose sidecars reach it here.
    pub async fn start_at(mesh: SocketAddr) -> Self {
        let dir = tempfile::Builder::new().prefix("aip-test-").tempdir().unwrap();
        let path = dir.path().to_owned();
        let home = path.join("control-plane");
        std::fs::create_dir_all(&home).unwrap();
        sweep_after_us(&path);
        Self {
            control_plane: ControlPlane::start_at(&home, mesh, ANY, DEV).await,
            dir: Mutex::new(Some(dir)),
            path,
        }
    }

    pub fn admin(&self) -> &Admin {
        &self.control_plane.admin
    }

    /// Starts the control plane again after it was killed.
    pub async fn revive(&mut self) {
        self.control_plane.revive(DEV).await;
    }

    /// A directory for `name`.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// How to start a sidecar for `name`, whose agent serves at `agent`: registers it and makes a token.
    pub async fn spec(&self, document: Value, agent: SocketAddr) -> SidecarSpec {
        let name = document["name"].as_str().unwrap().to_owned();
        self.admin().agent(document).await;
        let token = self.admin().token(&name).await;
        SidecarSpec {
            name,
            control_plane: self.control_plane.mesh,
            token,
            agent,
            ports: FREE,
            flags: Vec::new(),
        }
    }

    /// Registers the agent `name`, which serves at `agent`, and starts its sidecar.
    pub async fn sidecar(&self, name: &str, agent: SocketAddr) -> Sidecar {
        let spec = self.spec(json!({"name": name}), agent).await;
        Sidecar::start(spec, &self.dir(name)).await
    }

    /// Runs `aip` with the first credential of this mesh, to its end.
    pub fn aip(&self, arguments: &[&str]) -> std::process::Output {
        self.aip_command(arguments).output().unwrap()
    }

    /// `aip` with these arguments.
    pub fn aip_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("aip"));
        command.args(arguments).env("AIP_HOME", self.dir("home"));
        command.env("AIP_ADMIN", format!("http://{}", self.admin().address));
        command.env("AIP_TOKEN_FILE", self.control_plane.dir.join("data/admin.jwt"));
        command
    }

    /// Starts a program of this mesh.
    pub fn process(&self, name: &str, command: &Command) -> Process {
        Process::start(name, command, &self.path)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // Kept for whoever wants to read the logs.
        if std::env::var_os("AIP_TEST_KEEP").is_some()
            && let Some(dir) = self.dir.lock().unwrap().take()
        {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}

/// A mesh in a `static` is never dropped: a process that waits for our end removes its directory then.
#[expect(
    clippy::zombie_processes,
    reason = "it outlives this process: that is what it is for"
)]
pub(crate) fn sweep_after_us(path: &Path) {
    if std::env::var_os("AIP_TEST_KEEP").is_some() {
        return;
    }
    let mut sweeper = Command::new("sh")
        .args(["-c", r#"cat >/dev/null; sleep 10; rm -rf -- "$1""#, "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Its pipe closes when this process ends.
    std::mem::forget(sweeper.stdin.take());
}

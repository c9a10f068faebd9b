//! The demo's own mesh: a control plane and three agents in a directory of its own, on free ports, as processes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::Command;
use tokio::time::Instant;

use super::files::POLICIES;
use super::look::LOOK;
use crate::Globals;
use crate::client::Admin;
use crate::exit::{Exit, Failure};
use crate::home::{self, Home, private_dir, read_json};
use crate::process::{self, Child, Output};
use crate::run::state::{Phase, State};
use crate::up::{self, ControlPlane};

/// How long an agent may take until it serves behind its sidecar.
const START: Duration = Duration::from_secs(90);
/// How long `aip run` may take to end all that it started: its own bounds, added up.
const STOP: Duration = Duration::from_secs(45);

/// One agent: the process of its `aip run`.
pub(super) struct Agent {
    pub(super) name: &'static str,
    run: Child,
    dir: PathBuf,
    state_file: PathBuf,
}

/// A running mesh.
pub(super) struct Mesh {
    pub(super) dir: tempfile::TempDir,
    pub(super) home: Home,
    pub(super) control_plane: Option<ControlPlane>,
    pub(super) agents: Vec<Agent>,
}

/// What a command printed, and how it ended.
pub(super) struct Printed {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Mesh {
    /// An empty directory for a mesh; nothing runs yet.
    pub(super) fn prepare() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("aip-demo-").tempdir()?;
        let home = Home::find(Some(&dir.path().join("home")))?;
        private_dir(home.path())?;
        let policies = dir.path().join("policies");
        private_dir(&policies)?;
        for (file, text) in POLICIES {
            std::fs::write(policies.join(file), text)?;
        }
        Ok(Self {
            dir,
            home,
            control_plane: None,
            agents: Vec::new(),
        })
    }

    /// Starts the control plane: on free ports at first, later on the ports it had.
    pub(super) async fn start_control_plane(&mut self) -> anyhow::Result<()> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let context = self.home.context();
        let port_of = |text: Option<&str>| text.and_then(|t| t.parse().ok()).unwrap_or(any);
        let options = up::Options {
            mesh_listen: port_of(context.as_ref().map(|c| c.mesh.as_str())),
            admin_listen: port_of(context.as_ref().and_then(|c| c.admin.strip_prefix("http://"))),
            trust_domain: None,
            mode: Some("dev".into()),
            key_file: None,
        };
        self.control_plane = Some(up::start(&self.home, &options).await?);
        Ok(())
    }

    /// Starts an agent with `aip run`, as anyone would; [`Self::ready`] waits for it.
    pub(super) fn start_agent(&mut self, name: &'static str, declared: &str) -> anyhow::Result<()> {
        let dir = self.dir.path().join(name);
        private_dir(&dir)?;
        std::fs::write(dir.join(format!("{name}.json")), declared)?;
        let state_file = dir.join("state.json");
        let program = process::program(&format!("demo-{name}"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env("AIP_HOME", self.home.path())
            .env_remove("AIP_ADMIN")
            .env_remove("AIP_TOKEN_FILE");
        command
            .current_dir(&dir)
            .args(["run", process::LIFELINE])
            .args(["--name", name, "--owner", "demo"]);
        command
            .arg("--state-file")
            .arg(&state_file)
            .arg("--")
            .arg(program)
            .arg(format!("{name}.json"));
        let run = Child::spawn(command, Output::Log(&dir.join("run.log")))?;
        self.agents.push(Agent {
            name,
            run,
            dir,
            state_file,
        });
        Ok(())
    }

    /// Ends an agent as its user would, with Ctrl-C in its terminal; answers what it had printed.
    pub(super) async fn end_agent(&mut self, name: &str) -> anyhow::Result<String> {
        let at = self.agents.iter().position(|a| a.name == name);
        let mut agent = self.agents.remove(at.context("no such agent")?);
        agent.run.signal(rustix::process::Signal::INT);
        agent.run.stop(STOP).await;
        Ok(std::fs::read_to_string(agent.dir.join("run.log")).unwrap_or_default())
    }

    /// The file that an agent declares.
    pub(super) fn declared(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join(format!("{name}.json"))
    }

    /// Waits until an agent serves behind its sidecar.
    pub(super) async fn ready(&mut self, name: &str) -> anyhow::Result<State> {
        let deadline = Instant::now() + START;
        let agent = self
            .agents
            .iter_mut()
            .find(|a| a.name == name)
            .context("no such agent")?;
        loop {
            if let Some(state) = agent.state().filter(|s| s.phase == Phase::Ready) {
                return Ok(state);
            }
            let log = agent.dir.join("run.log");
            if let Some(status) = agent.run.ended()? {
                let what = format!("agent {name} did not start ({status})");
                return Err(Failure::new(Exit::Failed, what).why(process::tail(&log)).into());
            }
            if Instant::now() > deadline {
                let what = format!("agent {name} does not serve after {} s", START.as_secs());
                return Err(Failure::new(Exit::TimedOut, what).why(process::tail(&log)).into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The state of a running agent.
    pub(super) fn state(&self, name: &str) -> anyhow::Result<State> {
        let agent = self.agents.iter().find(|a| a.name == name).context("no such agent")?;
        agent
            .state()
            .with_context(|| format!("{} can't be read", agent.state_file.display()))
    }

    /// The admin API of this mesh.
    pub(super) fn admin(&self) -> Result<Admin, Failure> {
        Admin::open(&self.globals())
    }

    pub(super) fn globals(&self) -> Globals {
        Globals {
            home: Some(self.home.path().to_owned()),
            admin: None,
            token_file: None,
            mesh_root: None,
            output: crate::output::Format::Table,
        }
    }

    /// Runs `aip` itself against this mesh, as an operator would.
    pub(super) async fn aip(&self, arguments: &[&str]) -> anyhow::Result<Printed> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("AIP_HOME", self.home.path());
        command
            .env_remove("AIP_ADMIN")
            .env_remove("AIP_TOKEN_FILE")
            .kill_on_drop(true);
        let output = command.stdin(std::process::Stdio::null()).output().await?;
        Ok(Printed {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
        })
    }

    /// Ends everything: the agents first, all at once, then the control plane.
    pub(super) async fn stop(&mut self) {
        for agent in &self.agents {
            agent.run.signal(rustix::process::Signal::TERM);
        }
        for agent in &mut self.agents {
            agent.run.stop(STOP).await;
        }
        if let Some(control_plane) = &mut self.control_plane {
            control_plane.child.stop(process::GRACE).await;
        }
    }
}

impl Agent {
    fn state(&self) -> Option<State> {
        serde_json::from_value(read_json(&self.state_file)?).ok()
    }
}

/// A second, foreign mesh beside the first.
pub(super) fn beside(path: &Path) -> Result<Home, Failure> {
    let home = home::Home::find(Some(path))?;
    private_dir(home.path())?;
    Ok(home)
}

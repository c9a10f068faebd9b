//! The state file: where an agent's processes and ports are. Read by `aip call`, `status`, `dump`, tests and the demo.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use aip_api::AgentName;
use serde::{Deserialize, Serialize};

/// How far `aip run` has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The sidecar starts and joins.
    Starting,
    /// A person must approve the measurement.
    WaitingForApproval,
    /// The sidecar is ready, the command does not listen yet.
    Launching,
    /// The command serves, or runs where it serves nothing.
    Ready,
    /// What the command runs is not what was approved: nothing reaches it, and it reaches nothing.
    Drifted,
    /// An operator stopped it: its processes are ended, its sidecar is up.
    Stopped,
    /// All is over.
    Ended,
}

/// The state of one `aip run`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) name: AgentName,
    pub(crate) phase: Phase,
    /// The process id of `aip run`.
    pub(crate) supervisor: u32,
    pub(crate) sidecar: Option<u32>,
    pub(crate) agent: Option<u32>,
    /// Where the command serves, if it does.
    pub(crate) address: Option<SocketAddr>,
    pub(crate) inbound: Option<SocketAddr>,
    pub(crate) outbound: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) probes: Option<SocketAddr>,
    /// The file with the secret; never the secret.
    pub(crate) proxy_secret_file: PathBuf,
    pub(crate) sidecar_log: PathBuf,
    /// How often the sidecar was started again.
    pub(crate) sidecar_restarts: u32,
}

/// Keeps the state files current.
#[derive(Debug)]
pub(super) struct StateFile {
    pub(super) state: State,
    paths: Vec<PathBuf>,
}

impl StateFile {
    pub(super) fn new(state: State, own: PathBuf, also: Option<&Path>) -> Self {
        let paths = std::iter::once(own).chain(also.map(Path::to_owned)).collect();
        Self { state, paths }
    }

    /// Changes the state and writes it.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
        let Ok(text) = serde_json::to_vec_pretty(&self.state) else {
            return;
        };
        for path in &self.paths {
            if let Err(error) = aip_runtime::files::write_private(path, &text) {
                crate::output::note(format!("aip: {} can't be written: {error}", path.display()));
            }
        }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        self.update(|state| {
            state.phase = Phase::Ended;
            state.agent = None;
            state.sidecar = None;
        });
    }
}

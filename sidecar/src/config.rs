//! What this sidecar is told at start: flags, variables, or the same names in a YAML file, and flags win, then
//! variables. Every mistake is reported at once, with the place where it was made.

mod check;
mod flags;

use std::net::SocketAddr;
use std::path::PathBuf;

use aip_api::AgentName;
use aip_runtime::spans;
use aip_runtime::telemetry::LogFormat;
use serde::Serialize;

pub use flags::Flags;

/// Where the private key lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Keys {
    /// Sealed in the runtime directory.
    #[default]
    Sealed,
    /// Only in this process: a restart needs the control plane.
    Memory,
}

impl std::str::FromStr for Keys {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "sealed" => Ok(Self::Sealed),
            "memory" => Ok(Self::Memory),
            other => Err(format!("{other:?} is neither sealed nor memory")),
        }
    }
}

/// Checked settings, served at `/config` of the admin port. Holds paths of secrets, never secrets.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// The agent.
    pub name: AgentName,
    /// The control plane's mesh port.
    pub control_plane: SocketAddr,
    /// Where the join token is.
    pub join_token_file: Option<PathBuf>,
    /// Where the agent serves; port 0 where it serves nothing.
    pub agent: SocketAddr,
    /// Whether it serves anything: else calls to it are refused.
    pub serves: bool,
    /// Where peers reach this sidecar.
    pub inbound: SocketAddr,
    /// What peers are told, where it differs.
    pub advertise: Option<SocketAddr>,
    /// Where the agent sends its calls.
    pub outbound: SocketAddr,
    /// Admin and metrics.
    pub admin: SocketAddr,
    /// Probes.
    pub probes: SocketAddr,
    /// The signed cache.
    pub data: PathBuf,
    /// The sealed key.
    pub runtime_dir: PathBuf,
    /// Where the private key lives.
    pub keys: Keys,
    /// The sealing key.
    pub key_file: Option<PathBuf>,
    /// What is measured.
    pub measured: Measured,
    /// Which run of the agent this is: a supervisor names another each time that it starts it. Where nobody does, this
    /// process's start stands for the agent's.
    pub run: String,
    /// Who may speak as the agent at the outbound port.
    pub access: Access,
    /// Worker threads.
    pub workers: usize,
    /// How long a drain may take, seconds.
    pub drain_seconds: u64,
    /// MiB that the audit's logs may take.
    pub audit_mib: u64,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: String,
    /// Where spans go, if anywhere.
    pub otlp: Option<spans::Settings>,
}

/// Who may speak as the agent at the outbound port. Everything that is given here must hold; with neither a secret nor a
/// user, every process that reaches the port may.
#[derive(Debug, Clone, Serialize)]
pub struct Access {
    /// The file with the secret that must be shown.
    pub proxy_secret_file: Option<PathBuf>,
    /// Whether that file is this process's to make.
    pub makes_secret: bool,
    /// The user that connections must be of.
    pub agent_uid: Option<u32>,
}

/// What evidence is made of.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Below which files lie.
    pub root: PathBuf,
    /// Globs of code.
    pub code: Vec<String>,
    /// Files of configuration.
    pub config: Vec<String>,
    /// The agent's executable.
    pub executable: Option<PathBuf>,
    /// Its command line.
    pub argv: Option<Vec<String>>,
    /// The port that it serves at, which stands for itself in the command line.
    pub port: Option<u16>,
    /// Can it go around?
    pub enforcement: aip_api::evidence::Enforcement,
}

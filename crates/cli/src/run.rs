//! `aip run`: a command, unchanged, behind its own sidecar.
//!
//! In order: [`plan`] finds out what is run and measured, [`admit`] gets the agent into the registry and a join token,
//! [`sidecar`] starts and keeps the sidecar, [`wait`] waits for approval and health, [`environment`] is what the
//! command sees, [`orders`] is what
//! the sidecar asks of it, [`state`] tells others.

mod admit;
mod environment;
mod listen;
mod orders;
mod plan;
mod sidecar;
pub(crate) mod state;
mod supervise;
mod user;
mod wait;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use aip_api::AgentName;
use clap::Args;

use crate::Globals;

#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    /// The agent's name in the mesh
    #[arg(long)]
    pub(crate) name: AgentName,
    /// The port that the agent serves; else a free one is chosen. Passed to the command as PORT
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// The command serves nothing, it only calls: no port is waited for, and calls to it are refused (`serves_nothing`)
    #[arg(long, conflicts_with_all = ["port", "wait"])]
    pub(crate) no_serve: bool,
    /// More files to measure than the executable and the arguments that are files; repeatable
    #[arg(long, value_name = "GLOB")]
    pub(crate) code: Vec<String>,
    /// Configuration to measure, apart from code; repeatable
    #[arg(long = "config-file", value_name = "FILE")]
    pub(crate) config_file: Vec<String>,
    /// Directory that holds all that is measured [default: the closest one that holds the working directory and the
    /// arguments that are files]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Where peers reach the sidecar
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    pub(crate) inbound: SocketAddr,
    /// The address that peers are told, where it differs from --inbound
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) advertise: Option<SocketAddr>,
    /// Where the command sends its calls (loopback)
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    pub(crate) outbound: SocketAddr,
    /// Who answers for the agent, where it is registered now
    #[arg(long, default_value = "")]
    pub(crate) owner: String,
    /// A label, where the agent is registered now; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = crate::agent::label)]
    pub(crate) labels: Vec<(String, String)>,
    /// What it can do, where the agent is registered now
    #[arg(long, value_delimiter = ',', value_name = "A,B,…")]
    pub(crate) capabilities: Vec<String>,
    /// File with a join token, instead of having one made
    #[arg(long, value_name = "FILE")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// ip:port of the control plane's mesh port [default: what `aip up` wrote]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) control_plane: Option<SocketAddr>,
    /// Run the command as this user, which a prod mesh asks for; only root can [default: whoever runs aip]
    #[arg(long, value_name = "NAME|UID[:GID]")]
    pub(crate) user: Option<user::User>,
    /// Know the command's calls by its --user instead of by a secret: for clients that can't send one, as Java's
    #[arg(long, requires = "user")]
    pub(crate) proxy_by_user: bool,
    /// How long the command may take until it listens, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) wait: u64,
    /// How long it may take to end after SIGTERM, in seconds
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub(crate) grace: u64,
    /// Also write the state (ports, process ids, phase) to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) state_file: Option<PathBuf>,
    /// End, as at SIGTERM, when standard input ends; the command then gets none
    #[arg(long, hide = true)]
    pub(crate) lifeline: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

impl Run {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        let mut signals = crate::process::Signals::catch()?;
        if self.lifeline {
            aip_runtime::shutdown::follow_standard_input()?;
        }
        let home = globals.home()?;
        let plan = plan::Plan::make(&self, &home)?;
        let code = Box::pin(supervise::supervise(globals, &self, plan, &mut signals)).await?;
        Ok(ExitCode::from(code))
    }
}

//! `aip`: the operator's and the developer's command. It uses the control plane's admin API and nothing else of it.
//!
//! | file | verbs |
//! |---|---|
//! | [`up`] | `aip up` |
//! | [`run`] | `aip run` |
//! | [`demo`] | `aip demo` |
//! | [`agent`], [`token`], [`attest`], [`policy`], [`approvals`] | the registry, join tokens, measurements, policies |
//! | [`call`], [`status`], [`dump`] | look |
//!
//! What they share: [`client`] speaks to the admin API, [`http`] to ports on this machine, [`home`] finds files,
//! [`process`] starts and ends children, [`output`] prints, [`exit`] says how it failed.

mod agent;
mod approvals;
mod attest;
mod call;
mod client;
mod demo;
mod dump;
mod exit;
mod home;
mod http;
mod output;
mod policy;
mod process;
#[cfg(test)]
mod reference;
mod run;
mod status;
mod token;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::Failure;
use crate::output::Format;

/// Agents that prove what they run, decided by policy, one sidecar each.
#[derive(Debug, Parser)]
#[command(name = "aip", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = exit::help())]
struct Aip {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Globals {
    /// Where aip keeps its files [default: ~/.aip]
    #[arg(long, global = true, env = "AIP_HOME", value_name = "DIR", hide_env_values = true)]
    pub(crate) home: Option<PathBuf>,
    /// URL of the control plane's admin API [default: what `aip up` wrote]
    #[arg(long, global = true, env = "AIP_ADMIN", value_name = "URL", hide_env_values = true)]
    pub(crate) admin: Option<String>,
    /// File with the admin token [default: what `aip up` wrote]
    #[arg(
        long,
        global = true,
        env = "AIP_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Digest of the mesh's root, for an admin API over https [default: what `aip up` wrote]
    #[arg(
        long,
        global = true,
        env = "AIP_MESH_ROOT",
        value_name = "DIGEST",
        hide_env_values = true
    )]
    pub(crate) mesh_root: Option<aip_api::Digest>,
    /// Output for people or for programs
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

impl Globals {
    pub(crate) fn home(&self) -> Result<home::Home, Failure> {
        home::Home::find(self.home.as_deref())
    }

    pub(crate) fn json(&self) -> bool {
        self.output == Format::Json
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a control plane on this machine
    Up(up::Up),
    /// Run a command, unchanged, behind its own sidecar
    Run(Box<run::Run>),
    /// Show every promise with a mesh of three agents
    Demo(demo::Demo),
    /// The registry of agents
    #[command(subcommand)]
    Agent(agent::AgentVerb),
    /// Join tokens
    #[command(subcommand)]
    Token(token::TokenVerb),
    /// Measurements: what an agent may run
    #[command(subcommand)]
    Attest(attest::AttestVerb),
    /// Policies: check, test, roll out, roll back
    #[command(subcommand)]
    Policy(policy::PolicyVerb),
    /// Changes that wait for a second person
    #[command(subcommand)]
    Approvals(approvals::ApprovalsVerb),
    /// A policy-checked call through a running sidecar
    Call(call::Call),
    /// Who runs what, and since which revision
    Status(status::Status),
    /// Everything that is not secret, as one JSON document for a bug report
    Dump(dump::Dump),
    /// The body of the child process in which policies are admitted
    #[command(name = policy::ADMIT, hide = true)]
    PolicyAdmit,
}

async fn perform(aip: Aip) -> anyhow::Result<ExitCode> {
    let globals = aip.globals;
    match aip.verb {
        Verb::Up(up) => Box::pin(up.perform(&globals)).await,
        Verb::Run(run) => Box::pin(run.perform(&globals)).await,
        Verb::Demo(demo) => Box::pin(demo.perform(&globals)).await,
        Verb::Agent(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Token(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Attest(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Policy(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Approvals(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Call(call) => Box::pin(call.perform(&globals)).await,
        Verb::Status(status) => Box::pin(status.perform(&globals)).await,
        Verb::Dump(dump) => Box::pin(dump.perform(&globals)).await,
        Verb::PolicyAdmit => Ok(policy::admit()),
    }
}

fn main() -> ExitCode {
    let aip = Aip::parse();
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(Box::pin(perform(aip))));
    ended.unwrap_or_else(|error| {
        let (text, code) = exit::render(&error);
        output::note(text);
        ExitCode::from(code)
    })
}

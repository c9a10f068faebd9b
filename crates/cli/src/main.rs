//! `aip`: the operator's and the developer's command. It uses the control plane's admin API and nothing else of it.
//!
//! | file | verbs |
//! |---|---|
//! | [`up`] | `aip up` |
//! | [`run`] | `aip run` |
//! | [`demo`] | `aip demo` |
//! | [`agent`], [`token`], [`attest`], [`policy`], [`approvals`] | the registry, join tokens, measurements, policies |
//! | [`reputation`] | how agents behaved so far |
//! | [`audit`] | what was recorded: find it, prove it, decide it again |
//! | [`admin`] | admin tokens: who may change the mesh |
//! | [`call`], [`status`], [`dump`] | look |
//!
//! What they share: [`client`] speaks to the admin API, [`http`] to ports on this machine, [`home`] finds files,
//! [`process`] starts and ends children, [`secret`] makes and keeps secrets, [`output`] prints, [`exit`] says how it failed.

mod admin;
mod agent;
mod approvals;
mod attest;
mod audit;
mod bounded;
mod call;
mod client;
mod demo;
mod drift;
mod dump;
mod exit;
mod home;
mod http;
mod kill;
mod output;
mod policy;
mod process;
#[cfg(test)]
mod reference;
mod reputation;
mod run;
mod secret;
mod status;
mod token;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::exit::{Exit, Failure};
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

/// What every verb takes. The variables are read by [`Globals::or_environment`], not by clap, which would count them as
/// given and print them in every usage line.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Globals {
    /// Where aip keeps its files [default: ~/.aip] [variable: AIP_HOME]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// URL of the control plane's admin API: http://…, https://… or unix:PATH [default: what `aip up` wrote]
    /// [variable: AIP_ADMIN]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) admin: Option<String>,
    /// File with the admin token [default: what `aip up` wrote] [variable: AIP_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Digest of the mesh's root, for an admin API over https [default: what `aip up` wrote] [variable: AIP_MESH_ROOT]
    #[arg(long, global = true, value_name = "DIGEST")]
    pub(crate) mesh_root: Option<aip_api::Digest>,
    /// Output for people or for programs
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

impl Globals {
    /// What was not given, from the environment; an empty variable is none.
    fn or_environment(self) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| Some(variable(name)?.to_string_lossy().into_owned());
        let root = match (self.mesh_root, text("AIP_MESH_ROOT")) {
            (None, Some(digest)) => Some(
                digest
                    .parse()
                    .map_err(|e| Failure::new(Exit::Usage, "AIP_MESH_ROOT is no digest").why(format!("{e}")))?,
            ),
            (given, _) => given,
        };
        Ok(Self {
            home: self.home.or_else(|| Some(variable("AIP_HOME")?.into())),
            admin: self.admin.or_else(|| text("AIP_ADMIN")),
            token_file: self.token_file.or_else(|| Some(variable("AIP_TOKEN_FILE")?.into())),
            mesh_root: root,
            output: self.output,
        })
    }

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
    /// The audit trail: find records, prove that they are whole, decide again
    #[command(subcommand)]
    Audit(audit::AuditVerb),
    /// Stop agents, tools, or the whole mesh
    Kill(Box<kill::Kill>),
    /// Let go on what was stopped
    Resume(kill::Resume),
    /// Changes that wait for a second person
    #[command(subcommand)]
    Approvals(approvals::ApprovalsVerb),
    /// Admin tokens, who may change the mesh; and the way out for a control plane that was restored from a copy
    #[command(subcommand)]
    Admin(admin::AdminVerb),
    /// How agents behaved so far, and reports on them
    #[command(subcommand)]
    Reputation(reputation::ReputationVerb),
    /// A policy-checked call through a running sidecar
    Call(call::Call),
    /// Who runs what, and since which revision
    Status(status::Status),
    /// Everything that is not secret, as one JSON document for a bug report
    Dump(dump::Dump),
    /// The body of the child process in which policies are admitted
    #[command(name = policy::ADMIT, hide = true)]
    PolicyAdmit,
    /// The body of the process that ends a command when its `aip run` is gone
    #[command(name = process::GUARD, hide = true)]
    Guard {
        /// Seconds between SIGTERM and SIGKILL
        grace: u64,
    },
}

async fn perform(aip: Aip) -> anyhow::Result<ExitCode> {
    let globals = aip.globals.or_environment()?;
    match aip.verb {
        Verb::Up(up) => Box::pin(up.perform(&globals)).await,
        Verb::Run(run) => Box::pin(run.perform(&globals)).await,
        Verb::Demo(demo) => Box::pin(demo.perform(&globals)).await,
        Verb::Agent(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Token(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Attest(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Policy(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Audit(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Kill(kill) => Box::pin(kill.perform(&globals)).await,
        Verb::Resume(resume) => Box::pin(resume.perform(&globals)).await,
        Verb::Approvals(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Admin(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Reputation(verb) => Box::pin(verb.perform(&globals)).await,
        Verb::Call(call) => Box::pin(call.perform(&globals)).await,
        Verb::Status(status) => Box::pin(status.perform(&globals)).await,
        Verb::Dump(dump) => Box::pin(dump.perform(&globals)).await,
        Verb::PolicyAdmit => Ok(policy::admit()),
        Verb::Guard { grace } => Ok(process::guard(Duration::from_secs(grace))),
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

//! `aip audit`: look into what sidecars recorded, prove that it is what they recorded, and decide it again.
//!
//! | file | what |
//! |---|---|
//! | [`records`] | `tail` and `query` |
//! | [`export`] | `export` of records |
//! | [`files`] | records of logs that lie here |
//! | [`verify`] | `verify`, from files alone |
//! | [`download`] | `export --dir`: those files, from the control plane |
//! | [`trust`] | whose signatures are believed |
//! | [`replay`] | `replay` |
//! | [`keygen`] | an auditor's key pair |

mod download;
mod export;
mod files;
mod keygen;
mod records;
mod replay;
mod trust;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::Globals;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Show records as they come in
    Tail(Tail),
    /// Find records by agent, verdict, tool, time, hop, trace or decision; newest first
    Query(Query),
    /// Check that nothing was changed, left out or cut, and that both ends of each hop say the same
    Verify(Verify),
    /// Decide a recorded request again, with the policies and settings of then
    Replay(Replay),
    /// Write records for other programs, or everything that a verifier needs
    Export(Export),
    /// Make an auditor's key pair, to which sidecars seal sensitive facts
    Keygen(Keygen),
}

/// Which records.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Wanted {
    /// Of this agent's sidecar
    #[arg(long, value_name = "NAME")]
    agent: Option<aip_api::AgentName>,
    /// With this verdict: allow, deny, …
    #[arg(long)]
    verdict: Option<String>,
    /// Of calls of this tool
    #[arg(long)]
    tool: Option<String>,
    /// Not before: 15m, 2h, 3d ago, or a time as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = records::time)]
    since: Option<u64>,
    /// Before, likewise
    #[arg(long, value_name = "TIME", value_parser = records::time)]
    until: Option<u64>,
    /// Of this hop, at both ends
    #[arg(long, value_name = "ID")]
    hop: Option<String>,
    /// Of this trace, 32 hex digits
    #[arg(long, value_name = "ID")]
    trace: Option<String>,
    /// Of this decision
    #[arg(long, value_name = "ID")]
    decision: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    #[command(flatten)]
    wanted: Wanted,
}

#[derive(Debug, Args)]
pub(crate) struct Query {
    #[command(flatten)]
    wanted: Wanted,
    /// Look into the logs in this folder instead of asking the control plane
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// A folder with logs: an export, a sidecar's data directory, or several below one; without it, everything that the
    /// control plane has is fetched first
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The roots and keys to believe, as `GET /v1/trust` gives them [default: trust.json in DIR, if --mesh-root or the
    /// context of `aip up` knows its root; else the control plane's]
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The decision, as in x-aip-decision, a refusal or `aip audit query`
    #[arg(value_name = "DECISION")]
    decision: aip_api::id::DecisionId,
    /// Look for the decision in the logs in this folder instead of asking the control plane
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The auditor's private key, for facts that were sealed
    #[arg(long, value_name = "FILE")]
    auditor_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum As {
    /// One record a line, with where it stands
    Jsonl,
    /// A table with one line a decision or end
    Csv,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    wanted: Wanted,
    /// With the facts that policy read, as far as they are kept: what agents said may be among them
    #[arg(long)]
    facts: bool,
    /// How records are written to standard output
    #[arg(long = "as", value_enum, value_name = "FORM", default_value = "jsonl")]
    form: As,
    /// Instead: write all logs, checkpoints, tree heads and keys to this new folder, for `aip audit verify --dir`
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// Where the private key goes; the file must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl AuditVerb {
    pub(crate) async fn perform(self, globals: &Globals) -> anyhow::Result<ExitCode> {
        match self {
            Self::Tail(verb) => records::tail(globals, &verb.wanted).await,
            Self::Query(verb) => records::query(globals, &verb.wanted, verb.limit as usize, verb.dir.as_deref()).await,
            Self::Verify(verb) => verify::perform(globals, verb.dir.as_deref(), verb.trust.as_deref()).await,
            Self::Replay(verb) => replay::perform(globals, &verb).await,
            Self::Export(Export { dir: Some(dir), .. }) => download::perform(globals, &dir).await,
            Self::Export(verb) => export::perform(globals, &verb).await,
            Self::Keygen(verb) => keygen::perform(globals, &verb.file),
        }
    }
}

//! `aip audit`: look into what sidecars recorded, prove that it is what they recorded, and decide it again.
//!
//! | file | what |
//! |---|---|
//! | [`records`] | `query` |
//! | [`tail`] | `tail` |
//! | [`lists`] | `changes`, `logs`, `findings`, `mismatches` |
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
mod lists;
mod records;
mod replay;
mod tail;
mod trust;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use aip_api::id::{DecisionId, HopId, IdError};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use crate::Globals;
use crate::exit::{Exit, Failure};

#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Show records as they come in, until it is ended
    Tail(Tail),
    /// Find records by agent, verdict, tool, time, hop, trace or decision; newest first
    Query(Query),
    /// Check that nothing was changed, left out or cut, and that both ends of each hop say the same
    Verify(Verify),
    /// Decide a recorded request again, with the policies and settings of then
    Replay(Replay),
    /// Write records for other programs, or everything that a verifier needs
    Export(Export),
    /// Who changed what in the mesh: orders to stop, resets, approvals, policies; newest first
    Changes(lists::Changes),
    /// The logs that the control plane has, how far each is signed, and whether it goes on
    Logs,
    /// What was found in sidecars' logs and can't be: forks, broken chains, records that nobody signed; newest first
    Findings(lists::Newest),
    /// Hops whose two ends contradict each other, newest first
    Mismatches(lists::Newest),
    /// Make an auditor's key pair, to which sidecars seal sensitive facts
    Keygen(Keygen),
}

/// Which records.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Wanted {
    /// Of this agent's sidecar
    #[arg(long, value_name = "NAME")]
    agent: Option<aip_api::AgentName>,
    /// With this verdict
    #[arg(long, value_parser = PossibleValuesParser::new(aip_policy::Verdict::ALL.map(aip_policy::Verdict::as_str)))]
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
    #[arg(long, value_name = "ID", value_parser = id::<HopId>)]
    hop: Option<String>,
    /// Of this trace, 32 hex digits
    #[arg(long, value_name = "ID", value_parser = trace)]
    trace: Option<String>,
    /// Of this decision
    #[arg(long, value_name = "ID", value_parser = id::<DecisionId>)]
    decision: Option<String>,
}

impl Wanted {
    /// # Errors
    /// No record can be meant: "there are none" would be taken for "it did not happen".
    fn check(&self) -> Result<(), Failure> {
        match (self.since, self.until) {
            (Some(since), Some(until)) if until <= since => {
                let what = "no record is of a time that ends before it begins";
                Err(Failure::new(Exit::Usage, what).next("--since is the earlier of the two"))
            }
            _ => Ok(()),
        }
    }
}

/// An id, in its one spelling.
fn id<Id: FromStr<Err = IdError>>(text: &str) -> Result<String, String> {
    let known = text.parse::<Id>().map(|_| text.to_owned());
    known.map_err(|error| error.to_string())
}

/// A trace id, in its one spelling.
fn trace(text: &str) -> Result<String, String> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match text.len() == 32 && text.bytes().all(hex) {
        true => Ok(text.to_owned()),
        false => Err("a trace id is 32 lower-case hex digits".to_owned()),
    }
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
    /// Of several records of this id, the one in this log
    #[arg(long, value_name = "LOG")]
    log: Option<String>,
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
    #[arg(long, value_name = "DIR", conflicts_with_all = ["agent", "verdict", "tool", "since", "until", "hop", "trace", "decision", "facts", "form"])]
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
        match &self {
            Self::Tail(Tail { wanted }) | Self::Query(Query { wanted, .. }) | Self::Export(Export { wanted, .. }) => {
                wanted.check()?;
            }
            _ => {}
        }
        match self {
            Self::Tail(verb) => Box::pin(tail::tail(globals, &verb.wanted)).await,
            Self::Query(verb) => records::query(globals, &verb.wanted, verb.limit as usize, verb.dir.as_deref()).await,
            Self::Verify(verb) => verify::perform(globals, verb.dir.as_deref(), verb.trust.as_deref()).await,
            Self::Replay(verb) => replay::perform(globals, &verb).await,
            Self::Export(Export { dir: Some(dir), .. }) => download::perform(globals, &dir).await,
            Self::Export(verb) => export::perform(globals, &verb).await,
            Self::Changes(verb) => lists::changes(globals, &verb).await,
            Self::Logs => lists::logs(globals).await,
            Self::Findings(verb) => lists::findings(globals, &verb).await,
            Self::Mismatches(verb) => lists::mismatches(globals, &verb).await,
            Self::Keygen(verb) => keygen::perform(globals, &verb.file),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        verb: AuditVerb,
    }

    #[test]
    fn filters_that_no_record_can_meet_are_mistakes() {
        let read = |args: &[&str]| Line::try_parse_from([&["audit"], args].concat());
        for wrong in [
            &["query", "--verdict", "denied"][..],
            &["query", "--hop", "zz"],
            &["tail", "--trace", "123"],
            &["export", "--decision", "01"],
            &["export", "--dir", "out", "--agent", "planner"],
            &["export", "--dir", "out", "--as", "csv"],
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        let hop = HopId::fresh().to_string();
        let right = read(&[
            "query",
            "--verdict",
            "deny",
            "--hop",
            &hop,
            "--since",
            "2h",
            "--until",
            "1h",
        ]);
        let Ok(Line {
            verb: AuditVerb::Query(query),
        }) = right
        else {
            panic!("it is right");
        };
        query.wanted.check().unwrap();
        let swapped = Wanted {
            since: query.wanted.until,
            until: query.wanted.since,
            ..Wanted::default()
        };
        assert!(swapped.check().is_err());
    }
}

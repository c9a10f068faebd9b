//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};

use crate::load::{Pace, Plan, Target};
use crate::meter::Group;
use crate::report::{self, Settings};
use crate::rig::{Programs, Subject};
use crate::{kill, modes, train};

/// Longest a single measurement may take: this is a tool for laptops and CI machines, not a soak test.
const MAX_SECONDS: u64 = 120;
/// Most connections: well under the usual limit of 1,024 open files.
const MAX_CONNECTIONS: usize = 512;
/// Highest fixed rate: past this one generator thread measures itself.
const MAX_RATE: u32 = 50_000;
/// Most simulated sidecars: one process holds a connection of each.
const MAX_SIDECARS: usize = 5_000;
/// Most rounds: with four subjects and three loads, 20 rounds of 10 s are 40 minutes.
const MAX_ROUNDS: u32 = 20;

#[derive(Parser)]
#[command(
    name = "aip-bench",
    about = "Load, and the mesh side by side with its peers",
    version
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put one server under load.
    Load(LoadArgs),
    /// Measure agent, peers and our pair in turns; write a table and the raw figures.
    Report(ReportArgs),
    /// Measure Envoy's pair and ours in turns; fail when ours costs more than the given share of Envoy's CPU.
    Check {
        #[command(flatten)]
        report: ReportArgs,
        /// Highest allowed CPU per request, as a share of the Envoy pair's in the same run.
        #[arg(long, default_value_t = 0.8)]
        max_ratio: f64,
    },
    /// Measure our pair in each durability, and with and without what the mesh can require, in turns.
    Modes(ReportArgs),
    /// Stop a fleet of simulated sidecars, over and over; how long until all have acknowledged.
    Kill {
        /// How many there are; each figure is a fleet of its own.
        #[arg(long, value_delimiter = ',', default_value = "100,1000")]
        sidecars: Vec<usize>,
        /// How often each fleet is stopped.
        #[arg(long, default_value_t = 10)]
        rounds: u32,
        /// The folder with our binaries.
        #[arg(long, default_value = "target/quick")]
        bin_dir: PathBuf,
        /// A page whose text between the `kill:begin` and `kill:end` marks is replaced by the table.
        #[arg(long)]
        page: Option<PathBuf>,
    },
    /// Put our pair under a broad mix of traffic, for an instrumented sidecar to take its profile of; measures nothing.
    Train {
        /// The folder with our binaries.
        #[arg(long)]
        bin_dir: PathBuf,
        /// Seconds of each of the dozen stages.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
}

#[derive(Args)]
struct LoadArgs {
    /// Where the server listens; loopback only.
    #[arg(long)]
    addr: SocketAddr,
    /// The request's path.
    #[arg(long, default_value = "/mcp")]
    path: String,
    /// The Host header.
    #[arg(long, default_value = "localhost")]
    host: String,
    /// A further header, as `name: value`; may be repeated.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Keep-alive connections.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Requests per second on a fixed schedule (open loop). Without it, each connection sends as soon as it can (closed loop).
    #[arg(long)]
    rate: Option<u32>,
    /// Measured seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds under the same load before measuring.
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// A process whose CPU time and memory are read, with its descendants; may be repeated.
    #[arg(long = "process", value_name = "NAME=PID")]
    processes: Vec<String>,
}

#[derive(Args)]
struct ReportArgs {
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_value = "direct,nginx,envoy,aip")]
    only: Vec<Subject>,
    /// How often each subject is measured under each load; the rounds are interleaved.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Measured seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds of load before each.
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// The folder with our binaries.
    #[arg(long, default_value = "target/quick")]
    bin_dir: PathBuf,
    /// The Envoy binary.
    #[arg(long, default_value = "target/peers/bin/envoy")]
    envoy: PathBuf,
    /// The nginx binary.
    #[arg(long, default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
    /// Where `report.json` and `report.md` go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// A page whose text between the `bench:begin` and `bench:end` marks is replaced by the table.
    #[arg(long)]
    page: Option<PathBuf>,
}

impl Cli {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Load(args) => args.run().await,
            Command::Report(args) => {
                let page = args.page.clone();
                let report = report::run(&args.settings()?).await?;
                let put = |page: PathBuf| report::put_in_page(&page, "bench", &report::markdown(&report));
                page.map_or(Ok(()), put)
            }
            Command::Modes(mut args) => {
                args.only = vec![Subject::Nginx, Subject::Aip];
                let page = args.page.clone();
                let table = modes::run(&args.settings()?).await?;
                page.map_or(Ok(()), |page| report::put_in_page(&page, "modes", &table))
            }
            Command::Kill {
                sidecars,
                rounds,
                bin_dir,
                page,
            } => {
                for count in &sidecars {
                    in_range("--sidecars", *count, 1, MAX_SIDECARS)?;
                }
                let rounds = in_range("--rounds", rounds, 1, MAX_ROUNDS)?;
                let table = kill::run(&sidecars, rounds, &bin_dir).await?;
                page.map_or(Ok(()), |page| report::put_in_page(&page, "kill", &table))
            }
            Command::Train { bin_dir, seconds } => {
                let seconds = in_range("--seconds", seconds, 1, MAX_SECONDS)?;
                train::run(&bin_dir, Duration::from_secs(seconds)).await
            }
            Command::Check { mut report, max_ratio } => {
                report.only = vec![Subject::Envoy, Subject::Aip];
                report::check(&report::run(&report.settings()?).await?, max_ratio)
            }
        }
    }
}

impl LoadArgs {
    async fn run(self) -> anyhow::Result<()> {
        ensure!(self.addr.ip().is_loopback(), "{} is not a loopback address", self.addr);
        ensure!(
            (1..=MAX_CONNECTIONS).contains(&self.connections),
            "--connections: 1 to {MAX_CONNECTIONS}"
        );
        let groups = self
            .processes
            .iter()
            .map(|p| process(p))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let plan = Plan {
            target: Target {
                addr: self.addr,
                path: self.path,
                host: self.host,
                headers: self.headers.iter().map(|h| header(h)).collect::<anyhow::Result<_>>()?,
            },
            connections: self.connections,
            pace: match self.rate {
                Some(rate) => Pace::Fixed {
                    per_second: in_range("--rate", rate, 1, MAX_RATE)?,
                },
                None => Pace::Closed,
            },
            warmup: Duration::from_secs(in_range("--warmup", self.warmup, 0, MAX_SECONDS)?),
            length: Duration::from_secs(in_range("--seconds", self.seconds, 1, MAX_SECONDS)?),
        };
        let measured = report::measure(&plan, &groups).await?;
        println!("{}", serde_json::to_string_pretty(&measured)?);
        Ok(())
    }
}

impl ReportArgs {
    fn settings(self) -> anyhow::Result<Settings> {
        Ok(Settings {
            subjects: self.only,
            rounds: in_range("--rounds", self.rounds, 1, MAX_ROUNDS)?,
            length: Duration::from_secs(in_range("--seconds", self.seconds, 1, MAX_SECONDS)?),
            warmup: Duration::from_secs(in_range("--warmup", self.warmup, 0, MAX_SECONDS)?),
            programs: Programs {
                bin_dir: self.bin_dir,
                envoy: self.envoy,
                nginx: self.nginx,
            },
            out: self.out,
        })
    }
}

fn in_range<T: PartialOrd + std::fmt::Display>(flag: &str, value: T, low: T, high: T) -> anyhow::Result<T> {
    if value < low || value > high {
        bail!("{flag} {value}: must be {low} to {high}");
    }
    Ok(value)
}

fn process(arg: &str) -> anyhow::Result<Group> {
    let (name, pid) = arg
        .split_once('=')
        .with_context(|| format!("--process {arg}: expected NAME=PID"))?;
    let pid = pid
        .parse()
        .with_context(|| format!("--process {arg}: {pid:?} is no process id"))?;
    Group::of(name, &[pid])
}

fn header(arg: &str) -> anyhow::Result<(http::HeaderName, http::HeaderValue)> {
    let (name, value) = arg
        .split_once(':')
        .with_context(|| format!("--header {arg}: expected NAME: VALUE"))?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

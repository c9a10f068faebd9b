//! `aip-bench`: load, and the mesh side by side with its peers.
//!
//! `load` puts one server under load and says how long answers took and what they cost. `report` starts an agent alone,
//! an nginx pair, an Envoy pair and our own pair of sidecars, measures them in turns in one run, and writes a table.
//! `check` is the same for Envoy and us only, and fails when ours costs too much. `modes` puts our pair under load in one
//! mode of the mesh after the other. `kill` stops a fleet of simulated sidecars, over and over, and says how long it took.
//! `train` measures nothing: it is the traffic that the release build of the sidecar learns from.
//!
//! | file | what |
//! |---|---|
//! | [`load`] | the load generator: open and closed loop over HTTP/1.1 keep-alive |
//! | [`meter`] | CPU time and memory of groups of processes, from `/proc` |
//! | [`children`] | processes that are started, waited for and ended |
//! | [`rig`] | what is measured: the agent, the peers, our pair |
//! | [`report`] | rounds, ratios, the table |
//! | [`modes`] | what durability and checks cost |
//! | [`kill`] | how fast an order to stop is everywhere |
//! | [`train`] | a broad mix of traffic, for a build that is optimised by its profile |
//!
//! It talks to loopback addresses only, and every run is bounded in count and in time.

mod children;
mod cli;
mod kill;
mod load;
mod machine;
mod meter;
mod modes;
mod report;
mod rig;
mod train;

use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

fn main() -> ExitCode {
    match run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aip-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: cli::Cli) -> anyhow::Result<()> {
    // One thread: the generator must not take both cores of a small machine from what it measures.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let work = LocalSet::new();
    runtime.block_on(work.run_until(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Returning drops the rig, and that ends every process it started.
        tokio::select! {
            done = cli.run() => done,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("terminated"),
        }
    }))
}

//! What is measured: one agent, and pairs of proxies in front of it.
//!
//! Every subject is set up the same way: plain HTTP from the load generator into the caller's proxy, TLS 1.3 with both
//! certificates checked to the agent's proxy, plain HTTP to the agent. All run at the same time and only the one that is
//! being measured has work, so that rounds can alternate without restarts.

pub(crate) mod admin;
mod fleet;
mod mesh;
mod pair;
mod peers;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;
use tempfile::TempDir;

pub(crate) use fleet::Fleet;
pub(crate) use pair::Pair;

use crate::children::Child;
use crate::load::{Target, probe};
use crate::machine::Machine;
use crate::meter::Group;
use admin::Admin;

/// Longest from the last process's start to the first answer through it.
const OPEN: Duration = Duration::from_secs(10);
/// How often the way is tried.
const POLL: Duration = Duration::from_millis(50);

/// Something to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Subject {
    /// The agent alone.
    Direct,
    /// A pair of nginx.
    Nginx,
    /// A pair of Envoy.
    Envoy,
    /// A pair of our sidecars, with a control plane.
    Aip,
}

/// The programs that take part.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) bin_dir: PathBuf,
    pub(crate) envoy: PathBuf,
    pub(crate) nginx: PathBuf,
}

impl Programs {
    /// The machine, with the versions of what takes part.
    pub(crate) fn machine(&self, subjects: &[Subject]) -> Machine {
        let sidecar = self.bin_dir.join("aip-sidecar");
        let mut programs = vec![(self.nginx.as_path(), "-v")];
        if subjects.contains(&Subject::Envoy) {
            programs.push((&self.envoy, "--version"));
        }
        if subjects.contains(&Subject::Aip) {
            programs.push((&sidecar, "--version"));
        }
        Machine::here(&programs)
    }
}

/// A subject that runs.
pub(crate) struct Running {
    pub(crate) subject: Subject,
    pub(crate) target: Target,
    /// The first group is what the subject costs; the others are there to be looked at.
    pub(crate) groups: Vec<Group>,
    /// Our own pair's.
    pub(crate) admin: Option<Admin>,
    // Ended when the rig goes.
    _children: Vec<Child>,
}

/// All subjects, running.
pub(crate) struct Rig {
    pub(crate) running: Vec<Running>,
    _agent: Child,
    // Last, so that nothing runs in it any more when it is removed.
    _dir: TempDir,
}

impl Rig {
    pub(crate) async fn start(subjects: &[Subject], programs: &Programs) -> anyhow::Result<Self> {
        check_programs(subjects, programs)?;
        let dir = tempfile::Builder::new().prefix("aip-bench-").tempdir()?;
        let (agent, addr) = peers::agent(dir.path(), &programs.nginx).await?;
        let agent_group = Group::of("agent", &[agent.pid()])?;
        let mut running = Vec::new();
        for subject in subjects {
            let set_up = match subject {
                Subject::Direct => Ok(peers::direct(addr, &agent_group)),
                Subject::Nginx => peers::nginx(dir.path(), &programs.nginx, addr).await,
                Subject::Envoy => peers::envoy(dir.path(), &programs.envoy, addr).await,
                Subject::Aip => mesh::start(dir.path(), &programs.bin_dir, addr).await,
            };
            let SetUp {
                target,
                children,
                mut groups,
                admin,
            } = set_up.with_context(|| format!("set up {subject:?}"))?;
            if *subject != Subject::Direct {
                groups.push(agent_group.clone());
            }
            answers(&target)
                .await
                .with_context(|| format!("one request through {subject:?}"))?;
            running.push(Running {
                subject: *subject,
                target,
                groups,
                admin,
                _children: children,
            });
        }
        Ok(Self {
            running,
            _agent: agent,
            _dir: dir,
        })
    }
}

/// Waits until the whole way is open: a proxy may listen before the one behind it is known.
async fn answers(target: &Target) -> anyhow::Result<()> {
    let deadline = Instant::now() + OPEN;
    loop {
        match probe(target).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// What setting up a subject yields: where to send, what was started, what to count, and how ours is told what to do.
struct SetUp {
    target: Target,
    children: Vec<Child>,
    groups: Vec<Group>,
    admin: Option<Admin>,
}

fn check_programs(subjects: &[Subject], programs: &Programs) -> anyhow::Result<()> {
    let need = |program: &Path, how: &str| -> anyhow::Result<()> {
        if !program.is_file() {
            bail!("{} is not there: {how}", program.display());
        }
        Ok(())
    };
    need(
        &programs.nginx,
        "`make bench-peers` says how to get it, or name another with --nginx",
    )?;
    if subjects.contains(&Subject::Envoy) {
        need(
            &programs.envoy,
            "`make bench-peers` gets it, or name another with --envoy",
        )?;
    }
    if subjects.contains(&Subject::Aip) {
        for name in ["aip-control-plane", "aip-sidecar"] {
            need(
                &programs.bin_dir.join(name),
                "build it first, or name another folder with --bin-dir",
            )?;
        }
    }
    Ok(())
}

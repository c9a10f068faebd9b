//! Step 6: the control plane is killed; traffic goes on, a sidecar restarts, it comes back with nothing lost.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::board::{Board, Promise, Target};
use super::calls;
use super::look::{page, until};
use super::mesh::Mesh;
use super::text::millis;
use crate::agent::inner;

pub(super) const PROMISES: [Promise; 4] = [
    Promise {
        id: "goes_on",
        text: "traffic goes on without a control plane",
    },
    Promise {
        id: "restart",
        text: "a killed sidecar serves again from its cache",
    },
    Promise {
        id: "back",
        text: "the control plane comes back, nothing lost",
    },
    Promise {
        id: "again",
        text: "and every sidecar follows it again",
    },
];

/// Calls that are made while it is down.
const CALLS: usize = 10;
/// From SIGKILL of the sidecar to the first call through its successor (target: under 1 s).
const RESTART_TARGET: Target = Target::quick(Duration::from_secs(1));
/// How long a successor may take at all.
const RESTART_WAIT: Duration = Duration::from_secs(20);
/// How long the sidecars may take to find the control plane again: their longest wait between attempts, and more.
const RECONNECT: Duration = Duration::from_secs(60);

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let before = Kept::read(mesh).await?;
    board.fact("before", before.describe());
    let mut control_plane = mesh.control_plane.take().context("there is no control plane")?;
    let pid = control_plane.child.pid();
    control_plane.child.signal(Signal::KILL);
    let status = control_plane.child.wait().await?;
    drop(control_plane);
    board.fact("killed", format!("control plane pid {pid}: {status}"));
    let unreachable = mesh.admin()?.get("/v1/mesh").await.is_err();
    anyhow::ensure!(unreachable, "the control plane still answers");
    let shown = Box::pin(without_it(mesh, board)).await;
    // Whatever that showed, it comes back: the promises after it are their own.
    mesh.start_control_plane().await?;
    shown?;
    Box::pin(back(mesh, board, &before)).await
}

async fn without_it(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let mut through = 0;
    for _ in 0..CALLS {
        through += usize::from(search(mesh).await?);
    }
    let books = calls::mcp(mesh, "ledger", "close_books", json!({})).await?;
    let text = format!(
        "{through} of {CALLS} calls allowed, a denied one stays denied ({})",
        books.status
    );
    board.fact("meanwhile", &text);
    board.decide("goes_on", through == CALLS && books.status == 403, text);

    let old = mesh.state("researcher")?;
    let pid = old.sidecar.and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw);
    let serial = page(&old, "/identity").await?["serial"].clone();
    let killed = Instant::now();
    kill_process(pid.context("the researcher's sidecar has no pid")?, Signal::KILL)?;
    until("a new sidecar of the researcher", RESTART_WAIT, async || {
        mesh.state("researcher")
            .ok()
            .filter(|s| s.sidecar_restarts > old.sidecar_restarts)
    })
    .await?;
    until("a call through the new sidecar", RESTART_WAIT, async || {
        search(mesh).await.ok().filter(|through| *through)
    })
    .await?;
    let took = killed.elapsed();
    let new = mesh.state("researcher")?;
    let kept = page(&new, "/identity").await?["serial"] == serial;
    anyhow::ensure!(kept, "the new sidecar holds another SVID than the one that was kept");
    let pids = format!(
        "{} -> {}",
        old.sidecar.unwrap_or_default(),
        new.sidecar.unwrap_or_default()
    );
    board.fact(
        "sidecar",
        format!("SIGKILL to the researcher's, restarted by aip run: pid {pids}"),
    );
    board.fact(
        "serving again",
        format!(
            "{} after the kill, with the SVID it had kept, the control plane still down",
            millis(took)
        ),
    );
    anyhow::ensure!(new.sidecar != old.sidecar, "the sidecar's process is the same");
    board.timed("restart", took, RESTART_TARGET, "next call after ");
    Ok(())
}

async fn search(mesh: &Mesh) -> anyhow::Result<bool> {
    Ok(calls::mcp(mesh, "researcher", "search", json!({ "query": "shore" }))
        .await?
        .went_through())
}

async fn back(mesh: &Mesh, board: &mut Board, before: &Kept) -> anyhow::Result<()> {
    let after = Kept::read(mesh).await?;
    board.fact("after", after.describe());
    let same = before.agents == after.agents && before.policies == after.policies && after.revision >= before.revision;
    let evidence = format!(
        "agents and policies equal, revision {} -> {}",
        before.revision, after.revision
    );
    board.decide("back", same, evidence);
    let started = Instant::now();
    let admin = mesh.admin()?;
    until("every sidecar has a stream again", RECONNECT, async || {
        let sidecars = admin.list("/v1/sidecars").await.ok()?;
        let named = |name: &str| sidecars.iter().any(|s| s["agent"] == name && s["connected"] == true);
        ["planner", "researcher", "ledger"]
            .iter()
            .all(|n| named(n))
            .then_some(())
    })
    .await?;
    let reconnected = started.elapsed();
    let printed = mesh.aip(&["policy", "delete", "research-hours"]).await?;
    anyhow::ensure!(
        printed.code == Some(0),
        "the policy was not deleted: {}",
        printed.stderr
    );
    until("the stream is open again", RECONNECT, async || {
        calls::watch(mesh, 1).await.ok().filter(|(made, _)| made.went_through())
    })
    .await?;
    board.fact(
        "reconnected",
        format!(
            "all sidecars after {}; a policy change reached them",
            millis(reconnected)
        ),
    );
    board.shown(
        "again",
        format!("after {}; deleting a policy took effect", millis(reconnected)),
    );
    Ok(())
}

/// What must survive.
struct Kept {
    agents: Vec<Value>,
    policies: Vec<Value>,
    revision: u64,
}

impl Kept {
    async fn read(mesh: &Mesh) -> anyhow::Result<Self> {
        let admin = mesh.admin()?;
        let status = admin.get("/v1/status").await?;
        Ok(Self {
            agents: admin.list("/v1/agents").await?,
            policies: admin.list("/v1/policies").await?,
            revision: status["revision"].as_u64().context("the status names no revision")?,
        })
    }

    fn describe(&self) -> String {
        let policies: Vec<String> = self
            .policies
            .iter()
            .map(|p| crate::output::cell(&inner(p)["name"]))
            .collect();
        format!(
            "revision {}, {} agents, policies {}",
            self.revision,
            self.agents.len(),
            policies.join(", ")
        )
    }
}

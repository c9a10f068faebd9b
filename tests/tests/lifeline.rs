//! A supervisor that is killed leaves nothing behind: what it started ends by itself, within a bound.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use aip_tests::process::{Mesh, Process, RunAgent, binary};
use aip_tests::wait;
use rustix::process::Signal;

/// How long all steps of the demo may take: half a minute on idle cores.
const DEMO: Duration = Duration::from_secs(150);

/// One process, as the kernel lists it.
#[derive(Debug)]
struct Listed {
    parent: u32,
    group: u32,
    zombie: bool,
}

fn processes() -> BTreeMap<u32, Listed> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let zombie = fields.next()? == "Z";
        let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((pid, Listed { parent, group, zombie }))
    })
    .collect()
}

/// All that `root` started and what those started, in other groups than its own: the test's leash is in that one.
fn descendants(root: u32) -> Vec<u32> {
    let all = processes();
    let is_below = |mut pid: u32| {
        while let Some(listed) = all.get(&pid) {
            if listed.parent == root {
                return true;
            }
            pid = listed.parent;
        }
        false
    };
    let group = all[&root].group;
    let below = all
        .iter()
        .filter(|(pid, listed)| listed.group != group && is_below(**pid));
    below.map(|(pid, _)| *pid).collect()
}

/// What it has started, which is at least so much.
fn started_by(process: &Process, at_least: usize) -> Vec<u32> {
    let root = process.pid().as_raw_nonzero().get().cast_unsigned();
    let started = descendants(root);
    assert!(started.len() >= at_least, "{} started {started:?}", process.name);
    started
}

/// Kills it, and waits until none of what it started runs.
async fn killed(process: &mut Process, at_least: usize) {
    let started = started_by(process, at_least);
    process.kill();
    over(&started).await;
}

/// Waits until none of them runs.
async fn over(started: &[u32]) {
    wait::until_ok("all that was started ends", async || {
        let all = processes();
        let left: Vec<_> = started
            .iter()
            .filter(|pid| all.get(pid).is_some_and(|l| !l.zombie))
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?} run"))
        }
    })
    .await;
}

/// The command ignores SIGTERM and has a child of its own: its guard ends both with SIGKILL after the grace.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_aip_run_leaves_neither_agent_nor_sidecar() {
    let mesh = Mesh::start().await;
    let mut program = Command::new("sh");
    program.args([
        "-c",
        "trap '' TERM; python3 -m http.server $PORT --bind 127.0.0.1 & wait",
    ]);
    let mut agent = RunAgent::start(&mesh, "stubborn", &program, &["--grace", "1"]).await;
    let sidecar = agent.state["sidecar"].as_u64().unwrap();
    let command = agent.state["agent"].as_u64().unwrap();
    let all = processes();
    for pid in [sidecar, command] {
        assert!(all.contains_key(&u32::try_from(pid).unwrap()), "{}", agent.state);
    }
    // The sidecar, the shell, its child, the guard.
    killed(&mut agent.process, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_aip_up_leaves_no_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("aip"));
    command.arg("up").arg("--home").arg(dir.path().join("home"));
    command.args(["--mesh-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let mut up = Process::start_supervisor("up", &command, dir.path());
    wait::until("the control plane is up", async || {
        up.assert_alive();
        up.stdout().contains("The control plane is up.").then_some(())
    })
    .await;
    killed(&mut up, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_aip_demo_leaves_no_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("aip"));
    command.arg("demo").env("TMPDIR", dir.path());
    let mut demo = Process::start_supervisor("demo", &command, dir.path());
    wait::until("three agents serve", async || {
        demo.assert_alive();
        demo.stdout().contains("A call through both sidecars").then_some(())
    })
    .await;
    // The control plane, and an `aip run` for each of three agents with a sidecar, an agent and a guard.
    killed(&mut demo, 13).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_aip_demo_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("aip"));
    command.arg("demo").env("TMPDIR", dir.path());
    let mut demo = Process::start_supervisor("demo", &command, dir.path());
    wait::until_within(DEMO, "it stays up", async || {
        demo.assert_alive();
        demo.stdout().contains("Ctrl-C ends it").then_some(())
    })
    .await;
    let started = started_by(&demo, 13);
    demo.signal(Signal::INT);
    assert!(demo.end().await.success());
    over(&started).await;
    let entries = std::fs::read_dir(dir.path()).unwrap();
    let left: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    assert!(!left.iter().any(|name| name.starts_with("aip-demo-")), "{left:?}");
}

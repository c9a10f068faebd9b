//! The kill switch: an order cuts a live stream, is acknowledged by every sidecar, survives a restarted sidecar and a
//! restored control plane, and names the time by which a sidecar that can't be reached has stopped.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::board::{Board, Promise, Target};
use super::calls;
use super::look::{page, until};
use super::mesh::Mesh;
use super::text::millis;
use crate::output::timestamp;
use crate::process::is_alive;
use crate::run::state::Phase;

pub(super) const PROMISES: [Promise; 7] = [
    Promise {
        id: "cut",
        text: "aip kill cuts a live stream",
    },
    Promise {
        id: "acked",
        text: "sidecars enforce it, and acknowledge it",
    },
    Promise {
        id: "away",
        text: "one cut off is named, with its certain end",
    },
    Promise {
        id: "process",
        text: "the agent's process is gone",
    },
    Promise {
        id: "restarted",
        text: "a restarted sidecar still refuses",
    },
    Promise {
        id: "restored",
        text: "a restored control plane can't lift it",
    },
    Promise {
        id: "resumed",
        text: "aip resume lets it go on",
    },
];

/// From the command to the stream's cut, the start of the command included.
const CUT_TARGET: Target = Target::strict(Duration::from_millis(500));
/// How long anything may take here that is waited for.
const WAIT: Duration = Duration::from_secs(60);
/// More events than the stream has when it is cut.
const EVENTS: u32 = 1_000;
/// The lease of the agent that is cut off.
const LEASE_SECONDS: &str = "6";

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    lease(mesh).await?;
    let copy = copy_store(mesh).await?;
    let agent = mesh.state("researcher")?.agent.context("the researcher does not run")?;
    let away = sidecar_of(mesh, "ledger")?;
    kill_process(away, Signal::STOP)?;
    let cut_off = Box::pin(cut_off(mesh, board, agent)).await;
    kill_process(away, Signal::CONT)?;
    let (said, revision) = cut_off?;
    stopped_by_itself(mesh, board, said).await?;
    Box::pin(restarted(mesh, board)).await?;
    Box::pin(restored(mesh, board, copy.path(), revision)).await?;
    Box::pin(resumed(mesh, board)).await
}

/// The order, with the ledger's sidecar out of reach until its certain end and the control plane stopped before it comes
/// back. Answers what was said of it, and the store's last revision.
async fn cut_off(mesh: &mut Mesh, board: &mut Board, agent: u32) -> anyhow::Result<(String, u64)> {
    let (said, stopped_by) = Box::pin(killed(mesh, board)).await?;
    until("the researcher's process is gone", WAIT, async || {
        let stopped = mesh.state("researcher").ok()?.phase == Phase::Stopped;
        (stopped && !is_alive(agent)).then_some(())
    })
    .await?;
    board.shown("process", format!("pid {agent} is gone, its sidecar is up"));
    let status = mesh.admin()?.get("/v1/status").await?;
    let revision = status["revision"].as_u64().context("no revision")?;
    stop_control_plane(mesh).await?;
    until("the time by which the ledger has stopped", WAIT, async || {
        (aip_runtime::unix_now() > stopped_by).then_some(())
    })
    .await?;
    Ok((said, revision))
}

/// What the ledger's sidecar does when it runs on, past its lease and without a control plane.
async fn stopped_by_itself(mesh: &Mesh, board: &mut Board, said: String) -> anyhow::Result<()> {
    // It has just been woken: a connection of before may break first.
    let made = until("the ledger's sidecar says that its lease is lost", WAIT, async || {
        let made = calls::mcp(mesh, "ledger", "balance", json!({ "account": "operations" })).await;
        made.ok()
            .filter(|made| made.status == 200 || made.reason() == "lease_lost")
    })
    .await?;
    let refused = format!("{} {}", made.status, made.reason());
    board.fact(
        "past that time",
        format!("it runs on, cut off: a call to the ledger is {refused}"),
    );
    board.decide("away", made.reason() == "lease_lost", format!("{said}; then {refused}"));
    Ok(())
}

/// The ledger stops by itself when it does not hear from the control plane.
async fn lease(mesh: &Mesh) -> anyhow::Result<()> {
    let printed = mesh
        .aip(&[
            "agent",
            "lease",
            "ledger",
            "--seconds",
            LEASE_SECONDS,
            "--on-lost",
            "deny",
        ])
        .await?;
    anyhow::ensure!(printed.code == Some(0), "no lease: {}", printed.stderr);
    let ledger = mesh.state("ledger")?;
    until("the ledger's sidecar has its lease", WAIT, async || {
        page(&ledger, "/kill").await.ok()?["lease_left_ms"]
            .is_u64()
            .then_some(())
    })
    .await
}

/// A copy of the control plane's data from before the order, as a backup would be.
async fn copy_store(mesh: &mut Mesh) -> anyhow::Result<tempfile::TempDir> {
    stop_control_plane(mesh).await?;
    let copy = tempfile::tempdir_in(mesh.dir.path())?;
    copy_files(&mesh.home.control_plane(), copy.path())?;
    mesh.start_control_plane().await?;
    connected(mesh).await?;
    Ok(copy)
}

async fn stop_control_plane(mesh: &mut Mesh) -> anyhow::Result<()> {
    let mut control_plane = mesh.control_plane.take().context("there is no control plane")?;
    control_plane.child.stop(crate::process::GRACE).await;
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Waits until every agent's kill stream is up.
async fn connected(mesh: &Mesh) -> anyhow::Result<()> {
    let admin = mesh.admin()?;
    until("every sidecar has its kill stream", WAIT, async || {
        let progress = admin.get("/v1/kills/progress").await.ok()?;
        let enforced = progress["enforced"].as_array()?;
        let has = |name: &str| {
            enforced
                .iter()
                .any(|e| e["sidecar"].as_str().is_some_and(|s| s.starts_with(name)))
        };
        // One that vanished a moment ago is missing, and has no stream.
        let awaited = progress["missing"].as_array()?.iter().any(|m| m["connected"] == true);
        (["planner/", "researcher/", "ledger/"].iter().all(|name| has(name)) && !awaited).then_some(())
    })
    .await
}

fn sidecar_of(mesh: &Mesh, name: &str) -> anyhow::Result<Pid> {
    let pid = mesh
        .state(name)?
        .sidecar
        .and_then(|p| i32::try_from(p).ok())
        .and_then(Pid::from_raw);
    pid.with_context(|| format!("the sidecar of {name} has no pid"))
}

/// The order that the demo gives.
const KILL: [&str; 9] = [
    "kill",
    "--agent",
    "researcher",
    "--reason",
    "the demo stops it",
    "--wait",
    "2",
    "--output",
    "json",
];

/// An order while a stream is open, with one sidecar that can't be reached: what is said of that one, and its time.
async fn killed(mesh: &Mesh, board: &mut Board) -> anyhow::Result<(String, u64)> {
    let opened = Instant::now();
    let stream = async {
        // An error is a stream that ended early, too: the planner says so in its own words.
        let seen = mesh
            .ask("planner", Method::POST, "/watch", &json!({ "count": EVENTS }))
            .await;
        (seen, opened.elapsed())
    };
    let researcher = mesh.state("researcher")?;
    let order = async {
        until("the stream is open", WAIT, async || {
            let open = page(&researcher, "/connections").await.ok()?["requests"].as_u64()?;
            (open > 0).then_some(())
        })
        .await?;
        let ordered = opened.elapsed();
        anyhow::Ok((mesh.aip(&KILL).await?, ordered))
    };
    let ((seen, ended), order) = tokio::join!(stream, order);
    let (printed, ordered) = order?;
    board.fact("ordered", "aip kill --agent researcher --reason … --wait 2");
    let events = seen.ok().and_then(|s| s["events"].as_array().map(Vec::len));
    let events = events.map_or("some".into(), |n| n.to_string());
    board.fact("stream", format!("GET /events, {events} events came before the cut"));
    board.timed("cut", ended.saturating_sub(ordered), CUT_TARGET, "cut after ");
    let answer: Value = serde_json::from_str(&printed.stdout).with_context(|| printed.stderr.clone())?;
    acknowledged(board, &answer["progress"])
}

/// Who has enforced it, and by when the one that was stopped has certainly stopped.
fn acknowledged(board: &mut Board, progress: &Value) -> anyhow::Result<(String, u64)> {
    let list = |key: &str| progress[key].as_array().cloned().unwrap_or_default();
    let (enforced, missing) = (list("enforced"), list("missing"));
    for one in &enforced {
        let sidecar = one["sidecar"].as_str().unwrap_or("?");
        let ms = one["ms"].as_f64().unwrap_or_default();
        let cut = one["streams_cut"].as_u64().unwrap_or_default();
        board.fact("enforced", format!("{sidecar} after {ms:.1} ms, {cut} streams cut"));
    }
    let last = progress["last_ms"].as_f64().unwrap_or_default();
    let cut: u64 = enforced.iter().filter_map(|e| e["streams_cut"].as_u64()).sum();
    let (all, evidence) = (
        enforced.len(),
        format!("the last after {last:.1} ms; {cut} ends of streams cut"),
    );
    board.decide("acked", all == 2 && cut > 0, format!("{all} of 3, {evidence}"));
    let is_away = |one: &&Value| one["sidecar"].as_str().is_some_and(|name| name.starts_with("ledger/"));
    let before = missing.iter().filter(|one| !is_away(one));
    for one in before.chain(&list("vanished")).chain(&list("drifted")) {
        let by = one["stopped_by"].as_u64().map_or("-".into(), timestamp);
        let sidecar = one["sidecar"].as_str().unwrap_or("?");
        board.fact("vanished before", format!("{sidecar}: its SVID has ended by {by}"));
    }
    let away = missing
        .iter()
        .find(is_away)
        .context("the ledger is not missing, though it was stopped")?;
    let at = away["stopped_by"].as_u64().context("no time is named")?;
    let name = away["sidecar"].as_str().unwrap_or("?").split('/').next().unwrap_or("?");
    let evidence = format!("{name}: by {} at the latest, its lease has ended then", timestamp(at));
    let soon = at <= aip_runtime::unix_now() + 10 && away["stopped_how"] == "lease";
    board.decide("away", soon, &evidence);
    Ok((evidence, at))
}

/// One call to the researcher: the status that the planner read, and the reason.
async fn call(mesh: &Mesh) -> anyhow::Result<(u64, String)> {
    let made = calls::mcp(mesh, "researcher", "search", json!({ "query": "shore" })).await?;
    Ok((made.status, made.reason().to_owned()))
}

async fn restarted(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let old = mesh.state("researcher")?;
    kill_process(sidecar_of(mesh, "researcher")?, Signal::KILL)?;
    let shown = until("the researcher's new sidecar answers", WAIT, async || {
        let new = mesh
            .state("researcher")
            .ok()
            .filter(|s| s.sidecar_restarts > old.sidecar_restarts)?;
        page(&new, "/kill").await.ok()
    })
    .await?;
    // The planner's sidecar holds the order, too; what goes out of the researcher's, that one alone refuses.
    let made = calls::out_of(mesh, "researcher", "planner").await?;
    let orders = shown["orders"].as_array().map_or(0, Vec::len);
    board.fact(
        "restarted",
        format!("SIGKILL to the researcher's sidecar, no control plane: it holds {orders} order from disk"),
    );
    let evidence = format!(
        "{orders} order from its disk; a call out of it: {} {}",
        made.status,
        made.reason()
    );
    let itself = made.status == 503 && made.reason() == "killed" && made.at("callee").is_none();
    board.decide("restarted", orders == 1 && itself, evidence);
    Ok(())
}

async fn restored(mesh: &mut Mesh, board: &mut Board, copy: &Path, revision: u64) -> anyhow::Result<()> {
    copy_files(copy, &mesh.home.control_plane())?;
    mesh.start_control_plane().await?;
    let admin = mesh.admin()?;
    let kills = until("the restored control plane is shown the order", WAIT, async || {
        let kills = admin.get("/v1/kills").await.ok()?;
        (kills["items"].as_array().is_some_and(|orders| !orders.is_empty())).then_some(kills)
    })
    .await?;
    let lift = ["admin", "lift", "--above", &revision.to_string(), "--no-wait"];
    let printed = mesh.aip(&lift).await?;
    anyhow::ensure!(printed.code == Some(0), "the store was not lifted: {}", printed.stderr);
    connected(mesh).await?;
    let (status, reason) = call(mesh).await?;
    let evidence = format!(
        "term {} with the order it had lost; a call: {status} {reason}",
        kills["term"]
    );
    board.fact(
        "restored",
        "the control plane's data from before the order; a sidecar showed it the set it holds",
    );
    let new_term = kills["term"].as_u64() > Some(1);
    board.decide("restored", new_term && status == 503 && reason == "killed", evidence);
    Ok(())
}

async fn resumed(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let begun = Instant::now();
    let printed = mesh.aip(&["resume", "--all", "--wait", "5"]).await?;
    board.quote("$ aip resume --all --wait", &printed.stdout);
    // 7: one that vanished before may still be waited for, since the control plane has just begun.
    anyhow::ensure!(matches!(printed.code, Some(0 | 7)), "not resumed: {}", printed.stderr);
    mesh.ready("researcher").await?;
    until("a call goes through again", WAIT, async || {
        call(mesh).await.ok().filter(|(status, _)| *status == 200)
    })
    .await?;
    let pid = mesh.state("researcher")?.agent.unwrap_or_default();
    board.shown(
        "resumed",
        format!(
            "process {pid} started, a call went through after {}",
            millis(begun.elapsed())
        ),
    );
    // As it was.
    let _ = mesh.aip(&["agent", "lease", "ledger", "--on-lost", "continue"]).await?;
    Ok(())
}

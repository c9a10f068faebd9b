//! Step 7: the researcher's declared file is edited while it runs; it is cut off, with and without a control plane, and
//! comes back once that is approved and it was restarted.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::board::{Board, Promise, Target, against, in_time};
use super::calls::{self, Made};
use super::look::{page, until};
use super::mesh::Mesh;
use super::text::millis;
use crate::drift;
use crate::output::{cell, short};
use crate::run::state::Phase;

pub(super) const PROMISES: [Promise; 6] = [
    Promise {
        id: "cut",
        text: "an edit cuts the agent's open stream",
    },
    Promise {
        id: "refused",
        text: "peers refuse it; its SVIDs are revoked",
    },
    Promise {
        id: "stays",
        text: "its sidecar, killed and restarted, still refuses",
    },
    Promise {
        id: "recovers",
        text: "approved and restarted, it recovers",
    },
    Promise {
        id: "alone",
        text: "without a control plane it suspends itself, too",
    },
    Promise {
        id: "told",
        text: "and that is reported when there is one again",
    },
];

/// From the edit to the end of the stream, and to the refusal of the last peer.
const CUT_TARGET: Target = Target::strict(Duration::from_secs(2));
/// Events that are asked for: minutes of them, so that the stream's end is no accident.
const EVENTS: u32 = 900;
/// How long anything here may take at all.
const WAIT: Duration = Duration::from_secs(60);
/// What the planner is told of a call that its peer's sidecar refuses.
const AGENT: &str = "researcher";

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    edited(mesh, board).await?;
    restarted_sidecar(mesh, board).await?;
    let took = recover(mesh, board).await?;
    board.shown(
        "recovers",
        format!("{} after `aip run` was started again", millis(took)),
    );
    Box::pin(alone(mesh, board)).await
}

/// The edit under an open stream, and what peers say.
async fn edited(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let state = mesh.state(AGENT)?;
    let watched = async {
        let seen = calls::watch(mesh, EVENTS).await;
        (Instant::now(), seen.map(|(_, times)| times.len()))
    };
    let edit = async {
        until("the stream", WAIT, async || {
            let page = page(&state, "/connections").await.ok()?;
            (page["requests"].as_u64()? > 0).then_some(())
        })
        .await?;
        edit(mesh, "Edited while it ran")
    };
    let ((ended, seen), edited) = tokio::join!(watched, edit);
    let edited = edited?;
    let took = ended.saturating_duration_since(edited);
    board.fact(
        "edited",
        format!("{} while a stream of it was open", mesh.declared(AGENT).display()),
    );
    board.fact(
        "stream",
        format!(
            "ended {} after the write{}",
            millis(took),
            seen.map_or(String::new(), |events| format!(", after {events} of {EVENTS} events"))
        ),
    );
    board.timed("cut", took, CUT_TARGET, "");

    refused_by_peers(mesh, board, edited).await
}

/// What the control plane recorded, and what callers hear.
async fn refused_by_peers(mesh: &Mesh, board: &mut Board, edited: Instant) -> anyhow::Result<()> {
    let before = mesh.counted(AGENT, "POST /mcp").await?;
    let made = search(mesh).await?;
    board.fact("next call", why(&made));
    let record = reported(mesh, 2).await?;
    let revoked = edited.elapsed();
    let reached = mesh.counted(AGENT, "POST /mcp").await? > before;
    board.fact(
        "control plane",
        format!(
            "{} changed; generation {} begins, SVIDs of earlier ones are revoked: {} after the write",
            drift::changed(&record),
            cell(&record["generation"]),
            millis(revoked)
        ),
    );
    let again = until("the planner's sidecar to hear of it", WAIT, async || {
        // Until then it is the researcher's own sidecar that refuses.
        search(mesh).await.ok().filter(|made| !why(made).ends_with(" drifted"))
    })
    .await?;
    let peers = edited.elapsed();
    board.fact(
        "its peers",
        format!("{}, {} after the write", why(&again), millis(peers)),
    );
    let refused = !made.went_through() && !again.went_through() && !reached;
    let (first, then, after) = (why(&made), why(&again), against(peers, CUT_TARGET));
    board.decide(
        "refused",
        refused && in_time(peers, CUT_TARGET),
        format!("{first}, then at its peers {then} after {after}"),
    );
    Ok(())
}

/// Kills the suspended sidecar: its successor finds the marker.
async fn restarted_sidecar(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let old = mesh.state(AGENT)?;
    let pid = old.sidecar.and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw);
    kill_process(pid.context("the researcher's sidecar has no pid")?, Signal::KILL)?;
    let new = until("a new sidecar of the researcher", WAIT, async || {
        let new = mesh.state(AGENT).ok()?;
        let pages = page(&new, "/connections").await.is_ok();
        (new.sidecar_restarts > old.sidecar_restarts && pages).then_some(new)
    })
    .await?;
    // Peers refuse it anyway by now; what goes out of it, it alone refuses.
    let made = calls::out_of(mesh, AGENT, "ledger").await?;
    board.fact(
        "sidecar",
        format!(
            "killed, pid {} -> {}; a call out of it: {}",
            cell(&json!(old.sidecar)),
            cell(&json!(new.sidecar)),
            why(&made)
        ),
    );
    let itself = made.reason() == "drifted" && made.at("callee").is_none();
    board.decide("stays", itself, format!("a call out of it: {}", why(&made)));
    Ok(())
}

/// Approves what was found, starts the agent again, and waits for a call that goes through.
async fn recover(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string(mesh.declared(AGENT))?;
    let found = until("the measurement that waits", WAIT, async || {
        let admin = mesh.admin().ok()?;
        let waiting = admin
            .list(&format!("/v1/measurements?state=pending&agent={AGENT}"))
            .await
            .ok()?;
        let newest = waiting.into_iter().max_by_key(|m| m["seen"]["last_seen"].as_u64())?;
        newest["fingerprint"].as_str().map(str::to_owned)
    })
    .await?;
    let printed = mesh.aip(&["attest", "approve", AGENT, short(&found)]).await?;
    anyhow::ensure!(printed.code == Some(0), "not approved: {}", printed.stderr);
    board.fact(
        "approved",
        format!("aip attest approve {AGENT} {}: {}", short(&found), printed.stdout),
    );
    let waits = search(mesh).await?;
    anyhow::ensure!(!waits.went_through(), "the approval alone let it back in");
    let log = mesh.end_agent(AGENT).await?;
    let told = log.lines().rfind(|line| line.contains("drifted:"));
    board.fact("aip run said", told.unwrap_or("nothing").trim_start_matches("aip: "));
    let started = Instant::now();
    mesh.start_agent(AGENT, &text)?;
    mesh.ready(AGENT).await?;
    until("a call that goes through again", WAIT, async || {
        search(mesh).await.ok().filter(Made::went_through)
    })
    .await?;
    let took = started.elapsed();
    let identity = page(&mesh.state(AGENT)?, "/identity").await?;
    board.fact(
        "recovered",
        format!(
            "generation {}, attested as it lies there now",
            cell(&identity["attestation"]["generation"])
        ),
    );
    Ok(took)
}

/// The same without a control plane.
async fn alone(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let mut control_plane = mesh.control_plane.take().context("there is no control plane")?;
    control_plane.child.signal(Signal::KILL);
    control_plane.child.wait().await?;
    drop(control_plane);
    let shown = Box::pin(suspends_alone(mesh, board)).await;
    mesh.start_control_plane().await?;
    shown?;
    let back = Instant::now();
    let record = reported(mesh, 3).await?;
    let text = format!(
        "{} after it was back: generation {}",
        millis(back.elapsed()),
        cell(&record["generation"])
    );
    board.fact("reported", &text);
    board.shown("told", text);
    let took = recover(mesh, board).await?;
    board.fact(
        "again",
        format!("it serves {} after it was started again", millis(took)),
    );
    Ok(())
}

async fn suspends_alone(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let before = search(mesh).await?;
    anyhow::ensure!(before.went_through(), "a call before the edit failed: {}", why(&before));
    let edited = edit(mesh, "Edited with the control plane down")?;
    let made = until("a refused call", WAIT, async || {
        search(mesh).await.ok().filter(|made| !made.went_through())
    })
    .await?;
    let took = edited.elapsed();
    let state = until("what aip run says", WAIT, async || {
        mesh.state(AGENT).ok().filter(|state| state.phase == Phase::Drifted)
    })
    .await?;
    board.fact(
        "alone",
        format!(
            "control plane killed, file edited: refused {} after the write ({}); sidecar pid {} runs on",
            millis(took),
            why(&made),
            cell(&json!(state.sidecar))
        ),
    );
    board.timed("alone", took, CUT_TARGET, &format!("{} after ", why(&made)));
    Ok(())
}

/// Adds a document to the researcher's file; answers when.
fn edit(mesh: &Mesh, title: &str) -> anyhow::Result<Instant> {
    let path = mesh.declared(AGENT);
    let text = std::fs::read_to_string(&path)?;
    let begin = "\"documents\": [";
    anyhow::ensure!(text.contains(begin), "{} lists no documents", path.display());
    let added = format!("{begin}{{\"title\": \"{title}\", \"text\": \"by somebody\"}}, ");
    let at = Instant::now();
    std::fs::write(&path, text.replacen(begin, &added, 1))?;
    Ok(at)
}

/// What the control plane has recorded, once it is of this generation.
async fn reported(mesh: &Mesh, generation: u64) -> anyhow::Result<Value> {
    until("the drift at the control plane", WAIT, async || {
        let all = drift::blocked(&mesh.admin().ok()?).await.ok()?;
        let ours = all.into_iter().find(|drift| drift["agent"] == AGENT)?;
        (ours["generation"].as_u64()? >= generation).then_some(ours)
    })
    .await
}

async fn search(mesh: &Mesh) -> anyhow::Result<Made> {
    calls::mcp(mesh, AGENT, "search", json!({ "query": "shore" })).await
}

/// The reason of a refusal, as the planner read it.
fn why(made: &Made) -> String {
    format!("{} {}", made.status, made.reason())
}

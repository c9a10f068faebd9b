//! Step 5: policy changed by `aip policy apply`, and one that is broken.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::board::{Board, Promise, Target};
use super::calls;
use super::files::AGENTS;
use super::mesh::Mesh;
use super::text::millis;
use crate::policy::rollout::Acks;

pub(super) const PROMISES: [Promise; 4] = [
    Promise {
        id: "acked",
        text: "every sidecar acknowledges a policy change",
    },
    Promise {
        id: "effect",
        text: "the next call meets the new policy",
    },
    Promise {
        id: "broken",
        text: "a broken policy is refused by file and line",
    },
    Promise {
        id: "goes_on",
        text: "the last good policy goes on",
    },
];

/// From `aip policy apply` to the last sidecar's ACK, the policy's admission in a child process included.
const TARGET: Target = Target::quick(Duration::from_secs(1));

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let (open, _) = calls::watch(mesh, 1).await?;
    board.fact("before", format!("GET /events of the researcher: {}", open.status));
    anyhow::ensure!(open.went_through(), "the stream was closed before the policy said so");
    applied(mesh, board).await?;
    let (closed, _) = calls::watch(mesh, 1).await?;
    let other = calls::mcp(mesh, "researcher", "search", json!({ "query": "light" })).await?;
    let text = format!("GET /events: {}; POST /mcp: {}", closed.status, other.status);
    board.fact("after", text);
    let changed = closed.status == 403 && other.went_through();
    let text = format!(
        "GET /events {} -> {}, other calls as before",
        open.status, closed.status
    );
    board.decide("effect", changed, text);
    broken(mesh, board).await
}

/// Applies a policy as an operator would, and waits for the last sidecar's ACK.
async fn applied(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let apply = [
        "policy",
        "apply",
        "policies/research_hours.rego",
        "--attach",
        "mesh",
        "--output",
        "json",
    ];
    let printed = mesh.aip(&apply).await?;
    let applied = printed.code == Some(0);
    anyhow::ensure!(
        applied,
        "the policy was not applied: {} {}",
        printed.stdout,
        printed.stderr
    );
    let answer: Value = serde_json::from_str(&printed.stdout)?;
    let total = answer["total_ms"].as_f64().context("the command names no time")?;
    let total = Duration::from_secs_f64(total / 1_000.0);
    let acks = Acks::read(&answer["acks"]);
    let (revision, stored) = (&answer["revision"], &answer["stored_ms"]);
    board.fact(
        "applied",
        format!("revision {revision}, checked and stored in {stored} ms"),
    );
    let last = acks.last_ms.map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
    board.fact(
        "acknowledged",
        format!("by {}, the last {last} after it was stored", acks.acked.len()),
    );
    for sidecar in &acks.acked {
        board.fact("", sidecar);
    }
    let text = format!("{} from the command to the last sidecar's ACK", millis(total));
    board.fact("in all", text);
    board.timed("acked", total, TARGET, &format!("{} sidecars, ", acks.acked.len()));
    if !acks.nacked.is_empty() || !acks.missing.is_empty() || acks.acked.len() < AGENTS.len() {
        let text = format!(
            "{} acknowledged; missing: {}",
            acks.acked.len(),
            acks.missing.join(", ")
        );
        board.failed("acked", text);
    }
    Ok(())
}

async fn broken(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let before = mesh.admin()?.get("/v1/policies/research-hours").await?;
    let apply = ["policy", "apply", "policies/broken.rego"];
    let printed = mesh.aip(&apply).await?;
    board.quote(
        &format!("$ aip {}", apply.join(" ")),
        format!("{}\n{}", printed.stdout, printed.stderr).trim(),
    );
    board.fact("exit code", printed.code.map_or("none".into(), |c| c.to_string()));
    let mistake = super::files::mistake_line();
    let place = format!("policies/broken.rego:{mistake}:");
    let said = printed.code == Some(6) && printed.stderr.contains(&place);
    board.decide(
        "broken",
        said,
        format!("exit code {:?}, {place}…", printed.code.unwrap_or(-1)),
    );
    let after = mesh.admin()?.get("/v1/policies/research-hours").await?;
    let (closed, _) = calls::watch(mesh, 1).await?;
    board.fact(
        "still",
        format!(
            "GET /events: {}; the policy is at revision {}",
            closed.status, after["revision"]
        ),
    );
    board.decide(
        "goes_on",
        before == after && closed.status == 403,
        format!("revision {} stays", after["revision"]),
    );
    Ok(())
}

//! Step 5: policy changed by `aip policy apply`, and one that is broken.

use std::time::Duration;

use serde_json::{Value, json};

use super::board::{Board, Promise};
use super::calls;
use super::mesh::Mesh;
use super::text::millis;

pub(super) const PROMISES: [Promise; 4] = [
    Promise {
        id: "acked",
        text: "every sidecar acknowledges a policy change",
    },
    Promise {
        id: "effect",
        text: "the next call is decided by the new policy",
    },
    Promise {
        id: "broken",
        text: "a broken policy is refused with file and line",
    },
    Promise {
        id: "goes_on",
        text: "the last good policy goes on",
    },
];

/// From `aip policy apply` to the last sidecar's ACK, the policy's admission in a child process included.
const TARGET: Duration = Duration::from_secs(1);

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let (open, _) = calls::watch(mesh, 1).await?;
    board.fact("before", format!("GET /events of the researcher: {}", open.status));
    anyhow::ensure!(open.went_through(), "the stream was closed before the policy said so");
    let apply = [
        "policy",
        "apply",
        "policies/research_hours.rego",
        "--attach",
        "mesh",
        "--wait",
        "--output",
        "json",
    ];
    let printed = mesh.aip(&apply).await?;
    let answer: Value = serde_json::from_str(&printed.stdout).unwrap_or_default();
    anyhow::ensure!(
        printed.code == Some(0),
        "the policy was not applied: {} {}",
        printed.stdout,
        printed.stderr
    );
    let acks = crate::policy::rollout::Acks::read(&answer["acks"]);
    let total = Duration::from_secs_f64(answer["total_ms"].as_f64().unwrap_or(f64::MAX.sqrt()) / 1_000.0);
    board.fact(
        "applied",
        format!(
            "revision {}, checked and stored in {} ms",
            answer["revision"], answer["stored_ms"]
        ),
    );
    let last = acks.last_ms.map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
    let who = acks.acked.join(", ");
    board.fact(
        "acknowledged",
        format!("by {}: {who}; the last {last} after it was stored", acks.acked.len()),
    );
    board.fact(
        "in all",
        format!("{} from the command to the last sidecar's ACK", millis(total)),
    );
    let everyone = acks.nacked.is_empty() && acks.missing.is_empty() && acks.acked.len() >= 3;
    board.timed("acked", total, TARGET, &format!("{} sidecars, ", acks.acked.len()));
    if !everyone {
        board.failed(
            "acked",
            format!("acknowledged: {who}; missing: {}", acks.missing.join(", ")),
        );
    }

    let (closed, _) = calls::watch(mesh, 1).await?;
    let other = calls::mcp(mesh, "researcher", "search", json!({ "query": "light" })).await?;
    board.fact(
        "after",
        format!("GET /events: {}; POST /mcp: {}", closed.status, other.status),
    );
    let changed = closed.status == 403 && other.went_through();
    board.decide(
        "effect",
        changed,
        format!(
            "GET /events {} -> {}, other calls as before",
            open.status, closed.status
        ),
    );
    broken(mesh, board).await
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
    let mistake = super::mesh::mistake_line();
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

//! Step 11: a denied call, decided again from its record.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::board::{Board, Promise};
use super::calls;
use super::look::until;
use super::mesh::Mesh;
use crate::output::cell;

/// How long a record may take to come up to the control plane.
const COMES_UP: Duration = Duration::from_secs(20);

pub(super) const PROMISES: [Promise; 2] = [
    Promise {
        id: "same",
        text: "a denied call, decided again, is denied by the same rule",
    },
    Promise {
        id: "not-kept",
        text: "where a fact was not kept, the replay says which",
    },
];

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let books = calls::mcp(mesh, "ledger", "close_books", json!({})).await?;
    let decision = books
        .at("caller")
        .context("the caller's decision is missing")?
        .id
        .clone();
    let replayed = replay(mesh, &decision).await?;
    let text = format!(
        "{}, again {}",
        words(&replayed["recorded"]),
        words(&replayed["replayed"])
    );
    board.fact("close_books", format!("decision {decision}: {text}"));
    let denied = replayed["recorded"]["verdict"] == "deny" && replayed["not_kept"] == json!([]);
    board.decide("same", replayed["same"] == true && denied, text);

    // The rule of this one reads the amount, which is an argument: what callers write is not kept unless a policy says so.
    let transfer = json!({ "from": "operations", "to": "research", "amount": 5000 });
    let money = calls::mcp(mesh, "ledger", "transfer", transfer).await?;
    let decision = money
        .at("callee")
        .context("the callee's decision is missing")?
        .id
        .clone();
    let replayed = replay(mesh, &decision).await?;
    let missing = cell(&replayed["not_kept"]);
    let text = format!("{}; not kept: {missing}", words(&replayed["recorded"]));
    board.fact("transfer", format!("decision {decision}: {text}"));
    board.decide("not-kept", missing.contains("protocol.arguments"), text);
    Ok(())
}

fn words(outcome: &Value) -> String {
    format!("{} by {}", cell(&outcome["verdict"]), cell(&outcome["rule"]))
}

/// What `aip audit replay` says, once the record has come up.
async fn replay(mesh: &Mesh, decision: &str) -> anyhow::Result<Value> {
    let mut said = String::new();
    let found = until("the record of the decision", COMES_UP, async || {
        let printed = mesh
            .aip(&["audit", "replay", decision, "--output", "json"])
            .await
            .ok()?;
        said = printed.stderr;
        serde_json::from_str(&printed.stdout).ok()
    });
    let found = found.await;
    found.with_context(|| format!("aip audit replay: {said}"))
}

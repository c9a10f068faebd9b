//! Step 8: a verifier reports a hallucination; the next call is refused because of it, at every sidecar; a reset ends it.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::board::{Board, Promise, Target};
use super::calls;
use super::files::AGENTS;
use super::mesh::Mesh;
use crate::output::cell;
use crate::policy::rollout::Acks;

pub(super) const PROMISES: [Promise; 5] = [
    Promise {
        id: "slashed",
        text: "a verifier's report lowers the score at once, with its evidence",
    },
    Promise {
        id: "everywhere",
        text: "every sidecar holds it within seconds",
    },
    Promise {
        id: "refused",
        text: "the next call is refused because of it, at every sidecar",
    },
    Promise {
        id: "once",
        text: "the same report does not count twice, and nobody else may report",
    },
    Promise {
        id: "reset",
        text: "a reset, with its reason in the audit, lets calls through again",
    },
];

/// Why the reset.
const WHY: &str = "the report was checked by hand";
/// From the report of a hop that the audit has to the last sidecar's ACK.
const TARGET: Target = Target::strict(Duration::from_secs(2));
/// Who reports.
const VERIFIER: &str = "fact-checker";

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    let made = calls::mcp(mesh, "researcher", "search", json!({ "query": "shore" })).await?;
    anyhow::ensure!(made.went_through(), "the call to be reported was not allowed: {made:?}");
    let decision = made.at("callee").context("the callee's decision is missing")?;
    let evidence = format!("decision:{}", decision.id);
    let before = score(mesh).await?;
    let token = issue(mesh, VERIFIER, "verifier").await?;
    let report = [
        "reputation",
        "report",
        "researcher",
        "--finding",
        "hallucination",
        "--severity",
        "critical",
        "--evidence",
        &evidence,
        "--claim",
        "cites a paper that does not exist",
        "--token-file",
        &token,
        "--output",
        "json",
    ];
    let printed = mesh.aip(&report).await?;
    anyhow::ensure!(printed.code == Some(0), "the report was not taken: {}", printed.stderr);
    let answer: Value = serde_json::from_str(&printed.stdout)?;
    let after = score(mesh).await?;
    board.fact(
        "reported",
        format!("hallucination, critical, {evidence}, by {VERIFIER}"),
    );
    board.fact(
        "score",
        format!("{} ({}) -> {} ({})", before.0, before.1, after.0, after.1),
    );
    let slashed = after.0 < before.0 - 1.9 && after.2.contains(&evidence);
    board.decide(
        "slashed",
        slashed,
        format!("{:.2} -> {:.2}, {}", before.0, after.0, after.1),
    );

    let acks = Acks::read(&answer["acks"]);
    let total = answer["total_ms"].as_f64().context("the command names no time")?;
    let took = Duration::from_secs_f64(total / 1_000.0);
    board.timed("everywhere", took, TARGET, &format!("{} sidecars, ", acks.acked.len()));
    if acks.acked.len() < AGENTS.len() || !acks.missing.is_empty() || !acks.nacked.is_empty() {
        board.failed("everywhere", format!("acknowledged by {}", acks.acked.join(", ")));
    }
    refused(mesh, board).await?;
    once(mesh, board, &report).await?;
    reset(mesh, board).await
}

/// The researcher's score, its level, and the evidence of its slashes.
async fn score(mesh: &Mesh) -> anyhow::Result<(f64, String, Vec<String>)> {
    let shown = mesh.admin()?.get("/v1/reputation/researcher").await?;
    let slashes = shown["reputation"]["slashes"].as_array().into_iter().flatten();
    Ok((
        shown["score"].as_f64().context("no score")?,
        cell(&shown["level"]),
        slashes.map(|s| cell(&s["evidence"])).collect(),
    ))
}

/// Issues a token of a role to a person, as an operator would.
async fn issue(mesh: &Mesh, person: &str, role: &str) -> anyhow::Result<String> {
    let file = mesh.dir.path().join(format!("{role}.jwt")).display().to_string();
    let printed = mesh
        .aip(&["admin", "issue", person, "--role", role, "--out", &file])
        .await?;
    anyhow::ensure!(printed.code == Some(0), "no token was issued: {}", printed.stderr);
    Ok(file)
}

/// What a call through the sidecar of `from` is answered.
async fn call(mesh: &Mesh, from: &str, to: &str) -> anyhow::Result<Value> {
    let call = ["call", to, "/stats", "--from", from, "--output", "json"];
    let printed = mesh.aip(&call).await?;
    serde_json::from_str(&printed.stdout).with_context(|| format!("aip {}: {}", call.join(" "), printed.stderr))
}

async fn refused(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let before = mesh.counted_all("researcher").await?;
    // Each sidecar has an end of a hop at which the researcher is: two call it, and its own lets nothing of it out.
    let mut all = true;
    for (from, to) in [
        ("planner", "researcher"),
        ("ledger", "researcher"),
        ("researcher", "ledger"),
    ] {
        let answer = call(mesh, from, to).await?;
        let problem = &answer["problem"];
        let is_refused = answer["status"] == 403 && problem["reason"] == "reputation_too_low";
        all &= is_refused;
        board.fact(
            &format!("{from}'s sidecar"),
            format!(
                "{from} -> {to}: {} {} in {} ms",
                cell(&answer["status"]),
                cell(&problem["reason"]),
                cell(&answer["ms"])
            ),
        );
        board.fact("", cell(&problem["detail"]));
    }
    let after = mesh.counted_all("researcher").await?;
    let text = format!("by 3 sidecars; the researcher counted {} more", after - before);
    board.decide("refused", all && after == before, text);
    Ok(())
}

async fn once(mesh: &Mesh, board: &mut Board, report: &[&str]) -> anyhow::Result<()> {
    let before = score(mesh).await?;
    let again = mesh.aip(report).await?;
    let repeated = again.code == Some(0) && again.stdout.contains("\"repeated\": true");
    let viewer = issue(mesh, "passer-by", "viewer").await?;
    let token = report.iter().position(|a| *a == "--token-file").context("no token")? + 1;
    let mut forged = report.to_vec();
    forged[token] = &viewer;
    let forged = mesh.aip(&forged).await?;
    board.fact("again", "the same report: nothing was counted");
    board.fact("as a viewer", forged.stderr.lines().next().unwrap_or("-"));
    let after = score(mesh).await?;
    let refused = forged.stderr.contains("role_forbidden");
    let holds = repeated && refused && (after.0 - before.0).abs() < 0.02;
    board.decide("once", holds, format!("still {:.2}; a viewer's is refused", after.0));
    Ok(())
}

async fn reset(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let reset = ["reputation", "reset", "researcher", "--reason", WHY];
    let printed = mesh.aip(&reset).await?;
    board.quote(&format!("$ aip {}", reset.join(" ")), &printed.stdout);
    anyhow::ensure!(printed.code == Some(0), "it was not reset: {}", printed.stderr);
    let audit = mesh.admin()?.get("/v1/audit?limit=5").await?;
    let entries = audit["items"].as_array().into_iter().flatten();
    let audited = entries.into_iter().any(|e| {
        let detail = e["detail"].as_str().unwrap_or_default();
        e["action"] == "reputation.reset" && e["subject"] == "researcher" && detail.contains(WHY)
    });
    let made = calls::mcp(mesh, "researcher", "search", json!({ "query": "shore" })).await?;
    let text = format!("{} after the reset, which the audit names with its reason", made.status);
    board.decide("reset", made.went_through() && audited, text);
    Ok(())
}

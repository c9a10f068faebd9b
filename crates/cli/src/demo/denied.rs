//! Step 3: a call that policy denies, at the caller's end and at the callee's.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::access;
use super::board::{Board, Promise};
use super::calls::{self, Made};
use super::mesh::Mesh;
use crate::output::cell;

pub(super) const PROMISES: [Promise; 3] = [
    Promise {
        id: "caller",
        text: "a denied call ends at the caller's sidecar",
    },
    Promise {
        id: "callee",
        text: "the callee refuses what the caller let out",
    },
    Promise {
        id: "unseen",
        text: "the agent never saw a denied call",
    },
];

pub(super) async fn show(mesh: &mut Mesh, board: &mut Board) -> anyhow::Result<()> {
    limit_the_ledger(mesh, board).await?;
    let before = mesh.counted_all("ledger").await?;
    let books = calls::mcp(mesh, "ledger", "close_books", json!({})).await?;
    describe(board, "close_books", &books);
    let caller = denied_by(&books, "caller") && useful(&books, "ledger-limits/people-close-the-books");
    let text = format!("{} by the caller, with reason, rule and decision", books.status);
    board.decide("caller", caller, text);

    let transfer = json!({ "from": "operations", "to": "research", "amount": 5000 });
    let money = calls::mcp(mesh, "ledger", "transfer", transfer).await?;
    describe(board, "transfer", &money);
    let passed = money.at("caller").is_some_and(|d| d.verdict == "allow");
    let callee = passed && denied_by(&money, "callee") && useful(&money, "ledger-limits/largest-transfer");
    let text = format!("{}: allow by the caller, deny by the callee", money.status);
    board.decide("callee", callee, text);
    let decision = money.at("callee").context("the callee's decision is missing")?;
    let line = access::line(&mesh.state("ledger")?.sidecar_log, &decision.id).await?;
    let (verdict, rule, who) = (cell(&line["verdict"]), cell(&line["rule"]), cell(&line["source"]));
    board.fact("ledger's log", format!("{verdict} by {rule}, caller {who}"));

    let after = mesh.counted_all("ledger").await?;
    let text = format!("access count {before} before, {after} after both");
    board.fact("ledger", format!("its own {text}"));
    board.decide("unseen", before == after, text);
    Ok(())
}

/// Applies the ledger's policy, as an operator would, and shows that what it doesn't name goes on.
async fn limit_the_ledger(mesh: &Mesh, board: &mut Board) -> anyhow::Result<()> {
    let apply = [
        "policy",
        "apply",
        "policies/ledger_limits.rego",
        "--attach",
        "agent=ledger",
    ];
    let printed = mesh.aip(&apply).await?;
    let said = format!("{}\n{}", printed.stdout, printed.stderr);
    board.quote(&format!("$ aip {}", apply.join(" ")), said.trim());
    anyhow::ensure!(printed.code == Some(0), "the policy was not applied");
    let open = calls::mcp(mesh, "ledger", "balance", json!({ "account": "operations" })).await?;
    let text = format!("{} {}", open.status, open.answer["result"]["structuredContent"]);
    board.fact("balance", text);
    anyhow::ensure!(
        open.went_through(),
        "a call that no rule denies was not allowed: {open:?}"
    );
    Ok(())
}

fn describe(board: &mut Board, tool: &str, made: &Made) {
    let answer = problem(made);
    let said = format!(
        "{} {}: {}",
        made.status,
        cell(&answer["reason"]),
        cell(&answer["detail"])
    );
    board.fact(tool, said);
    let ends: Vec<String> = made
        .decisions
        .iter()
        .map(|d| format!("{} at the {}", d.verdict, d.end))
        .collect();
    let (rule, id) = (cell(&answer["rule"]), cell(&answer["decision_id"]));
    board.fact("", format!("rule {rule}, {}, decision {id}", ends.join(", ")));
}

fn denied_by(made: &Made, end: &str) -> bool {
    made.at(end).is_some_and(|d| d.verdict == "deny")
}

/// The problem document in a JSON-RPC error.
fn problem(made: &Made) -> &Value {
    &made.answer["error"]["data"]
}

/// A refusal that its caller can do something with: why, by which rule, under which id.
fn useful(made: &Made, rule: &str) -> bool {
    let answer = problem(made);
    let text = |key: &str| answer[key].as_str().is_some_and(|t| !t.is_empty());
    made.status == 403 && text("reason") && text("detail") && text("decision_id") && cell(&answer["rule"]) == rule
}

//! Agents that call each other by URL: a LangGraph over three agents, an agent that calls on, a redirect to another one.

use std::process::Command;

use aip_tests::clients::clients;
use aip_tests::process::RunAgent;
use aip_tests::wait;
use serde_json::{Value, json};

use super::{EXPRESS, FASTAPI, HTTP, Turn, settled, world};

/// How often each agent was called, by the destinations of a sidecar's outbound records.
fn called(agent: &RunAgent, before: usize) -> Vec<String> {
    let records = agent.records().0;
    let outbound = records[before..].iter().filter(|r| r.direction() == "outbound");
    outbound
        .map(|r| r.text("destination").rsplit('/').next().unwrap_or_default().to_owned())
        .collect()
}

const TEAM: [&str; 3] = [
    "http://http.aip.internal/plan",
    "http://express.aip.internal/echo",
    "http://fastapi.aip.internal/echo",
];

/// The turn of an agent of the team; the others serve.
async fn team_turn() -> Turn {
    for agent in [&HTTP, &EXPRESS] {
        drop(agent.turn().await);
    }
    FASTAPI.turn().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_langgraph_of_three_agents_that_knows_their_urls_only() {
    let turn = team_turn().await;
    let got = turn.script("team.py", &TEAM).await;
    let notes = json!(["plan after 0", "research after 1", "write after 2"]);
    assert_eq!(got, json!({"notes": notes, "refused": {}}));
    settled(turn.caller, turn.callee).await;
    assert_eq!(called(turn.caller, turn.before.0), ["http", "express", "fastapi"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_langgraph_learns_which_of_its_agents_it_may_not_call() {
    let turn = team_turn().await;
    let args = [TEAM[0], TEAM[1], "http://fastapi.aip.internal/forbidden"];
    let got = turn.script("team.py", &args).await;
    let refused = json!({"by": "write", "status": 403, "rule": "no_forbidden_path"});
    assert_eq!(got["refused"], refused, "{got}");
    assert_eq!(got["notes"], json!(["plan after 0", "research after 1"]));
    turn.denied("no_forbidden_path").await;
    assert_eq!(turn.seen(), Vec::<Value>::new());
}

/// `aip run -- python team.py …`, unchanged: its output and its status are the program's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_runs_unchanged() {
    let turn = team_turn().await;
    let world = world().await;
    let program = clients().script("team.py", &TEAM);
    let mut command: Command = world.mesh.aip_command(&["run", "--name", "team", "--no-serve"]);
    command
        .arg("--control-plane")
        .arg(world.mesh.control_plane.mesh.to_string());
    command.arg("--").arg(program.get_program()).args(program.get_args());
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = tokio::time::timeout(wait::DEADLINE * 2, output).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let last: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap();
    assert_eq!(last["notes"].as_array().map(Vec::len), Some(3), "{output:?}");
    settled(turn.caller, turn.callee).await;
    let sources: Vec<_> = turn.records().1.0.iter().map(|r| r.text("source").to_owned()).collect();
    assert!(
        sources.iter().all(|s| s.ends_with("/agent/team")) && sources.len() == 1,
        "{sources:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_calls_on_by_url() {
    let turn = team_turn().await;
    let before = turn.callee.records().0.len();
    let ask = |path: &str| format!("http://fastapi.aip.internal/ask?url=http://http.aip.internal/{path}");
    let got = turn.run(super::plain::curl(&[&ask("on")])).await.observed();
    assert_eq!(got["status"], 200, "{got}");
    let got = turn.run(super::plain::curl(&[&ask("forbidden")])).await.observed();
    assert_eq!(got["status"], 403, "{got}");
    settled(turn.caller, turn.callee).await;
    assert_eq!(
        called(turn.callee, before),
        ["http", "http"],
        "under the agent's own name"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_agent_is_followed_through_the_mesh() {
    let turn = team_turn().await;
    let url = "http://fastapi.aip.internal/elsewhere?to=http://express.aip.internal/echo";
    let got = turn.run(super::plain::curl(&["-L", url])).await.observed();
    assert_eq!(got["method"], "GET", "{got}");
    settled(turn.caller, turn.callee).await;
    assert_eq!(called(turn.caller, turn.before.0), ["fastapi", "express"]);
}

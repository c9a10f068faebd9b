//! An agent that only calls: `aip run --no-serve` waits for no port, its command ends as it would without AIP, and whoever
//! calls it learns that it serves nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::http;
use aip_tests::process::{Mesh, RunAgent, pairs};
use aip_tests::wait;
use serde_json::Value;

/// Calls once, says what it got and which port it was given, and ends with a status of its own.
const CALLS: &str = "import os, sys, urllib.request
answer = urllib.request.urlopen('http://callee.aip.internal/once', timeout=60)
print(answer.status, os.environ.get('PORT'), flush=True)
sys.exit(3)";

/// Never listens, and never ends.
const WAITS: &str = "import signal
signal.pause()";

/// The command and its arguments, as `aip run` gets them.
fn run(mesh: &Mesh, name: &str, flags: &[&str], program: &str) -> Command {
    let control_plane = mesh.control_plane.mesh.to_string();
    let mut command = mesh.aip_command(&["run", "--name", name, "--control-plane", &control_plane]);
    command.args(flags).args(["--", "python3", "-c", program]);
    command.env_remove("PORT");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_only_calls_ends_as_it_would_without_aip() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let _callee = mesh.sidecar("callee", agent.address).await;
    let output = run(&mesh, "caller", &["--no-serve"], CALLS).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "200 None", "{said}");
    assert!(said.contains("serves nothing"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_an_agent_that_serves_nothing_are_refused() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let other = mesh.sidecar("other", agent.address).await;
    let mut program = Command::new("python3");
    program.args(["-c", WAITS]);
    let silent = RunAgent::start(&mesh, "silent", &program, &["--no-serve"]).await;
    assert!(silent.state["address"].is_null(), "{}", silent.state);
    let answer = other.get("http://silent.aip.internal/").await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason().as_str()),
        (503, "serves_nothing")
    );
    wait::until_ok("both ends recorded it", async || {
        pairs(&other.records(), &silent.records())
    })
    .await;
    // Nothing listens that would show the sidecar that its agent is its own user: it is told.
    let config: Value = serde_json::from_str(&http::get(silent.admin(), "/config").await.unwrap().text()).unwrap();
    let own = rustix::process::getuid().as_raw();
    assert_eq!(config["access"]["agent_uid"], own, "{config}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_does_not_listen_is_told_of_no_serve() {
    let mesh = Mesh::start().await;
    let output = run(&mesh, "silent", &["--wait", "1"], WAITS).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(
        said.contains("does not listen on port") && said.contains("--no-serve"),
        "{said}"
    );
}

//! The agent's process is ended, and who can't be told is named.

use std::path::Path;
use std::process::{Command, Output};

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, RunAgent, Sidecar, SidecarSpec};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

/// Ends `aip kill --wait` where somebody who may run has not enforced it.
const NOT_ALL: i32 = 7;

/// Whether a process runs; one that has ended and was not waited for does not.
pub(super) fn runs(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

async fn drift_reported(mesh: &Mesh, name: &str) {
    wait::until("the drift is reported", async || {
        let all = mesh.admin().get("/v1/drift").await;
        let all = all["items"].as_array()?.clone();
        all.into_iter().find(|drift| drift["agent"] == name)
    })
    .await;
}

/// An agent behind `aip run`, with a file that is measured, and its process.
pub(super) async fn supervised(mesh: &Mesh, name: &str) -> (RunAgent, u64) {
    let mut program = Command::new("sh");
    program
        .arg("-c")
        .arg("exec python3 -m http.server $PORT --bind 127.0.0.1");
    std::fs::write(mesh.dir(&format!("run-{name}")).join("code.txt"), name).unwrap();
    let agent = RunAgent::start(mesh, name, &program, &["--code", "code.txt"]).await;
    let pid = agent.state["agent"].as_u64().unwrap();
    assert!(runs(pid));
    (agent, pid)
}

pub(super) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

pub(super) async fn ends(agent: &RunAgent, pid: u64) {
    let what = format!("the process of {} is ended", agent.name);
    wait::until_ok(&what, async || match runs(pid) {
        true => Err(agent.process.stderr()),
        false => Ok(()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_ends_the_process_of_an_agent_that_drifted_and_a_resume_starts_none() {
    let mesh = Mesh::start().await;
    let (agent, pid) = supervised(&mesh, "drifter").await;
    std::fs::write(mesh.dir("run-drifter").join("code.txt"), "edited").unwrap();
    drift_reported(&mesh, "drifter").await;
    assert!(runs(pid), "a drift cuts the agent off, and ends nothing");

    let killed = mesh.aip(&["kill", "--agent", "drifter", "--reason", "a test", "--wait"]);
    assert!(killed.status.success(), "{}", said(&killed));
    assert!(
        said(&killed).contains("enforced by 1 of 1 sidecar"),
        "{}",
        said(&killed)
    );
    ends(&agent, pid).await;

    let resumed = mesh.aip(&["resume", "--all", "--wait"]);
    assert!(resumed.status.success(), "{}", said(&resumed));
    wait::until_ok("aip run says that it starts nothing", async || {
        let said = agent.process.stderr();
        said.contains("was resumed, and not started again")
            .then_some(())
            .ok_or(said)
    })
    .await;
    let drift = mesh.admin().get("/v1/drift").await;
    assert_eq!(drift["items"][0]["recovered_at"], Value::Null, "{drift}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_ends_the_process_of_an_agent_that_was_revoked_or_removed() {
    let mesh = Mesh::start().await;
    let mut agents = Vec::new();
    for (name, method, path) in [
        ("generation", Method::POST, "/v1/agents/generation/revoke"),
        ("serial", Method::POST, "/v1/agents/serial/revoke"),
        ("removed", Method::DELETE, "/v1/agents/removed"),
    ] {
        let (agent, pid) = supervised(&mesh, name).await;
        let svids = mesh.admin().get(&format!("/v1/agents/{name}/svids")).await;
        let body = match name {
            "serial" => Some(json!({"serial": svids["items"][0]["serial"]})),
            "generation" => Some(json!({})),
            _ => None,
        };
        mesh.admin().ok(method, path, body.as_ref()).await;
        assert!(runs(pid), "{name}");
        let order = json!({"scope": {"kind": "agent", "agent": name}, "mode": "kill", "reason": "a test"});
        mesh.admin().ok(Method::POST, "/v1/kills", Some(&order)).await;
        ends(&agent, pid).await;
        let progress = mesh.aip(&["kill", "progress", "--wait"]);
        assert!(progress.status.success(), "{name}: {}", said(&progress));
        let own: Value = mesh.admin().get("/v1/kills/progress").await;
        let enforced = own["enforced"].as_array().unwrap().iter();
        let mut enforced = enforced.map(|one| one["sidecar"].as_str().unwrap());
        assert!(enforced.any(|one| one.starts_with(name)), "{name}: {own}");
        agents.push(agent);
    }
}

fn in_run(spec: &SidecarSpec, run: &str) -> SidecarSpec {
    let mut spec = spec.clone();
    spec.flags = vec!["--run".into(), run.into()];
    spec
}

fn edit(dir: &Path) {
    std::fs::write(dir.join("code/agent.txt"), "edited").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_of_an_agent_that_drifted_did_not_stop_itself() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let spec = mesh.spec(json!({"name": "twin"}), agent.address).await;
    let mut other = spec.clone();
    other.token = mesh.admin().token("twin").await;
    let [one, two] = ["one", "two"].map(|name| mesh.dir(name));
    for dir in [&one, &two] {
        // Both run the same.
        std::fs::create_dir_all(dir.join("code")).unwrap();
        std::fs::write(dir.join("code/agent.txt"), "twin").unwrap();
    }
    let mut first = Sidecar::start(in_run(&spec, "first"), &one).await;
    // As one that is cut off looks from here; it may serve all the same.
    Sidecar::start(in_run(&other, "second"), &two).await.process.kill();
    edit(&one);
    drift_reported(&mesh, "twin").await;
    let killed = mesh.aip(&["kill", "--agent", "twin", "--reason", "a test", "--wait"]);
    let told = said(&killed);
    assert_eq!(killed.status.code(), Some(NOT_ALL), "{told}");
    for part in ["enforced by 1 of 2 sidecars", "out of reach: certainly stopped by"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let progress = mesh.admin().get("/v1/kills/progress").await;
    let count = |key: &str| progress[key].as_array().unwrap().len();
    assert_eq!((count("vanished"), count("drifted")), (1, 0), "{progress}");

    // The one that drifted hears again after a restart in the same run, and is no other then.
    first.process.kill();
    let mut first = Sidecar::start_unready(in_run(&spec, "first"), &one).await;
    mesh.aip(&["kill", "--mesh", "--reason", "a test"]);
    wait::until_ok("it has enforced that, too", async || {
        let progress = mesh.admin().get("/v1/kills/progress").await;
        let (enforced, drifted) = (progress["enforced"].as_array(), progress["drifted"].as_array());
        let is_one = enforced.is_some_and(|all| all.len() == 1) && drifted.is_some_and(Vec::is_empty);
        is_one.then_some(()).ok_or_else(|| progress.to_string())
    })
    .await;
    // And without a stream it is named by what is known of it.
    first.process.kill();
    let killed = mesh.aip(&["kill", "--mesh", "--reason", "a test", "--wait"]);
    let told = said(&killed);
    assert_eq!(killed.status.code(), Some(NOT_ALL), "{told}");
    let words = "drifted and out of reach: it serves nothing; its agent's process may run on";
    assert!(told.contains(words), "{told}");
}

//! Orders to stop, with real processes: nothing of a killed agent goes on, and what is on disk is what holds after a crash.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, RunAgent, Sidecar};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

/// The variable that says at which point a process ends (`aip_runtime::fault`).
const FAULT: &str = "AIP_FAULT";

async fn kill(mesh: &Mesh, agent: &str) -> Value {
    let scope = json!({"kind": "agent", "agent": agent});
    let order = json!({"scope": scope, "mode": "kill", "reason": "a test"});
    mesh.admin().ok(Method::POST, "/v1/kills", Some(&order)).await
}

async fn progress(mesh: &Mesh, order: &Value, wait_ms: u64) -> Value {
    let (term, epoch) = (&order["term"], &order["epoch"]);
    let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms={wait_ms}");
    mesh.admin().get(&path).await
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// In a session and group of their own, deaf to SIGTERM, and orphans: one was started by a shell that has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_ends_also_what_left_the_agents_process_group() {
    let mesh = Mesh::start().await;
    let files = mesh.dir("escaped");
    let escape = |n: u32| {
        let file = files.join(n.to_string());
        format!(
            "setsid sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 1; done'",
            file.display()
        )
    };
    let mut program = Command::new("sh");
    program.arg("-c").arg(format!(
        "{} & (({}) &) ; exec python3 -m http.server $PORT --bind 127.0.0.1",
        escape(1),
        escape(2)
    ));
    let agent = RunAgent::start(&mesh, "restless", &program, &[]).await;
    let mut escaped = Vec::new();
    for n in ["1", "2"] {
        let read = || std::fs::read_to_string(files.join(n)).ok()?.trim().parse().ok();
        let pid: u32 = wait::until("it has left the group", async || read()).await;
        assert!(runs(pid));
        escaped.push(pid);
    }
    escaped.push(agent.state["agent"].as_u64().unwrap().try_into().unwrap());
    kill(&mesh, "restless").await;
    wait::until("aip run says what became of it", async || {
        agent
            .process
            .stderr()
            .contains("was stopped by an operator")
            .then_some(())
    })
    .await;
    let said = agent.process.stderr();
    let left: Vec<_> = escaped.iter().filter(|pid| runs(**pid)).collect();
    assert!(left.is_empty(), "{left:?} of {escaped:?} run on, and it says: {said}");
    assert!(said.contains("its processes are ended"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_ends_between_writing_a_set_and_saying_so_holds_it_and_has_not_said_so() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let dir = mesh.dir("callee");
    Sidecar::start(spec.clone(), &dir).await.process.kill();

    let mut command = Sidecar::command(&spec, &dir);
    // What it holds and is granted is on its disk already: the next that it writes is the order.
    command.env(FAULT, "kill.json:kept#1");
    let mut sidecar = Sidecar::start_as(spec.clone(), &dir, &command).await;
    sidecar.ready().await;
    let order = kill(&mesh, "callee").await;
    let status = wait::until("it ends", async || sidecar.process.ended()).await;
    assert_eq!(status.signal(), Some(9), "{status}");
    let shown = progress(&mesh, &order, 0).await;
    assert_eq!(shown["enforced"], json!([]), "{shown}");
    assert_eq!(shown["missing"].as_array().unwrap().len(), 1, "{shown}");

    // Nobody tells it again: what it wrote holds.
    mesh.control_plane.kill();
    let sidecar = Sidecar::start_unready(spec, &dir).await;
    let answer = wait::until("it knows who it is", async || {
        let answer = sidecar.get("http://caller.aip.internal/").await;
        answer.text().contains("killed").then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 503);
    mesh.revive().await;
    wait::until_ok("the set that it holds counts as enforced", async || {
        let shown = progress(&mesh, &order, 1_000).await;
        let enforced = shown["enforced"].as_array().is_some_and(|all| all.len() == 1);
        enforced.then_some(()).ok_or_else(|| shown.to_string())
    })
    .await;
}

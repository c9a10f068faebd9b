//! Orders to stop, with real processes: nothing of a killed agent goes on, and what is on disk is what holds after a crash.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod restored;
mod unheard;
mod webhook;

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

/// What it holds and is granted is on its disk already when it has such a variable: the next that it writes is the order.
const POINTS: [&str; 4] = [
    "kill.json:written#1",
    "kill.json:synced#1",
    "kill.json:renamed#1",
    "kill.json:kept#1",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_ends_while_it_takes_a_set_has_not_said_so_and_takes_it_when_it_is_back() {
    for point in POINTS {
        ends_while_it_takes_a_set(point).await;
    }
}

async fn ends_while_it_takes_a_set(point: &str) {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let dir = mesh.dir("callee");
    Sidecar::start(spec.clone(), &dir).await.process.kill();

    let mut command = Sidecar::command(&spec, &dir);
    command.env(FAULT, point);
    let mut sidecar = Sidecar::start_as(spec.clone(), &dir, &command).await;
    sidecar.ready().await;
    let order = kill(&mesh, "callee").await;
    let status = wait::until(&format!("it ends at {point}"), async || sidecar.process.ended()).await;
    assert_eq!(status.signal(), Some(9), "at {point}: {status}");
    let shown = progress(&mesh, &order, 0).await;
    assert_eq!(shown["enforced"], json!([]), "at {point}: {shown}");
    assert_eq!(shown["missing"].as_array().unwrap().len(), 1, "at {point}: {shown}");

    // Nobody tells it again: what it wrote holds, and what it had before where it had not.
    mesh.control_plane.kill();
    let sidecar = Sidecar::start_unready(spec, &dir).await;
    let wrote = ["renamed", "kept"].iter().any(|late| point.contains(late));
    wait::until_ok(&format!("it goes on from what it wrote at {point}"), async || {
        let page = sidecar.look("/kill").await.json();
        let orders = page["orders"].as_array().map_or(0, Vec::len);
        let refused = sidecar.get("http://caller.aip.internal/").await;
        let is_killed = refused.status == 503 && refused.text().contains("\"killed\"");
        let holds = orders == usize::from(wrote) && is_killed == wrote;
        holds.then_some(()).ok_or_else(|| format!("{page} {}", refused.text()))
    })
    .await;
    mesh.revive().await;
    wait::until_ok("it is enforced everywhere", async || {
        let shown = progress(&mesh, &order, 1_000).await;
        let enforced = shown["enforced"].as_array().is_some_and(|all| all.len() == 1);
        enforced.then_some(()).ok_or_else(|| shown.to_string())
    })
    .await;
    let refused = sidecar.get("http://caller.aip.internal/").await;
    assert!(refused.text().contains("\"killed\""), "at {point}: {}", refused.text());
}

/// Whoever changes the file to let an agent go on has stopped everything until the control plane is heard.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_set_that_was_changed_on_disk_stops_everything_and_the_log_says_why() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let dir = mesh.dir("callee");
    let mut sidecar = Sidecar::start(spec.clone(), &dir).await;
    let order = kill(&mesh, "callee").await;
    wait::until_ok("it is enforced", async || {
        let shown = progress(&mesh, &order, 1_000).await;
        (shown["missing"] == json!([]))
            .then_some(())
            .ok_or_else(|| shown.to_string())
    })
    .await;
    sidecar.process.kill();
    mesh.control_plane.kill();
    let file = dir.join("data/kill.json");
    let good = std::fs::read_to_string(&file).unwrap();
    for (text, why) in [
        (good.replacen("callee", "nobody", 1), "is not the control plane's"),
        (good[..good.len() / 2].to_owned(), "can't be read"),
        (String::new(), "can't be read"),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut sidecar = Sidecar::start_unready(spec.clone(), &dir).await;
        let refused = sidecar.get("http://caller.aip.internal/").await;
        assert_eq!(
            (refused.status.as_u16(), refused.reason().as_str()),
            (503, "kill_state_unknown")
        );
        assert!(
            sidecar.process.stderr().contains(why),
            "{}",
            sidecar.process.last_words()
        );
        sidecar.process.kill();
    }
    mesh.revive().await;
    let sidecar = Sidecar::start(spec, &dir).await;
    assert_eq!(sidecar.get("http://caller.aip.internal/").await.reason(), "killed");
}

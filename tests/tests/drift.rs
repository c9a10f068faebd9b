//! Drift, with real processes: a sidecar suspends itself with and without a control plane, stays so however it is ended,
//! and its agent comes back by approval and restart alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aip_tests::agent::Agent;
use aip_tests::http::{head_came, raw, read_until};
use aip_tests::pki::LeafSpec;
use aip_tests::process::{Mesh, Process, Sidecar, SidecarSpec};
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// The variable that says at which point a process ends (`aip_runtime::fault`).
const FAULT: &str = "AIP_FAULT";

/// How long a report may take: a sidecar whose stream was refused a few times waits up to 15 s, and is to be let in first.
const HEARD_OF: Duration = Duration::from_secs(120);

fn edit(dir: &Path) {
    std::fs::write(dir.join("code/agent.txt"), "edited").unwrap();
}

fn in_run(spec: &SidecarSpec, run: &str) -> SidecarSpec {
    let mut spec = spec.clone();
    spec.flags = vec!["--run".into(), run.into()];
    spec
}

async fn reaches(caller: &Sidecar, name: &str) {
    let url = format!("http://{name}.aip.internal/work");
    wait::until_ok("a call gets through", async || {
        let answer = caller.get(&url).await;
        (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}

/// What the control plane has of the drift of this agent, once it has it.
async fn reported(mesh: &Mesh, name: &str) -> Value {
    wait::until_within(HEARD_OF, "the report", async || {
        let all = mesh.admin().get("/v1/drift").await;
        let all = all["items"].as_array()?.clone();
        all.into_iter().find(|drift| drift["agent"] == name)
    })
    .await
}

async fn approve_all(mesh: &Mesh, name: &str) {
    let waiting = mesh
        .admin()
        .get(&format!("/v1/measurements?state=pending&agent={name}"))
        .await;
    for waits in waiting["items"].as_array().unwrap() {
        let print = waits["fingerprint"].as_str().unwrap();
        let path = format!("/v1/measurements/{name}/{print}/approve");
        mesh.admin().ok(Method::POST, &path, Some(&json!({}))).await;
    }
}

/// Approved and restarted: it serves again.
async fn comes_back(mesh: &Mesh, caller: &Sidecar, spec: &SidecarSpec, dir: &Path) -> Sidecar {
    approve_all(mesh, &spec.name).await;
    let mut spec = in_run(spec, "second-run");
    spec.token = mesh.admin().token(&spec.name).await;
    let back = Sidecar::start(spec, dir).await;
    assert!(!dir.join("data/drift.json").exists());
    reaches(caller, &back.spec.name).await;
    back
}

async fn says_drifted(sidecar: &Sidecar, url: &str) {
    wait::until_ok("it is refused", async || {
        let answer = sidecar.get(url).await;
        let drifted = answer.status == 503 && answer.text().contains("\"drifted\"");
        drifted.then_some(()).ok_or_else(|| answer.text())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_plane_it_suspends_itself_stays_so_and_is_reported_later() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let dir = mesh.dir("callee");
    let mut callee = Sidecar::start(in_run(&spec, "first-run"), &dir).await;
    reaches(&caller, "callee").await;
    reaches(&callee, "caller").await;
    mesh.control_plane.kill();

    edit(&dir);
    says_drifted(&caller, "http://callee.aip.internal/work").await;
    says_drifted(&callee, "http://caller.aip.internal/work").await;
    // Its own agent reaches nothing either, not the control plane past it.
    says_drifted(&callee, &format!("http://{}/", mesh.control_plane.mesh)).await;
    assert_eq!(callee.metric("aip_drifted", &[]).await, 1.0);

    // Ended before the report went out, and put back meanwhile: it remembers, once that is on disk.
    wait::until("the suspension is on disk", async || {
        dir.join("data/drift.json").exists().then_some(())
    })
    .await;
    callee.process.kill();
    std::fs::write(dir.join("code/agent.txt"), "callee").unwrap();
    let mut again = in_run(&spec, "first-run");
    again.ports = [callee.inbound, callee.outbound, callee.admin, callee.probes];
    let mut callee = Sidecar::start_unready(again, &dir).await;
    says_drifted(&callee, "http://caller.aip.internal/work").await;
    let seen = agent.seen("/refused").len();
    assert_ne!(caller.get("http://callee.aip.internal/refused").await.status, 200);
    assert_eq!(agent.seen("/refused").len(), seen);

    mesh.revive().await;
    let drift = reported(&mesh, "callee").await;
    assert_eq!(
        (&drift["generation"], &drift["paths"]),
        (&json!(2), &json!(["agent.txt"]))
    );
    approve_all(&mesh, "callee").await;
    callee.process.kill();
    with_the_old_content_it_waits_for_a_person(&mesh, &caller, &spec, &dir).await;
}

/// What lies there is what was approved at first, which needs a person as well.
async fn with_the_old_content_it_waits_for_a_person(mesh: &Mesh, caller: &Sidecar, spec: &SidecarSpec, dir: &Path) {
    let mut spec = in_run(spec, "second-run");
    spec.token = mesh.admin().token("callee").await;
    let back = Sidecar::start_unready(spec, dir);
    let approved = async {
        wait::until("the old content waits for a person", async || {
            approve_all(mesh, "callee").await;
            let drift = reported(mesh, "callee").await;
            drift["recovered_at"].is_u64().then_some(())
        })
        .await;
    };
    let (back, ()) = tokio::join!(back, approved);
    back.ready().await;
    reaches(caller, "callee").await;
    assert_eq!(back.look("/identity").await.json()["attestation"]["generation"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_while_it_suspends_itself_stays_suspended() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let steps = ["written", "synced", "renamed", "kept"];
    let points = steps
        .iter()
        .flat_map(|step| [1, 2].map(|n| format!("drift.json:{step}#{n}")));
    for (i, point) in points.enumerate() {
        let name = format!("callee{i}");
        let spec = mesh.spec(json!({"name": name}), agent.address).await;
        let (dir, first) = (mesh.dir(&name), in_run(&spec, "first-run"));
        let mut command = Sidecar::command(&first, &dir);
        command.env(FAULT, &point);
        let mut callee = Sidecar::start_as(first.clone(), &dir, &command).await;
        callee.ready().await;
        reaches(&caller, &name).await;
        edit(&dir);
        let status = wait::until(&format!("it ends at {point}"), async || callee.process.ended()).await;
        assert_eq!(status.signal(), Some(9), "at {point}: {status}");

        let mut callee = Sidecar::start_unready(first, &dir).await;
        let answer = callee.get("http://caller.aip.internal/work").await;
        assert_eq!(answer.status, 503, "at {point}: {}", answer.text());
        let drift = reported(&mesh, &name).await;
        // Before the first rename nothing says what changed; that it measures otherwise than before is seen all the same.
        if !["written#1", "synced#1"].iter().any(|early| point.ends_with(early)) {
            assert_eq!(drift["paths"], json!(["agent.txt"]), "at {point}");
        }
        callee.process.kill();
        let mut back = comes_back(&mesh, &caller, &spec, &dir).await;
        back.process.kill();
    }
}

/// Approved and started again, it ends while it forgets why it was suspended: started once more with the token that it had, it
/// serves, wherever that was, and is not taken for one that drifted anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_while_it_is_let_back_in_serves_once_it_is_back() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    for step in ["removing", "removed", "forgotten"] {
        let (point, name) = (format!("drift.json:{step}"), format!("callee-{step}"));
        let spec = mesh.spec(json!({"name": name}), agent.address).await;
        let dir = mesh.dir(&name);
        let mut callee = Sidecar::start(in_run(&spec, "first-run"), &dir).await;
        reaches(&caller, &name).await;
        edit(&dir);
        reported(&mesh, &name).await;
        callee.process.kill();
        approve_all(&mesh, &name).await;
        let mut spec = in_run(&spec, "second-run");
        spec.token = mesh.admin().token(&name).await;
        let mut command = Sidecar::command(&spec, &dir);
        command.env(FAULT, &point);
        let mut back = Process::start(&name, &command, &dir);
        let status = wait::until(&format!("it ends at {point}"), async || back.ended()).await;
        assert_eq!(status.signal(), Some(9), "at {point}: {status}");
        let marker = dir.join("data/drift.json");
        assert_eq!(marker.exists(), step == "removing", "at {point}");

        let _back = Sidecar::start(spec, &dir).await;
        reaches(&caller, &name).await;
        assert!(!marker.exists(), "after {point}");
        assert_eq!(generation(&mesh, &name).await, 2, "one drift, after {point}");
        let drift = reported(&mesh, &name).await;
        assert!(drift["recovered_at"].is_u64(), "after {point}: {drift}");
    }
}

/// Through a mapping that stays open, so that the kernel gives no notice of it.
const WRITES_UNSEEN: &str = "import mmap, sys, time
file = open(sys.argv[1], 'r+b')
mapping = mmap.mmap(file.fileno(), 0)
mapping[0:3] = b'bad'
print('written', flush=True)
time.sleep(600)";
/// How long the first SVID lives: its renewal is what measures again, well before that is done without cause.
const SVID_SECONDS: i64 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_the_watch_misses_is_found_at_the_renewal_and_nothing_is_issued_for_it() {
    let (scripted, home) = (Scripted::start(), TempDir::new().unwrap());
    let agent = Agent::start();
    scripted.issue_as(LeafSpec {
        from: 0,
        until: SVID_SECONDS,
        ..LeafSpec::good("callee")
    });
    let callee = scripted.sidecar("callee", agent.address, home.path()).await;
    let issued = scripted.issued("callee").len();
    let mut writes = Command::new("python3");
    writes
        .args(["-c", WRITES_UNSEEN])
        .arg(callee.dir.join("code/agent.txt"));
    let writes = Process::start("writes", &writes, home.path());
    wait::until("it is written", async || {
        writes.stdout().contains("written").then_some(())
    })
    .await;
    says_drifted(&callee, "http://caller.aip.internal/work").await;
    let marker = wait::until("the suspension is on disk", async || {
        let text = std::fs::read(callee.dir.join("data/drift.json")).ok()?;
        let marker: Value = serde_json::from_slice(&text).ok()?;
        marker["found"].is_string().then_some(marker)
    })
    .await;
    assert_eq!(marker["paths"], json!(["agent.txt"]));
    assert_eq!(
        scripted.issued("callee").len(),
        issued,
        "nothing was asked for what was not approved"
    );
}

/// As TLS begins.
const TLS_RECORD: &[u8] = b"\x16\x03\x01\x00\x01\x02";
/// Requests at once of an agent that wants its sidecar to be busy.
const BUSY: usize = 200;

/// The report goes over a connection of the sidecar's own. The agent reaches nothing of it: not the control plane through
/// the proxy, also where an operator lists its address; and what it has open, or asks for, delays nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_cant_keep_its_drift_from_being_reported() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let dir = mesh.dir("callee");
    let callee = Sidecar::start(in_run(&spec, "first-run"), &dir).await;
    reaches(&callee, "caller").await;
    let control_plane = mesh.control_plane.mesh;
    let mut config = mesh.admin().get("/v1/mesh-config").await;
    let config = &mut config["resource"];
    config["egress"] = json!([{"host": "127.0.0.1", "port": control_plane.port(), "allow_private": true}]);
    let put = mesh.admin().ok(Method::PUT, "/v1/mesh-config", Some(config)).await;
    mesh.admin().acknowledged(put["revision"].as_u64().unwrap()).await;
    let answer = callee.get(&format!("http://{control_plane}/")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason().as_str()),
        (403, "egress_address_forbidden")
    );
    // As tunnels, too: of plain text, and of TLS.
    let connect = format!("CONNECT {control_plane} HTTP/1.1\r\nhost: {control_plane}\r\n\r\n");
    let plain = format!("GET / HTTP/1.1\r\nhost: {control_plane}\r\n\r\n");
    for inner in [plain.as_bytes(), TLS_RECORD] {
        let mut tunnel = TcpStream::connect(callee.outbound).await.unwrap();
        tunnel.write_all(connect.as_bytes()).await.unwrap();
        let answer = read_until(&mut tunnel, head_came).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 "),
            "the agent may say what it wants: {answer}"
        );
        tunnel.write_all(inner).await.unwrap();
        let answer = read_until(&mut tunnel, |seen| seen.ends_with(b"}")).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }

    let busy: Vec<_> = (0..BUSY)
        .map(|_| {
            let outbound = callee.outbound;
            let request = "POST http://caller.aip.internal/work HTTP/1.1\r\nhost: caller.aip.internal\r\ncontent-length: 9\r\n\r\n";
            tokio::spawn(async move { raw(outbound, request.as_bytes(), |_| false).await })
        })
        .collect();
    edit(&dir);
    let drift = reported(&mesh, "callee").await;
    assert_eq!(
        (&drift["generation"], &drift["paths"]),
        (&json!(2), &json!(["agent.txt"]))
    );
    assert_ne!(caller.get("http://callee.aip.internal/work").await.status, 200);
    busy.iter().for_each(tokio::task::JoinHandle::abort);
}

/// The edit is undone, and whoever approves takes what was approved before: nothing waits, since nothing shows it yet.
#[tokio::test(flavor = "multi_thread")]
async fn what_ran_before_is_approved_from_the_shell_once_the_edit_is_undone() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let dir = mesh.dir("callee");
    let callee = Sidecar::start(in_run(&spec, "first-run"), &dir).await;
    reaches(&caller, "callee").await;
    let approved = mesh.admin().get("/v1/measurements?agent=callee").await;
    let print = approved["items"][0]["fingerprint"].as_str().unwrap().to_owned();
    edit(&dir);
    reported(&mesh, "callee").await;
    std::fs::write(dir.join("code/agent.txt"), "callee").unwrap();
    let approve = || {
        let output = mesh.aip(&["attest", "approve", "callee", &print[..12]]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, said) = approve();
    assert!(code == Some(0) && said.contains("started again"), "{said}");
    let (code, said) = approve();
    assert!(code == Some(0) && said.contains("nothing changed"), "{said}");
    drop(callee);
    let mut spec = in_run(&spec, "second-run");
    spec.token = mesh.admin().token("callee").await;
    let _back = Sidecar::start(spec, &dir).await;
    reaches(&caller, "callee").await;
    let (code, said) = approve();
    assert!(code == Some(0) && !said.contains("started again"), "{said}");
}

/// Copies the control plane's data while it does not run.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// The agent's generation in the store.
async fn generation(mesh: &Mesh, name: &str) -> u64 {
    let agent = mesh.admin().get(&format!("/v1/agents/{name}")).await;
    agent["resource"]["generation"].as_u64().unwrap()
}

/// As this sidecar is started again in another run, where the control plane listens now.
async fn second_run(mesh: &Mesh, first: &Sidecar, name: &str) -> SidecarSpec {
    let mut spec = in_run(&first.spec, "second-run");
    spec.token = mesh.admin().token(name).await;
    (spec.control_plane, spec.ports) = (mesh.control_plane.mesh, aip_tests::process::FREE);
    spec
}

/// Lifts the store above the revision `highest` that sidecars have seen.
async fn lifted(mesh: &Mesh, highest: u64) {
    // It may have grown past what somebody has seen already, who is then let in at once.
    let revision = mesh.admin().get("/v1/mesh").await["revision"].as_u64().unwrap();
    let lift = json!({"above": highest.max(revision)});
    mesh.admin().ok(Method::POST, "/v1/mesh/lift", Some(&lift)).await;
}

/// The drifts of these agents are reported, with the generations that they began, and whoever looks is told.
async fn are_known_again(mesh: &Mesh, drifted: &[(&str, u64)]) {
    for (name, raised) in drifted {
        let drift = reported(mesh, name).await;
        assert_eq!(
            (&drift["generation"], &drift["paths"]),
            (&json!(raised), &json!(["agent.txt"])),
            "{drift}"
        );
        assert_eq!(generation(mesh, name).await, *raised, "{name}");
    }
    let revocations = mesh.admin().get("/v1/revocations").await.to_string();
    let status = mesh.aip(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout);
    for (name, _) in drifted {
        assert!(revocations.contains(&format!("\"{name}\"")), "{revocations}");
        assert!(said.contains(&format!("{name} drifted at")), "{said}");
    }
}

/// A control plane that lost the drift hears of it from the sidecar that is suspended: the generation is raised, nothing is
/// issued, and whoever looks is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_restored_from_an_older_copy_hears_of_the_drift_again() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let (mut dirs, mut callees) = (Vec::new(), Vec::new());
    // One drifts in the generation that the copy knows, the other in one that came after it.
    for name in ["callee", "again"] {
        let spec = mesh.spec(json!({"name": name}), agent.address).await;
        let dir = mesh.dir(name);
        callees.push(Sidecar::start(in_run(&spec, "first-run"), &dir).await);
        dirs.push(dir);
        reaches(&caller, name).await;
    }
    let data = mesh.control_plane.dir.join("data");
    let kept = mesh.dir("copies").join("data");
    mesh.control_plane.kill();
    copy(&data, &kept);
    mesh.revive().await;

    mesh.admin()
        .ok(Method::POST, "/v1/agents/again/revoke", Some(&json!({})))
        .await;
    callees[1].process.kill();
    // With nothing of the first: it may have ended before it heard that what it kept is revoked.
    dirs[1] = mesh.dir("again-later");
    callees[1] = Sidecar::start(second_run(&mesh, &callees[1], "again").await, &dirs[1]).await;
    for (dir, name) in dirs.iter().zip(["callee", "again"]) {
        edit(dir);
        reported(&mesh, name).await;
    }
    let highest = mesh.admin().get("/v1/mesh").await["revision"].as_u64().unwrap();
    assert_eq!(
        (generation(&mesh, "callee").await, generation(&mesh, "again").await),
        (2, 3)
    );

    mesh.control_plane.kill();
    copy(&kept, &data);
    mesh.revive().await;
    lifted(&mesh, highest).await;
    are_known_again(&mesh, &[("callee", 2), ("again", 3)]).await;
    // Nothing is issued: it waits for a person, and comes back by approval and restart as after any drift.
    callees[0].process.kill();
    let back = Sidecar::start_unready(second_run(&mesh, &callees[0], "callee").await, &dirs[0]).await;
    wait::until("it is refused", async || {
        back.process.stderr().contains("agent_drifted").then_some(())
    })
    .await;
    drop(back);
    comes_back(&mesh, &caller, &callees[0].spec, &dirs[0]).await;
}

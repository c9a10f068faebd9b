//! A clock that is set wrong while processes run, and then right again: nothing that runs is forgotten, nothing is said to
//! have stopped that has not, and all goes on by itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, DEV, Mesh, RunAgent, Sidecar, SidecarSpec};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

const URL: &str = "http://callee.aip.internal/work";
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// Seconds by which two clocks of a mesh may differ.
const MAX_OFF: i64 = 300;
/// Seconds for which a hop's id, which has its time, is good.
const HOP_SECONDS: i64 = 600;
/// Seconds after which records that wait for a checkpoint wait longer than any do: one is signed every 5 s.
const LONGER: f64 = 8.0;

/// The time of day of processes that are started with it.
struct Clock {
    library: PathBuf,
    seconds: PathBuf,
}

impl Clock {
    fn right(dir: &Path) -> Self {
        let clock = Self {
            library: dir.join("clock.so"),
            seconds: dir.join("clock"),
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clock/clock.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&clock.library)
            .arg(source)
            .output();
        let built = built.expect("cc runs: Rust links by it");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        fs::write(&clock.seconds, 0_i64.to_ne_bytes()).unwrap();
        clock
    }

    fn on(&self, mut command: Command) -> Command {
        command
            .env("LD_PRELOAD", &self.library)
            .env("AIP_TEST_CLOCK", &self.seconds);
        command
    }

    /// A sidecar that goes by it.
    async fn start(&self, mesh: &Mesh, spec: &SidecarSpec) -> Sidecar {
        let dir = mesh.dir(&spec.name);
        let command = self.on(Sidecar::command(spec, &dir));
        Sidecar::start_as(spec.clone(), &dir, &command).await
    }

    /// Sets it to be off by this much, in place: the processes have the file mapped.
    fn off_by(&self, seconds: i64) {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::options().write(true).open(&self.seconds).unwrap();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

/// Has the control plane go by this clock.
async fn goes_by(mesh: &mut Mesh, clock: &Clock) {
    let plane = &mut mesh.control_plane;
    plane.kill();
    let command = ControlPlane::command(&ControlPlane::data(&plane.dir), plane.mesh, plane.admin.address, DEV);
    plane.revive_as(&clock.on(command)).await;
}

async fn status_is(caller: &Sidecar, what: &str, expected: impl Fn(u16) -> bool) {
    wait::until_ok(what, async || {
        let answer = caller.get(URL).await;
        match expected(answer.status.as_u16()) {
            true => Ok(()),
            false => Err(format!("{} {}", answer.status, answer.text())),
        }
    })
    .await;
}

/// A policy that both sidecars hold.
async fn changes_arrive(mesh: &Mesh, name: &str) {
    let rego = format!(
        "package aip.policy.{name}\n\nrules contains {{\"rule\": \"none\", \"verdict\": \"deny\", \"reason\": \"-\"}} if input.request.path == [\"{name}\"]\n"
    );
    mesh.admin()
        .apply(&json!({"name": name, "rego": rego, "attach": "mesh"}))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_clock_was_wrong_serves_again_by_itself() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let clock = Clock::right(&mesh.dir("clock"));
    let caller = mesh.sidecar("caller", agent.address).await;
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let callee = clock.start(&mesh, &spec).await;
    status_is(&caller, "a call gets through", |status| status == 200).await;
    for off in [DAY, -DAY] {
        clock.off_by(off);
        if off > 0 {
            status_is(&caller, "its SVID is over by its clock", |status| status >= 500).await;
            wait::until("it lays its SVID aside", async || {
                callee.process.stderr().contains("svid_expired").then_some(())
            })
            .await;
        }
        clock.off_by(0);
        status_is(&caller, "it serves again", |status| status == 200).await;
        changes_arrive(&mesh, if off > 0 { "ahead" } else { "behind" }).await;
    }
}

/// Who has not enforced the order, and may serve still.
async fn unheard(mesh: &Mesh, order: &Value) -> Value {
    let (term, epoch) = (&order["term"], &order["epoch"]);
    let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms=0");
    let shown = mesh.admin().get(&path).await;
    json!([shown["missing"], shown["vanished"], shown["away"]])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_whose_clock_is_ahead_calls_nobody_stopped_who_runs() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let clock = Clock::right(&mesh.dir("clock"));
    goes_by(&mut mesh, &clock).await;
    let caller = mesh.sidecar("caller", agent.address).await;
    let callee = mesh.sidecar("callee", agent.address).await;
    status_is(&caller, "a call gets through", |status| status == 200).await;
    // Longer than SVIDs live.
    clock.off_by(2 * HOUR);
    let connected = "aip_kill_stream_connected";
    for sidecar in [&caller, &callee] {
        wait::until("its streams end", async || {
            (sidecar.metric(connected, &[]).await < 0.5).then_some(())
        })
        .await;
    }
    let order = json!({"scope": {"kind": "agent", "agent": "callee"}, "mode": "pause", "reason": "a test"});
    let order = mesh.admin().ok(Method::POST, "/v1/kills", Some(&order)).await;
    assert_eq!(caller.get(URL).await.status, 200, "it goes on, and can't be told");
    let who = unheard(&mesh, &order).await;
    for agent in ["caller", "callee"] {
        assert!(who.to_string().contains(agent), "{agent} may serve still: {who}");
    }
    clock.off_by(0);
    status_is(&caller, "the order arrives", |status| status == 503).await;
    wait::until("both acknowledge it", async || {
        (unheard(&mesh, &order).await == json!([[], [], []])).then_some(())
    })
    .await;
}

/// What a control plane counted of this metric with these labels.
async fn counted(mesh: &Mesh, sample: &str) -> f64 {
    let page = aip_tests::http::get(mesh.admin().address, "/metrics")
        .await
        .unwrap()
        .text();
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(sample));
    lines.next().map_or(0.0, |value| value.trim().parse().unwrap())
}

/// Checkpoints that the control plane refused for their time.
async fn refuses_checkpoints(mesh: &Mesh) {
    let sample = "aip_audit_rejected_total{reason=\"checkpoint_time\"}";
    wait::until("a checkpoint is refused for its time", async || {
        (counted(mesh, sample).await > 0.5).then_some(())
    })
    .await;
}

/// Checkpoints of a sidecar go on: its records do not wait for one for long.
async fn signs(sidecar: &Sidecar) {
    wait::until("its records are signed, and taken", async || {
        let unsigned = sidecar.metric("aip_audit_unsigned_records", &[]).await;
        let unsent = sidecar.metric("aip_audit_unsent_bytes", &[]).await;
        (unsigned < 0.5 && unsent < 0.5).then_some(())
    })
    .await;
}

/// A sidecar that comes while clocks differ is refused for that, and ends.
async fn is_refused(late: &mut Sidecar) {
    wait::until("it ends", async || late.process.ended()).await;
    let said = late.process.stderr();
    assert!(said.contains("evidence_stale"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_clock_is_behind_takes_and_signs_nothing_new_until_it_is_right() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let clock = Clock::right(&mesh.dir("clock"));
    let caller = mesh.sidecar("caller", agent.address).await;
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let callee = clock.start(&mesh, &spec).await;
    status_is(&caller, "a call gets through", |status| status == 200).await;
    clock.off_by(-DAY);
    let newcomer = mesh.sidecar("newcomer", agent.address).await;
    let not_yet = ["certificate_not_yet_valid"];
    wait::until("a newer certificate is not yet valid to it", async || {
        assert_ne!(newcomer.get(URL).await.status, 200);
        let refused = callee.metric("aip_tls_handshake_failures_total", &not_yet).await;
        (refused > 0.5).then_some(())
    })
    .await;
    wait::until("its records wait for a checkpoint", async || {
        assert_ne!(caller.get(URL).await.status, 200, "a hop of a day that has not come");
        (callee.metric("aip_audit_unsigned_seconds", &[]).await > LONGER).then_some(())
    })
    .await;
    clock.off_by(0);
    status_is(&caller, "it serves again", |status| status == 200).await;
    status_is(&newcomer, "it takes the newer one", |status| status == 200).await;
    signs(&callee).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sidecar_signs_whose_clock_is_minutes_ahead_is_refused_until_it_is_right() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let clock = Clock::right(&mesh.dir("clock"));
    let caller = mesh.sidecar("caller", agent.address).await;
    let spec = mesh.spec(json!({"name": "callee"}), agent.address).await;
    let _callee = clock.start(&mesh, &spec).await;
    status_is(&caller, "a call gets through", |status| status == 200).await;
    clock.off_by(MAX_OFF + 60);
    assert_eq!(caller.get(URL).await.status, 200, "it serves");
    let spec = mesh.spec(json!({"name": "late"}), agent.address).await;
    is_refused(&mut clock.start(&mesh, &spec).await).await;
    refuses_checkpoints(&mesh).await;
    assert_eq!(caller.get(URL).await.status, 200, "it serves");
    clock.off_by(HOP_SECONDS + 60);
    let answer = caller.get(URL).await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (409, "hop_replayed".to_owned())
    );
    clock.off_by(0);
    clock.start(&mesh, &spec).await.ready().await;
    status_is(&caller, "it serves", |status| status == 200).await;
    let findings = mesh.admin().get("/v1/audit/findings").await;
    assert_eq!(findings["items"], json!([]), "nothing is held against its log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_whose_clock_is_behind_lets_nobody_in_and_still_stops() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let clock = Clock::right(&mesh.dir("clock"));
    goes_by(&mut mesh, &clock).await;
    let caller = mesh.sidecar("caller", agent.address).await;
    let callee = mesh.sidecar("callee", agent.address).await;
    status_is(&caller, "a call gets through", |status| status == 200).await;
    let (spec, dir) = (
        mesh.spec(json!({"name": "late"}), agent.address).await,
        mesh.dir("late"),
    );
    clock.off_by(-DAY);
    is_refused(&mut Sidecar::start_unready(spec.clone(), &dir).await).await;
    status_is(&caller, "calls go on", |status| status == 200).await;
    refuses_checkpoints(&mesh).await;
    let scope = json!({"kind": "agent", "agent": "callee"});
    let order = json!({"scope": scope, "mode": "kill", "reason": "a test"});
    let order = mesh.admin().ok(Method::POST, "/v1/kills", Some(&order)).await;
    status_is(&caller, "the order arrives", |status| status == 503).await;
    for sidecar in [&caller, &callee] {
        wait::until_ok("each of the two holds it", async || {
            let page = sidecar.look("/kill").await.json();
            let holds = page["orders"][0]["id"] == order["order"];
            holds.then_some(()).ok_or_else(|| page.to_string())
        })
        .await;
    }
    clock.off_by(0);
    let _late = Sidecar::start(spec, &dir).await;
    wait::until("all acknowledge it", async || {
        (unheard(&mesh, &order).await == json!([[], [], []])).then_some(())
    })
    .await;
    let resume = json!({"orders": [order["order"]]});
    mesh.admin().ok(Method::POST, "/v1/kills/resume", Some(&resume)).await;
    status_is(&caller, "it serves again", |status| status == 200).await;
}

/// As after a night in which the machine slept: the clock is right, and every SVID has ended.
#[tokio::test(flavor = "multi_thread")]
async fn who_slept_for_longer_than_its_svid_lives_comes_back_with_another_join_token() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let clock = Clock::right(&mesh.dir("clock"));
    goes_by(&mut mesh, &clock).await;
    let callee = RunAgent::start(&mesh, "callee", &clock.on(RunAgent::answers()), &[]).await;
    let mut spec = mesh.spec(json!({"name": "caller"}), agent.address).await;
    let token = mesh.dir("caller").join("token");
    fs::write(&token, &spec.token).unwrap();
    spec.flags = vec!["--join-token-file".into(), token.to_str().unwrap().into()];
    let caller = clock.start(&mesh, &spec).await;
    status_is(&caller, "a call gets through", |status| status == 200).await;

    clock.off_by(2 * HOUR);
    wait::until("a sidecar that nobody supervises says what it needs", async || {
        let said = caller.process.stderr();
        (said.contains("aip token create caller") && said.contains(token.to_str().unwrap())).then_some(())
    })
    .await;
    wait::until("the supervisor has given the other one a token", async || {
        callee
            .process
            .stderr()
            .contains("needed another join token, and has it")
            .then_some(())
    })
    .await;
    let refused = caller.get(URL).await;
    assert_eq!(refused.status.as_u16(), 503, "{}", refused.text());
    fs::write(&token, mesh.admin().token("caller").await).unwrap();
    status_is(&caller, "both are back, and nothing was started again", |status| {
        status == 200
    })
    .await;
    assert_eq!(
        callee
            .process
            .stderr()
            .matches("needed another join token, and has it")
            .count(),
        1
    );
}

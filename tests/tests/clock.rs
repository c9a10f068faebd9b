//! A clock that is set wrong while processes run, and then right again: nothing that runs is forgotten, nothing is said to
//! have stopped that has not, and all goes on by itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, DEV, Mesh, RunAgent, Sidecar};
use aip_tests::wait;
use http::Method;
use serde_json::{Value, json};

const URL: &str = "http://callee.aip.internal/work";
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

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

    /// Sets it to be off by this much, in place: the processes have the file mapped.
    fn off_by(&self, seconds: i64) {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::options().write(true).open(&self.seconds).unwrap();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
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

/// Has the control plane go by this clock.
async fn goes_by(mesh: &mut Mesh, clock: &Clock) {
    let plane = &mut mesh.control_plane;
    plane.kill();
    let command = ControlPlane::command(&ControlPlane::data(&plane.dir), plane.mesh, plane.admin.address, DEV);
    plane.revive_as(&clock.on(command)).await;
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
    let (spec, dir) = (
        mesh.spec(json!({"name": "callee"}), agent.address).await,
        mesh.dir("callee"),
    );
    let command = clock.on(Sidecar::command(&spec, &dir));
    let callee = Sidecar::start_as(spec, &dir, &command).await;
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

/// Answers whatever it is asked.
const ANSWERS: &str = r"
import http.server, os
class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Agent).serve_forever()
";

/// As after a night in which the machine slept: the clock is right, and every SVID has ended.
#[tokio::test(flavor = "multi_thread")]
async fn who_slept_for_longer_than_its_svid_lives_comes_back_with_another_join_token() {
    let mut mesh = Mesh::start().await;
    let agent = Agent::start();
    let clock = Clock::right(&mesh.dir("clock"));
    goes_by(&mut mesh, &clock).await;
    let mut program = clock.on(Command::new("python3"));
    program.args(["-c", ANSWERS]);
    let callee = RunAgent::start(&mesh, "callee", &program, &[]).await;
    let (mut spec, dir) = (
        mesh.spec(json!({"name": "caller"}), agent.address).await,
        mesh.dir("caller"),
    );
    let token = dir.join("token");
    fs::write(&token, &spec.token).unwrap();
    spec.flags = vec!["--join-token-file".into(), token.to_str().unwrap().into()];
    let command = clock.on(Sidecar::command(&spec, &dir));
    let caller = Sidecar::start_as(spec, &dir, &command).await;
    status_is(&caller, "a call gets through", |status| status == 200).await;

    clock.off_by(2 * HOUR);
    wait::until("a sidecar that nobody supervises says what it needs", async || {
        let said = caller.process.stderr();
        (said.contains("aip token create caller") && said.contains(token.to_str().unwrap())).then_some(())
    })
    .await;
    wait::until("the supervisor has given the other one a token", async || {
        callee.process.stderr().contains("has another join token").then_some(())
    })
    .await;
    let refused = caller.get(URL).await;
    assert_eq!(refused.status.as_u16(), 503, "{}", refused.text());
    fs::write(&token, mesh.admin().token("caller").await).unwrap();
    status_is(&caller, "both are back, and nothing was started again", |status| {
        status == 200
    })
    .await;
    assert_eq!(callee.process.stderr().matches("has another join token").count(), 1);
}

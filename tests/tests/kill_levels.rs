//! `aip kill`, `aip kill list`, `aip kill progress` and `aip resume`, as an operator types them: each level at three
//! sidecars, one that joins late, and one that is gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Output};

use aip_tests::agent::Agent;
use aip_tests::http::Answer;
use aip_tests::process::{Mesh, Sidecar, binary};
use aip_tests::wait;
use http::Request;
use serde_json::{Value, json};

/// Ends `aip kill --wait` and `aip kill progress` where somebody has not enforced it.
const NOT_ALL: i32 = 7;
/// Ends a command line that makes no sense.
const USAGE: i32 = 2;

/// Three agents that call each other; of these only `ann` has the label `tier=beta`.
struct Three {
    mesh: Mesh,
    agent: Agent,
    sidecars: Vec<Sidecar>,
}

const NAMES: [&str; 3] = ["ann", "bob", "cid"];

impl Three {
    async fn start() -> Self {
        let mesh = Mesh::start().await;
        let agent = Agent::start();
        let mut sidecars = Vec::new();
        for name in NAMES {
            let tier = if name == "ann" { "beta" } else { "stable" };
            let document = json!({"name": name, "labels": {"tier": tier}});
            let spec = mesh.spec(document, agent.address).await;
            sidecars.push(Sidecar::start(spec, &mesh.dir(name)).await);
        }
        let three = Self { mesh, agent, sidecars };
        three.all_go_through().await;
        three
    }

    fn sidecar(&self, name: &str) -> &Sidecar {
        self.sidecars.iter().find(|sidecar| sidecar.spec.name == name).unwrap()
    }

    async fn call(&self, from: &str, to: &str) -> Answer {
        self.sidecar(from).get(&format!("http://{to}.aip.internal/work")).await
    }

    /// Each of them to each other.
    fn pairs() -> impl Iterator<Item = (&'static str, &'static str)> {
        let others = |from| NAMES.into_iter().filter(move |to| *to != from);
        NAMES
            .into_iter()
            .flat_map(move |from| others(from).map(move |to| (from, to)))
    }

    async fn all_go_through(&self) {
        for (from, to) in Self::pairs() {
            wait::until_ok(&format!("{from} reaches {to}"), async || {
                let answer = self.call(from, to).await;
                (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
            })
            .await;
        }
    }

    /// That these are refused for this reason, and no others, and that nothing of them reaches an agent.
    async fn refuses(&self, reason: &str, stopped: impl Fn(&str, &str) -> bool) {
        for (from, to) in Self::pairs() {
            let heard = self.agent.seen("/work").len();
            let answer = self.call(from, to).await;
            match stopped(from, to) {
                true => {
                    let got = (answer.status.as_u16(), answer.reason());
                    assert_eq!(got, (503, reason.to_owned()), "{from} to {to}");
                    assert_eq!(self.agent.seen("/work").len(), heard, "{from} to {to}");
                }
                false => assert_eq!(answer.status, 200, "{from} to {to}: {}", answer.text()),
            }
        }
    }

    fn aip(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary("aip"));
        command.env("AIP_HOME", self.mesh.dir("home"));
        command.env("AIP_ADMIN", format!("http://{}", self.mesh.admin().address));
        command.env("AIP_TOKEN_FILE", self.mesh.control_plane.dir.join("data/admin.jwt"));
        command.args(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.aip(arguments);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        out
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let out = self.ok(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
    }

    /// Orders it and waits until all have enforced it; the order's id.
    fn kill(&self, scope: &[&str]) -> String {
        let arguments = [&["kill"], scope, &["--reason", "a test", "--wait"]].concat();
        let said = self.json(&arguments);
        let progress = &said["progress"];
        assert_eq!(progress["missing"], json!([]), "{said}");
        assert_eq!(
            progress["enforced"].as_array().unwrap().len(),
            self.sidecars.len(),
            "{said}"
        );
        said["order"].as_str().unwrap().to_owned()
    }

    fn nothing_is_stopped(&self) {
        assert_eq!(self.json(&["kill", "list"])["items"], json!([]));
        let said = self.aip(&["kill", "list"]);
        assert!(text(&said.stderr).contains("nothing is stopped"), "{said:?}");
    }

    fn resume(&self, order: &str) {
        self.ok(&["resume", order, "--wait"]);
        self.nothing_is_stopped();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_level_is_enforced_at_every_sidecar() {
    let three = Three::start().await;
    let ann = |from: &str, to: &str| [from, to].contains(&"ann");
    let order = three.kill(&["--selector", "tier=beta"]);
    let list = three.ok(&["kill", "list"]);
    for part in [
        order.as_str(),
        "agents with tier=beta",
        "a test",
        "kill",
        "when resumed",
    ] {
        assert!(list.contains(part), "{part} is not in {list}");
    }
    three.refuses("killed", ann).await;
    three.resume(&order);

    let order = three.kill(&["--agent", "ann"]);
    assert!(three.ok(&["kill", "list"]).contains("agent ann"));
    three.refuses("killed", ann).await;
    three.resume(&order);

    let order = three.kill(&["--pair", "ann:bob"]);
    let list = three.json(&["kill", "list"]);
    let scope = json!({"kind": "pair", "source": "ann", "destination": "bob"});
    assert_eq!(list["items"][0]["scope"], scope, "{list}");
    three.refuses("killed", |from, to| (from, to) == ("ann", "bob")).await;
    three.resume(&order);

    let order = three.kill(&["--mesh"]);
    three.refuses("killed", |_, _| true).await;
    three.resume(&order);
    three.all_go_through().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pause_says_for_how_long_and_lets_itself_be_resumed() {
    let three = Three::start().await;
    let order = three.kill(&["--mesh", "--pause", "--for", "10m"]);
    let list = three.ok(&["kill", "list"]);
    for part in ["pause", "the mesh"] {
        assert!(list.contains(part), "{part} is not in {list}");
    }
    assert!(list.contains("in 9m") || list.contains("in 10m"), "{list}");
    three.refuses("paused", |_, _| true).await;
    let answer = three.call("ann", "bob").await;
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=600).contains(&seconds), "{seconds}");
    three.resume(&order);
    // Without an end of its own.
    let order = three.kill(&["--pair", "bob:cid", "--pause"]);
    three.refuses("paused", |from, to| (from, to) == ("bob", "cid")).await;
    assert!(three.ok(&["kill", "list"]).contains("when resumed"));
    three.resume(&order);
    three.all_go_through().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tool_is_stopped_at_one_agent_or_at_all() {
    let three = Three::start().await;
    let called = async |from: &str, to: &str, tool: &str| {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}});
        let request = Request::post(format!("http://{to}.aip.internal/mcp"));
        let request = request.header("content-type", "application/json");
        let answer = three.sidecar(from).call(request, call.to_string()).await;
        match answer.status.as_u16() {
            200 => String::new(),
            _ => answer.json()["error"]["data"]["reason"].as_str().unwrap().to_owned(),
        }
    };
    let order = three.kill(&["--tool", "wipe", "--agent", "bob"]);
    assert!(three.ok(&["kill", "list"]).contains("tool wipe of bob"));
    for (from, to, tool, reason) in [
        ("ann", "bob", "wipe", "killed"),
        ("cid", "bob", "wipe", "killed"),
        ("ann", "bob", "read", ""),
        ("ann", "cid", "wipe", ""),
        ("bob", "cid", "wipe", ""),
    ] {
        assert_eq!(called(from, to, tool).await, reason, "{tool} of {to} by {from}");
    }
    // Resuming the agent leaves its tool stopped.
    let nothing = three.aip(&["resume", "--agent", "bob"]);
    assert!(!nothing.status.success(), "{}", text(&nothing.stdout));
    assert_eq!(called("ann", "bob", "wipe").await, "killed");
    three.resume(&order);
    let order = three.kill(&["--tool", "wipe"]);
    for (from, to) in Three::pairs() {
        assert_eq!(called(from, to, "wipe").await, "killed", "{from} to {to}");
        assert_eq!(called(from, to, "read").await, "", "{from} to {to}");
    }
    three.resume(&order);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_joins_late_is_refused_and_who_is_gone_is_named() {
    let mut three = Three::start().await;
    three.kill(&["--mesh"]);
    let spec = three.mesh.spec(json!({"name": "late"}), three.agent.address).await;
    let late = Sidecar::start(spec, &three.mesh.dir("late")).await;
    let heard = three.agent.seen("/work").len();
    let own = late.get("http://ann.aip.internal/work").await;
    assert_eq!((own.status.as_u16(), own.reason().as_str()), (503, "killed"));
    let to_it = three.call("ann", "late").await;
    assert_eq!((to_it.status.as_u16(), to_it.reason().as_str()), (503, "killed"));
    assert_eq!(three.agent.seen("/work").len(), heard);
    let said = three.json(&["kill", "progress", "--wait"]);
    assert_eq!(said["progress"]["enforced"].as_array().unwrap().len(), 4, "{said}");
    assert!(three.ok(&["kill", "progress"]).contains("enforced by 4 of 4 sidecars"));

    three.ok(&["resume", "--all", "--wait"]);
    three.sidecars[2].process.kill();
    let output = three.aip(&["kill", "--agent", "ann", "--reason", "a test", "--wait", "1"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(NOT_ALL), "{said}{}", text(&output.stderr));
    for part in [
        "enforced by 3 of 4 sidecars",
        "CERTAINLY STOPPED BY",
        "cid/",
        "SVID has ended",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let again = three.aip(&["kill", "progress"]);
    assert_eq!(again.status.code(), Some(NOT_ALL), "{}", text(&again.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_makes_no_sense_stops_nobody() {
    let three = Three::start().await;
    for arguments in [
        &["--reason", "r"][..],
        &["--mesh"],
        &["--mesh", "--agent", "ann", "--reason", "r"],
        &["--mesh", "--for", "10m", "--reason", "r"],
        &["--mesh", "--pause", "--for", "soon", "--reason", "r"],
        &["--pair", "ann", "--reason", "r"],
        &["--pair", "ann:bob", "--tool", "wipe", "--reason", "r"],
        &["--selector", "beta", "--reason", "r"],
    ] {
        let output = three.aip(&[&["kill"], arguments].concat());
        assert_eq!(
            output.status.code(),
            Some(USAGE),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
    let itself = three.aip(&["kill", "--pair", "ann:ann", "--reason", "r"]);
    assert!(!itself.status.success());
    three.nothing_is_stopped();
    assert!(
        !three.aip(&["resume", "--all"]).status.success(),
        "there is nothing to resume"
    );
    three.all_go_through().await;
}

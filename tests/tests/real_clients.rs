//! Unchanged agents and official clients, behind `aip run`, through both sidecars. Each test also reads both access
//! logs: every call that the caller's sidecar let out is on the callee's record under the same hop id, so a client
//! that went around the mesh fails its test. Streams are in lockstep (`tests/clients/witness.py`).

use std::process::Command;

use aip_tests::clients::{Ran, clients, run};
use aip_tests::process::{Mesh, Record, Records, RunAgent, pairs};
use aip_tests::wait;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// What no client may do here, in each protocol's own terms.
const FORBIDDEN: &str = r#"package aip.policy.forbidden

rules contains deny("no_forbidden_path") if input.request.path[_] == "forbidden"

rules contains deny("no_forbidden_method") if input.request.path == ["test.Echo", "Forbidden"]

rules contains deny("no_forbidden_tool") if {
	input.protocol.method == "tools/call"
	input.protocol.arguments.name == "forbidden"
}

rules contains deny("no_forbidden_text") if {
	some part in input.protocol.arguments.message.parts
	part.text == "forbidden"
}

deny(rule) := {"rule": rule, "verdict": "deny", "reason": "a test forbids it"}
"#;

struct World {
    mesh: Mesh,
    caller: RunAgent,
}

static WORLD: OnceCell<World> = OnceCell::const_new();
/// One client at a time: what is on the records is then its doing alone.
static TURN: Mutex<()> = Mutex::const_new(());

async fn world() -> &'static World {
    WORLD
        .get_or_init(async || {
            let mesh = Mesh::start().await;
            let caller = RunAgent::start(&mesh, "caller", &clients().script("http_server.py", &[]), &[]).await;
            mesh.admin()
                .apply(&json!({"name": "forbidden", "rego": FORBIDDEN, "attach": "mesh"}))
                .await;
            World { mesh, caller }
        })
        .await
}

/// A callee that is started when a test first needs it.
struct Callee {
    name: &'static str,
    program: fn() -> Command,
    agent: OnceCell<RunAgent>,
}

impl Callee {
    const fn new(name: &'static str, program: fn() -> Command) -> Self {
        Self {
            name,
            program,
            agent: OnceCell::const_new(),
        }
    }

    async fn turn(&'static self) -> Turn {
        let turn = TURN.lock().await;
        let world = world().await;
        let start = async || RunAgent::start(&world.mesh, self.name, &(self.program)(), &[]).await;
        let callee = self.agent.get_or_init(start).await;
        let (caller, before) = (
            &world.caller,
            (world.caller.records().0.len(), callee.records().0.len()),
        );
        Turn {
            caller,
            callee,
            before,
            seen: callee.seen().len(),
            _turn: turn,
        }
    }
}

static A2A: Callee = Callee::new("a2a", || clients().script("a2a_server.py", &[]));
static MCP: Callee = Callee::new("mcp", || clients().script("mcp_server.py", &[]));
static EVERYTHING: Callee = Callee::new("everything", || clients().everything());
static GRPC: Callee = Callee::new("grpc", || clients().script("grpc_server.py", &[]));
static WS: Callee = Callee::new("ws", || clients().script("ws_server.py", &[]));
static HTTP: Callee = Callee::new("http", || clients().script("http_server.py", &[]));

/// One client's turn between the caller and one callee.
struct Turn {
    caller: &'static RunAgent,
    callee: &'static RunAgent,
    before: (usize, usize),
    seen: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    /// Runs a client beside the caller's agent, in that agent's environment.
    async fn run(&self, command: Command) -> Ran {
        run(command, &self.caller.environment()).await
    }

    async fn script(&self, name: &str, args: &[&str]) -> Value {
        self.run(clients().script(name, args)).await.observed()
    }

    fn records(&self) -> (Records, Records) {
        let since = |records: Records, before| Records(records.0[before..].to_vec());
        (
            since(self.caller.records(), self.before.0),
            since(self.callee.records(), self.before.1),
        )
    }

    /// What the callee's program saw in this turn.
    fn seen(&self) -> Vec<Value> {
        self.callee.seen()[self.seen..].to_vec()
    }

    /// Both sidecars' records of this turn: the same hops, all allowed.
    async fn allowed(&self) -> (Records, Records) {
        let (outbound, inbound) = wait::until_ok("both sidecars recorded the same hops", async || {
            let (caller, callee) = self.records();
            pairs(&caller, &callee)
        })
        .await;
        let caller = &self.caller.name;
        for record in outbound.0.iter().chain(&inbound.0) {
            assert!(
                record.text("source").ends_with(&format!("/agent/{caller}")),
                "{}",
                record.0
            );
            assert!(
                record
                    .text("destination")
                    .ends_with(&format!("/agent/{}", self.callee.name)),
                "{}",
                record.0
            );
        }
        (outbound, inbound)
    }

    /// The one refusal on the caller's record in this turn; its hop never reached the callee.
    async fn denied(&self, rule: &str) -> Record {
        let refusal = wait::until("the caller's sidecar recorded the refusal", async || {
            self.records().0.0.into_iter().find(|r| r.verdict() == "deny")
        })
        .await;
        assert_eq!(
            (refusal.direction(), refusal.text("rule")),
            ("outbound", rule),
            "{}",
            refusal.0
        );
        let inbound = self.records().1;
        assert!(
            inbound.0.iter().all(|r| r.hop() != refusal.hop()),
            "the callee was called: {:?}",
            inbound.0
        );
        refusal
    }
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

// A2A

#[tokio::test(flavor = "multi_thread")]
async fn a2a_message_over_json_rpc() {
    a2a_message("JSONRPC", "http://a2a.aip.internal/rpc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_message_over_http_json() {
    a2a_message("HTTP+JSON", "http://a2a.aip.internal/rest").await;
}

async fn a2a_message(binding: &str, address: &str) {
    let turn = A2A.turn().await;
    let got = turn
        .script("a2a_client.py", &["http://a2a.aip.internal", "--binding", binding])
        .await;
    assert_eq!(
        texts(&got["dialled"]),
        [address],
        "the card advertises the mesh address"
    );
    assert_eq!(got["answer"], "echo: hello", "{got}");
    let (outbound, _) = turn.allowed().await;
    assert!(outbound.0.len() >= 2, "the card and the call: {outbound:?}");
    assert_eq!(turn.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_stream_over_json_rpc() {
    a2a_stream("JSONRPC", "rpc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_stream_over_http_json() {
    a2a_stream("HTTP+JSON", "rest").await;
}

async fn a2a_stream(binding: &str, name: &str) {
    let turn = A2A.turn().await;
    let stream = format!("a2a-{name}");
    let args = [
        "http://a2a.aip.internal",
        "--binding",
        binding,
        "--stream",
        &stream,
        "3",
    ];
    let got = turn.script("a2a_client.py", &args).await;
    let working = texts(&got["states"])
        .iter()
        .filter(|s| **s == "TASK_STATE_WORKING")
        .count();
    assert_eq!((working, got["answer"].as_str()), (3, Some("counted to 3")), "{got}");
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_denied_over_json_rpc() {
    a2a_denied("JSONRPC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a2a_denied_over_http_json() {
    a2a_denied("HTTP+JSON").await;
}

async fn a2a_denied(binding: &str) {
    let turn = A2A.turn().await;
    let args = ["http://a2a.aip.internal", "--binding", binding, "--text", "forbidden"];
    let got = turn.script("a2a_client.py", &args).await;
    assert!(got["error"].is_string(), "the SDK reports an error of the call: {got}");
    turn.denied("no_forbidden_text").await;
    assert_eq!(turn.seen(), Vec::<Value>::new(), "the agent never saw it");
}

// MCP

const MCP_URL: &str = "http://mcp.aip.internal/mcp";

async fn mcp_call(client: &str, mode: &str, version: &str) {
    let turn = MCP.turn().await;
    let got = turn.script(client, &[MCP_URL, "--mode", mode]).await;
    assert_eq!(
        (got["version"].as_str(), texts(&got["text"])),
        (Some(version), vec!["5"]),
        "{got}"
    );
    turn.allowed().await;
    assert_eq!(turn.seen(), [json!({"seen": "add", "a": 2, "b": 3})]);
}

async fn mcp_progress(client: &str, mode: &str) {
    let turn = MCP.turn().await;
    let stream = format!("{client}-{mode}");
    let args = json!({"stream": stream, "steps": 3}).to_string();
    let args = [
        MCP_URL, "--mode", mode, "--tool", "count", "--args", &args, "--stream", &stream,
    ];
    let got = turn.script(client, &args).await;
    let progress: Vec<_> = got["progress"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert_eq!(
        (progress, texts(&got["text"])),
        (vec![1.0, 2.0, 3.0], vec!["counted to 3"]),
        "{got}"
    );
    turn.allowed().await;
}

async fn mcp_denied(client: &str, mode: &str) {
    let turn = MCP.turn().await;
    let args = [
        MCP_URL,
        "--mode",
        mode,
        "--tool",
        "forbidden",
        "--args",
        r#"{"what": "harm"}"#,
    ];
    let got = turn.script(client, &args).await;
    let said = format!("{} {}", got["error"], got["error_data"]);
    assert!(
        said.contains("no_forbidden_tool") || said.contains("a test forbids it"),
        "it says why: {got}"
    );
    let refusal = turn.denied("no_forbidden_tool").await;
    assert_ne!(
        refusal.status(),
        400,
        "a 400 makes clients fall back to an older version"
    );
    assert_eq!(turn.seen(), Vec::<Value>::new(), "the agent never saw it");
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_python_modern() {
    mcp_call("mcp_client.py", "2026-07-28", "2026-07-28").await;
    mcp_progress("mcp_client.py", "2026-07-28").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_python_legacy() {
    mcp_call("mcp_client.py", "legacy", "2025-11-25").await;
    mcp_progress("mcp_client.py", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_python_negotiates_the_modern_era() {
    mcp_call("mcp_client.py", "auto", "2026-07-28").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_python_denied_in_both_eras() {
    mcp_denied("mcp_client.py", "2026-07-28").await;
    mcp_denied("mcp_client.py", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_typescript_modern() {
    mcp_call("mcp_client.mjs", "2026-07-28", "2026-07-28").await;
    mcp_progress("mcp_client.mjs", "2026-07-28").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_typescript_legacy() {
    mcp_call("mcp_client.mjs", "legacy", "2025-11-25").await;
    mcp_progress("mcp_client.mjs", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_typescript_denied_in_both_eras() {
    mcp_denied("mcp_client.mjs", "2026-07-28").await;
    mcp_denied("mcp_client.mjs", "legacy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_everything_server_with_the_typescript_client() {
    let turn = EVERYTHING.turn().await;
    let url = "http://everything.aip.internal/mcp";
    // A modern client falls back: the server knows the handshake only.
    let args = [
        url,
        "--mode",
        "auto",
        "--tool",
        "echo",
        "--args",
        r#"{"message": "hi"}"#,
    ];
    let got = turn.script("mcp_client.mjs", &args).await;
    assert_eq!(
        (got["version"].as_str(), texts(&got["text"])),
        (Some("2025-11-25"), vec!["Echo: hi"]),
        "{got}"
    );
    let long = [
        "--tool",
        "trigger-long-running-operation",
        "--args",
        r#"{"duration": 0.3, "steps": 3}"#,
    ];
    let got = turn
        .script("mcp_client.mjs", &[&[url, "--mode", "legacy"][..], &long].concat())
        .await;
    assert_eq!(got["progress"], json!([1, 2, 3]), "{got}");
    turn.allowed().await;
}

// gRPC

const GRPC_TARGET: &str = "grpc.aip.internal:80";

#[tokio::test(flavor = "multi_thread")]
async fn grpc_all_four_kinds_of_calls() {
    let turn = GRPC.turn().await;
    let unary = turn.script("grpc_client.py", &[GRPC_TARGET, "unary"]).await;
    let expected = json!({"code": "OK", "answer": "echo: hello", "initial": "yes", "trailing": "tagged"});
    assert_eq!(unary, expected, "metadata goes both ways, trailers too");
    let download = turn
        .script("grpc_client.py", &[GRPC_TARGET, "download", "--stream", "grpc"])
        .await;
    assert_eq!(download["messages"], json!(["step 1", "step 2", "step 3"]));
    let upload = turn.script("grpc_client.py", &[GRPC_TARGET, "upload"]).await;
    assert_eq!(upload["answer"], "one two three");
    let chat = turn.script("grpc_client.py", &[GRPC_TARGET, "chat"]).await;
    assert_eq!(
        (&chat["messages"], &chat["ended"]),
        (&json!(["echo: one", "echo: two", "echo: three"]), &json!(true))
    );
    let (outbound, inbound) = turn.allowed().await;
    assert_eq!(
        (outbound.0.len(), inbound.0.len()),
        (4, 4),
        "one record a call: {outbound:?}"
    );
    assert!(outbound.0.iter().all(|r| r.text("protocol") == "grpc"), "{outbound:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_errors_arrive_as_they_were_sent() {
    let turn = GRPC.turn().await;
    let got = turn.script("grpc_client.py", &[GRPC_TARGET, "fail"]).await;
    assert_eq!(
        got,
        json!({"code": "FAILED_PRECONDITION", "details": "not in this state"})
    );
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_denied_in_native_form() {
    let turn = GRPC.turn().await;
    let got = turn.script("grpc_client.py", &[GRPC_TARGET, "forbidden"]).await;
    assert_eq!(got["code"], "PERMISSION_DENIED", "{got}");
    turn.denied("no_forbidden_method").await;
    assert_eq!(turn.seen(), Vec::<Value>::new());
}

// WebSocket

#[tokio::test(flavor = "multi_thread")]
async fn websocket_both_ways() {
    let turn = WS.turn().await;
    let got = turn.script("ws_client.py", &["ws://ws.aip.internal/echo?x=1"]).await;
    let expected =
        json!({"text": "echo: hello", "binary": "00ff", "large": 300_000, "subprotocol": "echo.v1", "close": 1000});
    assert_eq!(got, expected);
    turn.allowed().await;
    assert_eq!(turn.seen()[0]["path"], "/echo?x=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_denied_before_the_handshake() {
    let turn = WS.turn().await;
    let got = turn.script("ws_client.py", &["ws://ws.aip.internal/forbidden"]).await;
    assert_eq!(got["status"], 403, "{got}");
    assert!(
        got["body"].as_str().unwrap().contains("policy"),
        "a useful answer: {got}"
    );
    turn.denied("no_forbidden_path").await;
    assert_eq!(turn.seen(), Vec::<Value>::new());
}

// Plain HTTP: which clients use the proxy variables (docs/runtimes.md), and how

fn curl(args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "-N", "--max-time", "30"]).args(args);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_posts_and_streams() {
    let turn = HTTP.turn().await;
    let ran = turn
        .run(curl(&["-d", "hello", "http://http.aip.internal/echo?q=1"]))
        .await;
    let got = ran.observed();
    assert_eq!(
        (&got["body"], &got["path"], &got["method"]),
        (&json!("hello"), &json!("/echo?q=1"), &json!("POST"))
    );
    // In lockstep with a shell: each line that arrives marks its step.
    let url = "http://http.aip.internal/events?stream=curl&steps=3";
    let mut shell = Command::new("sh");
    let script = r#"curl -sS -N --max-time 30 "$1" | while read -r _ word n; do
        if [ "$word" = step ]; then : > "$STEPS/curl.$n"; echo "$n"; fi; done"#;
    shell.args(["-c", script, "sh", url]);
    let ran = turn.run(shell).await;
    assert_eq!(ran.stdout, "1\n2\n3\n", "{ran:?}");
    turn.allowed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_denied_with_a_useful_answer() {
    let turn = HTTP.turn().await;
    let ran = turn.run(curl(&["http://http.aip.internal/forbidden/x"])).await;
    let problem = ran.observed();
    assert_eq!(
        (&problem["status"], &problem["rule"]),
        (&json!(403), &json!("no_forbidden_path")),
        "{problem}"
    );
    let refusal = turn.denied("no_forbidden_path").await;
    assert_eq!(
        problem["decision_id"].as_str(),
        Some(refusal.text("decision")),
        "the answer names its record"
    );
    assert_eq!(turn.seen(), Vec::<Value>::new());
}

async fn plain(script: &str, client: &str, tunnel: bool) {
    let turn = HTTP.turn().await;
    let url = format!("http://http.aip.internal/{client}");
    let got = turn.script(script, &[&url, client]).await;
    assert_eq!(got["status"], 200, "{client}: {got}");
    let echo: Value = serde_json::from_str(got["body"].as_str().unwrap()).unwrap();
    assert_eq!(echo["path"], format!("/{client}"));
    let (outbound, _) = turn.allowed().await;
    assert_eq!(
        outbound.0[0].0["connect"].as_bool().unwrap_or_default(),
        tunnel,
        "{client} uses CONNECT: {tunnel}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn python_clients_use_the_proxy_variables() {
    for client in ["requests", "httpx", "httpx2", "urllib", "aiohttp-trust-env"] {
        plain("http_client.py", client, false).await;
    }
}

/// Known, documented, and here so that the documentation stays true.
#[tokio::test(flavor = "multi_thread")]
async fn aiohttp_without_trust_env_does_not_use_the_proxy_variables() {
    let turn = HTTP.turn().await;
    let got = turn
        .script("http_client.py", &["http://http.aip.internal/aiohttp", "aiohttp"])
        .await;
    assert!(got["error"].is_string(), "{got}");
    assert!(turn.seen().is_empty() && turn.records().0.0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn node_clients_use_the_proxy_variables() {
    plain("http_client.mjs", "fetch", true).await;
    plain("http_client.mjs", "http", false).await;
}

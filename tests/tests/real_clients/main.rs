//! Unchanged agents and official clients, behind `aip run`, through both sidecars. Each test also reads both access
//! logs: every call that the caller's sidecar let out is on the callee's record under the same hop id, so a client
//! that went around the mesh fails its test. Streams are in lockstep (`tests/clients/witness.py`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod a2a;
mod mcp;
mod plain;
mod rpc;
mod team;
mod transfers;
mod web;

use std::process::Command;

use aip_tests::clients::{Ran, clients, run};
use aip_tests::process::{Mesh, Record, Records, RunAgent, pairs};
use aip_tests::wait;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// What no client may do here, in each protocol's own terms.
const FORBIDDEN: &str = r#"package aip.policy.forbidden

# gRPC's arguments are not read; where JSON's can't be, these rules don't fire.
# aip:optional protocol.arguments

rules contains deny("no_forbidden_path") if input.request.path[_] == "forbidden"

rules contains deny("no_forbidden_method") if input.request.path == ["test.Echo", "Forbidden"]

rules contains deny("no_forbidden_tool") if input.protocol.tool == "forbidden"

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
        let caller = &world.caller;
        settled(caller, callee).await;
        let before = (caller.records().0.len(), callee.records().0.len());
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
static FASTAPI: Callee = Callee::new("fastapi", || clients().script("web_fastapi.py", &[]));
static EXPRESS: Callee = Callee::new("express", || clients().script("web_express.mjs", &[]));
static AIOHTTP: Callee = Callee::new("aiohttp", || clients().script("web_aiohttp.py", &[]));
static HTTP: Callee = Callee::new("http", || clients().script("http_server.py", &[]));

/// Waits until both sidecars have written down all that they did: a record of one turn must not count for the next.
async fn settled(caller: &RunAgent, callee: &RunAgent) {
    for agent in [caller, callee] {
        wait::until_ok("nothing is in flight, and all is on the record", async || {
            agent.is_settled().await
        })
        .await;
    }
}

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
        settled(self.caller, self.callee).await;
        let (caller, callee) = self.records();
        let (outbound, inbound) = pairs(&caller, &callee).unwrap();
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
        settled(self.caller, self.callee).await;
        let refusal = self.records().0.0.into_iter().find(|r| r.verdict() == "deny");
        let refusal = refusal.expect("the caller's sidecar recorded the refusal");
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

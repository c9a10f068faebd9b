//! Orders to stop, as requests and open streams meet them at both ends.

use std::time::Duration;

use aip_api::kill::{Lease, Mode, OnLost, Order, Scope};
use aip_runtime::boottime;
use aip_sidecar::kill::Gate;
use http_body_util::BodyExt as _;

use crate::agent::Agent;
use crate::client::{begin, begin_h2, collect, get, post, send};
use crate::mesh::{DEADLINE, Pair, Side, hold};

fn order(scope: Scope, mode: Mode, expires: Option<u64>) -> Order {
    Order {
        id: uuid::Uuid::now_v7().to_string(),
        scope,
        mode,
        reason: "a test".into(),
        issued_by: vec!["ann".into()],
        issued_at: 1,
        expires,
    }
}

fn on(agent: &str) -> Scope {
    let agent = agent.parse().unwrap();
    Scope::Agent { agent }
}

fn pair_of(source: &str, destination: &str) -> Scope {
    Scope::Pair {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

fn gate(side: &Side) -> &Gate {
    &side.proxy.settings.kill
}

/// What a call of the planner to the ledger is answered.
async fn answered(pair: &Pair) -> (u16, String) {
    let answer = send(pair.caller.outbound, get("/x")).await;
    let status = answer.status.as_u16();
    let reason = if status == 200 { String::new() } else { answer.reason() };
    (status, reason)
}

fn tool(tool: &str) -> Scope {
    let agent = Some("ledger".parse().unwrap());
    Scope::Tool {
        agent,
        tool: tool.into(),
    }
}

/// Policy reads no body here: that a tool is stopped is enough to look into it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_is_stopped_is_not_called_and_others_are() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let called = async |name: &str| {
        let call = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}});
        send(pair.caller.outbound, post("/mcp", "application/json", call.to_string())).await
    };
    for side in [&pair.callee, &pair.caller] {
        hold(gate(side), &[order(tool("wipe"), Mode::Kill, None)]);
        assert_eq!(called("read").await.status, 200);
        let answer = called("wipe").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["error"]["data"]["reason"], "killed");
        // Several calls at once: any of them may be the one.
        let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe"}}]"#;
        let answer = send(pair.caller.outbound, post("/mcp", "application/json", batch)).await;
        assert_eq!(answer.status, 503);
        // Nor is it hidden in what calls itself gRPC: readers of JSON know UTF-16 by its first bytes.
        let wipe = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe"}}"#;
        let wide: Vec<u8> = wipe.bytes().flat_map(|b| [0, b]).collect();
        let answer = collect(begin_h2(pair.caller.outbound, post("/mcp", "application/grpc", wide)).await).await;
        assert!(!["", "0"].contains(&answer.header("grpc-status")), "{answer:?}");
        hold(gate(side), &[]);
    }
    let wiped = |seen: &crate::agent::Seen| seen.body.contains(&b'w');
    assert!(!agent.seen().iter().any(wiped));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_is_refused_at_its_own_sidecar_and_at_its_callers() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    assert_eq!(answered(&pair).await.0, 200);
    for side in [&pair.callee, &pair.caller] {
        for named in ["ledger", "planner"] {
            hold(gate(side), &[order(on(named), Mode::Kill, None)]);
            let (status, reason) = answered(&pair).await;
            assert_eq!((status, reason.as_str()), (503, "killed"), "{named} at {}", side.name);
        }
        hold(gate(side), &[]);
    }
    assert_eq!(answered(&pair).await.0, 200);
    assert_eq!(agent.seen().len(), 2, "nothing that was stopped reached the agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_on_a_label_or_the_mesh_stops_who_has_it_and_one_on_others_does_not() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let selector = |value: &str| Scope::Selector {
        labels: [("tier".to_owned(), value.to_owned())].into(),
    };
    pair.callee.push(|world| {
        world.agent("ledger").labels.insert("tier".into(), "beta".into());
    });
    for (scope, status) in [
        (selector("beta"), 503),
        (selector("gold"), 200),
        (Scope::Mesh {}, 503),
        (on("stranger"), 200),
        (pair_of("planner", "ledger"), 503),
        (pair_of("ledger", "planner"), 200),
    ] {
        let said = scope.to_string();
        hold(gate(&pair.callee), &[order(scope, Mode::Kill, None)]);
        assert_eq!(answered(&pair).await.0, status, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_says_until_when_and_ends_by_itself() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let now = aip_runtime::unix_now();
    hold(gate(&pair.callee), &[order(on("ledger"), Mode::Pause, Some(now + 600))]);
    let answer = send(pair.caller.outbound, get("/x")).await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "paused"));
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((590..=600).contains(&seconds), "{seconds}");
    hold(gate(&pair.callee), &[order(on("ledger"), Mode::Pause, Some(now))]);
    assert_eq!(answered(&pair).await.0, 200, "it is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_cuts_a_live_stream_and_a_pause_lets_it_go_on() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    agent.go();
    let mut response = begin(pair.caller.outbound, get("/events")).await;
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    hold(gate(&pair.callee), &[order(on("ledger"), Mode::Pause, None)]);
    pair.callee.push(|_| ());
    agent.go();
    assert!(response.body_mut().frame().await.unwrap().is_ok(), "a pause");
    hold(gate(&pair.callee), &[order(on("ledger"), Mode::Kill, None)]);
    pair.callee.push(|_| ());
    let rest = async {
        while let Some(frame) = response.body_mut().frame().await {
            if frame.is_err() {
                return;
            }
        }
        panic!("the stream ended as if it were whole");
    };
    tokio::time::timeout(DEADLINE, rest).await.expect("cut in time");
    assert_eq!(pair.callee.line().await["end"], "killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_set_or_a_lease_nothing_passes() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let lease = gate(&pair.callee).lease();
    let deny = Lease {
        seconds: 5,
        on_lost: OnLost::Deny,
    };
    lease.grant(deny, boottime());
    assert_eq!(answered(&pair).await.0, 200);
    lease.grant(deny, boottime().saturating_sub(Duration::from_secs(6)));
    assert_eq!(answered(&pair).await.1, "lease_lost");
    lease.grant(deny, boottime());
    assert_eq!(answered(&pair).await.0, 200, "heard again");
    assert!(
        Gate::default().orders().is_none(),
        "an empty set is not the same as none"
    );
}

/// A process that was stopped and goes on: nobody has looked at the clock yet, and no byte may pass.
#[tokio::test(flavor = "multi_thread")]
async fn not_a_frame_of_an_open_stream_passes_without_a_lease() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    agent.go();
    let mut response = begin(pair.caller.outbound, get("/events")).await;
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    let deny = Lease {
        seconds: 5,
        on_lost: OnLost::Deny,
    };
    gate(&pair.callee)
        .lease()
        .grant(deny, boottime().saturating_sub(Duration::from_secs(6)));
    agent.go();
    let next = tokio::time::timeout(DEADLINE, response.body_mut().frame())
        .await
        .unwrap();
    assert!(next.is_none_or(|frame| frame.is_err()), "it was cut before the event");
}

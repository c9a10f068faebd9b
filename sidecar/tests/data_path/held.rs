//! What is held for policy is bounded, however little a body says in however many pieces, and no peer takes it all.

use std::time::Duration;

use aip_api::id::HopId;
use aip_api::resource::Mode;
use aip_sidecar::proxy::limits;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::body::Frame;
use serde_json::json;

use crate::agent::Agent;
use crate::client::{Answer, Stranger, channel, collect, post, send, to_ledger};
use crate::mesh::{Pair, Side, World, until};
use crate::pki::Says;
use crate::refuse::{POLICY, is_refused, pair_with};

/// A call whose arguments take about 95 times their bytes in memory once they are read.
fn worst_call(objects: usize) -> String {
    let objects = vec![r#"{"":0}"#; objects].join(",");
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{{"rows":[{objects}]}}}}}}"#
    )
}

fn held(side: &Side) -> usize {
    side.proxy.connections()["held_bytes"].as_u64().unwrap() as usize
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_hold_their_bytes_and_not_what_was_read() {
    const CALLS: usize = 60;
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let body = worst_call(8_000);
    let before = resident();
    let waiting: Vec<_> = (0..CALLS)
        .map(|_| {
            tokio::spawn(send(
                pair.caller.outbound,
                post("/slow", "application/json", body.clone()),
            ))
        })
        .collect();
    until("all are with the agent", async || {
        (agent.seen().len() == CALLS).then_some(())
    })
    .await;
    for side in [&pair.caller, &pair.callee] {
        // Their heads are a few hundred bytes, and their tables of headers two thousand.
        let each = held(side) / CALLS;
        assert!(
            (body.len()..body.len() + 3_000).contains(&each),
            "{}: {each}",
            side.name
        );
    }
    let grown = resident().saturating_sub(before) >> 20;
    // Two sidecars would hold 5 MiB for each call.
    assert!(grown < 400, "{grown} MiB");
    // They are decided again all the same, on what they said.
    let rego = POLICY.replace("arguments.message.text == \"harm\"", "arguments.rows[0][\"\"] == 1");
    pair.callee
        .push(|world| world.policies = vec![("baseline".into(), rego)]);
    (0..CALLS).for_each(|_| agent.go());
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, StatusCode::OK);
    }
    for side in [&pair.caller, &pair.callee] {
        until("everything is given back", async || (held(side) == 0).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_call_is_cut_by_a_rule_on_what_it_said() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let body = worst_call(3);
    let waiting = tokio::spawn(send(pair.caller.outbound, post("/slow", "application/json", body)));
    until("it is with the agent", async || {
        (!agent.seen().is_empty()).then_some(())
    })
    .await;
    let rego = POLICY.replace("arguments.message.text == \"harm\"", "arguments.rows[0][\"\"] == 0");
    pair.callee
        .push(|world| world.policies = vec![("baseline".into(), rego)]);
    let answer = waiting.await.unwrap();
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (StatusCode::FORBIDDEN, &json!("policy_denied"))
    );
}

/// A policy that comes to read bodies can't know what an open request said: that one is cut.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_call_that_nobody_read_is_cut_when_a_rule_would_read_it() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let waiting = tokio::spawn(send(
        pair.caller.outbound,
        post("/slow", "application/json", worst_call(3)),
    ));
    until("it is with the agent", async || {
        (!agent.seen().is_empty()).then_some(())
    })
    .await;
    pair.callee
        .push(|world| world.policies = vec![("baseline".into(), POLICY.into())]);
    let answer = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    let answer = answer.expect("cut in time").unwrap();
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_would_take_too_much_memory_is_not_read() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let body = worst_call(140_000);
    assert!(body.len() < limits::MAX_HELD_BODY, "its bytes alone are few enough");
    for _ in 0..3 {
        let answer = send(pair.caller.outbound, post("/x", "application/json", body.clone())).await;
        is_refused(&answer, 403, "policy_denied");
        let problem = answer.json();
        assert_eq!(problem["rule"], "fact_unestablished");
        assert!(
            problem["detail"].as_str().unwrap().contains("body_too_complex"),
            "{problem}"
        );
    }
    assert!(agent.seen().is_empty());
    until("everything is given back", async || {
        (held(&pair.caller) == 0).then_some(())
    })
    .await;
}

/// However a body comes, the same bytes go on, with the length that they have.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_pieces_goes_on_as_it_was() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]).policy(POLICY);
    // So that what can't be read goes on, too.
    for name in ["planner", "ledger"] {
        world.agent(name).mode = Mode::Observe { until: u64::MAX };
    }
    let pair = Pair::in_world(agent.address, world).await;
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(limits::MAX_HELD_BODY + 100_000));
    let call = worst_call(5);
    for (what, content_type, body, piece) in [
        ("JSON", "application/json", call.as_str(), 1),
        ("JSON that does not say so", "text/plain", &call, 7),
        ("blanks, then text", "text/plain", " \n \t hello {}", 1),
        ("text", "text/plain", "hello", 2),
        ("blanks", "text/plain", "  \n ", 1),
        ("too much", "text/plain", &large, 50_000),
        ("lenient JSON", "text/plain", "{a: 1}", 1),
    ] {
        let (frames, stream) = channel();
        let request = to_ledger("POST", "/x")
            .header("content-type", content_type)
            .body(stream)
            .unwrap();
        let pieces: Vec<Bytes> = body.as_bytes().chunks(piece).map(Bytes::copy_from_slice).collect();
        tokio::spawn(async move {
            for piece in pieces {
                frames.send(Frame::data(piece)).await.unwrap();
            }
        });
        let answer = send(pair.caller.outbound, request).await;
        assert_eq!(answer.status, StatusCode::OK, "{what}: {}", answer.text());
        let seen = agent.seen().pop().unwrap();
        assert!(seen.body == body && answer.body == body, "{what}");
    }
    for side in [&pair.caller, &pair.callee] {
        until("everything is given back", async || (held(side) == 0).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_leave_behind_is_given_back() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let mut leaving = Vec::new();
    for n in 0..20 {
        let (frames, body) = channel();
        let request = to_ledger("POST", "/slow")
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        let task = tokio::spawn(send(pair.caller.outbound, request));
        frames.send(Frame::data(Bytes::from("{\"a\":"))).await.unwrap();
        // Every other one leaves while its body is awaited, the rest while the agent works.
        if n % 2 == 1 {
            frames.send(Frame::data(Bytes::from("1}"))).await.unwrap();
            drop(frames);
            leaving.push((task, None));
        } else {
            leaving.push((task, Some(frames)));
        }
    }
    until("half are with the agent", async || {
        (agent.seen().len() == 10).then_some(())
    })
    .await;
    assert!(held(&pair.caller) > 0 && held(&pair.callee) > 0);
    leaving.iter().for_each(|(task, _)| task.abort());
    for side in [&pair.caller, &pair.callee] {
        until("everything is given back", async || (held(side) == 0).then_some(())).await;
    }
}

async fn as_peer(pair: &Pair, name: &str, path: &str, body: String) -> Answer {
    let stranger = Stranger::new(&pair.pki, name, Says::default());
    let mut sender = stranger.connect(pair.callee.inbound, "ledger").await;
    let request = Request::post(format!("https://ledger.aip.internal{path}"))
        .header("x-aip-hop", HopId::fresh().to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    collect(sender.send_request(request).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_holds_its_share_is_refused_and_others_are_not() {
    let agent = Agent::start().await;
    let pair = Pair::in_world(agent.address, World::of(&["planner", "ledger", "reader"])).await;
    pair.callee
        .push(|world| world.policies = vec![("baseline".into(), POLICY.into())]);
    // Text: a mebibyte of it takes a mebibyte.
    let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(1_000_000));
    let fit = limits::MAX_HELD_OF_PEER / body.len();
    let mut calls: Vec<_> = (0..fit + 4)
        .map(|_| {
            tokio::spawn(send(
                pair.caller.outbound,
                post("/slow", "application/json", body.clone()),
            ))
        })
        .collect();
    let refused = until("some are refused", async || {
        let at = calls.iter().position(tokio::task::JoinHandle::is_finished)?;
        Some(calls.remove(at))
    })
    .await;
    is_refused(&refused.await.unwrap(), 429, "share_used_up");
    assert!(held(&pair.callee) <= limits::MAX_HELD_OF_PEER + limits::MAX_HELD_BODY);
    let answer = as_peer(&pair, "reader", "/x", r#"{"a":1}"#.into()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    (0..calls.len()).for_each(|_| agent.go());
}

/// Large heads whose bodies never come.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_can_t_let_any_number_of_requests_wait_for_their_bodies() {
    for large in ["a header", "the query"] {
        no_number_waits(large).await;
    }
}

async fn no_number_waits(large: &str) {
    const HEAD: usize = 50_000;
    let (query, header) = match large {
        "the query" => (HEAD, 1),
        _ => (1, HEAD),
    };
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let mut waiting = Vec::new();
    let refused = until("a share is used up", async || {
        let stranger = Stranger::new(&pair.pki, "planner", Says::default());
        let mut sender = stranger.connect_streaming(pair.callee.inbound, "ledger").await;
        for _ in 0..200 {
            let (frames, body) = channel();
            let request = Request::post(format!("https://ledger.aip.internal/x?{}", "q".repeat(query)))
                .header("x-aip-hop", HopId::fresh().to_string())
                .header("content-type", "application/json")
                .header("x-large", "x".repeat(header))
                .body(body)
                .unwrap();
            waiting.push((frames, tokio::spawn(sender.send_request(request))));
        }
        let held = held(&pair.callee);
        assert!(held <= limits::MAX_HELD_OF_PEER + HEAD * 2, "{held}");
        let at = waiting.iter().position(|(_, answer)| answer.is_finished())?;
        Some(waiting.swap_remove(at))
    })
    .await;
    drop(refused.0);
    let answer = collect(refused.1.await.unwrap().unwrap()).await;
    is_refused(&answer, 429, "share_used_up");
    assert!(agent.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_has_its_share_of_the_agent_is_refused_and_others_are_not() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger", "reader"]);
    world.traffic.max_concurrency = 4;
    let pair = Pair::in_world(agent.address, world).await;
    let slow = || tokio::spawn(send(pair.caller.outbound, post("/slow", "text/plain", "x")));
    let waiting = [slow(), slow()];
    until("two are with the agent", async || {
        (agent.seen().len() == 2).then_some(())
    })
    .await;
    let refused = send(pair.caller.outbound, post("/x", "text/plain", "x")).await;
    is_refused(&refused, 429, "share_used_up");
    assert_eq!(refused.header("retry-after"), "1");
    let answer = as_peer(&pair, "reader", "/x", "{}".into()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    // The operator may give a peer more.
    pair.callee.push(|world| world.traffic.peer_max_concurrency = Some(4));
    let answer = send(pair.caller.outbound, post("/x", "text/plain", "x")).await;
    assert_eq!(answer.status, StatusCode::OK);
    waiting.iter().for_each(|_| agent.go());
}

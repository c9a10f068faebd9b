//! Calls that are dressed as something else: what policy can't establish is not taken for nothing.

use aip_api::resource::AgentProtocol;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Frame;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::client::{Answer, begin_h2, channel, collect, post, send, to_ledger};
use crate::mesh::{Pair, until};
use crate::refuse::{is_refused, pair_with};

/// Allows all but a tool, a method and a protocol.
const CALLS: &str = r#"package aip.policy.baseline
rules contains {"rule": "everything", "verdict": "allow", "reason": "a test"}
rules contains deny("no_tool") if input.protocol.tool == "harm"
rules contains deny("no_method") if input.protocol.method == "harm"
rules contains deny("no_a2a") if input.protocol.name == "a2a"
deny(rule) := {"rule": rule, "verdict": "deny", "reason": "a test forbids it"}
"#;

const HARM: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"harm","arguments":{}}}"#;

fn problem(answer: &Answer) -> Value {
    let said = answer.json();
    match said["error"]["data"].clone() {
        Value::Null => said,
        data => data,
    }
}

/// Text in UTF-16 or UTF-32, the greatest byte first.
fn wide(text: &str, bytes: usize) -> Vec<u8> {
    text.bytes()
        .flat_map(|b| [vec![0; bytes - 1], vec![b]].concat())
        .collect()
}

fn grpc(content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("http://ledger.aip.internal/test.Echo/Unary")
        .header("content-type", content_type)
        .body(Full::new(body.into()))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_calls_itself_grpc_is_grpc() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, CALLS).await;
    let blind = Pair::start(agent.address).await;
    let mut sent = 0;
    for content_type in ["application/grpc", "application/grpc+json", "application/grpc;x=y"] {
        for body in [
            HARM.into(),
            format!(" {HARM}").into(),
            format!("[{HARM}]").into(),
            b"\x0b{}".to_vec(),
            b"\x02".to_vec(),
            // As Python's `json.loads` and others find out by themselves.
            wide(HARM, 2),
            wide(HARM, 4),
            wide(&format!("\t\n{HARM}"), 2),
            wide(&format!(" {HARM}"), 4),
            // What is no message at all.
            b"\0\0\0".to_vec(),
            b"\0\x7f\xff\xff\xff\x08".to_vec(),
        ] {
            for side in [&pair.caller, &blind.caller] {
                let over_http2 = collect(begin_h2(side.outbound, grpc(content_type, body.clone())).await).await;
                let over_http1 = send(side.outbound, post("/mcp", content_type, body.clone())).await;
                for answer in [over_http2, over_http1] {
                    assert_ne!(answer.header("grpc-status"), "", "{content_type} {body:?}: {answer:?}");
                    assert_ne!(answer.header("grpc-status"), "0");
                }
            }
            sent += 2;
        }
    }
    for side in [&pair.caller, &blind.caller] {
        let lines = side.lines(sent).await;
        assert!(
            lines.iter().all(|line| line["reason"] == "invalid_content"),
            "{lines:?}"
        );
    }
    // Its head may have gone on before its first byte came.
    assert!(agent.seen().iter().all(|seen| seen.body.is_empty()));
    let before = agent.seen().len();
    for body in ["\0\0\0\0\0", "\x01\0\0\0\x01{", ""] {
        let answer = collect(begin_h2(pair.caller.outbound, grpc("application/grpc+proto", body)).await).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("grpc-status"), "", "the agent's own answer");
    }
    assert_eq!(agent.seen().len(), before + 3);
}

/// A stream may send its first byte late: nobody waits for it, and it does not pass unseen.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_turns_out_to_be_no_grpc_is_broken_off() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, CALLS).await;
    let whole: &[usize] = &[];
    for (said, cuts, passes) in [
        (b"\0\0\0\0\0".to_vec(), whole, true),
        (b"\0\0\0\x01\0\x0a".to_vec(), &[1, 4][..], true),
        (HARM.into(), whole, false),
        (wide(HARM, 2), whole, false),
        (wide(HARM, 2), &[1, 2, 4][..], false),
        (wide(HARM, 4), &[3, 5][..], false),
    ] {
        let (frames, body) = channel();
        let request = Request::post("http://ledger.aip.internal/chat")
            .header("content-type", "application/grpc")
            .body(body)
            .unwrap();
        let mut response = begin_h2(pair.caller.outbound, request).await;
        assert_eq!(response.status(), StatusCode::OK, "it answers before it is spoken to");
        let said = Bytes::from(said);
        let mut sent = 0;
        for end in cuts.iter().copied().chain([said.len()]) {
            // Whoever was refused takes no more.
            let _ = frames.send(Frame::data(said.slice(sent..end))).await;
            sent = end;
        }
        let echoed = tokio::time::timeout(crate::mesh::DEADLINE, response.body_mut().frame())
            .await
            .unwrap();
        match echoed {
            Some(Ok(frame)) => assert!(passes && frame.into_data().unwrap() == said),
            ended => assert!(!passes, "{ended:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_speaks_http1_gets_no_grpc() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let http1 = |world: &mut crate::mesh::World| world.agent("ledger").protocol = AgentProtocol::Http1;
    pair.callee.push(http1);
    for _ in 0..2 {
        let answer = collect(begin_h2(pair.caller.outbound, grpc("application/grpc", "\0\0\0\0\0")).await).await;
        assert_ne!(answer.header("grpc-status"), "");
        // Then its caller knows, too.
        pair.caller.push(http1);
    }
    assert_eq!(pair.callee.line().await["reason"], "invalid_content");
    let lines = pair.caller.lines(2).await;
    assert_eq!(lines[1]["reason"], "invalid_content");
    assert!(agent.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_one_type() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, CALLS).await;
    for (one, two) in [
        ("text/plain", "application/json"),
        ("application/json", "application/grpc"),
    ] {
        let request = to_ledger("POST", "/mcp")
            .header("content-type", one)
            .header("content-type", two);
        let answer = send(
            pair.caller.outbound,
            request.body(Full::new(Bytes::from(HARM))).unwrap(),
        )
        .await;
        assert_eq!(
            (answer.status.as_u16(), problem(&answer)["reason"].as_str().unwrap()),
            (400, "invalid_content")
        );
    }
    assert!(agent.seen().is_empty());
}

fn with_params(params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
}

fn with_method(method: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"name": "harm"}})
}

/// Calls that one reader takes for a call and another doesn't, and the word for what is wrong with each.
fn disguised() -> [(&'static str, Value); 24] {
    let (params, method) = (with_params, with_method);
    [
        ("key_spelling", params(json!({"Name": "harm"}))),
        ("key_spelling", params(json!({"NAME": "harm", "arguments": {}}))),
        ("key_spelling", params(json!({"name": "good", "name ": "harm"}))),
        (
            "key_spelling",
            json!({"jsonrpc": "2.0", "id": 1, "Method": "tools/call", "params": {"name": "harm"}}),
        ),
        (
            "key_spelling",
            json!({"jsonrpc": "2.0", "id": 1, "METHOD": "tools/call", "params": {"name": "harm"}}),
        ),
        (
            "key_spelling",
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "paramſ": {"name": "harm"}}),
        ),
        ("key_spelling", json!({"JsonRpc": "2.0", "id": 1, "method": "harm"})),
        ("key_type", params(json!({"name": ["harm"]}))),
        ("key_type", params(json!({"name": {"harm": 1}}))),
        ("key_type", params(json!({"name": "good", "arguments": ["harm"]}))),
        ("key_type", params(json!("harm"))),
        ("key_type", method(json!(["tools/call"]))),
        ("key_type", method(json!(7))),
        ("key_type", json!({"jsonrpc": 2.0, "id": 1, "method": "harm"})),
        ("key_type", json!({"jsonrpc": "1.0", "id": 1, "method": "harm"})),
        ("positional_arguments", params(json!(["harm", {}]))),
        ("method_name", method(json!("tools/call "))),
        ("method_name", method(json!("\u{0}tools/call"))),
        ("method_name", method(json!("toolſ/call"))),
        ("method_name", method(json!("Tools/Call"))),
        (
            "method_name",
            json!({"method": " tools/call", "params": {"name": "harm"}}),
        ),
        ("method_name", method(json!("harm\n"))),
        (
            "batch",
            json!([{"id": 1, "METHOD": "tools/call", "params": {"name": "harm"}}]),
        ),
        (
            "key_spelling",
            json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"Message": {}}}),
        ),
    ]
}

/// What is written as it should be, null for nothing included.
fn plain() -> [Value; 10] {
    let (params, method) = (with_params, with_method);
    [
        params(json!({"name": "good"})),
        params(json!({"name": "good", "arguments": null, "_meta": {"Name": "x"}})),
        params(Value::Null),
        method(json!("tools/list")),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": ["x"]}),
        json!({"jsonrpc": "2.0", "id": 1, "result": {"Method": "x"}}),
        json!({"Name": "a REST call", "id": 1, "names": ["method"]}),
        json!({"method": "card", "amount": 3}),
        json!([1, 2]),
    ]
}

/// Spelled or typed so that some reader finds a call, and another none.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_hidden_by_how_its_keys_are_written() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, CALLS).await;
    for (word, body) in disguised() {
        let answer = send(pair.caller.outbound, post("/mcp", "application/json", body.to_string())).await;
        let problem = problem(&answer);
        assert_eq!(problem["rule"], "fact_unestablished", "{body}: {}", answer.text());
        assert!(problem["detail"].as_str().unwrap().contains(word), "{body}: {problem}");
    }
    assert!(agent.seen().is_empty());
    for body in plain() {
        let answer = send(pair.caller.outbound, post("/mcp", "application/json", body.to_string())).await;
        assert_eq!(answer.status, StatusCode::OK, "{body}: {}", answer.text());
    }
}

/// Names of headers, and their values.
type Lines = &'static [(&'static str, &'static str)];

/// A caller adds any header it likes.
#[tokio::test(flavor = "multi_thread")]
async fn headers_don_t_turn_a2a_into_mcp() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, CALLS).await;
    let call = |method: &str| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"id": "t"}}).to_string();
    let with = |body: String, headers: &[(&str, &str)]| {
        let request = to_ledger("POST", "/rpc").header("content-type", "application/json");
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(Full::new(Bytes::from(body))).unwrap()
    };
    let cases: [(&str, Lines, &str); 5] = [
        ("message/send", &[], "no_a2a"),
        (
            "message/send",
            &[("mcp-session-id", "x"), ("mcp-protocol-version", "2025-11-25")],
            "no_a2a",
        ),
        ("SendMessage", &[("mcp-method", "x")], "fact_unestablished"),
        (
            "tasks/get",
            &[("mcp-session-id", "x"), ("a2a-version", "1.0")],
            "fact_unestablished",
        ),
        ("tools/list", &[("mcp-method", "tools/call")], "fact_unestablished"),
    ];
    for (method, headers, rule) in cases {
        let answer = send(pair.caller.outbound, with(call(method), headers)).await;
        assert_eq!(
            problem(&answer)["rule"],
            rule,
            "{method} {headers:?}: {}",
            answer.text()
        );
    }
    assert!(agent.seen().is_empty());
    let good = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "good"}}).to_string();
    let named: [Lines; 3] = [
        &[("mcp-method", "tools/call"), ("mcp-name", "good")],
        &[("mcp-method", "tools/call"), ("mcp-name", "=?base64?Z29vZA==?=")],
        &[("mcp-session-id", "x")],
    ];
    for headers in named {
        let answer = send(pair.caller.outbound, with(good.clone(), headers)).await;
        assert_eq!(answer.status, StatusCode::OK, "{headers:?}: {}", answer.text());
    }
    let answer = send(pair.caller.outbound, with(good, &[("mcp-name", "harm")])).await;
    assert_eq!(problem(&answer)["rule"], "fact_unestablished");
    let answer = send(
        pair.caller.outbound,
        with(call("tasks/get"), &[("mcp-session-id", "x")]),
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK, "MCP has it, too");
}

/// What lenient readers skip before JSON, under a type that says that it is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_hidden_behind_what_lenient_readers_skip() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, CALLS).await;
    for before in ["\u{b}", "\u{a0}", "/*x*/", "//x\n", ")]}'\n", "\u{2003}", "\u{1f}"] {
        let body = format!("{before}{HARM}");
        let answer = send(pair.caller.outbound, post("/mcp", "text/plain", body)).await;
        is_refused(&answer, 403, "policy_denied");
        assert!(answer.text().contains("body_encoding"), "{before:?}: {}", answer.text());
    }
    assert!(agent.seen().is_empty());
}

/// A body of which no length is known is one all the same: the agent sees what policy saw.
#[tokio::test(flavor = "multi_thread")]
async fn a_get_keeps_its_body_on_the_way_to_http1() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        let (frames, body) = channel();
        let request = to_ledger(method, "/x").body(body).unwrap();
        let waiting = tokio::spawn(begin_h2(pair.caller.outbound, request));
        frames.send(Frame::data(Bytes::from("hello"))).await.unwrap();
        drop(frames);
        assert_eq!(collect(waiting.await.unwrap()).await.status, StatusCode::OK);
        let seen = until("it arrives", async || agent.seen().pop()).await;
        assert_eq!((seen.method.as_str(), &seen.body[..]), (method, &b"hello"[..]));
    }
}

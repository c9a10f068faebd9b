//! A refusal is a useful answer, in its caller's own form, and the agent never hears of the request.

use std::time::Duration;

use aip_api::evidence::Assurance;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::body::Frame;
use serde_json::json;

use crate::agent::Agent;
use crate::client::{Answer, begin, channel, get, raw, send, to_ledger};
use crate::mesh::{Pair, Side, World, until};
use crate::pki::{Pki, Says};

/// Allows all but a path, a tool and a text.
pub(crate) const POLICY: &str = r#"package aip.policy.baseline
rules contains {"rule": "everything", "verdict": "allow", "reason": "a test"}
rules contains deny("no_path") if input.request.path[0] == "forbidden"
rules contains deny("no_tool") if input.protocol.tool == "harm"
rules contains deny("no_text") if input.protocol.arguments.message.text == "harm"
deny(rule) := {"rule": rule, "verdict": "deny", "reason": "a test forbids it"}
"#;

pub(crate) async fn pair_with(agent: &Agent, rego: &str) -> Pair {
    Pair::in_world(agent.address, World::of(&["planner", "ledger"]).policy(rego)).await
}

pub(crate) fn is_refused(answer: &Answer, status: u16, reason: &str) {
    assert_eq!(
        (answer.status.as_u16(), answer.reason().as_str()),
        (status, reason),
        "{}",
        answer.text()
    );
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert!(answer.json()["decision_id"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_s_sidecar_refuses_and_nobody_else_hears_of_it() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let answer = send(pair.caller.outbound, get("/forbidden/x")).await;
    is_refused(&answer, 403, "policy_denied");
    let problem = answer.json();
    assert_eq!(problem["rule"], "no_path");
    assert!(problem["detail"].as_str().unwrap().contains("a test forbids it"));
    let line = pair.caller.line().await;
    assert_eq!(
        (&line["decision"], &line["verdict"], &line["rule"]),
        (&problem["decision_id"], &json!("deny"), &json!("no_path"))
    );
    assert_eq!(
        (&line["status"], &line["reason"], &line["blame"]),
        (&json!(403), &json!("policy_denied"), &json!("policy"))
    );
    assert!(line["hop"].as_str().unwrap().len() == 36);
    assert!(agent.seen().is_empty() && pair.callee.log.lines().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callee_s_sidecar_refuses_and_both_decisions_are_seen() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    pair.callee
        .push(|world| world.policies = vec![("baseline".into(), POLICY.into())]);
    let answer = send(pair.caller.outbound, get("/forbidden")).await;
    is_refused(&answer, 403, "policy_denied");
    let (out, inn) = (pair.caller.line().await, pair.callee.line().await);
    let expected = [
        format!("{};deny;callee", inn["decision"].as_str().unwrap()),
        format!("{};allow;caller", out["decision"].as_str().unwrap()),
    ];
    assert_eq!(answer.decisions(), expected);
    assert_eq!(
        (&out["verdict"], &out["callee"]),
        (&json!("allow"), &json!(expected[0]))
    );
    assert!(agent.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_policy_denies() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.policies.clear();
    let pair = Pair::in_world(agent.address, world).await;
    let answer = send(pair.caller.outbound, get("/x")).await;
    is_refused(&answer, 403, "policy_denied");
    assert_eq!(answer.json()["rule"], "no_rule");
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_and_obligations_of_later_versions_are_refused_honestly() {
    let agent = Agent::start().await;
    let rule = |rest: &str| {
        format!("package aip.policy.baseline\nrules contains {{\"rule\": \"r\", \"reason\": \"t\", {rest}}}\n")
    };
    for (rest, reason) in [
        (r#""verdict": "escalate""#, "unsupported_verdict"),
        (r#""verdict": "restrict""#, "unsupported_verdict"),
        (
            r#""verdict": "allow", "obligations": {"rate_per_minute": 5}"#,
            "unsupported_obligation",
        ),
    ] {
        let pair = pair_with(&agent, &rule(rest)).await;
        is_refused(&send(pair.caller.outbound, get("/x")).await, 403, reason);
    }
    let pair = pair_with(
        &agent,
        &rule(r#""verdict": "allow", "obligations": {"tags": ["seen"]}"#),
    )
    .await;
    assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_are_read_differently_are_refused() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for path in [
        "/a/../b",
        "/a//b",
        "/a%2fb",
        "/a;b",
        "/a%252fb",
        "/a/%25%32%65%25%32%65/admin",
    ] {
        let text = format!(
            "GET http://ledger.aip.internal{path} HTTP/1.1\r\nhost: ledger.aip.internal\r\nconnection: close\r\n\r\n"
        );
        let answer = raw(pair.caller.outbound, text.as_bytes(), "").await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("ambiguous_path"),
            "{path}: {answer}"
        );
    }
    assert!(agent.seen().is_empty());
    for side in [&pair.caller, &pair.callee] {
        side.push(|world| world.agent("ledger").allow_ambiguous_paths = true);
    }
    assert_eq!(send(pair.caller.outbound, get("/a;b//c")).await.status, StatusCode::OK);
}

/// A host may be as long as a head; what is written down of it is no longer than a name can be.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_no_name_fills_no_log() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let host = format!("{}.example", "a".repeat(20_000));
    let asked = http::Request::get(format!("http://{host}/x"))
        .body(Full::new(Bytes::new()))
        .unwrap();
    assert_ne!(send(pair.caller.outbound, asked).await.status, StatusCode::OK);
    let text = format!("CONNECT {host}:443 HTTP/1.1\r\nhost: {host}:443\r\n\r\n");
    raw(pair.caller.outbound, text.as_bytes(), "\r\n\r\n").await;
    for line in pair.caller.lines(2).await {
        assert_eq!(line["destination"].as_str().unwrap(), &host[..255]);
        assert!(line.to_string().len() < 4_096, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_hosts_and_framing_that_are_read_differently_are_refused() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let head = |lines: &str| format!("GET /x HTTP/1.1\r\n{lines}connection: close\r\n\r\n");
    for (lines, reason) in [
        (
            "host: ledger.aip.internal\r\nhost: ledger.aip.internal\r\n",
            "invalid_host",
        ),
        ("", "invalid_host"),
        (
            "host: ledger.aip.internal\r\nX-HTTP-Method-Override: DELETE\r\n",
            "override_header",
        ),
        (
            "host: ledger.aip.internal\r\nX_HTTP_Method_Override: DELETE\r\n",
            "override_header",
        ),
        (
            "host: ledger.aip.internal\r\nX_Original_URL: /admin\r\n",
            "override_header",
        ),
        ("host: x.y.aip.internal\r\n", "unknown_agent"),
    ] {
        let answer = raw(pair.caller.outbound, head(lines).as_bytes(), "").await;
        assert!(answer.contains(reason), "{lines}: {answer}");
    }
    let other = "GET http://ledger.aip.internal/x HTTP/1.1\r\nhost: planner.aip.internal\r\nconnection: close\r\n\r\n";
    assert!(
        raw(pair.caller.outbound, other.as_bytes(), "")
            .await
            .contains("host_mismatch")
    );
    for framing in [
        "content-length: 3\r\ncontent-length: 4\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: x\r\n",
    ] {
        let text = format!("POST /x HTTP/1.1\r\nhost: ledger.aip.internal\r\n{framing}\r\n0\r\n\r\n");
        let answer = raw(pair.caller.outbound, text.as_bytes(), "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{framing}: {answer}");
    }
    assert!(agent.seen().is_empty());
}

/// `*` stands for the server, and only OPTIONS asks for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_path_is_refused() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let asked = |method: &str| format!("{method} * HTTP/1.1\r\nhost: ledger.aip.internal\r\nconnection: close\r\n\r\n");
    for method in ["GET", "POST", "DELETE"] {
        let answer = raw(pair.caller.outbound, asked(method).as_bytes(), "").await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("unsupported_target"),
            "{answer}"
        );
    }
    assert!(agent.seen().is_empty());
    let answer = raw(pair.caller.outbound, asked("OPTIONS").as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_stands_twice_goes_on_once() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let text = "POST /x HTTP/1.1\r\nhost: ledger.aip.internal\r\ncontent-length: 2\r\ncontent-length: 2\r\n\
                connection: close\r\n\r\nhi";
    let answer = raw(pair.caller.outbound, text.as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = agent.only();
    assert_eq!(
        (seen.headers.get_all("content-length").iter().count(), &seen.body[..]),
        (1, &b"hi"[..])
    );
}

/// Chunks beside a length: one message in, one message out, framed once.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_smuggled_is_framed_anew() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let text = "POST /x HTTP/1.1\r\nhost: ledger.aip.internal\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\
                connection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: ledger.aip.internal\r\n\r\n";
    let answer = raw(pair.caller.outbound, text.as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = agent.only();
    assert_eq!((&seen.body[..], seen.header("content-length")), (&b"hello"[..], ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_to_call_is_said_so() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    pair.caller.absent("nobody");
    let request = Request::get("http://nobody.aip.internal/")
        .body(Full::<Bytes>::default())
        .unwrap();
    is_refused(&send(pair.caller.outbound, request).await, 404, "unknown_agent");
    // A port on which nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    pair.caller
        .push(|world| world.endpoints = vec![("ledger".into(), free)]);
    is_refused(&send(pair.caller.outbound, get("/")).await, 502, "peer_unreachable");
    // Somebody else, with a good certificate of another agent.
    let other = Side::start(&pair.pki, "planner", agent.address, World::of(&["planner", "ledger"])).await;
    pair.caller
        .push(|world| world.endpoints = vec![("ledger".into(), other.inbound)]);
    is_refused(&send(pair.caller.outbound, get("/")).await, 502, "peer_not_verified");
    // A second endpoint that works is found behind one that does not.
    pair.caller
        .push(|world| world.endpoints = vec![("ledger".into(), free), ("ledger".into(), pair.callee.inbound)]);
    for _ in 0..4 {
        assert_eq!(send(pair.caller.outbound, get("/")).await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_down_or_slow_is_said_so() {
    let down = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let pair = Pair::start(down).await;
    is_refused(&send(pair.caller.outbound, get("/")).await, 502, "agent_unreachable");
    assert_eq!(pair.callee.line().await["blame"], "agent");
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.traffic.response_timeout_ms = 50;
    let pair = Pair::in_world(agent.address, world).await;
    is_refused(&send(pair.caller.outbound, get("/slow")).await, 504, "response_timeout");
}

/// An agent that answers at once is not the one that is late where its caller does not send the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_its_callers_fault() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.traffic.response_timeout_ms = 200;
    let pair = Pair::in_world(agent.address, world).await;
    let (sender, body) = channel();
    sender.send(Frame::data(Bytes::from_static(b"half"))).await.unwrap();
    let request = to_ledger("POST", "/echo").body(body).unwrap();
    let answer = send(pair.caller.outbound, request).await;
    is_refused(&answer, 408, "body_timeout");
    let (_, end) = pair.callee.audited(1).await.remove(0);
    assert_eq!(
        (end.end.as_str(), end.blame.as_str()),
        ("body_timeout", "caller"),
        "{end:?}"
    );
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_agent_takes_is_shed() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.traffic.max_concurrency = 1;
    let pair = Pair::in_world(agent.address, world).await;
    let first = tokio::spawn(send(pair.caller.outbound, get("/slow")));
    until("the first is with the agent", async || {
        (!agent.seen().is_empty()).then_some(())
    })
    .await;
    let answer = send(pair.caller.outbound, get("/x")).await;
    is_refused(&answer, 503, "overloaded");
    assert_eq!(answer.header("retry-after"), "1");
    agent.go();
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    until("the place is free again", async || {
        (send(pair.caller.outbound, get("/x")).await.status == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_too_much_is_refused_before_its_body() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    (world.traffic.peer_rate_per_second, world.traffic.peer_burst) = (1, 2);
    let pair = Pair::in_world(agent.address, world).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(send(pair.caller.outbound, get("/x")).await.status.as_u16());
    }
    assert_eq!(statuses[..2], [200, 200]);
    assert!(statuses[2..].contains(&429), "{statuses:?}");
    pair.callee.push(|world| world.traffic.peer_burst = 100);
    assert_eq!(
        send(pair.caller.outbound, get("/x")).await.status,
        StatusCode::OK,
        "a raised limit holds at once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbound_port_serves_its_own_agent_only() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let mut world = World::of(&["planner", "ledger"]);
    world.endpoints.push(("ledger".into(), pair.callee.inbound));
    let nobody = "127.0.0.1:9".parse().unwrap();
    let side = Side::start_with(
        &pair.pki,
        "planner",
        nobody,
        world,
        Says::default(),
        Some("s3cret-s3cret"),
    )
    .await;
    let with = |credentials: &str| {
        to_ledger("GET", "/x")
            .header("proxy-authorization", credentials)
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    use base64::Engine as _;
    let basic = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
    for request in [
        get("/x"),
        with(&basic("aip:wrong")),
        with(&basic("s3cret-s3cret")),
        with("Bearer s3cret-s3cret"),
    ] {
        let answer = send(side.outbound, request).await;
        is_refused(&answer, 407, "proxy_auth_required");
        assert!(answer.header("proxy-authenticate").starts_with("Basic"));
    }
    let connect = "CONNECT ledger.aip.internal:80 HTTP/1.1\r\nhost: ledger.aip.internal:80\r\n\r\n";
    assert!(
        raw(side.outbound, connect.as_bytes(), "proxy_auth_required")
            .await
            .starts_with("HTTP/1.1 407")
    );
    assert!(agent.seen().is_empty());
    assert_eq!(
        send(side.outbound, with(&basic("anybody:s3cret-s3cret"))).await.status,
        StatusCode::OK
    );
    assert_eq!(agent.only().header("proxy-authorization"), "", "the secret stays here");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_mesh_requires_is_asked_of_both_ends() {
    let agent = Agent::start().await;
    let pki = Pki::new();
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.require.assurance = Assurance::Observed;
    // Not even observed: this is no policy.
    world.agent("planner").mode = aip_api::resource::Mode::Observe { until: u64::MAX };
    let strong = Says {
        assurance: Assurance::Observed,
        ..Says::default()
    };
    let nobody = "127.0.0.1:9".parse().unwrap();
    let callee = Side::start_with(
        &pki,
        "ledger",
        agent.address,
        World::of(&["planner", "ledger"]),
        Says::default(),
        None,
    )
    .await;
    world.endpoints.push(("ledger".into(), callee.inbound));
    let weak_caller = Side::start_with(&pki, "planner", nobody, world.clone(), Says::default(), None).await;
    is_refused(&send(weak_caller.outbound, get("/x")).await, 403, "assurance_too_low");
    let caller = Side::start_with(&pki, "planner", nobody, world, strong, None).await;
    let answer = send(caller.outbound, get("/x")).await;
    is_refused(&answer, 403, "assurance_too_low");
    assert!(
        answer.json()["detail"].as_str().unwrap().contains("agent/ledger"),
        "the callee is too weak"
    );
    assert!(agent.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_on_what_the_callee_runs_is_decided_on_its_certificate() {
    let agent = Agent::start().await;
    let rego = |code: &aip_api::Digest| {
        format!(
            "package aip.policy.baseline\nrules contains {{\"rule\": \"r\", \"verdict\": \"allow\", \"reason\": \"t\"}} if {{\n\tinput.destination.attestation.status == \"valid\"\n\tinput.destination.attestation.code == \"{code}\"\n}}\n"
        )
    };
    let right = aip_api::Digest::sha256(b"ledger");
    let pair = pair_with(&agent, &rego(&right)).await;
    assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
    let wrong = aip_api::Digest::sha256(b"something else");
    pair.caller
        .push(|world| world.policies = vec![("baseline".into(), rego(&wrong))]);
    is_refused(&send(pair.caller.outbound, get("/x")).await, 403, "policy_denied");
    assert_eq!(agent.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_client_that_is_still_sending_reads_the_answer() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let body = Bytes::from(vec![b'x'; 200_000]);
    let request = to_ledger("POST", "/forbidden")
        .header("content-type", "text/plain")
        .body(Full::new(body))
        .unwrap();
    let response = tokio::time::timeout(Duration::from_secs(10), begin(pair.caller.outbound, request))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

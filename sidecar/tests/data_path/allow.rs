//! What is allowed arrives as it was sent, both ways, and both ends say so.

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::Full;
use serde_json::json;

use crate::agent::Agent;
use crate::client::{begin_h2, collect, get, post, raw, send, to_ledger};
use crate::mesh::{Pair, Side, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_passes_both_sidecars_and_both_record_it() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let request = to_ledger("POST", "/a/b?x=1&y=%20")
        .header("content-type", "text/plain")
        .header("x-custom", "kept")
        .body(Full::new(Bytes::from("hello")))
        .unwrap();
    let answer = send(pair.caller.outbound, request).await;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "hello"));

    let seen = agent.only();
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str(), &seen.body[..]),
        ("POST", "/a/b?x=1&y=%20", &b"hello"[..])
    );
    assert_eq!(seen.version, Version::HTTP_11);
    assert_eq!(seen.header("x-custom"), "kept");
    assert_eq!(seen.header("x-aip-source"), "spiffe://aip.internal/agent/planner");
    assert_eq!(seen.header("host"), agent.address.to_string());
    assert_eq!(seen.header("forwarded"), "host=\"ledger.aip.internal\";proto=http");
    assert!(seen.header("traceparent").starts_with("00-"));

    let (out, inn) = (pair.caller.line().await, pair.callee.line().await);
    assert_eq!(out["hop"], inn["hop"]);
    assert_eq!(out["trace"], inn["trace"]);
    for line in [&out, &inn] {
        assert_eq!(line["source"], "spiffe://aip.internal/agent/planner");
        assert_eq!(line["destination"], "spiffe://aip.internal/agent/ledger");
        assert_eq!(
            (&line["method"], &line["path"], &line["status"]),
            (&json!("POST"), &json!("/a/b"), &json!(200))
        );
        assert_eq!(
            (&line["verdict"], &line["rule"], &line["end"]),
            (&json!("allow"), &json!("everything"), &json!("complete"))
        );
        assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&json!(5), &json!(5)));
    }
    assert_eq!(
        (&out["direction"], &inn["direction"]),
        (&json!("outbound"), &json!("inbound"))
    );
    let decisions = answer.decisions();
    let of = |line: &serde_json::Value, end: &str| format!("{};allow;{end}", line["decision"].as_str().unwrap());
    assert_eq!(decisions, [of(&inn, "callee"), of(&out, "caller")]);
    assert_eq!(answer.header("x-aip-hop"), out["hop"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_host_is_the_same_as_one_in_absolute_form() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let text = "GET /by-host HTTP/1.1\r\nhost: Ledger.AIP.internal:8080\r\nconnection: close\r\n\r\n";
    let answer = raw(pair.caller.outbound, text.as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(agent.only().target, "/by-host");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_with_prior_knowledge_is_served_too() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let request = Request::post("http://ledger.aip.internal/h2")
        .body(Full::new(Bytes::from("two")))
        .unwrap();
    let answer = collect(begin_h2(pair.caller.outbound, request).await).await;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "two"));
    // Only gRPC needs HTTP/2 of the agent.
    assert_eq!(agent.only().version, Version::HTTP_11);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_reaches_the_agent_in_http2() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let request = Request::post("http://ledger.aip.internal/test.Echo/Unary")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from("\0\0\0\0\0")))
        .unwrap();
    let answer = collect(begin_h2(pair.caller.outbound, request).await).await;
    assert_eq!(answer.status, StatusCode::OK);
    let seen = agent.only();
    assert_eq!((seen.version, seen.header("te")), (Version::HTTP_2, "trailers"));
    assert_eq!(pair.caller.line().await["protocol"], "grpc");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_agent_and_peer_are_kept() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for n in 0..20 {
        let answer = send(pair.caller.outbound, post(&format!("/{n}"), "text/plain", "x")).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert_eq!(agent.connections(), 1);
    let connections = pair.caller.proxy.connections()["connections"].clone();
    let peers: Vec<_> = connections.as_array().unwrap().iter().collect();
    assert_eq!((peers.len(), &peers[0]["requests"]), (1, &json!(20)), "{connections}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodiless_answers_and_heads_stay_bodiless() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let answer = send(pair.caller.outbound, get("/empty")).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
    let head = to_ledger("HEAD", "/x").body(Full::<Bytes>::default()).unwrap();
    let answer = send(pair.caller.outbound, head).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_observe_mode_is_only_recorded() {
    let agent = Agent::start().await;
    let deny = "package aip.policy.baseline\nrules contains {\"rule\": \"never\", \"verdict\": \"deny\", \"reason\": \"a test\"}\n";
    let mut world = World::of(&["planner", "ledger"]).policy(deny);
    for name in ["planner", "ledger"] {
        world.agent(name).mode = aip_api::resource::Mode::Observe { until: u64::MAX };
    }
    let pair = Pair::in_world(agent.address, world).await;
    assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
    let line = pair.callee.line().await;
    assert_eq!(
        (&line["verdict"], &line["rule"], &line["observed"]),
        (&json!("deny"), &json!("never"), &json!(true))
    );
    pair.callee
        .push(|world| world.agent("ledger").mode = aip_api::resource::Mode::Enforce);
    assert_eq!(
        send(pair.caller.outbound, get("/x")).await.status,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_answers_well_known_for_its_agent() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let answer = send(pair.caller.outbound, get("/.well-known/agent-attestation")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["spiffe_id"], "spiffe://aip.internal/agent/ledger");
    assert!(agent.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = to_ledger("GET", "/x")
        .header("traceparent", format!("00-{id}-00f067aa0ba902b7-00"))
        .header("tracestate", "vendor=1")
        .body(Full::<Bytes>::default())
        .unwrap();
    send(pair.caller.outbound, request).await;
    let seen = agent.only();
    let parent = seen.header("traceparent");
    assert!(
        parent.starts_with(&format!("00-{id}-")) && parent.ends_with("-00") && !parent.contains("00f067aa0ba902b7")
    );
    assert_eq!(seen.header("tracestate"), "vendor=1");
    assert_eq!(pair.callee.line().await["trace"], id);
}

/// What a chain of calls is counted by: here the agent of `ledger` calls on, into the same trace, while it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn hops_are_counted_along_a_trace() {
    let agent = Agent::start().await;
    let rego = "package aip.policy.baseline\nrules contains {\"rule\": sprintf(\"hops_%d\", [input.trace.hops]), \"verdict\": \"allow\", \"reason\": \"t\"}\n";
    let pair = Pair::in_world(agent.address, World::of(&["planner", "ledger"]).policy(rego)).await;
    pair.callee
        .push(|world| world.endpoints.push(("planner".into(), pair.caller.inbound)));
    let waiting = tokio::spawn(send(pair.caller.outbound, get("/slow")));
    crate::mesh::until("the agent has it", async || (!agent.seen().is_empty()).then_some(())).await;
    let onwards = |trace: &str| {
        let request = Request::get("http://planner.aip.internal/on").header("traceparent", trace);
        request.body(Full::<Bytes>::default()).unwrap()
    };
    // Its own agent is nobody: what counts is how it was decided.
    let carried = agent.seen()[0].header("traceparent").to_owned();
    send(pair.callee.outbound, onwards(&carried)).await;
    send(
        pair.callee.outbound,
        onwards("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    )
    .await;
    agent.go();
    waiting.await.unwrap();
    send(pair.callee.outbound, onwards(&carried)).await;
    let rules = async |side: &crate::mesh::Side, count| {
        let lines = side.lines(count).await;
        let rule = |line: &serde_json::Value| format!("{} {}", line["path"], line["rule"]).replace('"', "");
        lines.iter().map(rule).collect::<Vec<_>>()
    };
    let callee = rules(&pair.callee, 4).await;
    assert_eq!(callee, ["/on hops_2", "/on hops_1", "/slow hops_1", "/on hops_1"]);
    let caller = rules(&pair.caller, 4).await;
    assert_eq!(caller[0], "/on hops_2", "as the other sidecar counted: {caller:?}");
}

/// A call that connects before it is decided has had its turn then.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_take_turns_whatever_policy_reads() {
    let agent = Agent::start().await;
    let attested = "package aip.policy.baseline\nrules contains {\"rule\": \"r\", \"verdict\": \"allow\", \"reason\": \"t\"} if input.destination.attestation.status == \"valid\"\n";
    for rego in [crate::mesh::ALLOW_ALL, attested] {
        let world = || World::of(&["planner", "ledger"]).policy(rego);
        let pair = Pair::in_world(agent.address, world()).await;
        let second = Side::start(&pair.pki, "ledger", agent.address, world()).await;
        pair.caller
            .push(|world| world.endpoints.push(("ledger".into(), second.inbound)));
        for _ in 0..4 {
            assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
        }
        for side in [&pair.callee, &second] {
            assert_eq!(side.lines(2).await.len(), 2, "{rego}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_puts_words_on_the_record_of_what_it_decided() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.policies = vec![(
        "baseline".into(),
        r#"package aip.policy.baseline
rules contains {"rule": "tagged", "verdict": "allow", "reason": "a test", "obligations": {"tags": ["billing", "pii"]}} if {
	input.request.path[0] == "tagged"
}
rules contains {"rule": "plain", "verdict": "allow", "reason": "a test"} if input.request.path[0] == "plain"
"#
        .into(),
    )];
    for (path, tags) in [("/tagged", json!(["billing", "pii"])), ("/plain", json!(null))] {
        let pair = Pair::in_world(agent.address, world.clone()).await;
        assert_eq!(send(pair.caller.outbound, get(path)).await.status, StatusCode::OK);
        for side in [&pair.caller, &pair.callee] {
            assert_eq!(side.line().await["tags"], tags, "{path}");
        }
    }
}

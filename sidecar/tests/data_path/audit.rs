//! What is recorded of a request: at both ends, alike, before anybody learns of it, or not at all and then said so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aip_api::id::DecisionId;
use aip_api::resource::Durability;
use aip_audit::log::{self, Options};
use aip_audit::record::{Decision, End, Event};
use aip_audit::seal;
use aip_policy::{Evaluator, Facts, Verdict};
use aip_sidecar::audit::{Audit, checkpoint};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::json;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::client::{begin, get, post, raw, send};
use crate::mesh::{Pair, World, until};
use crate::pki::Says;

type Both = (Decision, End);

/// The two ends tell the same story.
fn agree((_, caller): &Both, (decided, callee): &Both) {
    assert_eq!(caller.hop, callee.hop);
    assert_eq!(caller.salt, callee.salt, "one salt for a hop");
    assert_eq!(caller.request_out, callee.request_in);
    assert_eq!(callee.response_out, caller.response_in);
    assert_eq!(
        caller.other,
        format!("{};{}", callee.id, decided.verdict),
        "it was told of the other's decision"
    );
    assert_eq!(caller.told(), (Some(callee.id), &*decided.verdict));
}

fn world(durability: Durability) -> World {
    let mut world = World::of(&["planner", "ledger"]);
    world.mesh.audit.durability = durability;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_record_alike_what_was_said() {
    for durability in [Durability::Buffered, Durability::Grouped, Durability::Required] {
        let agent = Agent::start().await;
        let pair = Pair::in_world(agent.address, world(durability)).await;
        for path in [
            "/echo?secret=1",
            "/empty",
            "/redirect",
            "/.well-known/agent-card.json",
            "/sse",
        ] {
            let answer = match path {
                "/echo?secret=1" => send(pair.caller.outbound, post(path, "text/plain", "hello")).await,
                _ => send(pair.caller.outbound, get(path)).await,
            };
            assert_ne!(
                answer.status,
                StatusCode::SERVICE_UNAVAILABLE,
                "{path}: {}",
                answer.text()
            );
        }
        let (callers, callees) = (pair.caller.audited(5).await, pair.callee.audited(5).await);
        for caller in &callers {
            let callee = callees.iter().find(|(_, end)| end.hop == caller.1.hop).unwrap();
            agree(caller, callee);
            assert_eq!((callee.1.end.as_str(), caller.1.end.as_str()), ("complete", "complete"));
            assert_eq!(
                caller.1.request_in, caller.1.request_out,
                "nothing is changed in a request"
            );
            assert!(!callee.0.path.contains("secret") && !callee.0.source.serial.is_empty());
        }
        let echo = &callees.iter().find(|(d, _)| d.path == "/echo").unwrap().1;
        assert_eq!((echo.request_in.bytes, echo.response_out.bytes), (5, 5));
        assert_ne!(
            echo.request_in.digest, echo.response_out.digest,
            "an echo can't pass for its request"
        );
        for rewritten in ["/.well-known/agent-card.json", "/sse"] {
            let end = &callees.iter().find(|(d, _)| d.path == rewritten).unwrap().1;
            assert!(end.response_in.digest.is_some(), "{rewritten}");
            assert_ne!(end.response_in, end.response_out, "{rewritten} is rewritten on its way");
        }
    }
}

/// The salt is the sidecars' own: agents don't hear it, and can't choose it.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_neither_sees_nor_sets_the_salt() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let salt = "00".repeat(16);
    let text = format!(
        "POST http://ledger.aip.internal/echo HTTP/1.1\r\nhost: ledger.aip.internal\r\nx-aip-salt: {salt}\r\n\
         content-length: 2\r\nconnection: close\r\n\r\nhi"
    );
    let answer = raw(pair.caller.outbound, text.as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(agent.only().header("x-aip-salt"), "");
    let (callers, callees) = (pair.caller.audited(1).await, pair.callee.audited(1).await);
    agree(&callers[0], &callees[0]);
    assert!(callers[0].1.salt != salt && callers[0].1.salt.len() == 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_says_so_and_claims_no_digest() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    agent.go();
    let mut response = begin(pair.caller.outbound, get("/events")).await;
    response.body_mut().frame().await.unwrap().unwrap();
    // Decided, before anything came back; not over.
    let open = |event: &Event| matches!(event, Event::Decision(_));
    assert!(pair.caller.recorded().iter().all(open) && pair.callee.recorded().iter().any(open));
    drop(response);
    for side in [&pair.caller, &pair.callee] {
        let (_, end) = side.audited(1).await.remove(0);
        assert_eq!((end.end.as_str(), end.blame.as_str()), ("aborted", "caller"), "{end:?}");
        assert!(
            end.response_out.bytes > 0 && end.response_out.digest.is_none(),
            "{end:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_recorded_with_the_facts_it_was_decided_on() {
    let agent = Agent::start().await;
    let mut world = world(Durability::Buffered);
    let rego = "package aip.policy.baseline\n\n# aip:keep protocol.arguments.path\n\n\
                rules contains {\"rule\": \"all\", \"verdict\": \"allow\", \"reason\": \"\"}\n\n\
                rules contains {\"rule\": \"no_etc\", \"verdict\": \"deny\", \"reason\": \"no\"} if {\n\
                \tinput.direction == \"inbound\"\n\tstartswith(input.protocol.arguments.path, \"/etc\")\n\
                \tnot input.protocol.arguments.token == \"pass\"\n}\n";
    world.policies = vec![("baseline".into(), rego.into())];
    let pair = Pair::in_world(agent.address, world).await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "read", "arguments": {"path": "/etc/passwd", "token": "hunter2"}}});
    let request = |call: &serde_json::Value| post("/mcp", "application/json", call.to_string());
    let answer = send(pair.caller.outbound, request(&call)).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let (decision, end) = pair.callee.audited(1).await.remove(0);
    assert_eq!((decision.verdict.as_str(), decision.rule.as_str()), ("deny", "no_etc"));
    assert_eq!(
        (decision.reason.as_str(), decision.tool.as_str()),
        ("policy_denied", "read")
    );
    assert_eq!(
        (end.status, end.end.as_str(), end.blame.as_str()),
        (403, "complete", "policy")
    );
    assert_eq!(end.request_out.bytes, 0, "the agent heard nothing");
    assert_eq!(end.request_in, pair.caller.audited(1).await[0].1.request_out);
    assert_eq!(decision.facts.dropped, ["protocol.arguments.token"]);
    let all = format!("{:?}", pair.callee.recorded());
    assert!(!all.contains("hunter2"), "{all}");
    assert_eq!(decision.policies.len(), 1);
    // What is kept decides the same again.
    let facts = Facts::from_json((*decision.facts.kept).clone()).unwrap();
    let set = pair.callee.proxy.mesh.snapshot().policies_for(None, None).unwrap();
    let again = Evaluator::new().decide_uncached(&set, &facts);
    assert_eq!((again.verdict, again.rule()), (Verdict::Deny, "no_etc"));
    // Also of a decision from the cache.
    send(pair.caller.outbound, request(&call)).await;
    let second = pair.callee.audited(2).await.remove(1).0;
    assert_eq!(second.facts.dropped, ["protocol.arguments.token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_after_the_decision_is_its_end() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    let nobody = Pair::start("127.0.0.1:9".parse().unwrap()).await;
    let answer = send(nobody.caller.outbound, get("/x")).await;
    assert_eq!(answer.reason(), "agent_unreachable");
    let (decision, end) = nobody.callee.audited(1).await.remove(0);
    assert_eq!((decision.verdict.as_str(), decision.reason.as_str()), ("allow", ""));
    assert_eq!(
        (end.status, end.end.as_str(), end.blame.as_str()),
        (502, "agent_unreachable", "agent")
    );
    drop(pair);
}

/// Policy may ask for more than the mesh's setting, never for less.
#[tokio::test(flavor = "multi_thread")]
async fn policy_makes_a_request_more_durable() {
    let agent = Agent::start().await;
    let mut world = world(Durability::Grouped);
    let rule = |word: &str| {
        format!(
            "package aip.policy.baseline\nrules contains {{\"rule\": \"all\", \"verdict\": \"allow\", \"reason\": \"\", \
             \"obligations\": {{\"audit\": \"{word}\"}}}}\n"
        )
    };
    world.policies = vec![("baseline".into(), rule("required"))];
    // One record and no more.
    world.quota = tiny();
    let strict = Pair::in_world(agent.address, world.clone()).await;
    let answer = send(strict.caller.outbound, get("/x")).await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable")
    );
    let decision = answer.json()["decision_id"].as_str().unwrap().to_owned();
    assert_eq!(decision.len(), 36, "{}", answer.text());
    world.policies = vec![("baseline".into(), rule("buffered"))];
    let lax = Pair::in_world(agent.address, world.clone()).await;
    assert_eq!(send(lax.caller.outbound, get("/x")).await.reason(), "audit_unavailable");
    assert!(agent.seen().is_empty(), "the agent heard nothing");
    world.mesh.audit.durability = Durability::Buffered;
    let open = Pair::in_world(agent.address, world).await;
    assert_eq!(send(open.caller.outbound, get("/x")).await.status, StatusCode::OK);
    assert_eq!(agent.seen().len(), 1);
}

/// Room for nothing.
fn tiny() -> Options {
    Options {
        total_bytes: 64,
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_counted_and_said() {
    let agent = Agent::start().await;
    let mut full = world(Durability::Buffered);
    full.quota = tiny();
    let pair = Pair::in_world(agent.address, full).await;
    for _ in 0..50 {
        assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
    }
    until("all of it is counted", async || {
        (pair.callee.audit.page()["log"]["lost"] == 50).then_some(())
    })
    .await;
    assert!(pair.callee.recorded().is_empty());
}

/// A segment at which nothing can be brought to disk (a device takes bytes and syncs none): nobody hears of a request whose
/// decision is not there. The next log is a good one.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_disk_does_not_sync_the_agent_hears_nothing() {
    let agent = Agent::start().await;
    let broken = Arc::new(TempDir::new().unwrap());
    let log = broken.path().join(log::fresh_name());
    std::fs::create_dir(&log).unwrap();
    std::os::unix::fs::symlink("/dev/null", log::segment_path(&log, 0)).unwrap();
    let mut world = world(Durability::Required);
    world.audit = Some(broken);
    let pair = Pair::in_world(agent.address, world).await;
    let answer = send(pair.caller.outbound, get("/x")).await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable")
    );
    let decision = answer.json()["decision_id"].as_str().unwrap().to_owned();
    assert_eq!(decision.len(), 36, "{}", answer.text());
    assert!(agent.seen().is_empty(), "the agent heard nothing");
    until("a new log is written", async || {
        (send(pair.caller.outbound, get("/x")).await.status == StatusCode::OK).then_some(())
    })
    .await;
}

/// Whoever has no certificate, and whoever knows no secret, costs one record in a while.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_counted_and_not_recorded_one_by_one() {
    let agent = Agent::start().await;
    let pki = crate::pki::Pki::new();
    let world = World::of(&["planner"]);
    let side =
        crate::mesh::Side::start_with(&pki, "planner", agent.address, world, Says::default(), Some("secret")).await;
    for _ in 0..20 {
        let answer = send(side.outbound, get("/x")).await;
        assert_eq!(answer.reason(), "proxy_auth_required");
    }
    assert!(
        !side
            .recorded()
            .iter()
            .any(|event| matches!(event, Event::Decision(_) | Event::End(_)))
    );
    let counted = until("they are counted", async || {
        let events = side.recorded();
        events.iter().find_map(|event| match event {
            Event::Strangers(strangers) => Some((strangers.reason.clone(), strangers.count)),
            _ => None,
        })
    });
    assert_eq!(counted.await, ("proxy_auth_required".to_owned(), 20));
}

/// A record has a bound, and what a caller wrote does not make a decision vanish.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_any_length_is_recorded_clipped() {
    let agent = Agent::start().await;
    let mut world = world(Durability::Required);
    let rego = "package aip.policy.baseline\nrules contains {\"rule\": \"named\", \"verdict\": \"allow\", \"reason\": \"\"} if \
                input.protocol.tool != \"\"\n";
    world.policies = vec![("baseline".into(), rego.into())];
    let pair = Pair::in_world(agent.address, world).await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "\u{1}".repeat(100 * 1024), "arguments": {}}});
    let answer = send(pair.caller.outbound, post("/mcp", "application/json", call.to_string())).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    for side in [&pair.caller, &pair.callee] {
        let (decision, end) = side.audited(1).await.remove(0);
        assert_eq!((decision.tool.len(), end.end.as_str()), (1024, "complete"));
        assert_eq!(decision.facts.dropped, ["input"]);
    }
}

/// What a caller wrote is sealed where it arises: the record is no use to whoever has it without the auditor's key.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_wrote_is_sealed_and_only_the_auditor_opens_it() {
    let agent = Agent::start().await;
    let ((private, public), (other, _)) = (seal::generate(), seal::generate());
    let mut world = world(Durability::Buffered);
    world.mesh.audit.auditor_key = Some(STANDARD.encode(public));
    let rego = "package aip.policy.baseline\n\nrules contains {\"rule\": \"paid\", \"verdict\": \"allow\", \"reason\": \"\"} if \
                input.protocol.arguments.token == \"hunter2\"\n";
    world.policies = vec![("baseline".into(), rego.into())];
    let pair = Pair::in_world(agent.address, world).await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "pay", "arguments": {"token": "hunter2"}}});
    let answer = send(pair.caller.outbound, post("/mcp", "application/json", call.to_string())).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    for side in [&pair.caller, &pair.callee] {
        let (decision, _) = side.audited(1).await.remove(0);
        assert!(!format!("{:?}", side.recorded()).contains("hunter2"));
        let sealed = decision.facts.sealed.clone().unwrap();
        assert!(decision.facts.dropped.is_empty(), "{:?}", decision.facts);
        let id = decision.id.to_string();
        assert!(seal::open(&other, &id, &sealed).is_err());
        assert!(seal::open(&private, &DecisionId::fresh().to_string(), &sealed).is_err());
        let opened = seal::open(&private, &id, &sealed).unwrap();
        assert_eq!(opened["protocol"]["arguments"], json!({"token": "hunter2"}));
        // With what was sealed it decides alike.
        let mut facts = (*decision.facts.kept).clone();
        facts["protocol"]["arguments"] = opened["protocol"]["arguments"].clone();
        let set = side.proxy.mesh.snapshot().policies_for(None, None).unwrap();
        let again = Evaluator::new().decide_uncached(&set, &Facts::from_json(facts).unwrap());
        assert_eq!((again.verdict, again.rule()), (Verdict::Allow, "paid"));
    }
}

static FLUSH_FAILS: AtomicBool = AtomicBool::new(true);

/// Nothing of an answer leaves before its decision is on disk, also of one that goes on for long.
#[tokio::test(flavor = "multi_thread")]
async fn in_grouped_no_head_leaves_before_the_decision_is_on_disk() {
    let agent = Agent::start().await;
    let mut world = world(Durability::Grouped);
    world.quota.step = |name| {
        assert!(
            name != "log:flush" || !FLUSH_FAILS.load(Ordering::Acquire),
            "a test's own"
        )
    };
    let pair = Pair::in_world(agent.address, world).await;
    agent.go();
    let answer = begin(pair.caller.outbound, get("/events")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    FLUSH_FAILS.store(false, Ordering::Release);
    until("a new log is written", async || {
        let answer = begin(pair.caller.outbound, get("/events")).await;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
}

/// What a crash leaves, and what of it somebody changed who can write files and has no key.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_goes_on_only_on_what_this_sidecars_own_key_signed() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    send(pair.caller.outbound, get("/empty")).await;
    pair.callee.audited(1).await;
    checkpoint::sign(&pair.callee.audit, &pair.callee.svid, false).await;
    let dir = std::fs::read_dir(pair.callee.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| log::name_of(path).is_ok())
        .unwrap();
    let me = pair.callee.svid.current().unwrap().id().clone();
    let trust = pair.callee.trust.load_full();
    let goes_on = |statements: Option<&str>| {
        let home = TempDir::new().unwrap();
        let copy = home.path().join(dir.file_name().unwrap());
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        if let Some(statements) = statements {
            std::fs::write(copy.join("checkpoints.jsonl"), statements).unwrap();
        }
        let audit = Audit::open(home.path(), Options::default()).unwrap();
        audit.rests_on(&me, &trust);
        audit.page()["log"]["id"] == dir.file_name().unwrap().to_str().unwrap()
    };
    let kept = std::fs::read_to_string(dir.join("checkpoints.jsonl")).unwrap();
    assert!(goes_on(None));
    // The same claims, and no signature of the key.
    let (head, tail) = kept.split_once('.').unwrap();
    let (claims, tail) = tail.split_once('.').unwrap();
    let end = tail.find('"').unwrap();
    let forged = format!("{head}.{claims}.{}{}", "A".repeat(end), &tail[end..]);
    assert!(!goes_on(Some(&forged)));
    // Another sidecar's signature under the same claims.
    let stranger = pair.caller.svid.current().unwrap();
    let stated = log::claims_of(&log::kept(&dir).unwrap()[0].statement).unwrap();
    let signed =
        aip_runtime::jws::sign_es256(stranger.pkcs8(), aip_audit::checkpoint::CHECKPOINT_TYP, &stated).unwrap();
    let foreign = log::CheckpointLines::default().add(&signed, &stranger.chain);
    let foreign = String::from_utf8(foreign).unwrap();
    assert!(!goes_on(Some(&foreign)));
}

/// A user's name and password before a host are nobody's to read.
#[tokio::test(flavor = "multi_thread")]
async fn what_stands_before_the_host_of_a_connect_is_not_recorded() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for host in ["outside.example:443", "ledger.aip.internal:80"] {
        let text = format!("CONNECT user:hunter2@{host} HTTP/1.1\r\nhost: user:hunter2@{host}\r\n\r\n");
        let answer = raw(pair.caller.outbound, text.as_bytes(), "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let (recorded, lines) = (pair.caller.audited(2).await, pair.caller.lines(2).await);
    let said = format!("{recorded:?} {lines:?}");
    assert!(!said.contains("hunter2") && !said.contains("user:"), "{said}");
}

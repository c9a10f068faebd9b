//! A request is decided in the world as it is when it goes on, and what a sidecar can't use of a world denies.

use aip_api::resource::{Attach, Kind, MeshConfig, MeshMode};
use aip_sidecar::mesh::world::{Origin, World as Taken};
use bytes::Bytes;
use http::StatusCode;
use hyper::body::Frame;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::client::{channel, get, send, to_ledger};
use crate::mesh::{ALLOW_ALL, DEADLINE, Pair, Side, World, until};
use crate::pki::{Pki, TRUST_DOMAIN};
use crate::refuse::{POLICY, is_refused, pair_with};

/// What may happen while a body is on its way, at which side, and how the request is refused then.
type Change = (&'static str, fn(&Pair), u16, &'static str);

const CHANGES: [Change; 4] = [
    (
        "the caller's policy",
        |pair| pair.caller.push(|world| world.policies.clear()),
        403,
        "policy_denied",
    ),
    (
        "the callee's policy",
        |pair| pair.callee.push(|world| world.policies.clear()),
        403,
        "policy_denied",
    ),
    (
        "the caller is revoked",
        |pair| pair.callee.revoke("planner", 2),
        403,
        "revoked_generation",
    ),
    (
        "the caller gives up its identity",
        |pair| pair.caller.svid.clear(),
        503,
        "no_identity",
    ),
];

/// The body of a call is awaited before it is decided; the world may be another one by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_body_comes_slowly_is_decided_in_the_current_world() {
    for (what, change, status, reason) in CHANGES {
        let agent = Agent::start().await;
        let pair = pair_with(&agent, POLICY).await;
        let (frames, body) = channel();
        let request = to_ledger("POST", "/x")
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        let at_the_callee = what.starts_with("the callee") || what.ends_with("revoked");
        if at_the_callee {
            // Then the callee's sidecar is the one that waits for the body.
            pair.caller
                .push(|world| world.policies = vec![("baseline".into(), ALLOW_ALL.into())]);
        }
        let waiting = tokio::spawn(send(pair.caller.outbound, request));
        frames.send(Frame::data(Bytes::from("{\"a\":"))).await.unwrap();
        let side = if at_the_callee { &pair.callee } else { &pair.caller };
        until("the body is awaited", async || (held(side) > 0).then_some(())).await;
        change(&pair);
        // Whoever was cut does not take the rest.
        let _ = frames.send(Frame::data(Bytes::from("1}"))).await;
        drop(frames);
        let answer = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap();
        let got = (answer.status.as_u16(), answer.reason());
        let cut = at_the_callee && reason == "revoked_generation" && got == (502, "connection_broken".into());
        assert!(cut || got == (status, reason.into()), "{what}: {got:?}");
        assert!(agent.seen().is_empty(), "{what}: the agent heard of it");
    }
}

fn held(side: &Side) -> u64 {
    side.proxy.connections()["held_bytes"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_can_t_be_used_denies_the_hops_that_it_covers() {
    let agent = Agent::start().await;
    let mut world = World::of(&["planner", "ledger"]);
    world.unusable = vec![("strict".into(), Attach::Agents(vec!["other".parse().unwrap()]))];
    let pair = Pair::in_world(agent.address, world).await;
    assert_eq!(
        send(pair.caller.outbound, get("/x")).await.status,
        StatusCode::OK,
        "not this one"
    );
    for attach in [Attach::Mesh, Attach::Agents(vec!["ledger".parse().unwrap()])] {
        pair.callee
            .push(|world| world.unusable = vec![("strict".into(), attach)]);
        let answer = send(pair.caller.outbound, get("/x")).await;
        is_refused(&answer, 503, "policy_unusable");
        assert!(answer.text().contains("strict"), "{}", answer.text());
    }
    assert_eq!(agent.seen().len(), 1);
}

fn policy(name: &str, rego: &str, attach: &Value) -> Vec<u8> {
    let document = json!({"name": name, "rego": rego, "attach": attach});
    serde_json::to_vec(&document).unwrap()
}

/// A pushed policy that does not compile is not nothing: what it would have denied is not known.
#[test]
fn a_rejected_policy_without_a_good_version_is_kept_as_unusable() {
    let pki = Pki::new();
    let origin = Origin {
        id: format!("spiffe://{TRUST_DOMAIN}/agent/ledger").parse().unwrap(),
        roots: vec![pki.root.clone()],
        signing_keys: vec![pki.config_certificate.clone()],
    };
    let mut world = Taken::new(origin, pki.trust().shared());
    let mut revision = 0;
    let mut take = |world: &mut Taken, kind, name: &str, payload: Vec<u8>| {
        revision += 1;
        let resource = aip_runtime::signed::sign(&pki.config, kind, name, revision, false, payload);
        world.take(&resource, aip_runtime::unix_now()).map_err(|r| r.reason)
    };
    let mesh = MeshConfig::new(TRUST_DOMAIN.parse().unwrap(), MeshMode::Dev);
    take(&mut world, Kind::MeshConfig, "mesh", serde_json::to_vec(&mesh).unwrap()).unwrap();
    take(
        &mut world,
        Kind::Policy,
        "baseline",
        policy("baseline", ALLOW_ALL, &json!("mesh")),
    )
    .unwrap();
    let broken = "package aip.policy.strict\nrules contains nonsense if {\n";
    let attach = serde_json::to_value(Attach::Agents(vec!["ledger".parse().unwrap()])).unwrap();
    let refused = take(&mut world, Kind::Policy, "strict", policy("strict", broken, &attach));
    assert_eq!(refused, Err("policy_compile"));
    let unusable = world.snapshot().unusable;
    assert_eq!(
        unusable,
        [("strict".to_owned(), Attach::Agents(vec!["ledger".parse().unwrap()]))]
    );
    let refused = take(&mut world, Kind::Policy, "garbled", b"{".to_vec());
    assert_eq!(refused, Err("malformed"));
    assert!(
        world
            .snapshot()
            .unusable
            .contains(&("garbled".to_owned(), Attach::Mesh)),
        "nobody knows what it covers: everything"
    );
    // The last good version of another one stays, and a good one ends it.
    let refused = take(
        &mut world,
        Kind::Policy,
        "baseline",
        policy("baseline", broken, &json!("mesh")),
    );
    assert!(refused.is_err() && world.snapshot().policies.contains_key("baseline"));
    let good = ALLOW_ALL.replace("baseline", "strict");
    take(&mut world, Kind::Policy, "strict", policy("strict", &good, &attach)).unwrap();
    let names: Vec<_> = world.snapshot().unusable.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["garbled"]);
}

/// What the policy input has and this version never learns is not the neutral value: a deny rule over it would be one
/// that never fires.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_over_what_this_version_never_learns_denies() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for condition in [
        r#"input.delegation.chain[_] == "evil""#,
        r#"some finding in input.content.findings; finding.kind == "secret""#,
        "input.budget.tokens.remaining < 1",
    ] {
        let rule = format!(
            "package aip.policy.strict\nrules contains {{\"rule\": \"strict\", \"verdict\": \"deny\", \"reason\": \"a test\"}} \
             if {{ {condition} }}\n"
        );
        pair.callee.push(|world| world.policies.push(("strict".into(), rule)));
        let answer = send(pair.caller.outbound, get("/")).await;
        is_refused(&answer, 403, "policy_denied");
        assert_eq!(answer.json()["rule"], "fact_unestablished", "{condition}");
        pair.callee.push(|world| {
            world.policies.pop();
        });
    }
    assert!(agent.seen().is_empty());
    assert_eq!(send(pair.caller.outbound, get("/")).await.status, StatusCode::OK);
}

//! Pushes: everybody gets a change and says so; what is bad is refused by itself, and the last good one stays.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_api::resource::{Kind, MAX_PAYLOAD_BYTES, Resource as _};
use aip_api::wire::Resource;
use aip_tests::agent::Agent;
use aip_tests::pair::Pair;
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::scripted::{ALLOW_ALL, Scripted, baseline};
use aip_tests::wait;
use serde_json::{Value, json};

/// The baseline that the sidecar runs: its revision and text.
async fn running(sidecar: &Sidecar) -> (u64, String) {
    let policies = sidecar.look("/policies").await.json();
    let all = policies.as_array().unwrap();
    let policy = all
        .iter()
        .find(|p| p["name"] == "baseline")
        .unwrap_or_else(|| panic!("a baseline in {policies}"));
    (
        policy["revision"].as_u64().unwrap(),
        policy["rego"].as_str().unwrap().to_owned(),
    )
}

fn rules(name: &str) -> String {
    ALLOW_ALL.replace("allow_all", name)
}

fn document(rego: &str) -> Vec<u8> {
    serde_json::to_vec(&baseline(rego)).unwrap()
}

/// Bad resources, each with the reason by which it must be refused.
fn bad_ones(scripted: &Scripted, first: u64) -> Vec<(&'static str, Resource)> {
    let signed = |payload: Vec<u8>| scripted.signed(Kind::Policy, "baseline", payload);
    let unknown = Resource {
        kind: 99,
        ..signed(document(&rules("unknown")))
    };
    let oversized = signed(vec![b' '; MAX_PAYLOAD_BYTES + 1]);
    let mut flipped = signed(document(&rules("flipped")));
    flipped.signature[0] ^= 1;
    let mut renamed = signed(document(&rules("renamed")));
    renamed.payload = document(&rules("replaced")).into();
    let stranger = {
        use aip_api::resource::KeyPurpose;
        let payload = document(&rules("stranger"));
        let revision = signed(Vec::new()).revision;
        scripted.with_pki(|pki| {
            let key = pki.signer(KeyPurpose::Attestation);
            aip_runtime::signed::sign(key, Kind::Policy, "baseline", revision, false, payload)
        })
    };
    let stale = scripted.with_pki(|pki| {
        let key = pki.signer(aip_api::resource::KeyPurpose::Config);
        aip_runtime::signed::sign(
            key,
            Kind::Policy,
            "baseline",
            first - 1,
            false,
            document(&rules("stale")),
        )
    });
    let mut other = serde_json::to_value(baseline(&rules("other"))).unwrap();
    other["name"] = "another".into();
    vec![
        ("unknown_kind", unknown),
        ("oversized", oversized),
        ("bad_signature", flipped),
        ("bad_signature", renamed),
        ("unknown_key", stranger),
        ("stale", stale),
        ("malformed", signed(b"{".to_vec())),
        ("name_mismatch", signed(serde_json::to_vec(&other).unwrap())),
        (
            "policy_compile",
            signed(document(
                "package aip.policy.baseline\n\nrules contains nonsense if {\n",
            )),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_resource_is_refused_by_itself_and_the_last_good_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let scripted = Scripted::start();
    let sidecar = scripted.sidecar("alone", Agent::start().address, dir.path()).await;
    let first = scripted.put(&baseline(&rules("first")));
    wait::until("the first policy runs", async || {
        (running(&sidecar).await.0 == first).then_some(())
    })
    .await;

    for (reason, bad) in bad_ones(&scripted, first) {
        // A good one in the same push is taken all the same.
        let mut traffic = aip_api::resource::Traffic::defaults();
        traffic.peer_burst = 1000 + u32::try_from(bad.revision).unwrap();
        let good = scripted.signed(Kind::Traffic, &traffic.name(), serde_json::to_vec(&traffic).unwrap());
        scripted.push(vec![bad.clone(), good]);
        let rejection = scripted.rejection("alone", &bad).await;
        assert_eq!(rejection.reason, reason, "{}", rejection.detail);
        assert!(!rejection.detail.is_empty(), "{reason} says why");
        wait::until_ok(&format!("the good one beside a {reason} is taken"), async || {
            let burst = sidecar.snapshot().await["traffic"]["peer_burst"].clone();
            if burst == traffic.peer_burst {
                Ok(())
            } else {
                Err(burst.to_string())
            }
        })
        .await;
        assert_eq!(
            running(&sidecar).await,
            (first, rules("first")),
            "the last good one stays after {reason}"
        );
        let counted = sidecar
            .metric("aip_config_rejected_total", &[&format!("reason=\"{reason}\"")])
            .await;
        assert!(counted >= 1.0, "{reason} is counted");
    }

    // What was rejected is never recorded as held.
    scripted.hang_up();
    let held = wait::until("the sidecar comes again", async || {
        let hellos = scripted.hellos("alone");
        (hellos.len() > 1).then(|| hellos.last().unwrap().held.clone())
    })
    .await;
    let policy = Kind::Policy.to_wire() as i32;
    let policies: Vec<_> = held
        .iter()
        .filter(|h| h.kind == policy)
        .map(|h| (h.name.as_str(), h.revision))
        .collect();
    assert_eq!(policies, [("baseline", first)]);
}

/// What a policy that was never held would have denied is not known: the hops that it covers are denied until it is
/// mended; others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_policy_that_can_t_be_used_denies_the_hops_that_it_covers() {
    let pair = Pair::start().await;
    let bad = |attach: Value| {
        let rego = "package aip.policy.strict\n\nrules contains nonsense if {\n";
        let document = json!({"name": "strict", "rego": rego, "attach": attach});
        let payload = serde_json::to_vec(&document).unwrap();
        pair.scripted.signed(Kind::Policy, "strict", payload)
    };
    let elsewhere = bad(json!({"agents": ["somebody"]}));
    pair.scripted.push(vec![elsewhere.clone()]);
    let rejection = pair.scripted.rejection("callee", &elsewhere).await;
    assert_eq!(rejection.reason, "policy_compile");
    assert_eq!(pair.get("/elsewhere").await.status, 200, "it does not cover this hop");

    pair.scripted.push(vec![bad(json!({"agents": ["callee"]}))]);
    let refused = wait::until("the hop is denied", async || {
        let answer = pair.get("/covered").await;
        // One that was let in a moment before is cut, and says so (403).
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(
        (refused.status.as_u16(), refused.reason().as_str()),
        (503, "policy_unusable")
    );
    assert!(refused.text().contains("strict"), "{}", refused.text());

    let good =
        json!({"name": "strict", "rego": ALLOW_ALL.replace("baseline", "strict"), "attach": {"agents": ["callee"]}});
    let mended = pair
        .scripted
        .signed(Kind::Policy, "strict", serde_json::to_vec(&good).unwrap());
    pair.scripted.push(vec![mended]);
    wait::until("it is allowed again", async || {
        (pair.get("/mended").await.status == 200).then_some(())
    })
    .await;
}

/// A rejected version does not survive a restart either: the cache holds what was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_restarts_with_the_last_good_policy() {
    let dir = tempfile::tempdir().unwrap();
    let scripted = Scripted::start();
    let mut sidecar = scripted.sidecar("alone", Agent::start().address, dir.path()).await;
    let first = scripted.put(&baseline(&rules("first")));
    wait::until("the first policy runs", async || {
        (running(&sidecar).await.0 == first).then_some(())
    })
    .await;
    let mut bad = scripted.signed(Kind::Policy, "baseline", document(&rules("bad")));
    bad.signature[10] ^= 0x40;
    scripted.push(vec![bad.clone()]);
    scripted.rejection("alone", &bad).await;
    let issued = scripted.issued("alone").len();
    sidecar.restart().await;
    assert_eq!(running(&sidecar).await, (first, rules("first")));
    assert_eq!(scripted.issued("alone").len(), issued, "the sealed SVID was used again");
}

fn policy(rego: &str) -> Value {
    json!({"name": "extra", "rego": rego, "attach": "mesh"})
}

const DENY_BLOCKED: &str = r#"package aip.policy.extra

rules contains {"rule": "no_blocked", "verdict": "deny", "reason": "blocked by a test"} if {
	input.request.path[0] == "blocked"
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applied_policy_is_acknowledged_by_every_sidecar_and_decides() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let (caller, callee) = (
        mesh.sidecar("caller", agent.address).await,
        mesh.sidecar("callee", agent.address).await,
    );
    let url = "http://callee.aip.internal/blocked/now";
    assert_eq!(caller.get(url).await.status, 200);
    let revision = mesh.admin().apply(&policy(DENY_BLOCKED)).await;
    let acks = mesh.admin().acknowledged(revision).await;
    assert_eq!(
        acks["acked"].as_array().map(Vec::len),
        Some(2),
        "both sidecars acknowledged: {acks}"
    );
    for sidecar in [&caller, &callee] {
        assert!(
            sidecar.snapshot().await["revision"].as_u64() >= Some(revision),
            "an ACK means it runs"
        );
    }
    let refused = caller.get(url).await;
    assert_eq!(
        (refused.status.as_u16(), agent.seen("/blocked").len()),
        (403, 1),
        "{}",
        refused.text()
    );

    // A broken one is refused where it is, by line, and nothing changes.
    let broken = format!("{DENY_BLOCKED}\nrules contains {{\"rule\" \"broken\"}}\n");
    let answer = mesh
        .admin()
        .call(http::Method::PUT, "/v1/policies/extra", Some(&policy(&broken)))
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.reason().as_str()),
        (422, "policy_refused")
    );
    let line = broken.lines().count();
    let errors = answer.json()["errors"].clone();
    let located = errors
        .as_array()
        .unwrap()
        .iter()
        .any(|e| e["field"].as_str().unwrap().contains(&format!(":{line}")));
    assert!(located, "an error at line {line}: {errors}");
    assert_eq!(caller.get(url).await.status, 403, "the last good policy goes on");
    assert_eq!(caller.get("http://callee.aip.internal/open").await.status, 200);
}

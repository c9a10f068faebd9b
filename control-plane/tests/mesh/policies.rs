//! Policies: checked in a child that may hang, written with their history, rolled back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Mesh, Process, reason};

const QUIET: &str = "package aip.policy.quiet\n\nrules contains {\"rule\": \"q\", \"verdict\": \"deny\", \"reason\": \"no\"} if {\n\
                     \tinput.request.method == \"TRACE\"\n}\n";

#[tokio::test]
async fn policies_are_checked_before_they_are_written() {
    let mesh = Mesh::dev().await;
    let admin = &mesh.admin;
    let broken = json!({"name": "quiet", "rego": "package aip.policy.quiet\n\nrules contains {"});
    let (status, problem) = admin.call("PUT", "/v1/policies/quiet", broken.clone()).await;
    assert_eq!(
        (status.as_u16(), reason(&problem)),
        (422, "policy_refused"),
        "{problem}"
    );
    assert!(
        problem["errors"][0]["field"]
            .as_str()
            .unwrap()
            .starts_with("quiet.rego"),
        "{problem}"
    );
    assert_eq!(
        admin.refused("POST", "/v1/policies/check", broken).await.1,
        "policy_refused"
    );
    let good = json!({"name": "quiet", "rego": QUIET});
    let checked = admin.ok("POST", "/v1/policies/check", good.clone()).await;
    assert!(checked["reads"].is_array());
    assert_eq!(
        admin.refused("GET", "/v1/policies/quiet", Value::Null).await.0,
        404,
        "a check writes nothing"
    );
}

#[tokio::test]
async fn a_policy_is_rolled_back_to_any_of_its_versions() {
    let mesh = Mesh::dev().await;
    let admin = &mesh.admin;
    let good = json!({"name": "quiet", "rego": QUIET});
    let first = admin.ok("PUT", "/v1/policies/quiet", good).await["revision"]
        .as_u64()
        .unwrap();
    let second = json!({"name": "quiet", "rego": QUIET.replace("TRACE", "PATCH")});
    admin.ok("PUT", "/v1/policies/quiet", second).await;
    admin
        .ok("POST", "/v1/policies/quiet/rollback", json!({"revision": first}))
        .await;
    assert!(
        admin.get("/v1/policies/quiet").await["resource"]["rego"]
            .as_str()
            .unwrap()
            .contains("TRACE")
    );
    let versions = admin.get("/v1/policies/quiet/revisions").await;
    let numbers: Vec<_> = versions["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["version"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(versions["items"][2]["revision"], first);
    assert_eq!(
        admin.refused("DELETE", "/v1/policies/baseline", Value::Null).await,
        (409, "baseline_required".into())
    );
    let gone = json!({"revision": 1});
    assert_eq!(
        admin.refused("POST", "/v1/policies/quiet/rollback", gone).await,
        (404, "not_found".into())
    );
    let other = json!({"name": "loud", "rego": QUIET});
    assert_eq!(
        admin.refused("PUT", "/v1/policies/quiet", other).await,
        (422, "invalid".into())
    );
}

#[tokio::test]
async fn the_baseline_and_every_policy_that_is_shipped_are_admitted() {
    let mesh = Mesh::dev().await;
    let baseline = mesh.admin.get("/v1/policies/baseline").await["resource"].clone();
    mesh.admin.ok("POST", "/v1/policies/check", baseline).await;
}

#[tokio::test]
async fn the_baseline_is_replaced_only_where_that_is_said() {
    let mesh = Mesh::dev().await;
    let (admin, path) = (&mesh.admin, "/v1/policies/baseline");
    let held = admin.get(path).await["resource"].clone();
    let (status, same) = admin.call("PUT", path, held.clone()).await;
    assert_eq!((status.as_u16(), &same["unchanged"]), (200, &json!(true)));
    let mut other = held.clone();
    other["rego"] = json!(format!("{}\n# another\n", held["rego"].as_str().unwrap()));
    let (status, problem) = admin.call("PUT", path, other.clone()).await;
    assert_eq!((status.as_u16(), reason(&problem)), (409, "baseline_replacement"));
    assert!(
        problem["detail"].as_str().unwrap().contains("replace_baseline=true"),
        "{problem}"
    );
    assert_eq!(admin.get(path).await["resource"], held);
    admin.ok("PUT", &format!("{path}?replace_baseline=true"), other).await;
}

/// A policy whose tests never end: each takes as long as one may, and there are more than fit into a check.
fn endless() -> Value {
    let tests: String = (0..30)
        .map(|i| {
            format!(
                "test_endless_{i} if {{\n\tsome a in numbers.range(1, 60000)\n\tsome b in numbers.range(1, 60000)\n\ta + b == {}\n}}\n\n",
                -1 - i
            )
        })
        .collect();
    json!({"name": "quiet", "rego": QUIET.replace("TRACE", "PATCH"), "tests": format!("package aip.policy.quiet_test\n\n{tests}")})
}

/// What is allowed until a check is given up, and what a busy machine adds.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(40);

#[tokio::test]
async fn a_policy_whose_check_never_ends_is_refused_in_time_and_the_last_good_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(&dir.path().join("data"), &[]).await;
    let admin = process.admin();
    let good = admin
        .ok("PUT", "/v1/policies/quiet", json!({"name": "quiet", "rego": QUIET}))
        .await;
    let begun = Instant::now();
    let mut hanging = {
        let admin = admin.clone();
        tokio::spawn(async move { admin.call("PUT", "/v1/policies/quiet", endless()).await })
    };
    let (status, problem) = loop {
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), &mut hanging).await {
            break answer.unwrap();
        }
        // Meanwhile everything else is answered.
        admin.get("/v1/mesh").await;
        assert!(begun.elapsed() < GIVEN_UP_WITHIN);
    };
    assert_eq!(
        (status.as_u16(), reason(&problem)),
        (422, "admission_failed"),
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("longer than") && detail.contains("too expensive"),
        "{detail}"
    );
    let held = admin.get("/v1/policies/quiet").await;
    assert_eq!(held["revision"], good["revision"], "the last good one stays");
    assert!(held["resource"]["rego"].as_str().unwrap().contains("TRACE"));
    admin
        .ok(
            "PUT",
            "/v1/policies/quiet",
            json!({"name": "quiet", "rego": QUIET.replace("TRACE", "PUT")}),
        )
        .await;
}

#[tokio::test]
async fn a_policy_that_wants_all_memory_ends_its_check_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(&dir.path().join("data"), &[]).await;
    let tests = "package aip.policy.quiet_test\n\ntest_all if {\n\tcount(numbers.range(1, 400000000)) == 1\n}\n";
    let policy = json!({"name": "quiet", "rego": QUIET, "tests": tests});
    let (status, problem) = process.admin().call("PUT", "/v1/policies/quiet", policy).await;
    assert_eq!(
        (status.as_u16(), reason(&problem)),
        (422, "admission_failed"),
        "{problem}"
    );
    assert!(
        problem["detail"].as_str().unwrap().contains("makes the compiler fail"),
        "{problem}"
    );
    process.admin().get("/v1/mesh").await;
}

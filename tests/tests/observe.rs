//! Observing: policy denies, the request passes, and everything says that it would not have.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, binary};
use aip_tests::wait;
use http::Request;
use serde_json::json;

const URL: &str = "http://callee.aip.internal/work";
const POLICY: &str = "package aip.policy.no_posts

rules contains {\"rule\": \"no-posts/post\", \"verdict\": \"deny\", \"reason\": \"nobody posts\"} if {
	input.request.method == \"POST\"
	input.direction == \"inbound\"
}
";

/// Runs `aip` against the mesh; what it printed.
fn aip(mesh: &Mesh, arguments: &[&str]) -> String {
    let mut command = Command::new(binary("aip"));
    command.args(arguments).env("AIP_HOME", mesh.dir("home"));
    command.env("AIP_ADMIN", format!("http://{}", mesh.admin().address));
    command.env("AIP_TOKEN_FILE", mesh.control_plane.dir.join("data/admin.jwt"));
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn observing_lets_pass_and_records_what_would_have_been_refused() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let callee = mesh.sidecar("callee", agent.address).await;
    mesh.admin()
        .apply(&json!({"name": "no-posts", "rego": POLICY, "attach": "mesh"}))
        .await;
    let post = async || caller.call(Request::post(URL), "body").await;
    assert_eq!(post().await.status, 403);
    assert_eq!(callee.metric("aip_observed_total", &[]).await, 0.0);

    let changed = aip(
        &mesh,
        &["agent", "observe", "callee", "--for", "600", "--output", "json"],
    );
    let changed: serde_json::Value = serde_json::from_str(&changed).unwrap();
    mesh.admin().acknowledged(changed["revision"].as_u64().unwrap()).await;
    let status = aip(&mesh, &["status"]);
    let row = status.lines().find(|line| line.starts_with("callee")).unwrap();
    assert!(
        row.contains("observe, 9m left") || row.contains("observe, 10m left"),
        "{status}"
    );

    let before = agent.seen("/work").len();
    let passed = post().await;
    assert_eq!(passed.status, 200, "{}", passed.text());
    assert_eq!(agent.seen("/work").len(), before + 1, "the agent heard it");
    let decisions: Vec<&str> = passed
        .headers
        .get_all("x-aip-decision")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    assert!(decisions.iter().any(|d| d.ends_with(";deny;callee")), "{decisions:?}");
    assert!(decisions.iter().any(|d| d.ends_with(";allow;caller")), "{decisions:?}");
    let line = wait::until("it is on the record", async || {
        let all = callee.records().of("inbound");
        all.0.into_iter().find(|record| record.0["observed"] == true)
    })
    .await;
    assert_eq!(
        (line.verdict(), line.reason(), line.status()),
        ("deny", "policy_denied", 200)
    );
    assert_eq!(line.text("rule"), "no-posts/post");
    assert_eq!(callee.metric("aip_observed_total", &["inbound"]).await, 1.0);

    let changed = aip(&mesh, &["agent", "enforce", "callee", "--output", "json"]);
    let changed: serde_json::Value = serde_json::from_str(&changed).unwrap();
    mesh.admin().acknowledged(changed["revision"].as_u64().unwrap()).await;
    assert_eq!(post().await.status, 403);
    let status = aip(&mesh, &["status", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert!(status["status"]["sidecars"].is_null(), "sidecars stand once");
    assert_eq!(status["sidecars"].as_array().unwrap().len(), 2, "{status}");
}

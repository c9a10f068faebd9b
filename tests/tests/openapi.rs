//! The admin API against its own description: thousands of requests that a program makes from `docs/openapi.json`, good
//! and bad ones, and every answer held to what the document says of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use aip_tests::process::{ControlPlane, DEV};
use http::Method;
use serde_json::json;
use tempfile::TempDir;

/// What is asked of every answer. Left out is `positive_data_acceptance`: what a document must be beside its form (a name
/// that exists, two fields that come together) a schema can't say, and such a request is refused with its reason.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,\
                      allow_header_conformance,use_after_free,ignored_auth";

/// Not asked: two streams of events that don't end, and what would take away the token by which the others are asked.
const LEFT_OUT: [&str; 3] = ["/v1/watch", "/v1/audit/records/watch", "/v1/admin-tokens/{jti}"];

/// The same requests at every run.
const SEED: &str = "20261122";
const EXAMPLES: &str = "12";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Installs it where that was not done; a second call is instant.
fn schemathesis() -> PathBuf {
    let setup = repository().join("tests/openapi/setup.sh");
    let status = Command::new(&setup).status().expect("setup.sh runs");
    assert!(status.success(), "tests/openapi/setup.sh failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("openapi/venv/bin/schemathesis")
}

/// Asks by these phases, with these flags; answers what it said, where it found nothing.
fn asked(plane: &ControlPlane, dir: &Path, phases: &str, flags: &[&str]) -> String {
    let mut command = Command::new(schemathesis());
    command
        .args(flags)
        .arg("run")
        .arg(repository().join("docs/openapi.json"));
    command.args(["-u", &format!("http://{}", plane.admin.address)]);
    command.args(["-H", &format!("Authorization: Bearer {}", plane.admin.token)]);
    command.args(["--checks", CHECKS, "--phases", phases, "-n", EXAMPLES, "--seed", SEED]);
    command.args([
        "--continue-on-failure",
        "--no-shrink",
        "--warnings",
        "off",
        "--no-color",
    ]);
    command.args(["--request-timeout", "60", "--generation-database", "none"]);
    for path in LEFT_OUT {
        command.args(["--exclude-path", path]);
    }
    let output = command.current_dir(dir).output().expect("schemathesis runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_the_admin_api_is_as_it_is_described_whatever_is_asked() {
    let dir = TempDir::new().unwrap();
    let mut plane = ControlPlane::start(dir.path(), DEV).await;
    plane.admin.agent(json!({"name": "planner"})).await;
    // Half of the requests reach what is behind a name.
    let names = repository().join("tests/openapi/schemathesis.toml");
    let names = ["--config-file", names.to_str().unwrap()];
    let (first, second) = tokio::task::block_in_place(|| {
        (
            asked(&plane, dir.path(), "coverage,stateful", &[]),
            asked(&plane, dir.path(), "fuzzing", &names),
        )
    });
    for said in [first, second] {
        assert!(said.contains("No issues found"), "{said}");
    }
    plane.process.assert_alive();
    // The token was good to the end, so what was asked was not all refused for want of one.
    let status = plane.admin.get("/v1/status").await;
    assert!(
        status["revision"].as_u64().unwrap() > 100,
        "little was written: {status}"
    );
    plane.admin.agent(json!({"name": "served-as-before"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_a_query_ends_where_the_document_says() {
    let dir = TempDir::new().unwrap();
    let plane = ControlPlane::start(dir.path(), DEV).await;
    let most = i64::MAX.unsigned_abs();
    for path in ["/v1/audit?before", "/v1/audit/records?since", "/v1/audit/records?until"] {
        let answer = async |number| plane.admin.call(Method::GET, &format!("{path}={number}"), None).await;
        assert_eq!(answer(most).await.status, 200, "{path}");
        let refused = answer(most + 1).await;
        let said = (refused.status.as_u16(), refused.reason());
        assert_eq!(said, (400, "malformed".to_owned()), "{path}: {}", refused.text());
        assert!(refused.text().contains(&most.to_string()), "{path}: {}", refused.text());
    }
}

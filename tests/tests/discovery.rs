//! What docs/discovery.md says, by its own commands: a statement of the mesh is checked with curl and OpenSSL alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Output};

use aip_tests::agent::Agent;
use aip_tests::process::{Mesh, Sidecar};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/discovery.md");

/// The page's commands.
fn commands() -> String {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let block = page.split("```sh\n").nth(1).expect("a block of commands");
    block.split("```").next().unwrap().to_owned()
}

/// Runs `script` as an operator beside the caller would.
fn run(script: &str, dir: &Path, mesh: &Mesh, caller: &Sidecar) -> Output {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", script]).current_dir(dir);
    command.env("http_proxy", format!("http://{}", caller.outbound));
    command.env("AGENT", "http://callee.aip.internal");
    command.env("AIP_ADMIN", format!("http://{}", mesh.admin().address));
    command.env("AIP_TOKEN_FILE", mesh.control_plane.dir.join("data/admin.jwt"));
    command.output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_checked_with_openssl_and_an_altered_one_is_found() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let caller = mesh.sidecar("caller", agent.address).await;
    let _callee = mesh.sidecar("callee", agent.address).await;
    let dir = mesh.dir("outside");

    let checked = run(&commands(), &dir, &mesh, &caller);
    assert!(checked.status.success(), "{checked:?}");
    let said = String::from_utf8_lossy(&checked.stdout);
    for line in ["key.crt: OK", "Signature Verified Successfully", "leaf.crt: OK"] {
        assert!(said.contains(line), "{said}");
    }
    let shown: Value = serde_json::from_slice(&std::fs::read(dir.join("attestation.json")).unwrap()).unwrap();
    let claims = shown["result"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    assert_eq!(
        shown["claims"], claims,
        "what stands beside the statement is what it says"
    );
    assert_eq!(claims["sub"], "spiffe://aip.internal/agent/callee");

    let signed = std::fs::read_to_string(dir.join("signed")).unwrap();
    let (head, _) = signed.split_once('.').unwrap();
    let mut altered = claims;
    altered["generation"] = 2.into();
    let altered = URL_SAFE_NO_PAD.encode(altered.to_string());
    std::fs::write(dir.join("signed"), format!("{head}.{altered}")).unwrap();
    let verify = "openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in signed -sigfile signature";
    let refused = run(verify, &dir, &mesh, &caller);
    assert!(!refused.status.success(), "{refused:?}");
}

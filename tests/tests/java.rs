//! The two HTTP clients of the JDK behind `aip run`. Java takes no credentials from its proxy properties: unchanged, its
//! programs pass where the sidecar knows them by their user; else they need an `Authenticator` of their own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::clients::clients;
use aip_tests::http;
use aip_tests::process::{Mesh, RunAgent, pairs};
use aip_tests::root::needs_root;
use aip_tests::wait;

const URL: &str = "http://callee.aip.internal/java";

/// The program where any user may read it.
fn program() -> (tempfile::TempDir, Command) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = dir.path().join("Caller.java");
    std::fs::write(&file, include_str!("../clients/Caller.java")).unwrap();
    // `make clients` installs it where it is missing.
    let mut java = Command::new("java");
    java.arg(file).arg(URL);
    (dir, java)
}

/// Has the program call with this client; the status that it saw.
async fn call(caller: &RunAgent, how: &str) -> String {
    let address = caller.state["address"].as_str().unwrap().parse().unwrap();
    http::get(address, how).await.unwrap().text()
}

#[tokio::test(flavor = "multi_thread")]
async fn java_passes_unchanged_where_it_is_known_by_its_user() {
    if !needs_root() {
        return;
    }
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let callee = mesh.sidecar("callee", agent.address).await;
    let (_dir, java) = program();
    let caller = RunAgent::start(&mesh, "caller", &java, &["--user", "nobody", "--proxy-by-user"]).await;
    for how in ["/client", "/connection"] {
        assert_eq!(call(&caller, how).await, "200", "{how}");
    }
    wait::until_ok("both ends recorded both calls", async || {
        pairs(&caller.records(), &callee.records())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn java_shows_the_secret_by_an_authenticator() {
    let mesh = Mesh::start().await;
    let agent = Agent::start();
    let _callee = mesh.sidecar("callee", agent.address).await;
    let (_dir, java) = program();
    let caller = RunAgent::start(&mesh, "caller", &java, &[]).await;
    for how in ["/client", "/connection"] {
        assert_eq!(call(&caller, how).await, "407", "{how}");
        assert_eq!(call(&caller, &format!("{how}/secret")).await, "200", "{how}");
    }
}

/// The client prefers HTTP/2, and speaks HTTP/1.1 where it has a proxy: nothing of an upgrade reaches the agent.
#[tokio::test(flavor = "multi_thread")]
async fn java_reads_a_stream_line_by_line() {
    let mesh = Mesh::start().await;
    let callee = RunAgent::start(&mesh, "callee", &clients().script("http_server.py", &[]), &[]).await;
    let (_dir, java) = program();
    let caller = RunAgent::start(&mesh, "caller", &java, &[]).await;
    assert_eq!(call(&caller, "/stream/secret").await, "HTTP_1_1 200 1 2 3");
    assert_eq!(callee.seen().len(), 1);
}

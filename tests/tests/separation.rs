//! In a prod mesh a sidecar and its agent are different users.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use aip_api::resource::{MeshConfig, MeshMode};
use aip_tests::agent::Agent;
use aip_tests::process::Sidecar;
use aip_tests::root::needs_root;
use aip_tests::scripted::Scripted;
use aip_tests::wait;
use tempfile::TempDir;

const OTHER: u32 = 65_534;

fn prod() -> Scripted {
    let scripted = Scripted::start();
    scripted.put(&MeshConfig::new("aip.internal".parse().unwrap(), MeshMode::Prod));
    scripted
}

/// It comes to know the mode with its first configuration, and from its cache after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_runs_as_its_agent_s_user_ends_and_says_why() {
    let (scripted, dir) = (prod(), TempDir::new().unwrap());
    let (spec, dir) = scripted.spec("one", Agent::start().address, dir.path(), &[]);
    for start in ["the first", "from the cache"] {
        let mut sidecar = Sidecar::start_unready(spec.clone(), &dir).await;
        assert!(!sidecar.process.end().await.success(), "{start}");
        let said = sidecar.process.stderr();
        let uid = rustix::process::getuid().as_raw();
        for word in [
            "shared_user",
            &format!("user {uid}"),
            &spec.agent.to_string(),
            "another user",
        ] {
            assert!(said.contains(word), "{start}: {word} is missing: {said}");
        }
    }
}

/// An agent that serves nothing is known by what the sidecar is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_told_that_its_agent_is_its_own_user_ends() {
    let (scripted, dir) = (prod(), TempDir::new().unwrap());
    let me = rustix::process::getuid().as_raw().to_string();
    let nobody = "127.0.0.1:9".parse().unwrap();
    let (spec, dir) = scripted.spec("one", nobody, dir.path(), &["--agent-uid", &me]);
    let mut sidecar = Sidecar::start_unready(spec, &dir).await;
    assert!(!sidecar.process.end().await.success());
    assert!(sidecar.process.stderr().contains("shared_user"));
}

/// The agent begins to serve after its sidecar does.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_later_as_the_sidecar_s_user_ends_it() {
    let (scripted, dir) = (prod(), TempDir::new().unwrap());
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (spec, dir) = scripted.spec("one", address, dir.path(), &[]);
    let mut sidecar = Sidecar::start(spec, &dir).await;
    let _agent = std::net::TcpListener::bind(address).unwrap();
    assert!(!sidecar.process.end().await.success());
    assert!(sidecar.process.stderr().contains("shared_user"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_another_user_serves() {
    if !needs_root() {
        return;
    }
    let (scripted, dir) = (prod(), TempDir::new().unwrap());
    let (spec, dir) = scripted.spec("one", Agent::start().address, dir.path(), &[]);
    let own = Sidecar::command(&spec, &dir);
    // Its files, and the way to them.
    for path in [
        dir.parent().unwrap(),
        &dir,
        &dir.join("data"),
        &dir.join("run"),
        &dir.join("code"),
    ] {
        std::os::unix::fs::chown(path, Some(OTHER), Some(OTHER)).unwrap();
    }
    // Where the binary lies may be closed to others.
    let program = dir.join("aip-sidecar");
    std::fs::copy(own.get_program(), &program).unwrap();
    let mut command = Command::new("setpriv");
    let other = OTHER.to_string();
    command
        .args(["--reuid", &other, "--regid", &other, "--clear-groups"])
        .arg(program)
        .args(own.get_args());
    command.env("AIP_JOIN_TOKEN", &spec.token);
    let mut sidecar = Sidecar::start_as(spec, &dir, &command).await;
    sidecar.ready().await;
    let snapshot = wait::until("the configuration is there", async || {
        let snapshot = sidecar.snapshot().await;
        (snapshot["revision"].as_u64() > Some(0)).then_some(snapshot)
    })
    .await;
    assert_eq!(snapshot["mesh"]["mode"], "prod");
    sidecar.process.assert_alive();
}

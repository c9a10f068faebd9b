//! `aip up` that can't start: the last lines say what failed, why, and what to do.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use aip_tests::process::{Process, binary};
use aip_tests::wait;
use serde_json::Value;

const ANY: [&str; 4] = ["--mesh-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

fn up(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("aip"));
    command.arg("up").args(arguments).env("AIP_HOME", home);
    command.env_remove("AIP_ADMIN").env_remove("AIP_TOKEN_FILE");
    command
}

/// The lines on standard error, of which there are three: what, why, and what to do.
fn complaint(home: &Path, arguments: &[&str]) -> [String; 3] {
    let output = up(home, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.try_into().unwrap_or_else(|_| panic!("three lines: {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_ends_with_what_failed_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let mut running = Process::start_supervisor("up", &up(&home, &ANY), dir.path());
    wait::until("the control plane is up", async || {
        running.assert_alive();
        running.stdout().contains("The control plane is up.").then_some(())
    })
    .await;
    // What an earlier attempt left in the log is not said again.
    let run: Value = serde_json::from_slice(&std::fs::read(home.join("control-plane/run.json")).unwrap()).unwrap();
    let (pid, admin) = (run["pid"].to_string(), run["admin"].as_str().unwrap());
    // Its ports are in the way of the same ones, its data directory in that of others.
    for arguments in [ANY, ["--mesh-listen", "127.0.0.1:0", "--admin-listen", admin]] {
        let [what, why, next] = complaint(&home, &arguments);
        assert!(what.starts_with("error: a mesh already runs from this home"), "{what}");
        assert!(why.contains(&pid) && why.contains(admin), "{why}");
        assert!(next.contains("`aip status`") && next.contains("--home"), "{next}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let other = dir.path().join("other");
    let [_, why, next] = complaint(&other, &["--mesh-listen", &address, "--admin-listen", "127.0.0.1:0"]);
    assert!(why.contains(&address) && why.contains("--mesh-listen"), "{why}");
    assert!(next.contains("control-plane.log"), "{next}");
}

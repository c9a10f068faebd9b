//! What goes wrong at start: each with a stable reason and an answer that says what to do.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, Mesh, binary, ended_badly, fails};
use tempfile::TempDir;

const ANY: &str = "127.0.0.1:0";

/// A control plane on `data`, with free ports where `flags` don't say otherwise.
fn control_plane(data: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(binary("aip-control-plane"));
    command.arg("--data").arg(data);
    for flag in ["--mesh-listen", "--admin-listen"] {
        if !flags.contains(&flag) {
            command.args([flag, ANY]);
        }
    }
    command.args(flags);
    command
}

/// A sidecar on `data`, with free ports where `flags` don't say otherwise.
fn sidecar(data: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(binary("aip-sidecar"));
    let defaults = [
        ("--name", "lonely"),
        ("--control-plane", "127.0.0.1:1"),
        ("--agent", "127.0.0.1:2"),
    ];
    let ports = ["--inbound", "--outbound", "--admin", "--probes"].map(|flag| (flag, ANY));
    for (flag, value) in defaults.into_iter().chain(ports) {
        if !flags.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.arg("--data").arg(data).args(flags);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named_with_its_flag() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind(ANY).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--mesh-listen", "--admin-listen"] {
        let error = fails(control_plane(&dir.path().join("cp"), &[flag, &address])).await;
        assert!(
            error.contains(&address) && error.contains("taken") && error.contains(flag),
            "{flag}: {error}"
        );
    }
    for flag in ["--inbound", "--outbound", "--admin", "--probes"] {
        let error = fails(sidecar(&dir.path().join("sidecar"), &[flag, &address])).await;
        assert!(
            error.contains(&address) && error.contains("taken") && error.contains(flag),
            "{flag}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cant_be_written_is_named() {
    let dir = TempDir::new().unwrap();
    // Below a file nobody can write, not even root.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let data = file.join("data");
    for command in [control_plane(&data, &[]), sidecar(&data, &[])] {
        let error = fails(command).await;
        assert!(
            error.contains(&*data.to_string_lossy()) && error.contains("can't be written"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_in_use_is_left_alone() {
    let mesh = Mesh::start().await;
    let data = mesh.control_plane.dir.join("data");
    let error = fails(control_plane(&data, &[])).await;
    assert!(
        error.contains(&*data.to_string_lossy()) && error.contains("in use"),
        "{error}"
    );
    let running = mesh.sidecar("holder", Agent::start().address).await;
    let error = fails(sidecar(&running.dir.join("data"), &[])).await;
    assert!(error.contains("in use"), "{error}");
    assert_eq!(mesh.admin().get("/v1/mesh").await["mode"], "dev", "the first goes on");
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_a_newer_version_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let mut first = ControlPlane::start(dir.path(), &[]).await;
    first.kill();
    let data = dir.path().join("data");
    let file = std::fs::read_dir(&data)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "redb"));
    let file = file.expect("a database in the data directory");
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    let set = |format: u64| {
        let write = redb::Database::open(&file).unwrap().begin_write().unwrap();
        let old = write
            .open_table(meta)
            .unwrap()
            .insert("format", format)
            .unwrap()
            .unwrap()
            .value();
        write.commit().unwrap();
        old
    };
    let current = set(1_000_000);
    let error = fails(control_plane(&data, &[])).await;
    assert!(error.contains("newer") && error.contains("1000000"), "{error}");
    assert_eq!(set(current), 1_000_000, "it was left as it is");
    let mut again = ControlPlane::start(dir.path(), &[]).await;
    assert_eq!(
        again.admin.get("/v1/mesh").await["mode"],
        "dev",
        "and nothing in it was touched"
    );
    again.process.assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn mode_and_trust_domain_are_fixed_at_creation() {
    let dir = TempDir::new().unwrap();
    let mut first = ControlPlane::start(dir.path(), &["--mode", "dev", "--trust-domain", "one.internal"]).await;
    first.kill();
    let data = dir.path().join("data");
    let error = fails(control_plane(&data, &["--mode", "prod"])).await;
    assert!(error.contains("mode dev") && error.contains("never changes"), "{error}");
    let error = fails(control_plane(&data, &["--trust-domain", "two.internal"])).await;
    assert!(
        error.contains("one.internal") && error.contains("never changes"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_config_mistake_is_reported_at_once_by_field() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("sidecar.yaml");
    let text = "name: Not A Name\noutbound: 0.0.0.0:15001\nenforcement: strong\nworkers: 0\ndrain_seconds: 100000\n";
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(binary("aip-sidecar"));
    command.arg("--config").arg(&file);
    let error = fails(command).await;
    for field in [
        "name",
        "outbound",
        "enforcement",
        "workers",
        "drain_seconds",
        "control_plane",
        "agent",
        "data",
    ] {
        assert!(error.contains(&format!("{field}: ")), "{field} is missing: {error}");
    }
    // Values of a wrong type are no exception, and each has its line.
    let text = "name: fine\nworkers: [1]\nagent: nowhere\nnmae: x\ndrain_seconds: 100000\ncode: src\n";
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(binary("aip-sidecar"));
    command.arg("--config").arg(&file);
    let error = fails(command).await;
    for mistake in [
        "workers: line 2: ",
        "agent: line 3: ",
        "nmae: line 4: unknown field",
        "drain_seconds: line 5: \"100000\" is not a whole number from 0 to 3600",
        "code: line 6: ",
        "control_plane: is missing",
        "data: is missing",
    ] {
        assert!(error.contains(mistake), "{mistake} is missing: {error}");
    }
    assert!(!error.contains("agent: is missing"), "it is there, and wrong: {error}");

    let file = dir.path().join("control-plane.yaml");
    let text = "mode: staging\ntrust_domain: \"Not A Domain\"\nmesh_listen: [1]\nlgo: info\n";
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(binary("aip-control-plane"));
    command.arg("--config").arg(&file);
    let error = fails(command).await;
    for field in [
        "mode: line 1: \"staging\" is not dev or prod",
        "trust_domain: line 2: \"Not A Domain\" is not ",
        "mesh_listen: line 3: ",
        "lgo: line 4: unknown field",
    ] {
        assert!(error.contains(field), "{field} is missing: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecars_mistakes_in_flags_and_variables_are_reported_at_once_by_their_names() {
    let mut sidecar = Command::new(binary("aip-sidecar"));
    sidecar.args(["--name=BAD_NAME", "--control-plane=xx", "--agent=y", "--inbound=z"]);
    sidecar.args(["--agent-uid=root", "--keys=golden", "--proxy-open=maybe"]);
    sidecar.args(["--log", "info,x=loud"]);
    sidecar
        .env("AIP_SIDECAR_WORKERS", "many")
        .env("AIP_SIDECAR_LOG_FORMAT", "loud");
    let mistakes = [
        "--name: \"BAD_NAME\" is not an agent name",
        "--control-plane: \"xx\" is not IP:PORT",
        "--agent: \"y\" is not IP:PORT",
        "--inbound: \"z\" is not IP:PORT",
        "--agent-uid: \"root\" is not the number of a user",
        "--keys: \"golden\" is not sealed or memory",
        "--proxy-open: \"maybe\" is not true or false",
        "AIP_SIDECAR_WORKERS: \"many\" is not a whole number from 1 to 64",
        "--log: \"info,x=loud\" is not a log filter",
        "AIP_SIDECAR_LOG_FORMAT: \"loud\" is not json or text",
        "data: is missing: give --data, AIP_SIDECAR_DATA, or data in the file",
    ];
    says_all(sidecar, &mistakes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_planes_mistakes_in_flags_and_variables_are_reported_at_once_by_their_names() {
    let mut control_plane = Command::new(binary("aip-control-plane"));
    control_plane.args(["--mode", "test", "--trust-domain", "A B", "--mesh-listen", "here"]);
    control_plane
        .env("AIP_ADMIN_LISTEN", "there")
        .env("AIP_LOG_FORMAT", "loud");
    let mistakes = [
        "--mode: \"test\" is not dev or prod",
        "--trust-domain: \"A B\" is not a trust domain",
        "--mesh-listen: \"here\" is not IP:PORT",
        "AIP_ADMIN_LISTEN: \"there\" is not IP:PORT",
        "AIP_LOG_FORMAT: \"loud\" is not json or text",
        "data: is missing",
    ];
    says_all(control_plane, &mistakes).await;
}

/// It ends with exit code 2, and names all of these.
async fn says_all(command: Command, mistakes: &[&str]) {
    let (error, code) = ended_badly(command).await;
    assert_eq!(code, Some(2), "{error}");
    for mistake in mistakes {
        assert!(error.contains(mistake), "{mistake} is missing: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_stands_for_its_flag_and_help_does_not_show_it() {
    let mut command = Command::new(binary("aip-sidecar"));
    command
        .env("AIP_SIDECAR_ARGV", "[\"serve\", \"hidden-value\"]")
        .arg("--measure");
    let output = command.output().unwrap();
    let measured = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(measured.contains("hidden-value"), "{measured}");
    command.arg("--help");
    let help = String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned();
    assert!(
        help.contains("AIP_SIDECAR_ARGV") && !help.contains("hidden-value"),
        "{help}"
    );
}

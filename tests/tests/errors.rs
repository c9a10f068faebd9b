//! What goes wrong at start, and who may not come in: each with a stable reason and an answer that says what to do.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use aip_api::Digest;
use aip_api::evidence::{EVIDENCE_TYP, Evidence, code_digest};
use aip_api::token::JoinToken;
use aip_api::wire::issue_request::Credential;
use aip_api::wire::{ChallengeRequest, IssueRequest, IssueResponse};
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::svid::PendingKey;
use aip_runtime::{grpc, jws, tls};
use aip_tests::agent::Agent;
use aip_tests::process::{ControlPlane, Mesh, Sidecar, SidecarSpec, binary};
use aip_tests::wait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tempfile::TempDir;

const ANY: &str = "127.0.0.1:0";

/// Runs a command that must end by itself, with a failure.
async fn fails(command: Command) -> String {
    ended(command).await.0
}

/// What a command that must fail said, and its exit code.
async fn ended(mut command: Command) -> (String, Option<i32>) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let child = command.kill_on_drop(true).spawn().unwrap();
    let ended = tokio::time::timeout(wait::DEADLINE, child.wait_with_output()).await;
    let output: Output = ended.unwrap_or_else(|_| panic!("{command:?} did not end")).unwrap();
    assert!(!output.status.success(), "{command:?} succeeded");
    (
        String::from_utf8_lossy(&output.stderr).into_owned(),
        output.status.code(),
    )
}

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
async fn mistakes_in_flags_and_variables_are_reported_at_once_by_their_names() {
    let mut sidecar = Command::new(binary("aip-sidecar"));
    sidecar.args([
        "--name",
        "BAD_NAME",
        "--control-plane",
        "xx",
        "--agent",
        "y",
        "--inbound",
        "z",
    ]);
    sidecar.args([
        "--agent-uid",
        "root",
        "--keys",
        "golden",
        "--proxy-open=maybe",
        "--log",
        "info,x=loud",
    ]);
    sidecar
        .env("AIP_SIDECAR_WORKERS", "many")
        .env("AIP_SIDECAR_LOG_FORMAT", "loud");
    let mut control_plane = Command::new(binary("aip-control-plane"));
    control_plane.args(["--mode", "test", "--trust-domain", "A B", "--mesh-listen", "here"]);
    control_plane
        .env("AIP_ADMIN_LISTEN", "there")
        .env("AIP_LOG_FORMAT", "loud");
    let expected: [(Command, &[&str]); 2] = [
        (
            sidecar,
            &[
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
            ],
        ),
        (
            control_plane,
            &[
                "--mode: \"test\" is not dev or prod",
                "--trust-domain: \"A B\" is not a trust domain",
                "--mesh-listen: \"here\" is not IP:PORT",
                "AIP_ADMIN_LISTEN: \"there\" is not IP:PORT",
                "AIP_LOG_FORMAT: \"loud\" is not json or text",
                "data: is missing",
            ],
        ),
    ];
    for (command, mistakes) in expected {
        let (error, code) = ended(command).await;
        assert_eq!(code, Some(2), "{error}");
        for mistake in mistakes {
            assert!(error.contains(mistake), "{mistake} is missing: {error}");
        }
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

/// A joining sidecar, by hand.
struct Joiner {
    stub: IdentityClient<tonic::transport::Channel>,
}

impl Joiner {
    async fn new(mesh: &Mesh, token: &str) -> Self {
        let token: JoinToken = token.parse().unwrap();
        let channel = grpc::channel(mesh.control_plane.mesh, tls::pinned_client(token.root).unwrap())
            .await
            .unwrap();
        Self {
            stub: IdentityClient::new(channel),
        }
    }

    async fn nonce(&mut self, agent: &str) -> Vec<u8> {
        self.stub
            .challenge(ChallengeRequest { agent: agent.into() })
            .await
            .unwrap()
            .into_inner()
            .nonce
    }

    async fn issue(
        &mut self,
        agent: &str,
        token: &str,
        key: &PendingKey,
        nonce: &[u8],
    ) -> Result<IssueResponse, String> {
        let request = IssueRequest {
            agent: agent.into(),
            credential: Some(Credential::JoinToken(token.into())),
            csr: key.csr.clone(),
            evidence: jws::sign_es256(&key.pkcs8, EVIDENCE_TYP, &evidence(agent, nonce, key)).unwrap(),
        };
        let refused = |status: tonic::Status| grpc::reason(&status).unwrap_or("no reason").to_owned();
        self.stub
            .issue(request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(refused)
    }

    /// With a fresh nonce.
    async fn join(&mut self, agent: &str, token: &str, key: &PendingKey) -> Result<IssueResponse, String> {
        let nonce = self.nonce(agent).await;
        self.issue(agent, token, key, &nonce).await
    }
}

fn evidence(agent: &str, nonce: &[u8], key: &PendingKey) -> Evidence {
    let value = json!({
        "v": 1, "agent": agent, "nonce": URL_SAFE_NO_PAD.encode(nonce), "jkt": key.key.jkt,
        "attestor": "files", "assurance": "declared", "code": code_digest(&[]).unwrap(), "files": [],
        "sidecar": Digest::sha256(b"sidecar"), "enforcement": "cooperative", "iat": aip_runtime::unix_now(),
    });
    serde_json::from_value(value).unwrap()
}

fn key() -> PendingKey {
    PendingKey::generate().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_key_of_one_agent_in_once() {
    let mesh = Mesh::start().await;
    for name in ["one", "two"] {
        mesh.admin().agent(json!({"name": name})).await;
    }
    let token = mesh.admin().token("one").await;
    let mut joiner = Joiner::new(&mesh, &token).await;
    assert_eq!(
        joiner.join("two", &token, &key()).await.unwrap_err(),
        "token_wrong_agent"
    );
    let mine = key();
    assert!(joiner.join("one", &token, &mine).await.is_ok());
    assert!(
        joiner.join("one", &token, &mine).await.is_ok(),
        "a lost reply can be asked for again with the same key"
    );
    assert_eq!(joiner.join("one", &token, &key()).await.unwrap_err(), "token_other_key");
    let mut last = Ok(());
    for _ in 0..20 {
        last = joiner.join("one", &token, &mine).await.map(|_| ());
    }
    assert_eq!(last, Err("token_reused".to_owned()), "not for ever");
    let guessed = aip_api::token::JoinToken {
        secret: [9; 32],
        ..token.parse().unwrap()
    }
    .reveal();
    assert_eq!(joiner.join("one", &guessed, &key()).await.unwrap_err(), "token_unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_lets_nobody_in() {
    let mesh = Mesh::start().await;
    mesh.admin().agent(json!({"name": "late"})).await;
    let made = mesh
        .admin()
        .ok(
            http::Method::POST,
            "/v1/tokens",
            Some(&json!({"agent": "late", "ttl_seconds": 1})),
        )
        .await;
    let token = made["token"].as_str().unwrap();
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(made["expires_at"].as_u64().unwrap());
    wait::until("the token's second passes", async || {
        (SystemTime::now() > expires).then_some(())
    })
    .await;
    let mut joiner = Joiner::new(&mesh, token).await;
    assert_eq!(joiner.join("late", token, &key()).await.unwrap_err(), "token_expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_answers_one_fresh_nonce_of_its_own() {
    let mesh = Mesh::start().await;
    for name in ["one", "two"] {
        mesh.admin().agent(json!({"name": name})).await;
    }
    let token = mesh.admin().token("one").await;
    let mut joiner = Joiner::new(&mesh, &token).await;
    let mine = key();
    let nonce = joiner.nonce("one").await;
    assert!(joiner.issue("one", &token, &mine, &nonce).await.is_ok());
    assert_eq!(
        joiner.issue("one", &token, &mine, &nonce).await.unwrap_err(),
        "nonce_reused"
    );
    assert_eq!(
        joiner.issue("one", &token, &mine, &[5; 32]).await.unwrap_err(),
        "nonce_unknown"
    );
    let of_other = joiner.nonce("two").await;
    assert_eq!(
        joiner.issue("one", &token, &mine, &of_other).await.unwrap_err(),
        "nonce_unknown"
    );
}

/// The sidecar itself says which, and ends: trying again can't mend it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_with_a_useless_token_ends_and_says_why() {
    let mesh = Mesh::start().await;
    let agent: SocketAddr = Agent::start().address;
    let spec = mesh.spec(json!({"name": "one"}), agent).await;
    mesh.admin().agent(json!({"name": "two"})).await;
    let wrong = SidecarSpec {
        name: "two".into(),
        ..spec.clone()
    };
    let error = fails(Sidecar::command(&wrong, &mesh.dir("wrong"))).await;
    assert!(error.contains("token_wrong_agent"), "{error}");
    assert!(
        error.contains("for one") && error.contains("aip token create two"),
        "{error}"
    );
    let said: Vec<&str> = error
        .lines()
        .filter(|line| line.contains("token_wrong_agent"))
        .collect();
    assert_eq!(said.len(), 1, "said once: {error}");
    for line in error.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "no log line: {line}"
        );
    }
    let mut first = Sidecar::start(spec.clone(), &mesh.dir("first")).await;
    let error = fails(Sidecar::command(&spec, &mesh.dir("second"))).await;
    assert!(
        error.contains("token_other_key") && error.contains("aip token create one"),
        "{error}"
    );
    first.spec.flags = ["--join-token-file", "/nowhere/token"].map(String::from).into();
    first.restart().await;
    // A file that is not there is named, and only where it is needed: not by who has kept an identity.
    let mut needs_it = Sidecar::command(&spec, &mesh.dir("third"));
    needs_it.args(["--join-token-file", "/nowhere/token"]);
    let error = fails(needs_it).await;
    assert!(
        error.contains("token_file_unreadable") && error.contains("/nowhere/token"),
        "{error}"
    );
}

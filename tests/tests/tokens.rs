//! Who may not come in, by its token or its evidence: each with a stable reason and an answer that says what to do.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
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
use aip_tests::process::{Mesh, Sidecar, SidecarSpec, fails};
use aip_tests::wait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

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

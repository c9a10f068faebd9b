//! Joining, renewing, and every way in which that is refused.

use aip_api::Digest;
use aip_api::evidence::{Evidence, MAX_EVIDENCE_BYTES};
use aip_api::token::JoinToken;
use aip_api::wire::IssueRequest;
use aip_api::wire::issue_request::Credential;
use aip_runtime::grpc::channel;
use aip_runtime::grpc::identity_client::IdentityClient;
use aip_runtime::svid::PendingKey;
use aip_runtime::tls::pinned_client;
use serde_json::json;
use tonic::Status;

use crate::support::sidecar::{evidence, sign, why};
use crate::support::{Mesh, Sidecar, reason};

fn refused<T>(result: Result<T, Status>) -> String {
    match result {
        Ok(_) => panic!("was not refused"),
        Err(status) => why(&status),
    }
}

#[tokio::test]
async fn a_sidecar_joins_with_a_token_and_renews_with_its_svid() {
    let mesh = Mesh::dev().await;
    let mut sidecar = mesh.joined("planner").await;
    let first = sidecar.svid.current().unwrap();
    assert_eq!(first.id().to_string(), "spiffe://aip.internal/agent/planner");
    sidecar.renew(b"code").await.unwrap();
    let second = sidecar.svid.current().unwrap();
    assert_ne!(first.identity.serial, second.identity.serial);
    let svids = mesh.admin.get("/v1/agents/planner/svids").await;
    let credentials: Vec<_> = svids["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["credential"].clone())
        .collect();
    assert!(
        credentials.contains(&json!("token")) && credentials.contains(&json!("svid")),
        "{credentials:?}"
    );
    let approved = mesh.admin.get("/v1/measurements?agent=planner").await;
    assert_eq!(approved["items"][0]["measurement"]["approved_by"], "dev");
}

#[tokio::test]
async fn a_control_plane_with_another_root_is_not_spoken_to() {
    let mesh = Mesh::dev().await;
    let tls = pinned_client(Digest::sha256(b"another root")).unwrap();
    assert!(channel(mesh.plane.run.mesh, tls).await.is_err());
}

#[tokio::test]
async fn tokens_are_refused_for_every_reason_that_there_is() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    let others = mesh.token("ledger").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    let key = PendingKey::generate().unwrap();
    let good = sidecar.good(&token, &key).await;
    let with = |token: &str| IssueRequest {
        credential: Some(Credential::JoinToken(token.into())),
        ..good.clone()
    };

    let mut forged: JoinToken = token.parse().unwrap();
    forged.secret = [7; 32];
    let mut unknown = forged.clone();
    unknown.id = [9; 12];
    let showing = |credential: Option<Credential>| IssueRequest {
        credential,
        ..good.clone()
    };
    let mut misnamed = good.clone();
    misnamed.agent = "Planner".into();
    let service_account = Credential::ServiceAccountToken("t".into());
    let svid = Credential::CurrentSvid(Default::default());
    for (shown, expected) in [
        (with("aip1.x"), "token_malformed"),
        (with(&unknown.reveal()), "token_unknown"),
        (with(&forged.reveal()), "token_unknown"),
        (with(&others), "token_wrong_agent"),
        (showing(None), "credential_missing"),
        (misnamed, "name_invalid"),
        (showing(Some(service_account)), "credential_unsupported"),
        (showing(Some(svid)), "credential_missing"),
    ] {
        assert_eq!(refused(sidecar.issue(shown).await), expected);
    }
    mesh.admin.ok("DELETE", "/v1/agents/ledger", json!(null)).await;
    let mut ledger = Sidecar::new(mesh.plane.run.mesh, "ledger", &others).await;
    let request = ledger.good(&others, &key).await;
    assert_eq!(
        refused(ledger.issue(request).await),
        "token_unknown",
        "it went with its agent"
    );
    mesh.plane.clock.advance(601);
    assert_eq!(refused(sidecar.issue(with(&token)).await), "token_expired");
}

#[tokio::test]
async fn a_lost_reply_is_answered_again_for_the_same_key_only() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    let (key, other) = (PendingKey::generate().unwrap(), PendingKey::generate().unwrap());
    for _ in 0..5 {
        let request = sidecar.good(&token, &key).await;
        sidecar.issue(request).await.unwrap();
    }
    let request = sidecar.good(&token, &other).await;
    assert_eq!(refused(sidecar.issue(request).await), "token_other_key");
    let request = sidecar.good(&token, &key).await;
    assert_eq!(refused(sidecar.issue(request).await), "token_reused");
}

#[tokio::test]
async fn of_many_that_spend_one_token_at_once_one_wins() {
    let mesh = Mesh::dev().await;
    let token = mesh.token("planner").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (token, address) = (token.clone(), mesh.plane.run.mesh);
        tasks.spawn(async move { Sidecar::new(address, "planner", &token).await.join(&token).await });
    }
    let all = tasks.join_all().await;
    assert_eq!(all.iter().filter(|r| r.is_ok()).count(), 1);
    let losers: Vec<_> = all.into_iter().filter_map(Result::err).map(|s| why(&s)).collect();
    assert!(losers.iter().all(|w| w == "token_other_key"), "{losers:?}");
}

/// Who asks with evidence of all kinds.
struct Stating {
    sidecar: Sidecar,
    token: String,
    key: PendingKey,
}

impl Stating {
    async fn new(mesh: &Mesh) -> Self {
        let token = mesh.token("planner").await;
        Self {
            sidecar: Sidecar::new(mesh.plane.run.mesh, "planner", &token).await,
            token,
            key: PendingKey::generate().unwrap(),
        }
    }

    fn request(&self, evidence: String) -> IssueRequest {
        IssueRequest {
            agent: "planner".into(),
            credential: Some(Credential::JoinToken(self.token.clone())),
            csr: self.key.csr.clone(),
            evidence,
        }
    }

    fn stated(&self, nonce: &[u8], change: impl FnOnce(&mut Evidence)) -> IssueRequest {
        let mut stated = evidence("planner", &self.key, nonce, b"code");
        change(&mut stated);
        self.request(sign(&stated, &self.key))
    }

    async fn why(&mut self, request: IssueRequest) -> String {
        refused(self.sidecar.issue(request).await)
    }
}

#[tokio::test]
async fn evidence_is_refused_for_every_reason_that_there_is() {
    type Change = Box<dyn FnOnce(&mut Evidence)>;
    let mesh = Mesh::dev().await;
    let mut stating = Stating::new(&mesh).await;
    let other = PendingKey::generate().unwrap();
    let jkt = other.key.jkt;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|e| e.v = 2), "evidence_malformed"),
        (
            Box::new(|e| e.files[0].path = "../main.py".into()),
            "evidence_malformed",
        ),
        (Box::new(|e| e.attestor = "guess".into()), "evidence_malformed"),
        (Box::new(|e| e.iat -= 400), "evidence_stale"),
        (Box::new(|e| e.iat += 400), "evidence_stale"),
        (Box::new(move |e| e.jkt = jkt), "evidence_other_key"),
        (
            Box::new(|e| e.agent = "ledger".parse().unwrap()),
            "evidence_other_agent",
        ),
        (Box::new(|e| e.code = Digest::sha256(b"x")), "evidence_digest_mismatch"),
        (Box::new(|e| e.nonce = "AAAA".into()), "nonce_unknown"),
        (Box::new(|e| e.nonce = "!".into()), "nonce_unknown"),
    ];
    for (at, (change, expected)) in cases.into_iter().enumerate() {
        let nonce = stating.sidecar.nonce().await;
        let request = stating.stated(&nonce, change);
        assert_eq!(stating.why(request).await, expected, "case {at}");
    }
    let nonce = stating.sidecar.nonce().await;
    let good = evidence("planner", &stating.key, &nonce, b"code");
    let by_another = stating.request(sign(&good, &other));
    assert_eq!(stating.why(by_another).await, "evidence_other_key");
    let garbage = stating.request("x.y.z".into());
    assert_eq!(stating.why(garbage).await, "evidence_malformed");
    let large = stating.request("x".repeat(MAX_EVIDENCE_BYTES + 1));
    assert_eq!(stating.why(large).await, "evidence_too_large");
    let bad_csr = IssueRequest {
        csr: vec![1, 2, 3],
        ..stating.request(sign(&good, &stating.key))
    };
    assert_eq!(stating.why(bad_csr).await, "csr_invalid");
}

#[tokio::test]
async fn a_nonce_is_answered_once_and_in_time() {
    let mesh = Mesh::dev().await;
    let mut stating = Stating::new(&mesh).await;
    let nonce = stating.sidecar.nonce().await;
    let good = stating.stated(&nonce, |_| {});
    stating.sidecar.issue(good.clone()).await.unwrap();
    assert_eq!(stating.why(good).await, "nonce_reused");
    let late = stating.sidecar.nonce().await;
    mesh.plane.clock.advance(61);
    let late = stating.stated(&late, |e| e.iat += 61);
    assert_eq!(stating.why(late).await, "nonce_expired");
}

#[tokio::test]
async fn an_svid_renews_only_its_own_agent_and_only_until_it_is_revoked() {
    let mesh = Mesh::dev().await;
    let mut sidecar = mesh.joined("planner").await;
    mesh.token("ledger").await;
    let channel = sidecar.connected().await.unwrap();
    let mut client = IdentityClient::new(channel);
    let key = PendingKey::generate().unwrap();

    let mut foreign = Sidecar::new(mesh.plane.run.mesh, "ledger", &mesh.another_token("ledger").await).await;
    let request = foreign.renewal(&key, b"code").await;
    assert_eq!(refused(client.issue(request).await), "svid_other_agent");

    let serial = sidecar.svid.current().unwrap().identity.serial.clone();
    mesh.admin
        .ok(
            "POST",
            "/v1/agents/planner/revoke",
            json!({"serial": serial, "reason": "stolen"}),
        )
        .await;
    let request = sidecar.renewal(&key, b"code").await;
    assert_eq!(
        refused(client.issue(request).await),
        "svid_revoked",
        "on the connection that is open"
    );
    crate::support::eventually("new handshakes to be refused", async || {
        sidecar.renew(b"code").await.err()
    })
    .await;

    let token = mesh.another_token("planner").await;
    let mut again = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    again.join(&token).await.unwrap();
    let mut client = IdentityClient::new(again.connected().await.unwrap());
    let raised = mesh.admin.ok("POST", "/v1/agents/planner/revoke", json!({})).await;
    assert_eq!(raised["generation"], 2);
    let request = again.renewal(&key, b"code").await;
    assert_eq!(refused(client.issue(request).await), "generation_mismatch");

    let token = mesh.another_token("planner").await;
    let mut last = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    last.join(&token).await.unwrap();
    assert_eq!(
        last.svid.current().unwrap().result().generation,
        2,
        "a new token lets it back in"
    );
}

#[tokio::test]
async fn an_approval_that_was_taken_back_is_not_given_again_by_itself() {
    let mesh = Mesh::dev().await;
    let mut sidecar = mesh.joined("planner").await;
    let approved = mesh.admin.get("/v1/measurements?agent=planner").await;
    let print = approved["items"][0]["fingerprint"].as_str().unwrap().to_owned();
    let path = format!("/v1/measurements/planner/{print}");
    mesh.admin.ok("DELETE", &path, json!(null)).await;
    assert_eq!(refused(sidecar.renew(b"code").await), "measurement_revoked");
    let waiting = mesh.admin.get("/v1/measurements?state=pending").await;
    assert_eq!(waiting["items"][0]["fingerprint"], print.as_str());
    mesh.admin.ok("POST", &format!("{path}/approve"), json!(null)).await;
    sidecar.renew(b"code").await.unwrap();
    let again = mesh.admin.ok("POST", &format!("{path}/approve"), json!(null)).await;
    assert_eq!(again["unchanged"], true, "{again}");
    mesh.admin.ok("DELETE", &path, json!(null)).await;
    let (_, problem) = mesh.admin.call("POST", &format!("{path}/approve"), json!(null)).await;
    assert_eq!(reason(&problem), "not_found", "nothing waits, and nothing is approved");
}

//! A `prod` mesh, as a process: changes come over its socket, one person asks, and a second one approves.

use std::os::unix::fs::PermissionsExt as _;

use aip_api::Digest;
use serde_json::{Value, json};

use crate::support::sidecar::why;
use crate::support::{Admin, Process, Sidecar, reason};

mod lapsed;
mod reset;

struct Prod {
    process: Process,
    admin: Admin,
    dir: tempfile::TempDir,
}

/// A person with a secret of their own.
struct Person {
    sub: &'static str,
    secret: String,
}

impl Person {
    fn new(sub: &'static str) -> Self {
        let secret = Digest::sha256(sub.as_bytes()).to_string();
        Self { sub, secret }
    }

    fn wanted(&self, role: &str) -> Value {
        json!({"sub": self.sub, "role": role, "claim": Digest::sha256(self.secret.as_bytes())})
    }

    async fn claim(&self, mesh: &Prod) -> Admin {
        let nobody = mesh.admin.with("");
        let body = json!({"secret": self.secret});
        let claimed = nobody.ok("POST", "/v1/admin-tokens/claim", body).await;
        mesh.admin.with(claimed["token"].as_str().unwrap())
    }
}

impl Prod {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Self::process(&dir).await;
        let admin = Admin::over(&process.socket(), process.token());
        Self { process, admin, dir }
    }

    async fn process(dir: &tempfile::TempDir) -> Process {
        let key = dir.path().join("sealing.key");
        let flags = ["--mode", "prod", "--key-file", key.to_str().unwrap()];
        Process::start(&dir.path().join("data"), &flags).await
    }

    /// Somebody else who may approve: the mesh's second person.
    async fn second(&self) -> Admin {
        let bob = Person::new("bob");
        self.admin.ok("POST", "/v1/admin-tokens", bob.wanted("approver")).await;
        bob.claim(self).await
    }

    /// Proposes, and answers the path that approves it.
    async fn proposed(&self, by: &Admin, method: &str, path: &str, body: Value) -> String {
        let (status, answer) = by.call(method, path, body).await;
        assert_eq!(status.as_u16(), 202, "{method} {path}: {answer}");
        format!("/v1/approvals/{}/approve", answer["proposal"].as_str().unwrap())
    }

    /// Revokes the first token of this person.
    async fn revoke(&self, sub: &str) {
        let tokens = self.admin.get(ISSUE).await;
        let theirs = tokens["items"].as_array().unwrap().iter().find(|t| t["sub"] == sub);
        let path = format!("{ISSUE}/{}", theirs.unwrap()["jti"].as_str().unwrap());
        self.admin.ok("DELETE", &path, Value::Null).await;
    }

    /// An agent with a token for it.
    async fn token(&self, agent: &str) -> String {
        self.admin.ok("POST", "/v1/agents", json!({"name": agent})).await;
        let made = self.admin.ok("POST", "/v1/tokens", json!({"agent": agent})).await;
        made["token"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn changes_come_over_the_socket_and_the_port_is_for_reading() {
    let mesh = Prod::start().await;
    let port = mesh.process.admin();
    let socket = mesh.process.socket();
    let mode = std::fs::symlink_metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(socket.is_absolute());

    assert_eq!(port.get("/v1/mesh").await["mode"], "prod");
    let planner = json!({"name": "planner"});
    for (method, path, body) in [
        ("POST", "/v1/agents", planner.clone()),
        ("DELETE", "/v1/agents/planner", Value::Null),
        ("PUT", "/v1/mesh-config", json!({})),
        ("POST", "/v1/mesh/rotate-ca", Value::Null),
        ("POST", "/v1/approvals/none/approve", Value::Null),
        ("POST", "/v1/admin-tokens/claim", json!({"secret": "x"})),
    ] {
        let (status, problem) = port.call(method, path, body).await;
        assert_eq!(
            (status.as_u16(), reason(&problem)),
            (403, "socket_required"),
            "{method} {path}"
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(socket.to_str().unwrap()), "{detail}");
    }
    assert_eq!(
        port.with("").refused("POST", "/v1/agents", planner.clone()).await.0,
        401
    );
    let quiet = "package aip.policy.quiet\n\nrules contains {\"rule\": \"q\", \"verdict\": \"deny\", \"reason\": \"no\"} if {\n\
                 \tinput.request.method == \"TRACE\"\n}\n";
    let checked = json!({"name": "quiet", "rego": quiet});
    port.ok("POST", "/v1/policies/check", checked).await;

    mesh.admin.ok("POST", "/v1/agents", planner.clone()).await;
    assert_eq!(
        mesh.admin.with("").refused("POST", "/v1/agents", planner).await.0,
        401,
        "a token, too"
    );
    assert_eq!(port.get("/v1/agents/planner").await["resource"]["name"], "planner");
}

const ISSUE: &str = "/v1/admin-tokens";
const CLAIM: &str = "/v1/admin-tokens/claim";

#[tokio::test]
async fn a_token_is_handed_out_for_its_persons_secret_alone_and_once() {
    let mesh = Prod::start().await;
    let (admin, bob) = (&mesh.admin, Person::new("bob"));
    let plain = json!({"sub": "bob", "role": "approver"});
    let (status, problem) = admin.call("POST", ISSUE, plain).await;
    let field = &problem["errors"][0]["field"];
    assert_eq!((status.as_u16(), field), (422, &json!("claim")));
    let early = json!({"secret": bob.secret});
    assert_eq!(admin.refused("POST", CLAIM, early).await.0, 404, "nothing waits for it");
    let made = admin.ok("POST", ISSUE, bob.wanted("approver")).await;
    assert_eq!(made["token"], Value::Null, "who asked for it does not see it");
    for wrong in [Person::new("carol").secret, bob.secret.to_uppercase()] {
        assert_eq!(admin.refused("POST", CLAIM, json!({"secret": wrong})).await.0, 404);
    }
    let short = json!({"secret": "0123"});
    assert_eq!(admin.refused("POST", CLAIM, short).await, (422, "invalid".into()));
    bob.claim(&mesh).await.get("/v1/mesh").await;
    let again = json!({"secret": bob.secret});
    assert_eq!(admin.refused("POST", CLAIM, again).await, (404, "not_found".into()));
}

#[tokio::test]
async fn nobody_becomes_the_second_person_to_themselves() {
    let mesh = Prod::start().await;
    let admin = &mesh.admin;
    // Before there is a second person, a longer token of one's own waits for one; so does one that can't approve.
    let own = Person::new("admin");
    let renewal = mesh.proposed(admin, "POST", ISSUE, own.wanted("admin")).await;
    mesh.proposed(admin, "POST", ISSUE, Person::new("eve").wanted("viewer"))
        .await;
    let second = mesh.second().await;

    // From now on each new person takes two.
    let carol = Person::new("carol");
    let third = mesh.proposed(admin, "POST", ISSUE, carol.wanted("approver")).await;
    let alone = admin.refused("POST", &third, Value::Null).await;
    assert_eq!(alone, (403, "second_person_required".into()));
    let early = json!({"secret": carol.secret});
    assert_eq!(admin.refused("POST", CLAIM, early).await.0, 404, "nothing yet");
    second.ok("POST", &third, Value::Null).await;
    carol.claim(&mesh).await.get("/v1/mesh").await;
    second.ok("POST", &renewal, Value::Null).await;
    own.claim(&mesh).await.get(ISSUE).await;

    // Whatever became of the second one: there is one such event in a mesh's life.
    mesh.revoke("bob").await;
    mesh.proposed(admin, "POST", ISSUE, Person::new("dave").wanted("approver"))
        .await;
    let audit = admin.get("/v1/audit").await;
    let rows = audit["items"].as_array().unwrap().iter();
    assert_eq!(rows.filter(|r| r["action"] == "admin_token.second_person").count(), 1);
}

#[tokio::test]
async fn what_a_stolen_token_proposed_goes_with_it() {
    let mesh = Prod::start().await;
    let (admin, bob) = (&mesh.admin, mesh.second().await);
    let carol = Person::new("carol");
    let confirm = mesh.proposed(admin, "POST", ISSUE, carol.wanted("operator")).await;
    bob.ok("POST", &confirm, Value::Null).await;
    let thief = carol.claim(&mesh).await;
    let mut config = admin.get("/v1/mesh-config").await["resource"].clone();
    config["egress"] = json!([{"host": "evil.example.com"}]);
    let loose = json!({"agent": "planner", "attestor": "files", "code": "ab".repeat(32)});
    admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let theirs = mesh.proposed(&thief, "POST", "/v1/measurements", loose).await;
    let ours = mesh.proposed(admin, "PUT", "/v1/mesh-config", config).await;
    mesh.revoke("carol").await;
    assert_eq!(
        bob.refused("POST", &theirs, Value::Null).await,
        (404, "not_found".into())
    );
    bob.ok("POST", &ours, Value::Null).await;
}

#[tokio::test]
async fn who_was_revoked_is_not_let_back_in_by_what_was_proposed_before() {
    let mesh = Prod::start().await;
    let (admin, bob) = (&mesh.admin, mesh.second().await);
    let own = Person::new("admin");
    let another = mesh.proposed(admin, "POST", ISSUE, own.wanted("approver")).await;
    // For bob, who has a token: another one, of which it is not said who has the secret.
    let carol = Person::new("carol");
    let mut wanted = carol.wanted("admin");
    wanted["sub"] = json!("bob");
    let theirs = mesh.proposed(admin, "POST", ISSUE, wanted).await;
    let dave = Person::new("dave");
    let confirm = mesh.proposed(admin, "POST", ISSUE, dave.wanted("approver")).await;
    bob.ok("POST", &confirm, Value::Null).await;
    let dave = dave.claim(&mesh).await;
    mesh.revoke("bob").await;
    let refused = dave.refused("POST", &theirs, Value::Null).await;
    assert_eq!(refused, (404, "not_found".into()));
    let secret = json!({"secret": carol.secret});
    assert_eq!(admin.refused("POST", CLAIM, secret).await.0, 404);
    dave.ok("POST", &another, Value::Null).await;
}

#[tokio::test]
async fn a_measurement_waits_until_two_people_approved_it() {
    let mesh = Prod::start().await;
    let token = mesh.token("planner").await;
    let mut sidecar = Sidecar::new(mesh.process.mesh(), "planner", &token).await;
    for _ in 0..2 {
        assert_eq!(why(&sidecar.join(&token).await.unwrap_err()), "measurement_pending");
    }
    let waiting = mesh.admin.get("/v1/measurements?state=pending&agent=planner").await;
    let items = waiting["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "the same measurement waits once");
    assert_eq!(items[0]["seen"]["assurance"], "declared");
    let approve = format!(
        "/v1/measurements/planner/{}/approve",
        items[0]["fingerprint"].as_str().unwrap()
    );

    let bob = mesh.second().await;
    let confirm = mesh.proposed(&mesh.admin, "POST", &approve, Value::Null).await;
    assert_eq!(
        mesh.proposed(&mesh.admin, "POST", &approve, Value::Null).await,
        confirm,
        "asking twice is asking once"
    );
    assert_eq!(
        why(&sidecar.join(&token).await.unwrap_err()),
        "measurement_pending",
        "one person is not enough"
    );
    assert_eq!(
        mesh.admin.refused("POST", &confirm, Value::Null).await,
        (403, "second_person_required".into())
    );
    bob.ok("POST", &confirm, Value::Null).await;
    sidecar.join(&token).await.unwrap();
    let approved = mesh.admin.get("/v1/measurements?agent=planner").await;
    assert_eq!(approved["items"][0]["measurement"]["approved_by"], "admin:bob");
    assert_eq!(
        bob.refused("POST", &confirm, Value::Null).await,
        (404, "not_found".into()),
        "done once"
    );
    let audit = mesh.admin.get("/v1/audit").await;
    let approval = audit["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["action"] == "proposal.approve");
    let approval = approval.unwrap();
    assert_eq!(approval["actor"], "admin:bob");
    assert!(
        approval["detail"].as_str().unwrap().contains("proposed by admin"),
        "{approval}"
    );
}

const QUIET: &str = "/v1/policies/quiet";

/// A policy that denies what nobody sends, for this reason.
fn quiet(reason: &str) -> Value {
    let rego = format!(
        "package aip.policy.quiet\n\nrules contains {{\"rule\": \"q\", \"verdict\": \"deny\", \"reason\": \"{reason}\"}} if {{\n\
         \tinput.request.method == \"TRACE\"\n}}\n"
    );
    json!({"name": "quiet", "rego": rego})
}

#[tokio::test]
async fn what_was_changed_after_it_was_proposed_must_be_proposed_anew() {
    let mesh = Prod::start().await;
    let (admin, bob) = (&mesh.admin, mesh.second().await);
    let lapsed = (409, "proposal_lapsed".to_owned());
    let path = QUIET;
    let first = mesh.proposed(admin, "PUT", path, quiet("a")).await;
    let second = mesh.proposed(admin, "PUT", path, quiet("b")).await;
    assert_eq!(admin.refused("GET", path, Value::Null).await.0, 404);
    bob.ok("POST", &first, Value::Null).await;
    assert!(
        admin.get(path).await["resource"]["rego"]
            .as_str()
            .unwrap()
            .contains("\"a\"")
    );
    assert_eq!(bob.refused("POST", &second, Value::Null).await, lapsed);
    bob.ok("POST", &second.replace("/approve", "/refuse"), Value::Null)
        .await;
    let (status, same) = admin.call("PUT", path, quiet("a")).await;
    assert_eq!(
        (status.as_u16(), &same["unchanged"]),
        (200, &json!(true)),
        "nothing to approve"
    );

    // Labels decide which policies hold: the agent that was seen must be the agent that is approved.
    mesh.token("planner").await;
    let measurement = json!({"agent": "planner", "attestor": "files", "code": "ab".repeat(32)});
    let approval = mesh
        .proposed(admin, "POST", "/v1/measurements", measurement.clone())
        .await;
    admin.ok("DELETE", "/v1/agents/planner", Value::Null).await;
    admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    assert_eq!(bob.refused("POST", &approval, Value::Null).await, lapsed);

    let approval = mesh
        .proposed(admin, "POST", "/v1/measurements", measurement.clone())
        .await;
    bob.ok("POST", &approval, Value::Null).await;
    let held = admin.get("/v1/measurements?agent=planner").await;
    let print = held["items"][0]["fingerprint"].as_str().unwrap();
    let (status, same) = admin.call("POST", "/v1/measurements", measurement).await;
    assert_eq!((status.as_u16(), &same["unchanged"]), (200, &json!(true)));
    admin
        .ok("DELETE", &format!("/v1/measurements/planner/{print}"), Value::Null)
        .await;
}

#[tokio::test]
async fn a_deletion_of_what_was_replaced_since_must_be_proposed_anew() {
    let mesh = Prod::start().await;
    let (admin, bob) = (&mesh.admin, mesh.second().await);
    let write = async |reason: &str| {
        let confirm = mesh.proposed(admin, "PUT", QUIET, quiet(reason)).await;
        bob.ok("POST", &confirm, Value::Null).await;
    };
    write("a").await;
    let seen = mesh.proposed(admin, "DELETE", QUIET, Value::Null).await;
    assert_eq!(
        mesh.proposed(admin, "DELETE", QUIET, Value::Null).await,
        seen,
        "asking twice is asking once"
    );
    write("b").await;
    let lapsed = bob.refused("POST", &seen, Value::Null).await;
    assert_eq!(lapsed, (409, "proposal_lapsed".into()));
    let held = admin.get(QUIET).await["resource"]["rego"].to_string();
    assert!(held.contains("reason\\\": \\\"b"), "{held}");
    let anew = mesh.proposed(admin, "DELETE", QUIET, Value::Null).await;
    assert_ne!(anew, seen);
    bob.ok("POST", &anew, Value::Null).await;
    assert_eq!(admin.refused("GET", QUIET, Value::Null).await.0, 404);
}

#[tokio::test]
async fn what_holds_for_an_agent_is_loosened_by_two() {
    let mesh = Prod::start().await;
    let (admin, bob) = (&mesh.admin, mesh.second().await);
    let soon = aip_runtime::unix_now() + 600;
    for (field, loose) in [
        ("mode", json!({"name": "a", "mode": {"kind": "observe", "until": soon}})),
        (
            "allow_ambiguous_paths",
            json!({"name": "a", "allow_ambiguous_paths": true}),
        ),
        ("aliases", json!({"name": "a", "aliases": ["bank.example.com"]})),
        (
            "lease",
            json!({"name": "a", "lease": {"seconds": 86_400, "on_lost": "continue"}}),
        ),
    ] {
        let (status, problem) = admin.call("POST", "/v1/agents", loose).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (422, &json!(field)));
    }
    admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let observing = json!({"name": "planner", "mode": {"kind": "observe", "until": soon}});
    let path = "/v1/agents/planner";
    let confirm = mesh.proposed(admin, "PUT", path, observing.clone()).await;
    assert_eq!(admin.get(path).await["resource"]["mode"]["kind"], "enforce");
    bob.ok("POST", &confirm, Value::Null).await;
    assert_eq!(admin.get(path).await["resource"]["mode"]["kind"], "observe");
    let (status, same) = admin.call("PUT", path, observing).await;
    assert_eq!((status.as_u16(), &same["unchanged"]), (200, &json!(true)));

    let lift = mesh
        .proposed(admin, "POST", "/v1/mesh/lift", json!({"above": 9_000}))
        .await;
    let lifted = bob.ok("POST", &lift, Value::Null).await;
    assert_eq!(lifted["revision"], 9_001);
    let mut config = admin.get("/v1/mesh-config").await["resource"].clone();
    config["svid_ttl_seconds"] = json!(600);
    let confirm = mesh.proposed(admin, "PUT", "/v1/mesh-config", config).await;
    bob.ok("POST", &confirm, Value::Null).await;
    assert_eq!(admin.get("/v1/mesh-config").await["resource"]["svid_ttl_seconds"], 600);
}

#[tokio::test]
async fn what_a_name_means_is_not_changed_by_removing_and_registering_it() {
    let mesh = Prod::start().await;
    let (admin, bob) = (&mesh.admin, mesh.second().await);
    let path = "/v1/agents/payer";
    let labelled = json!({
        "name": "payer", "owner": "bank", "labels": {"zone": "vault"}, "capabilities": ["pay"],
        "aliases": ["pay.example.com"],
    });
    let (status, problem) = admin.call("POST", "/v1/agents", labelled.clone()).await;
    let fields: Vec<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["field"])
        .collect();
    assert_eq!(
        (status.as_u16(), json!(fields)),
        (422, json!(["labels", "owner", "capabilities", "aliases"]))
    );

    admin.ok("POST", "/v1/agents", json!({"name": "payer"})).await;
    let confirm = mesh.proposed(admin, "PUT", path, labelled.clone()).await;
    let waiting = bob.get("/v1/approvals").await.to_string();
    for shown in ["bank", "vault", "pay.example.com"] {
        assert!(waiting.contains(shown), "the second person sees {shown}: {waiting}");
    }
    bob.ok("POST", &confirm, Value::Null).await;
    let audit = admin.get("/v1/audit").await.to_string();
    assert!(audit.contains("labels [zone=vault]"), "{audit}");

    // Alone: removed, and registered with less, with other things, and as it was.
    admin.ok("DELETE", path, Value::Null).await;
    let mut other = labelled.clone();
    other["labels"]["zone"] = json!("lobby");
    let (status, problem) = admin.call("POST", "/v1/agents", other).await;
    assert_eq!(
        (status.as_u16(), &problem["errors"][0]["field"]),
        (422, &json!("labels"))
    );
    admin.ok("POST", "/v1/agents", json!({"name": "payer"})).await;
    let back = admin.get(path).await["resource"].clone();
    assert_eq!(back["labels"], labelled["labels"], "it comes back as it was");
    assert_eq!(back["aliases"], labelled["aliases"]);
    admin.ok("DELETE", path, Value::Null).await;
    admin.ok("POST", "/v1/agents", labelled).await;
}

#[tokio::test]
async fn a_lease_is_not_loosened_by_removing_and_registering_its_agent() {
    let mesh = Prod::start().await;
    let (admin, bob) = (&mesh.admin, mesh.second().await);
    let path = "/v1/agents/payer";
    let strict = json!({"name": "payer", "lease": {"seconds": 5, "on_lost": "deny"}});
    admin.ok("POST", "/v1/agents", json!({"name": "payer"})).await;
    let confirm = mesh.proposed(admin, "PUT", path, strict.clone()).await;
    bob.ok("POST", &confirm, Value::Null).await;
    admin.ok("DELETE", path, Value::Null).await;
    for lease in [
        json!({"seconds": 86_400, "on_lost": "continue"}),
        json!({"seconds": 5, "on_lost": "continue"}),
        json!({"seconds": 6, "on_lost": "deny"}),
    ] {
        let loose = json!({"name": "payer", "lease": lease});
        let (status, problem) = admin.call("POST", "/v1/agents", loose).await;
        let field = &problem["errors"][0]["field"];
        assert_eq!((status.as_u16(), field), (422, &json!("lease")), "{lease}");
    }
    // How its server is spoken to is one person's to say, and changes nothing else.
    let spoken = json!({"name": "payer", "lease": strict["lease"], "protocol": "http1", "host": "original"});
    for asked in [json!({"name": "payer"}), strict.clone(), spoken] {
        admin.ok("POST", "/v1/agents", asked.clone()).await;
        let back = admin.get(path).await["resource"]["lease"].clone();
        assert_eq!(back, strict["lease"], "{asked}");
        admin.ok("DELETE", path, Value::Null).await;
    }
}

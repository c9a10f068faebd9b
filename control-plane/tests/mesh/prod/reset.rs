//! The way back in for who has the machine, the data and the sealing key, and no token that can be trusted.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use super::{ISSUE, Person, Prod};
use crate::support::Admin;
use crate::support::process::{command, ended};

/// `reset-admin`, with this key on this data.
async fn reset(key: &Path, data: &Path) -> Output {
    let plain = command(data, &["--key-file", key.to_str().unwrap()]);
    let mut command = std::process::Command::new(plain.get_program());
    command
        .env_remove("AIP_DATA_KEY")
        .arg("reset-admin")
        .args(plain.get_args());
    ended(command).await
}

#[tokio::test]
async fn who_lost_every_token_comes_back_with_the_machine_and_the_key() {
    let mut mesh = Prod::start().await;
    let bob = mesh.second().await;
    let data = mesh.dir.path().join("data");
    let key = mesh.dir.path().join("sealing.key");
    let busy = reset(&key, &data).await;
    assert!(!busy.status.success());
    assert!(String::from_utf8_lossy(&busy.stderr).contains("in use"), "{busy:?}");
    let old = mesh.process.token();
    mesh.process.end().await;
    let nothing = mesh.dir.path().join("nothing");
    let absent = reset(&key, &nothing).await;
    assert!(!absent.status.success() && !nothing.exists());
    let other = mesh.dir.path().join("other.key");
    std::fs::write(&other, "ab".repeat(32)).unwrap();
    assert!(!reset(&other, &data).await.status.success());
    let done = reset(&key, &data).await;
    assert!(done.status.success(), "{done:?}");

    let process = Prod::process(&mesh.dir).await;
    let back = Admin::over(&process.socket(), process.token());
    back.get("/v1/mesh").await;
    for gone in [back.with(old), back.with(bob.token)] {
        assert_eq!(
            gone.refused("GET", "/v1/mesh", Value::Null).await.1,
            "admin_token_revoked"
        );
    }
    let dave = Person::new("dave");
    back.ok("POST", ISSUE, dave.wanted("approver")).await;
    let audit = back.get("/v1/audit").await;
    assert!(
        audit["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["action"] == "admin_token.reset")
    );
}

/// The new first token is of the name that the stolen one was of: who reads what waits takes it for their own.
#[tokio::test]
async fn what_a_stolen_token_proposed_goes_with_a_reset_too() {
    let mut mesh = Prod::start().await;
    mesh.second().await;
    let mut config = mesh.admin.get("/v1/mesh-config").await["resource"].clone();
    config["egress"] = json!([{"host": "evil.example.com"}]);
    let theirs = mesh.proposed(&mesh.admin, "PUT", "/v1/mesh-config", config).await;
    let eve = Person::new("eve");
    let person = mesh.proposed(&mesh.admin, "POST", ISSUE, eve.wanted("admin")).await;
    mesh.process.end().await;
    let key = mesh.dir.path().join("sealing.key");
    let done = reset(&key, &mesh.dir.path().join("data")).await;
    assert!(done.status.success(), "{done:?}");

    let process = Prod::process(&mesh.dir).await;
    let back = Admin::over(&process.socket(), process.token());
    assert_eq!(back.get("/v1/approvals").await["items"], json!([]), "nothing waits");
    let carol = Person::new("carol");
    back.ok("POST", ISSUE, carol.wanted("approver")).await;
    let carol = carol.claim(&mesh).await;
    for proposal in [theirs, person] {
        let refused = carol.refused("POST", &proposal, Value::Null).await;
        assert_eq!(refused, (404, "not_found".into()));
    }
    assert_eq!(back.get("/v1/mesh-config").await["resource"]["egress"], json!([]));
    let audit = back.get("/v1/audit").await;
    let rows = audit["items"].as_array().unwrap().iter();
    let reset: Vec<_> = rows.filter(|r| r["action"] == "admin_token.reset").collect();
    assert_eq!(reset[0]["detail"], "2 admin tokens revoked, 2 proposals void");
}

//! A `prod` mesh: a person approves, and a second one confirms.

use aip_api::resource::MeshMode;
use serde_json::json;

use crate::support::sidecar::why;
use crate::support::{Admin, Mesh, Sidecar};

async fn person(mesh: &Mesh, sub: &str, role: &str) -> Admin {
    let made = mesh
        .admin
        .ok("POST", "/v1/admin-tokens", json!({"sub": sub, "role": role}))
        .await;
    mesh.admin.with(made["token"].as_str().unwrap())
}

#[tokio::test]
async fn a_measurement_waits_until_two_people_approved_it() {
    let mesh = Mesh::of(MeshMode::Prod).await;
    let token = mesh.token("planner").await;
    let mut sidecar = Sidecar::new(mesh.plane.run.mesh, "planner", &token).await;
    for _ in 0..2 {
        assert_eq!(why(&sidecar.join(&token).await.unwrap_err()), "measurement_pending");
    }
    let waiting = mesh.admin.get("/v1/measurements?state=pending&agent=planner").await;
    assert_eq!(
        waiting["items"].as_array().unwrap().len(),
        1,
        "the same measurement waits once"
    );
    assert_eq!(waiting["items"][0]["seen"]["assurance"], "declared");
    let print = waiting["items"][0]["fingerprint"].as_str().unwrap();
    let approve = format!("/v1/measurements/planner/{print}/approve");

    let (alice, bob) = (
        person(&mesh, "alice", "operator").await,
        person(&mesh, "bob", "approver").await,
    );
    let (status, proposed) = alice.call("POST", &approve, json!(null)).await;
    assert_eq!(status.as_u16(), 202);
    assert_eq!(
        why(&sidecar.join(&token).await.unwrap_err()),
        "measurement_pending",
        "one person is not enough"
    );
    let confirm = format!("/v1/approvals/{}/approve", proposed["proposal"].as_str().unwrap());
    assert_eq!(
        alice.refused("POST", &confirm, json!(null)).await,
        (403, "role_forbidden".into())
    );
    let also_alice = person(&mesh, "alice", "approver").await;
    assert_eq!(
        also_alice.refused("POST", &confirm, json!(null)).await,
        (403, "second_person_required".into())
    );
    bob.ok("POST", &confirm, json!(null)).await;
    sidecar.join(&token).await.unwrap();
    let approved = mesh.admin.get("/v1/measurements?agent=planner").await;
    assert_eq!(approved["items"][0]["measurement"]["approved_by"], "admin:bob");
    assert_eq!(
        bob.refused("POST", &confirm, json!(null)).await,
        (404, "not_found".into()),
        "done once"
    );
    let audit = mesh.admin.get("/v1/audit").await;
    let rows = audit["items"].as_array().unwrap();
    assert!(rows.iter().any(|r| {
        r["action"] == "proposal.approve"
            && r["actor"] == "admin:bob"
            && r["detail"].as_str().unwrap().contains("alice")
    }));
}

#[tokio::test]
async fn policies_wait_for_a_second_person_and_lapse_when_overtaken() {
    let mesh = Mesh::of(MeshMode::Prod).await;
    let (alice, bob) = (
        person(&mesh, "alice", "operator").await,
        person(&mesh, "bob", "approver").await,
    );
    let policy = |reason: &str| {
        let rego = format!(
            "package aip.policy.quiet\n\nrules contains {{\"rule\": \"q\", \"verdict\": \"deny\", \"reason\": \"{reason}\"}} if {{\n\
             \tinput.request.method == \"TRACE\"\n}}\n"
        );
        json!({"name": "quiet", "rego": rego})
    };
    let propose = async |reason: &str| {
        let (status, answer) = alice.call("PUT", "/v1/policies/quiet", policy(reason)).await;
        assert_eq!(status.as_u16(), 202, "{answer}");
        format!("/v1/approvals/{}/approve", answer["proposal"].as_str().unwrap())
    };
    let (first, second) = (propose("a").await, propose("b").await);
    assert_eq!(
        mesh.admin.refused("GET", "/v1/policies/quiet", json!(null)).await.0,
        404
    );
    bob.ok("POST", &first, json!(null)).await;
    assert!(
        mesh.admin.get("/v1/policies/quiet").await["resource"]["rego"]
            .as_str()
            .unwrap()
            .contains("\"a\"")
    );
    assert_eq!(
        bob.refused("POST", &second, json!(null)).await,
        (409, "immutable".into())
    );
    let refuse = second.replace("/approve", "/refuse");
    bob.ok("POST", &refuse, json!(null)).await;
    assert_eq!(mesh.admin.get("/v1/approvals").await["items"], json!([]));
}

//! Proposals that no longer stand when the second person approves them, in a mesh in this process.

use aip_api::resource::{MeshMode, Policy};
use aip_control_plane::refusal::Reason;
use aip_control_plane::registry::{Actor, Outcome, keys};
use aip_control_plane::store::Expect;
use serde_json::{Value, json};

use crate::support::{Admin, Mesh};

/// An older control plane did not write down which revision was to be removed: nobody can say what its proposer saw.
#[tokio::test]
async fn a_deletion_that_an_older_control_plane_wrote_down_must_be_proposed_anew() {
    let mesh = Mesh::of(MeshMode::Prod).await;
    let registry = &mesh.plane.api.registry;
    let policy: Policy =
        serde_json::from_value(json!({"name": "quiet", "rego": "package aip.policy.quiet\n"})).unwrap();
    let draft = registry.change(&Actor::admin("alice"), "t", "t");
    draft.resource(&policy, Expect::Absent).commit().await.unwrap();
    let now = registry.clock.now();
    let older = json!({
        "id": "old", "action": {"kind": "delete_policy", "name": "quiet"},
        "proposed_by": "alice", "proposed_at": now, "expires_at": now + 600,
    });
    let draft = registry.change(&Actor::admin("alice"), "t", "t");
    let draft = draft.put(keys::proposal("old"), &older, Expect::Absent);
    draft.commit().await.unwrap();

    let lapsed = registry.approve_proposal("bob", "old").await.unwrap_err();
    assert_eq!(lapsed.reason, Reason::ProposalLapsed);
    registry.existing::<Policy>("quiet").await.unwrap();
    let Outcome::Proposed { id, .. } = registry.delete_policy("alice", &policy.name).await.unwrap() else {
        panic!("one person removed a policy");
    };
    assert_ne!(id, "old");
    registry.approve_proposal("bob", &id).await.unwrap();
    assert!(registry.existing::<Policy>("quiet").await.is_err());
}

/// Neither of the two who forget an agent's reputation answers for it, whoever did when it was proposed.
#[tokio::test]
async fn who_answers_for_an_agent_by_now_has_proposed_no_reset_of_it() {
    let mesh = Mesh::of(MeshMode::Prod).await;
    let admin = Admin::over(&mesh.plane.run.socket, mesh.admin.token.clone());
    let registry = &mesh.plane.api.registry;
    admin.ok("POST", "/v1/agents", json!({"name": "planner"})).await;
    let proposed = async |method: &str, path: &str, body: Value| {
        let (status, answer) = admin.call(method, path, body).await;
        assert_eq!(status, 202, "{answer}");
        answer["proposal"].as_str().unwrap().to_owned()
    };
    let reset = json!({"reason": "checked"});
    let reset = proposed("POST", "/v1/reputation/planner/reset", reset).await;
    let own = json!({"name": "planner", "owner": "admin"});
    let owner = proposed("PUT", "/v1/agents/planner", own).await;
    registry.approve_proposal("bob", &owner).await.unwrap();
    let refused = registry.approve_proposal("bob", &reset).await.unwrap_err();
    assert_eq!(refused.reason, Reason::SelfReport);
}

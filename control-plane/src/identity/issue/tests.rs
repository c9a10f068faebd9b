//! Races that only a moment between two steps shows.

use aip_api::AgentName;
use aip_runtime::svid::{PendingKey, Svid};

use super::super::credential;
use super::*;
use crate::testing::{self, TestMesh};

/// A registered agent with an SVID.
async fn joined(mesh: &TestMesh, agent: &AgentName) -> Svid {
    let actor = Actor::control_plane();
    mesh.registry
        .create_agent(&actor, Agent::new(agent.clone()))
        .await
        .unwrap();
    let made = mesh
        .registry
        .create_token(&actor, agent, 600, mesh.ca.root_digest())
        .await;
    let token = made.unwrap().token.reveal();
    let key = PendingKey::generate().unwrap();
    let shown = credential::token(&mesh.registry, agent, &token).await.unwrap();
    let issued = issued(mesh, &shown, &key).await.unwrap();
    Svid::assemble(key.pkcs8, issued.chain, &mesh.ca.trust().unwrap()).unwrap()
}

async fn issued(mesh: &TestMesh, credential: &Credential, key: &PendingKey) -> Result<IssuedSvid, Refusal> {
    let evidence = testing::evidence("planner", key, &[1; 32], b"code");
    issue(&mesh.registry, &mesh.ca, credential, &key.key, &evidence).await
}

#[tokio::test]
async fn a_revocation_in_the_middle_of_a_renewal_wins() {
    let mesh = testing::mesh(MeshMode::Dev).await;
    let agent: AgentName = "planner".parse().unwrap();
    let actor = Actor::control_plane();
    let svid = joined(&mesh, &agent).await;
    let peer = Some(&svid.identity);
    let checked = credential::svid(&mesh.registry, &agent, peer).await.unwrap();
    let serial = &svid.identity.serial;
    mesh.registry
        .revoke_serial(&actor, &agent, serial, "stolen")
        .await
        .unwrap();
    let key = PendingKey::generate().unwrap();
    let refused = issued(&mesh, &checked, &key).await.unwrap_err();
    assert_eq!(refused.reason(), "conflict", "and what is read anew then says why");
    let refused = credential::svid(&mesh.registry, &agent, peer)
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(refused.reason(), "svid_revoked");
}

#[tokio::test]
async fn a_token_that_was_revoked_in_the_middle_of_a_join_is_worth_nothing() {
    let mesh = testing::mesh(MeshMode::Dev).await;
    let agent: AgentName = "planner".parse().unwrap();
    let actor = Actor::control_plane();
    joined(&mesh, &agent).await;
    let made = mesh
        .registry
        .create_token(&actor, &agent, 600, mesh.ca.root_digest())
        .await
        .unwrap();
    let shown = credential::token(&mesh.registry, &agent, &made.token.reveal())
        .await
        .unwrap();
    mesh.registry.revoke_token(&actor, &made.token.id_text()).await.unwrap();
    let refused = issued(&mesh, &shown, &PendingKey::generate().unwrap())
        .await
        .unwrap_err();
    assert_eq!(refused.reason(), "conflict");
}

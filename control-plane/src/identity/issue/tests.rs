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

async fn renewed(mesh: &TestMesh, svid: &Svid, code: &[u8], run: &str, supervised: bool) -> Result<Svid, Refusal> {
    let shown = credential::svid(&mesh.registry, &svid.identity.id.agent, Some(&svid.identity)).await?;
    let key = PendingKey::generate().unwrap();
    let mut evidence = testing::evidence("planner", &key, &[1; 32], code);
    evidence.run = Some(run.into());
    evidence.executable = supervised.then(|| Digest::sha256(b"executable"));
    let issued = issue(&mesh.registry, &mesh.ca, &shown, &key.key, &evidence).await?;
    Ok(Svid::assemble(key.pkcs8, issued.chain, &mesh.ca.trust().unwrap()).unwrap())
}

/// Edited, and its sidecar ended: what comes back with the SVID of before is the same agent with other content.
#[tokio::test]
async fn in_a_dev_mesh_an_svid_alone_gets_no_other_content_approved() {
    let mesh = testing::mesh(MeshMode::Dev).await;
    let agent: AgentName = "planner".parse().unwrap();
    let svid = joined(&mesh, &agent).await;
    let svid = renewed(&mesh, &svid, b"code", "1", false).await.unwrap();
    for run in ["1", "2"] {
        let refused = renewed(&mesh, &svid, b"edited", run, false).await.unwrap_err();
        assert_eq!(refused.reason(), "measurement_pending", "run {run}");
    }
    let refused = renewed(&mesh, &svid, b"edited", "1", true).await.unwrap_err();
    assert_eq!(refused.reason(), "measurement_pending", "supervised, in the same run");
    renewed(&mesh, &svid, b"edited", "2", true)
        .await
        .expect("its supervisor started it anew");
    renewed(&mesh, &svid, b"code", "1", false)
        .await
        .expect("what is approved goes on");
}

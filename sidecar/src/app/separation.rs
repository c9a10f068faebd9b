//! In a `prod` mesh the sidecar and its agent are different users: an agent that runs as the sidecar's user could read
//! its keys, and with them speak past every policy.
//!
//! The agent's user is the one that `--agent-uid` names, or that listens where the agent serves. An agent that serves
//! nothing, or from another network namespace, is known by `--agent-uid` alone.

use std::net::SocketAddr;
use std::time::Duration;

use aip_api::resource::MeshMode;
use aip_runtime::sockets::{self, Listening};

use crate::config::Config;
use crate::mesh::Mesh;

/// How often it is looked at while nobody listens where the agent serves: an agent may start after its sidecar.
const LOOK: Duration = Duration::from_secs(2);
/// How often once somebody does: an agent may start anew, as somebody else.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The agent runs as this process's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "shared_user: this sidecar and the agent at {agent} both run as user {uid}, and in a prod mesh they must not: the \
     agent could read the sidecar's keys. Start one of them as another user"
)]
pub(super) struct SharedUser {
    uid: u32,
    agent: SocketAddr,
}

/// Who listens where the agent serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Ourselves,
    Another,
    Nobody,
}

/// Resolves when the mesh is a `prod` one and the agent is seen to run as this process's user.
pub(super) async fn violated(config: &Config, mesh: &Mesh) -> SharedUser {
    let mut changed = mesh.subscribe();
    while !is_prod(mesh) {
        // The mode comes with the configuration.
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
    let (agent, uid) = (config.agent, own_uid());
    if config.access.agent_uid == Some(uid) {
        return SharedUser { uid, agent };
    }
    loop {
        let seen = tokio::task::spawn_blocking(move || seen_at(agent, uid)).await;
        let wait = match seen.unwrap_or(Seen::Nobody) {
            Seen::Ourselves => return SharedUser { uid, agent },
            Seen::Another => LOOK_AGAIN,
            Seen::Nobody => LOOK,
        };
        tokio::time::sleep(wait).await;
    }
}

/// Whether that is so already.
pub(super) fn now(config: &Config, mesh: &Mesh) -> Option<SharedUser> {
    let (agent, uid) = (config.agent, own_uid());
    let ours = || config.access.agent_uid == Some(uid) || seen_at(agent, uid) == Seen::Ourselves;
    (is_prod(mesh) && ours()).then_some(SharedUser { uid, agent })
}

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Whether the mesh says so. Before its settings have come, nothing is served.
fn is_prod(mesh: &Mesh) -> bool {
    let snapshot = mesh.snapshot();
    snapshot.mesh_revision > 0 && snapshot.mesh.mode == MeshMode::Prod
}

fn seen_at(agent: SocketAddr, uid: u32) -> Seen {
    let listening = sockets::listening(agent.port()).unwrap_or_else(|error| {
        tracing::warn!(%error, "the user of the agent can't be looked up");
        Vec::new()
    });
    let there = |socket: &Listening| socket.address.is_unspecified() || socket.address == agent.ip().to_canonical();
    let mut users = listening.into_iter().filter(there).map(|socket| socket.uid).peekable();
    if users.peek().is_none() {
        Seen::Nobody
    } else if users.any(|user| user == uid) {
        Seen::Ourselves
    } else {
        Seen::Another
    }
}

//! The fleet: one control plane and fifty sidecars as processes, each reached, and each reaching the control plane, over a
//! way of its own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aip_tests::agent::Agent;
use aip_tests::process::{FREE, Mesh, Sidecar};
use aip_tests::relay::{Relay, Way};
use futures_util::StreamExt as _;
use serde_json::json;

use crate::history::{GROUPS, Member};

/// How many there are.
pub(crate) const SIDECARS: usize = 50;
/// How many are started at once: a join is a handshake and a signature, and the machine may be small.
const AT_ONCE: usize = 4;

/// One of them.
pub(crate) struct One {
    pub(crate) sidecar: Sidecar,
    /// Its way to the control plane, and its peers' to it.
    pub(crate) up: Relay,
    pub(crate) to_it: Relay,
    /// Where its agent calls, now.
    pub(crate) door: Arc<Mutex<SocketAddr>>,
    /// Its SVIDs are revoked, and it has no new token yet.
    pub(crate) is_revoked: bool,
}

pub(crate) struct Fleet {
    pub(crate) mesh: Mesh,
    pub(crate) agent: Agent,
    pub(crate) members: Vec<One>,
}

/// The name of a member.
pub(crate) fn name(member: Member) -> String {
    format!("m{member:02}")
}

/// The member that `agent/instance` is of.
pub(crate) fn member(sidecar: &str) -> Option<Member> {
    let agent = sidecar.split('/').next()?;
    agent.strip_prefix('m')?.parse().ok()
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        let (mesh, agent) = (Mesh::start().await, Agent::start());
        let joining = futures_util::stream::iter(0..SIDECARS).map(|member| One::join(&mesh, &agent, member));
        let members = joining.buffered(AT_ONCE).collect().await;
        Self { mesh, agent, members }
    }

    /// SIGKILL for all of these at once, and a start from what they have on disk. One that is revoked would not come back.
    pub(crate) async fn restart(&mut self, chosen: &[Member]) {
        let members = self.members.iter_mut().enumerate();
        let chosen = members.filter(|(member, one)| chosen.contains(member) && !one.is_revoked);
        let mut chosen: Vec<_> = chosen.map(|(_, one)| one).collect();
        for one in &mut chosen {
            one.sidecar.process.kill();
        }
        futures_util::stream::iter(chosen)
            .for_each_concurrent(AT_ONCE, One::start_again)
            .await;
    }

    /// Starts one that was revoked with a new token.
    pub(crate) async fn rejoin(&mut self, member: Member) {
        let token = self.mesh.admin().token(&name(member)).await;
        let one = &mut self.members[member];
        one.sidecar.process.kill();
        one.sidecar.spec.token = token;
        one.up.set(Way::CLEAR);
        one.start_again().await;
        one.is_revoked = false;
    }

    /// SIGKILL for the control plane, and a start from what it has on disk.
    pub(crate) async fn restart_plane(&mut self) {
        self.mesh.control_plane.kill();
        self.mesh.revive().await;
    }

    /// All ways are clear.
    pub(crate) fn heal(&self) {
        for one in &self.members {
            one.up.set(Way::CLEAR);
            one.to_it.set(Way::CLEAR);
        }
    }
}

impl One {
    async fn join(mesh: &Mesh, agent: &Agent, member: Member) -> Self {
        let document = json!({"name": name(member), "labels": {"group": (member % GROUPS).to_string()}});
        let mut spec = mesh.spec(document, agent.address).await;
        let up = Relay::start(spec.control_plane).await;
        // Where it listens shows when it does.
        let to_it = Relay::start(FREE[0]).await;
        spec.control_plane = up.address;
        spec.flags = vec!["--advertise".into(), to_it.address.to_string()];
        let sidecar = Sidecar::start(spec, &mesh.dir(&name(member))).await;
        to_it.lead_to(sidecar.inbound);
        let door = Arc::new(Mutex::new(sidecar.outbound));
        Self {
            sidecar,
            up,
            to_it,
            door,
            is_revoked: false,
        }
    }

    /// After its end: on ports of its own choice again, since who connects out may have taken those that it had.
    async fn start_again(&mut self) {
        let (spec, dir) = (self.sidecar.spec.clone(), self.sidecar.dir.clone());
        self.sidecar = Sidecar::start_unready(spec, &dir).await;
        self.to_it.lead_to(self.sidecar.inbound);
        *self.door.lock().unwrap() = self.sidecar.outbound;
    }
}

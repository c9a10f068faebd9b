//! Endpoints are leased: each lives as long as the stream of its sidecar, and a moment longer, so that a stream that
//! is renewed, or a control plane that restarts, takes no agent off the mesh.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip_api::AgentName;
use aip_api::resource::{Endpoint, Kind, Resource as _};
use tokio::sync::Semaphore;

use super::world::World;
use crate::rate::{Rate, Rates};
use crate::refusal::{Reason, Refusal};
use crate::registry::Registry;

/// After a restart, how long sidecars have to come back before their endpoints are withdrawn: reconnecting takes them
/// seconds, and their agents serve all the while.
pub const RESTART_GRACE: Duration = Duration::from_secs(60);

/// Withdrawals at once.
const WITHDRAWING: usize = 8;
/// Endpoints of one agent that are written at once, and in a second: all its sidecars start anew, and again, and then some of
/// them come and go. Each is flushed to the disk, pushed to every peer that knows the agent, and taken back later.
const WRITTEN: Rate = Rate {
    burst: 512.0,
    per_second: 4.0,
};

/// The leases of this process's streams.
#[derive(Debug)]
pub struct Leases {
    registry: Registry,
    // Endpoint name → the session that holds it.
    held: Mutex<HashMap<String, u64>>,
    grace: Duration,
    loopback: bool,
    withdrawing: Semaphore,
    written: Rates,
}

/// Whether `address` can be an endpoint. Loopback only where the control plane itself serves on loopback: then the
/// whole mesh is on this machine. Never what a cloud's metadata service or a broadcast listens on.
///
/// # Errors
/// Not an address, or not one that is allowed.
pub fn check_address(text: &str, loopback: bool) -> Result<SocketAddr, Refusal> {
    let refuse = |why: &str| {
        let shown: String = text.chars().take(64).collect();
        Refusal::new(Reason::EndpointRefused, format!("{shown:?} {why}"))
    };
    let address: SocketAddr = text.parse().map_err(|_| refuse("is not ip:port"))?;
    let ip = address.ip().to_canonical();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() || link_local {
        return Err(refuse("can't be dialled by peers"));
    }
    if ip.is_loopback() && !loopback {
        return Err(refuse(
            "is loopback, which peers on other machines can't dial: set the sidecar's inbound address",
        ));
    }
    Ok(address)
}

impl Leases {
    /// No leases yet. `grace` is how long an endpoint outlives its stream.
    pub fn new(registry: Registry, grace: Duration, loopback: bool) -> Arc<Self> {
        let withdrawing = Semaphore::new(WITHDRAWING);
        Arc::new(Self {
            registry,
            held: Mutex::default(),
            grace,
            loopback,
            withdrawing,
            written: Rates::new(WRITTEN),
        })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases an address to a session, instead of what it leased before.
    pub(super) async fn take(
        &self,
        session: u64,
        agent: &AgentName,
        instance: &str,
        address: &str,
    ) -> Result<String, Refusal> {
        let address = check_address(address, self.loopback)?;
        let endpoint = Endpoint {
            agent: agent.clone(),
            instance: instance.to_owned(),
            address,
        };
        let stands = self.registry.resource::<Endpoint>(&endpoint.name()).await?;
        if stands.is_none_or(|stands| stands.value != endpoint) {
            self.written.spend(agent.as_str())?;
        }
        self.held().insert(endpoint.name(), session);
        let put = crate::registry::retrying(async || self.registry.put_endpoint(&endpoint).await).await;
        if put.is_err() {
            self.forget(session, &endpoint.name());
        }
        put.map(|()| endpoint.name())
    }

    /// Withdraws at once: the sidecar drains.
    pub(super) async fn release(&self, session: u64, name: &str) -> Result<(), Refusal> {
        if self.forget(session, name) {
            self.registry.withdraw_endpoint(name, "drained").await
        } else {
            Ok(())
        }
    }

    fn forget(&self, session: u64, name: &str) -> bool {
        let mut held = self.held();
        let own = held.get(name) == Some(&session);
        if own {
            held.remove(name);
        }
        own
    }

    /// The stream ended: withdraws after the grace, unless another stream of the same instance took it over.
    pub(super) fn abandon(self: &Arc<Self>, session: u64, name: String) {
        let leases = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(leases.grace).await;
            if leases.forget(session, &name) {
                leases.withdraw(&name, "stream ended").await;
            }
        });
    }

    async fn withdraw(&self, name: &str, why: &'static str) {
        let _permit = self.withdrawing.acquire().await;
        if let Err(refusal) = self.registry.withdraw_endpoint(name, why).await {
            tracing::error!(
                endpoint = name,
                reason = refusal.reason(),
                "an endpoint was not withdrawn"
            );
        }
    }

    /// After a restart: withdraws what nobody took over within [`RESTART_GRACE`].
    pub async fn reap(self: Arc<Self>, world: Arc<World>) {
        let left = world.names(Kind::Endpoint, "");
        tokio::time::sleep(RESTART_GRACE.max(self.grace)).await;
        for id in left {
            if !self.held().contains_key(&id.name) {
                self.withdraw(&id.name, "not taken over after a restart").await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use aip_api::resource::{Agent, MeshMode};

    use super::*;
    use crate::registry::Actor;
    use crate::store::Expect;

    #[tokio::test(start_paused = true)]
    async fn one_agent_writes_no_more_endpoints_than_it_may_on_however_many_streams() {
        let registry = crate::testing::mesh(MeshMode::Dev).await.registry;
        for name in ["planner", "ledger"] {
            let agent = Agent::new(name.parse().unwrap());
            let draft = registry.change(&Actor::control_plane(), "agent.create", name);
            draft.resource(&agent, Expect::Absent).commit().await.unwrap();
        }
        let leases = Leases::new(registry, Duration::ZERO, true);
        let instance = |n: u64| format!("00000000-0000-7000-8000-{n:012}");
        let take = async |agent: &str, n: u64, instance: String| {
            leases.take(n, &agent.parse().unwrap(), &instance, "127.0.0.1:1").await
        };
        let mut name = String::new();
        // Each in the place of the one before.
        for n in 0..WRITTEN.burst as u64 {
            if n > 0 {
                leases.release(n - 1, &name).await.unwrap();
            }
            name = take("planner", n, instance(n)).await.unwrap();
        }
        let refused = take("planner", 1_000, instance(1_000)).await.unwrap_err();
        assert_eq!(refused.reason(), "rate_exceeded");
        let last = WRITTEN.burst as u64 - 1;
        take("planner", 1_001, instance(last))
            .await
            .expect("what stands is written by nobody");
        take("ledger", 1_002, instance(1_002))
            .await
            .expect("another agent has its own");
    }

    #[test]
    fn endpoints_are_addresses_that_peers_can_dial() {
        for good in ["10.0.0.7:15006", "192.0.2.1:1", "[2001:db8::1]:15006"] {
            assert!(check_address(good, false).is_ok(), "{good}");
        }
        for bad in [
            "",
            "planner:15006",
            "10.0.0.7",
            "10.0.0.7:0",
            "0.0.0.0:15006",
            "[::]:1",
            "224.0.0.1:1",
            "169.254.169.254:80",
            "[fe80::1]:1",
            "[::ffff:169.254.169.254]:80",
            "255.255.255.255:1",
            "127.0.0.1:15006",
            "[::1]:15006",
            "[::ffff:127.0.0.1]:15006",
        ] {
            assert_eq!(
                check_address(bad, false).unwrap_err().reason(),
                "endpoint_refused",
                "{bad}"
            );
        }
        assert!(check_address("127.0.0.1:15006", true).is_ok());
    }
}

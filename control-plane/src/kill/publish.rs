//! The set in force, signed once, for all streams.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aip_api::Digest;
use aip_api::kill::KillSet;
use aip_api::resource::KeyPurpose;
use aip_api::wire::SignedKillSet;
use aip_runtime::backoff::Backoff;
use aip_runtime::kill::sign_set;
use tokio::sync::watch;

use crate::ca::Ca;
use crate::refusal::Refusal;
use crate::registry::kills::CurrentSet;
use crate::registry::{Registry, keys};
use crate::store::{StoreError, Watch};

/// The set in force.
#[derive(Debug)]
pub struct Published {
    /// What it says.
    pub set: KillSet,
    /// As it travels.
    pub signed: SignedKillSet,
    /// When it was committed, where this process did.
    pub committed: Option<Instant>,
}

impl Published {
    /// What it is known by in the store.
    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.signed.payload)
    }
}

/// Follows the store.
#[derive(Debug)]
pub struct Publisher {
    registry: Registry,
    ca: Arc<Ca>,
    now: watch::Sender<Arc<Published>>,
}

impl Publisher {
    /// Publishes what stands in the store; a mesh of before there were kill sets gets its first one.
    ///
    /// # Errors
    /// The store fails.
    pub async fn new(registry: Registry, ca: Arc<Ca>) -> Result<Arc<Self>, Refusal> {
        registry.first_kill_set(ca.trust_domain()).await?;
        let current = registry.kill_set().await?;
        let now = watch::Sender::new(Arc::new(sign(&registry, &ca, current)));
        Ok(Arc::new(Self { registry, ca, now }))
    }

    /// The set in force.
    pub fn current(&self) -> Arc<Published> {
        self.now.borrow().clone()
    }

    /// Changes of it.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.now.subscribe()
    }

    /// Follows the store until the task is dropped.
    pub async fn follow(self: Arc<Self>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let store = &self.registry.store;
        let mut watch = store.watch(store.revision());
        loop {
            let looked = match self.look().await {
                Ok(()) => next_change(&mut watch).await,
                Err(refusal) => Err(StoreError::Failed(refusal.detail)),
            };
            match looked {
                Ok(()) => backoff.reset(),
                Err(StoreError::Compacted { .. }) => watch = store.watch(store.revision()),
                Err(error) => {
                    tracing::error!(%error, reason = error.reason(), "sidecars are not told of orders; trying again");
                    watch = store.watch(store.revision());
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn look(&self) -> Result<(), Refusal> {
        let current = self.registry.kill_set().await?;
        if current.payload.as_bytes() != self.now.borrow().signed.payload {
            let published = sign(&self.registry, &self.ca, current);
            let (term, epoch) = published.set.version();
            tracing::warn!(term, epoch, orders = published.set.orders.len(), "kill set published");
            metrics::gauge!("aip_kill_orders_in_force").set(published.set.orders.len() as f64);
            self.now.send_replace(Arc::new(published));
        }
        Ok(())
    }
}

/// Waits until the set was written.
async fn next_change(watch: &mut Watch) -> Result<(), StoreError> {
    loop {
        let changes = watch.next().await?;
        if changes.iter().any(|change| change.key == keys::KILL_SET) {
            return Ok(());
        }
    }
}

fn sign(registry: &Registry, ca: &Ca, current: CurrentSet) -> Published {
    Published {
        signed: sign_set(&ca.signer(KeyPurpose::Kill), current.payload.into_bytes()),
        committed: registry.store.committed_at(current.revision),
        set: current.set,
    }
}

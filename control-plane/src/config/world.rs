//! All resources in memory, as of one revision, and who is told when they change.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use aip_api::AgentName;
use aip_api::resource::{Agent, KeyPurpose, Kind, Policy, Rejected, ResourceId, Revocation};
use aip_api::wire;
use aip_runtime::backoff::Backoff;
use aip_runtime::signed;
use aip_runtime::trust::Trust;
use aip_runtime::x509::PeerIdentity;
use bytes::Bytes;
use tokio::sync::broadcast;

use crate::ca::Ca;
use crate::registry::keys;
use crate::store::{Change, Store, StoreError};

/// News that a slow session may lag behind by; past it, it looks at everything again.
const NEWS: usize = 1_024;

/// One resource.
#[derive(Debug)]
pub struct Item {
    /// Kind and name.
    pub id: ResourceId,
    /// The revision that wrote it.
    pub revision: u64,
    /// The document.
    pub payload: Bytes,
    signed: OnceLock<wire::Resource>,
    // Read once: whom a policy covers is asked at every change of an agent.
    attach: Option<Box<aip_api::resource::Attach>>,
}

impl Item {
    fn new(id: ResourceId, revision: u64, payload: Bytes) -> Self {
        let attach = (id.kind == Kind::Policy)
            .then(|| serde_json::from_slice::<Policy>(&payload).ok())
            .flatten();
        Self {
            id,
            revision,
            payload,
            signed: OnceLock::new(),
            attach: attach.map(|p| Box::new(p.attach)),
        }
    }

    /// The document as its type.
    pub fn read<R: aip_api::resource::Resource>(&self) -> Option<R> {
        serde_json::from_slice(&self.payload).ok()
    }
}

/// What changed.
#[derive(Debug, Clone)]
pub enum News {
    /// These resources; the world is now at this revision.
    Some(u64, Arc<[ResourceId]>),
    /// Anything may have; the world is now at this revision.
    All(u64),
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    items: BTreeMap<ResourceId, Arc<Item>>,
}

/// The world. One task keeps it up to date ([`World::follow`]).
#[derive(Debug)]
pub struct World {
    state: RwLock<State>,
    news: broadcast::Sender<News>,
    ca: Arc<Ca>,
    trust: Trust,
}

impl World {
    /// The world as the store holds it now.
    ///
    /// # Errors
    /// The store fails.
    pub async fn new(store: &Store, ca: Arc<Ca>, trust: Trust) -> Result<Arc<Self>, StoreError> {
        let world = Self {
            state: RwLock::default(),
            news: broadcast::Sender::new(NEWS),
            ca,
            trust,
        };
        world.reload(store).await?;
        Ok(Arc::new(world))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision that it is at.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// News from now on, and the revision that now is.
    pub fn subscribe(&self) -> (broadcast::Receiver<News>, u64) {
        let state = self.read();
        (self.news.subscribe(), state.revision)
    }

    /// One resource.
    pub fn get(&self, id: &ResourceId) -> Option<Arc<Item>> {
        self.read().items.get(id).cloned()
    }

    /// One resource as its type.
    pub fn document<R: aip_api::resource::Resource>(&self, name: &str) -> Option<R> {
        self.get(&ResourceId::new(R::KIND, name))?.read()
    }

    /// The names of a kind that begin with `prefix`.
    pub fn names(&self, kind: Kind, prefix: &str) -> Vec<ResourceId> {
        let state = self.read();
        let from = ResourceId::new(kind, prefix);
        let rest = state.items.range((Bound::Included(&from), Bound::Unbounded));
        rest.map(|(id, _)| id)
            .take_while(|id| id.kind == kind && id.name.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// The policies that take part in hops of one of these agents.
    pub fn policies_of<'a>(&self, agents: impl IntoIterator<Item = &'a AgentName>) -> Vec<ResourceId> {
        let agents: Vec<_> = agents
            .into_iter()
            .map(|name| {
                (
                    name,
                    self.document::<Agent>(name.as_str())
                        .map(|a| a.labels)
                        .unwrap_or_default(),
                )
            })
            .collect();
        let state = self.read();
        let from = ResourceId::new(Kind::Policy, "");
        let all = state.items.range((Bound::Included(&from), Bound::Unbounded));
        let covers = |item: &Item| {
            let attach = item.attach.as_deref();
            attach.is_some_and(|attach| agents.iter().any(|(name, labels)| attach.covers_named(name, labels)))
        };
        all.take_while(|(id, _)| id.kind == Kind::Policy)
            .filter(|(_, i)| covers(i))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// The resource as it travels. Signed once per revision.
    pub fn signed(&self, item: &Item) -> wire::Resource {
        let sign = || {
            let signer = self.ca.signer(KeyPurpose::Config);
            signed::sign(
                &signer,
                item.id.kind,
                &item.id.name,
                item.revision,
                false,
                item.payload.to_vec(),
            )
        };
        item.signed.get_or_init(sign).clone()
    }

    /// A tombstone: at `revision` there is no such resource.
    pub fn tombstone(&self, id: &ResourceId, revision: u64) -> wire::Resource {
        signed::sign(
            &self.ca.signer(KeyPurpose::Config),
            id.kind,
            &id.name,
            revision,
            true,
            Vec::new(),
        )
    }

    /// Follows the store until the task is dropped.
    pub async fn follow(self: Arc<Self>, store: Store) {
        let mut watch = store.watch(self.revision());
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            let done = match watch.next().await {
                Ok(changes) => self.apply(&store, &changes, watch.seen()).await,
                Err(StoreError::Compacted { .. }) => self.reload(&store).await.map(|()| {
                    watch = store.watch(self.revision());
                }),
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::error!(%error, reason = error.reason(), "sidecars are not told of changes; trying again");
                    watch = store.watch(self.revision());
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn reload(&self, store: &Store) -> Result<(), StoreError> {
        let snapshot = store.snapshot(keys::RESOURCES).await?;
        let items = snapshot.entries.into_iter().filter_map(|e| {
            let id = keys::resource_id(&e.key)?;
            Some((id.clone(), Arc::new(Item::new(id, e.revision, e.value))))
        });
        let items = items.collect();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        *state = State {
            revision: snapshot.revision,
            items,
        };
        self.trust_again(&state);
        let _ = self.news.send(News::All(snapshot.revision));
        Ok(())
    }

    async fn apply(&self, store: &Store, changes: &[Change], revision: u64) -> Result<(), StoreError> {
        let mut fresh: BTreeMap<ResourceId, Option<Arc<Item>>> = BTreeMap::new();
        for change in changes {
            let Some(id) = keys::resource_id(&change.key) else {
                continue;
            };
            if fresh.contains_key(&id) {
                continue;
            }
            let entry = store.get(change.key.clone()).await?;
            let item = entry.map(|e| Arc::new(Item::new(id.clone(), e.revision, e.value)));
            fresh.insert(id, item);
        }
        let ids: Arc<[ResourceId]> = fresh.keys().cloned().collect();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for (id, item) in fresh {
            match item {
                Some(item) => state.items.insert(id, item),
                None => state.items.remove(&id),
            };
        }
        state.revision = revision;
        if ids.iter().any(|id| id.kind == Kind::Revocation) {
            self.trust_again(&state);
        }
        // Under the lock: whoever subscribes sees either this state or this news, never neither.
        let _ = self.news.send(News::Some(revision, ids));
        Ok(())
    }

    /// Whether a resource, as it travels, is one that this mesh signed, whenever that was.
    ///
    /// # Errors
    /// It is not, or of no kind that this version knows.
    pub(crate) fn verify(&self, resource: &wire::Resource) -> Result<Kind, Rejected> {
        signed::verify(&self.trust.load(), resource)
    }

    /// Whether a revocation that is known here names this peer.
    pub(crate) fn has_revoked(&self, peer: &PeerIdentity) -> bool {
        self.trust.load().revoked(peer).is_some()
    }

    /// Makes the mesh port's handshakes see the revocations.
    fn trust_again(&self, state: &State) {
        let mut trust = match self.ca.trust() {
            Ok(trust) => trust,
            Err(error) => {
                tracing::error!(%error, "the trust of the mesh port can't be renewed");
                return;
            }
        };
        let from = ResourceId::new(Kind::Revocation, "");
        let revocations = state.items.range((Bound::Included(&from), Bound::Unbounded));
        let revocations = revocations.take_while(|(id, _)| id.kind == Kind::Revocation);
        for revocation in revocations.filter_map(|(_, item)| item.read::<Revocation>()) {
            trust.revoke(&revocation);
        }
        self.trust.store(Arc::new(trust));
    }
}

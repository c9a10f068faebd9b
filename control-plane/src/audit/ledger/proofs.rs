//! Proofs over the log of checkpoints, from the subtrees on disk.

use std::collections::HashMap;

use aip_api::Digest;
use aip_audit::merkle::{ProofError, Subtrees};

use super::rows::keys;
use super::{Ledger, read};
use crate::refusal::{Reason, Refusal};
use crate::store::{Store, StoreError};

/// Subtrees: those that a proof has asked for. A proof asks for a few dozen, which are then fetched and asked for again.
struct Nodes {
    store: Store,
    held: HashMap<(u32, u64), Option<Digest>>,
}

/// What is asked of the tree while its subtrees are still being fetched.
struct Asking<'a> {
    held: &'a HashMap<(u32, u64), Option<Digest>>,
    missing: std::cell::RefCell<Vec<(u32, u64)>>,
}

impl Subtrees for Asking<'_> {
    fn subtree(&self, height: u32, at: u64) -> Option<Digest> {
        match self.held.get(&(height, at)) {
            Some(held) => *held,
            None => {
                self.missing.borrow_mut().push((height, at));
                // Anything: the proof is made again when this one is there.
                Some(Digest::from_bytes([0; 32]))
            }
        }
    }
}

impl Nodes {
    fn new(store: Store) -> Self {
        Self {
            store,
            held: HashMap::new(),
        }
    }

    async fn fetched(&self, height: u32, at: u64) -> Result<Option<Digest>, StoreError> {
        read(&self.store, keys::node(height, at)).await
    }

    /// What `work` answers when it has every subtree that it asks for.
    async fn with<T>(&mut self, work: impl Fn(&Asking<'_>) -> Result<T, ProofError> + Send) -> Result<T, Refusal> {
        loop {
            let (done, missing) = {
                let asking = Asking {
                    held: &self.held,
                    missing: std::cell::RefCell::default(),
                };
                (work(&asking), asking.missing.into_inner())
            };
            if missing.is_empty() {
                return done.map_err(|e| Refusal::new(Reason::NotFound, format!("there is no such proof: {e}")));
            }
            for (height, at) in missing {
                let node = self.fetched(height, at).await?;
                self.held.insert((height, at), node);
            }
        }
    }
}

impl Ledger {
    async fn within(&self, size: u64) -> Result<Nodes, Refusal> {
        let held = self.size().await?;
        if size > held {
            let detail = format!("the log has {held} checkpoints, not {size}");
            return Err(Refusal::new(Reason::NotFound, detail));
        }
        Ok(Nodes::new(self.store.clone()))
    }

    /// The proof that the checkpoint at `index` is among the first `size`.
    ///
    /// # Errors
    /// Outside the tree, or the store fails.
    pub async fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Digest>, Refusal> {
        let mut nodes = self.within(size).await?;
        nodes.with(|tree| tree.inclusion_of(index, size)).await
    }

    /// The proof that the first `from` checkpoints are a beginning of the first `to`.
    ///
    /// # Errors
    /// Outside the tree, or the store fails.
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Vec<Digest>, Refusal> {
        let mut nodes = self.within(to).await?;
        nodes.with(|tree| tree.consistency_of(from, to)).await
    }

    /// The root over the first `size` checkpoints.
    ///
    /// # Errors
    /// There are fewer, or the store fails.
    pub async fn root(&self, size: u64) -> Result<Digest, Refusal> {
        let mut nodes = self.within(size).await?;
        nodes.with(|tree| tree.root_of(size)).await
    }
}

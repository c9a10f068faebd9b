//! A worker's decisions, keyed by exactly what the program read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::facts::Kept;
use crate::limits::{MAX_CACHED_DECISIONS, MAX_CACHED_PER_CALLER};
use crate::verdict::Decision;

type Key = Arc<[u8]>;

/// A decision, and the facts that are kept of it, where somebody wanted them.
pub(crate) struct Cached {
    pub(crate) decision: Decision,
    pub(crate) kept: Option<Arc<Kept>>,
}

/// Decisions by the digest of the set and the facts that it read, compared in full.
///
/// Each caller has its own queue. A caller that is over its share evicts its own oldest entry; a full cache evicts the
/// oldest entry of the caller whose turn it is, so that every insertion evicts a bounded number of entries and nobody
/// can flush the others.
#[derive(Default)]
pub(crate) struct DecisionCache {
    entries: HashMap<Key, Cached>,
    callers: HashMap<Arc<str>, VecDeque<Key>>,
    turns: VecDeque<Arc<str>>,
}

impl DecisionCache {
    pub(crate) fn get(&mut self, key: &[u8]) -> Option<&mut Cached> {
        self.entries.get_mut(key)
    }

    pub(crate) fn insert(&mut self, caller: &str, key: &[u8], decision: Cached) {
        if self.entries.contains_key(key) {
            return;
        }
        if self
            .callers
            .get(caller)
            .is_some_and(|queue| queue.len() >= MAX_CACHED_PER_CALLER)
        {
            self.evict(caller);
        }
        while self.entries.len() >= MAX_CACHED_DECISIONS {
            let Some(victim) = self.turns.pop_front() else { return };
            self.turns.push_back(victim.clone());
            self.evict(&victim);
        }
        let key: Key = key.into();
        match self.callers.get_mut(caller) {
            Some(queue) => queue.push_back(key.clone()),
            None => {
                let caller: Arc<str> = caller.into();
                self.turns.push_back(caller.clone());
                self.callers.insert(caller, VecDeque::from([key.clone()]));
            }
        }
        self.entries.insert(key, decision);
    }

    fn evict(&mut self, caller: &str) {
        let Some(queue) = self.callers.get_mut(caller) else {
            return;
        };
        if let Some(key) = queue.pop_front() {
            self.entries.remove(&key);
        }
        if queue.is_empty() {
            self.callers.remove(caller);
            // The caller's turn is the last one where it was chosen by turn, and anywhere where it evicts itself, which
            // it does only when its queue is long: the search is short either way.
            if let Some(at) = self.turns.iter().rposition(|turn| &**turn == caller) {
                self.turns.remove(at);
            }
        }
    }

    /// Forgets what the set of this digest decided, and gives the memory back.
    pub(crate) fn forget(&mut self, digest: &str) {
        let stays = |key: &Key| !key.starts_with(digest.as_bytes());
        self.entries.retain(|key, _| stays(key));
        self.entries.shrink_to_fit();
        self.callers.retain(|_, queue| {
            queue.retain(stays);
            !queue.is_empty()
        });
        self.turns.retain(|caller| self.callers.contains_key(caller));
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::builtin;

    fn decision() -> Cached {
        Cached {
            decision: Decision::refuse(&Arc::from(""), builtin::NO_RULE, ""),
            kept: None,
        }
    }

    fn fill(cache: &mut DecisionCache, caller: &str, count: usize) {
        for index in 0..count {
            cache.insert(caller, format!("{caller} {index}").as_bytes(), decision());
        }
    }

    #[test]
    fn a_caller_evicts_only_itself() {
        let mut cache = DecisionCache::default();
        fill(&mut cache, "quiet", 1);
        fill(&mut cache, "loud", MAX_CACHED_DECISIONS * 2);
        assert!(cache.get(b"quiet 0").is_some());
        assert_eq!(cache.len(), 1 + MAX_CACHED_PER_CALLER);
    }

    #[test]
    fn what_one_set_decided_is_forgotten_and_nothing_else() {
        let mut cache = DecisionCache::default();
        for (set, caller) in [("old", "a"), ("new", "a"), ("old", "b")] {
            for index in 0..10 {
                cache.insert(caller, format!("{set} {caller} {index}").as_bytes(), decision());
            }
        }
        cache.forget("old");
        assert_eq!(cache.len(), 10);
        assert!(cache.get(b"new a 0").is_some() && cache.get(b"old a 0").is_none());
        assert_eq!(cache.callers.keys().map(|caller| &**caller).collect::<Vec<_>>(), ["a"]);
        assert_eq!(cache.turns.len(), 1);
        // What is left is evicted as before.
        fill(&mut cache, "a", MAX_CACHED_PER_CALLER);
        assert_eq!(cache.len(), MAX_CACHED_PER_CALLER);
    }

    #[test]
    fn many_callers_share_the_bound() {
        let mut cache = DecisionCache::default();
        for caller in 0..MAX_CACHED_DECISIONS * 2 {
            fill(&mut cache, &caller.to_string(), 3);
            assert!(cache.len() <= MAX_CACHED_DECISIONS);
        }
        assert_eq!(cache.turns.len(), cache.callers.len());
        let queued: usize = cache.callers.values().map(VecDeque::len).sum();
        assert_eq!(queued, cache.len());
    }
}

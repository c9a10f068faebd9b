//! Places that people, or strangers, share: so many in all, and so many for each, so that nobody takes the places of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places, in all and for each caller.
#[derive(Debug)]
pub(crate) struct Quota {
    places: Arc<Semaphore>,
    each: usize,
    callers: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// One place: the caller's own and the common one. Dropping it gives both back.
pub(crate) type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Quota {
    /// `places` in all, `each` for one caller.
    pub(crate) fn new(places: usize, each: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            each,
            callers: Mutex::default(),
        }
    }

    fn of(&self, sub: &str) -> Arc<Semaphore> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        // Who holds nothing and waits for nothing is forgotten.
        callers.retain(|_, own| Arc::strong_count(own) > 1);
        let own = callers.entry(sub.to_owned());
        own.or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
    }

    /// A place now, or none.
    pub(crate) fn try_take(&self, sub: &str) -> Option<Place> {
        let own = self.of(sub).try_acquire_owned().ok()?;
        Some((own, self.places.clone().try_acquire_owned().ok()?))
    }

    /// A place, when one is free.
    pub(crate) async fn take(&self, sub: &str) -> Option<Place> {
        let own = self.of(sub).acquire_owned().await.ok()?;
        Some((own, self.places.clone().acquire_owned().await.ok()?))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn nobody_takes_the_places_of_all() {
        let quota = Quota::new(3, 2);
        let (first, second) = (quota.try_take("alice").unwrap(), quota.take("alice").await.unwrap());
        assert!(quota.try_take("alice").is_none());
        assert!(quota.take("alice").now_or_never().is_none(), "it waits");
        let others = quota.try_take("bob").unwrap();
        assert!(quota.try_take("carol").is_none(), "all are taken");
        drop((first, second));
        assert!(quota.try_take("alice").is_some() && quota.try_take("carol").is_some());
        drop(others);
        quota.of("dave");
        assert_eq!(quota.callers.lock().unwrap().len(), 1, "who has none is forgotten");
    }
}

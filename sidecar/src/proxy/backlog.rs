//! What a peer has not taken of its answers: the HTTP library holds it, in each stream, until it can be written. Past what a
//! peer may leave unread its further answers wait for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::limits::{MAX_UNREAD_OF_CONNECTION, MAX_UNREAD_OF_PEER};

/// Of all connections of one peer.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    bytes: AtomicUsize,
    less: Arc<Notify>,
}

/// Of one connection.
#[derive(Debug)]
pub(crate) struct Backlog {
    bytes: AtomicUsize,
    of_peer: Arc<Unread>,
}

impl Backlog {
    pub(crate) fn new(of_peer: &Arc<Unread>) -> Arc<Self> {
        Arc::new(Self {
            bytes: AtomicUsize::new(0),
            of_peer: of_peer.clone(),
        })
    }

    /// What to wait for before there is more of it, where there is too much.
    pub(crate) fn room(&self) -> Option<OwnedNotified> {
        if !self.is_full() {
            return None;
        }
        let less = self.of_peer.less.clone().notified_owned();
        // It may have become less before anybody waited.
        self.is_full().then_some(less)
    }

    /// Each connection may have some, so that one that is read goes on beside others that are not.
    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Acquire) >= MAX_UNREAD_OF_CONNECTION
            && self.of_peer.bytes.load(Ordering::Acquire) >= MAX_UNREAD_OF_PEER
    }

    /// These bytes, counted until whoever they are given to has written them.
    pub(crate) fn counted(self: &Arc<Self>, data: Bytes) -> Bytes {
        if data.is_empty() {
            return data;
        }
        self.bytes.fetch_add(data.len(), Ordering::AcqRel);
        self.of_peer.bytes.fetch_add(data.len(), Ordering::AcqRel);
        Bytes::from_owner(Counted {
            data,
            backlog: self.clone(),
        })
    }
}

struct Counted {
    data: Bytes,
    backlog: Arc<Backlog>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (bytes, of_peer) = (self.data.len(), &self.backlog.of_peer);
        let here = self.backlog.bytes.fetch_sub(bytes, Ordering::AcqRel);
        let all = of_peer.bytes.fetch_sub(bytes, Ordering::AcqRel);
        let falls_below = |before: usize, limit: usize| before >= limit && before - bytes < limit;
        if falls_below(here, MAX_UNREAD_OF_CONNECTION) || falls_below(all, MAX_UNREAD_OF_PEER) {
            of_peer.less.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kilobytes(n: usize) -> Bytes {
        Bytes::from(vec![b'x'; n * 1024])
    }

    #[tokio::test]
    async fn what_a_peer_leaves_unread_on_all_its_connections_is_waited_for() {
        let of_peer = Arc::<Unread>::default();
        let (one, other) = (Backlog::new(&of_peer), Backlog::new(&of_peer));
        let mut held = Vec::new();
        while one.room().is_none() {
            held.push(one.counted(kilobytes(128)));
        }
        assert_eq!(held.len() * 128 * 1024, MAX_UNREAD_OF_PEER);
        assert!(other.room().is_none(), "a connection may always have some");
        let some = other.counted(kilobytes(MAX_UNREAD_OF_CONNECTION / 1024));
        let (here, there) = (one.room().unwrap(), other.room().unwrap());
        // Read, as far as that connection is concerned.
        drop(some);
        there.await;
        assert!(other.room().is_none() && one.room().is_some());
        drop((here, held));
        assert!(one.room().is_none());
        assert_eq!(of_peer.bytes.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn who_waits_is_woken_when_enough_was_read() {
        let of_peer = Arc::<Unread>::default();
        let backlog = Backlog::new(&of_peer);
        let held = backlog.counted(kilobytes(MAX_UNREAD_OF_PEER / 1024));
        let room = backlog.room().unwrap();
        let half = held.slice(..1024);
        drop(held);
        assert!(backlog.room().is_some(), "a part of it is not written");
        drop(half);
        room.await;
        assert!(backlog.room().is_none());
    }
}

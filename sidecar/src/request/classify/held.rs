//! What is held for policy: the bytes of bodies and, while policy is asked, what they are read into. All of it counts
//! against one bound for this sidecar, and what a peer sent against its share of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::proxy::gate::Share;
use crate::proxy::limits::{MAX_HELD_OF_PEER, MAX_HELD_TOTAL};
use crate::request::refusal::{Refusal, Refused};
use crate::request::{Arrived, From};

/// A part of what may be held, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    all: Arc<AtomicUsize>,
    /// The peer's part, where a peer sent it.
    peer: Option<Arc<Share>>,
    mine: usize,
}

impl Held {
    /// Nothing yet, on the account of whoever sent the request.
    pub(crate) fn nothing(arrived: &Arrived) -> Self {
        let peer = match &arrived.via.from {
            From::Peer(peer) => Some(peer.share.clone()),
            From::Agent | From::Tunnel(_) => None,
        };
        Self {
            all: arrived.proxy.held.clone(),
            peer,
            mine: 0,
        }
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// The peer, or this sidecar, holds as much as it may. What was taken is given back with the rest.
    pub(crate) fn more(&mut self, bytes: usize) -> Result<(), Refused> {
        self.mine += bytes;
        let all = self.all.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let of_peer = self.peer.as_ref().map_or(0, |peer| peer.holds_more(bytes));
        if of_peer > MAX_HELD_OF_PEER {
            return Err(Refusal::ShareUsedUp.because("as many bodies of this peer are held for policy as may be"));
        }
        if all > MAX_HELD_TOTAL {
            return Err(Refusal::Overloaded.because("this sidecar holds as many bodies for policy as it may"));
        }
        Ok(())
    }

    /// Gives `bytes` back.
    pub(crate) fn less(&mut self, bytes: usize) {
        let bytes = bytes.min(self.mine);
        self.mine -= bytes;
        self.all.fetch_sub(bytes, Ordering::AcqRel);
        if let Some(peer) = &self.peer {
            peer.holds_less(bytes);
        }
    }

    /// As much as `bytes`, neither more nor less.
    ///
    /// # Errors
    /// As [`Self::more`].
    pub(crate) fn exactly(&mut self, bytes: usize) -> Result<(), Refused> {
        match bytes.checked_sub(self.mine) {
            Some(more) => self.more(more),
            None => {
                self.less(self.mine - bytes);
                Ok(())
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.less(self.mine);
    }
}

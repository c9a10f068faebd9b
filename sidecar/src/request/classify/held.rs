//! What is held for policy: requests that wait for their bodies, the bodies, and, while policy is asked, what they are
//! read into. All of it counts against one bound for this sidecar, and what a peer sent against its share of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::headers;
use crate::proxy::gate::Share;
use crate::proxy::limits::{MAX_HELD_OF_PEER, MAX_HELD_TOTAL, WAITING_REQUEST};
use crate::request::refusal::{Refusal, Refused};
use crate::request::{Arrived, From};

/// A part of what may be held, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    all: Arc<AtomicUsize>,
    /// The peer's part, where a peer sent it.
    peer: Option<Arc<Share>>,
    /// What was taken of both. Never less than the rest together; that it is more is usual while policy has not been
    /// asked, so that a small body is counted once and not piece by piece.
    taken: usize,
    head: usize,
    body: usize,
    read: usize,
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
            taken: 0,
            head: 0,
            body: 0,
            read: 0,
        }
    }

    /// A request that waits for its body: a peer could let any number of them wait.
    ///
    /// # Errors
    /// The peer, or this sidecar, holds as much as it may. What was taken is given back with the rest.
    pub(crate) fn waiting(arrived: &Arrived) -> Result<Self, Refused> {
        let mut held = Self::nothing(arrived);
        let target = arrived
            .head
            .uri
            .path_and_query()
            .map_or(0, |target| target.as_str().len());
        held.head = headers::size(&arrived.head.headers) + target;
        held.take(held.head + WAITING_REQUEST)?;
        Ok(held)
    }

    /// The body has `bytes` by now.
    ///
    /// # Errors
    /// As [`Self::waiting`].
    pub(crate) fn body(&mut self, bytes: usize) -> Result<(), Refused> {
        self.body = bytes;
        self.suffice()
    }

    /// What it is read into takes `bytes` more.
    ///
    /// # Errors
    /// As [`Self::waiting`].
    pub(crate) fn read(&mut self, bytes: usize) -> Result<(), Refused> {
        self.read += bytes;
        self.suffice()
    }

    /// Policy has been asked: what the body was read into is gone, and the request goes on.
    pub(crate) fn settle(&mut self) {
        self.read = 0;
        self.give(self.taken.saturating_sub(self.head + self.body));
    }

    fn suffice(&mut self) -> Result<(), Refused> {
        match (self.head + self.body + self.read).checked_sub(self.taken) {
            Some(more @ 1..) => self.take(more),
            _ => Ok(()),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<(), Refused> {
        self.taken += bytes;
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

    fn give(&mut self, bytes: usize) {
        self.taken -= bytes;
        self.all.fetch_sub(bytes, Ordering::AcqRel);
        if let Some(peer) = &self.peer {
            peer.holds_less(bytes);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give(self.taken);
    }
}

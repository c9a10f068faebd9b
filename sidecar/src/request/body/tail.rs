//! What a response holds until its end, and what it waits for on its way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::futures::OwnedNotified;

use crate::audit::digest::Tally;
use crate::proxy::agent::Returning;
use crate::proxy::backlog::Backlog;
use crate::proxy::gate::Permit;
use crate::proxy::peers::Flight;
use crate::request::record::Record;

/// What a response holds until its end.
#[derive(Debug)]
pub(crate) struct Tail {
    /// Written when the response is dropped.
    pub(crate) record: Record,
    /// The connection to the agent, given back at the end.
    pub(crate) returning: Option<Returning>,
    /// The stream on the connection to a peer.
    pub(crate) flight: Option<Flight>,
    /// The place among the requests that the agent works on.
    pub(crate) permit: Option<Permit>,
    /// What has passed of the response's body.
    pub(crate) passed: Option<Tally>,
    /// What its caller leaves unread.
    pub(crate) backlog: Option<Waits>,
}

/// What one connection leaves unread, and whether that is waited for.
#[derive(Debug)]
pub(crate) struct Waits {
    backlog: Arc<Backlog>,
    room: Option<Pin<Box<OwnedNotified>>>,
}

impl Waits {
    pub(crate) fn on(backlog: Arc<Backlog>) -> Self {
        Self { backlog, room: None }
    }
}

impl Tail {
    /// Waits until its caller has read enough of what was sent.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(waits) = &mut self.backlog else {
            return Poll::Ready(());
        };
        loop {
            if let Some(room) = &mut waits.room {
                ready!(room.as_mut().poll(cx));
            }
            waits.room = waits.backlog.room().map(Box::pin);
            if waits.room.is_none() {
                return Poll::Ready(());
            }
        }
    }

    /// A frame of it, counted until it is written.
    pub(super) fn counted(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match &self.backlog {
            Some(waits) => frame.map_data(|data| waits.backlog.counted(data)),
            None => frame,
        }
    }
}

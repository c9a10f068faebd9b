//! What a response holds until its end, and what it waits for on its way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::futures::OwnedNotified;

use super::source::Source;
use crate::audit::digest::Tally;
use crate::proxy::agent::Returning;
use crate::proxy::backlog::Backlog;
use crate::proxy::gate::Permit;
use crate::proxy::limits::REFUSED_BODY_WAIT;
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
    /// Gives back what the answer held until its end, without waiting for whoever holds it to drop it; where its request's
    /// body has not ended, with that. Nothing more of that body goes on: after a moment in which its end may still come, it
    /// is given up.
    pub(super) fn release(&mut self) {
        let held = (self.flight.take(), self.permit.take());
        let returning = self.returning.take();
        let Some(request) = self.record.exchange.answer_is_over() else {
            return returning.into_iter().for_each(Returning::give_back);
        };
        tokio::spawn(async move {
            match tokio::time::timeout(REFUSED_BODY_WAIT, request.over()).await {
                Ok(true) => returning.into_iter().for_each(Returning::give_back),
                // On its connection there is half a request.
                Ok(false) => {}
                Err(_) => request.give_up(),
            }
            drop(held);
        });
    }

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

impl Drop for Tail {
    fn drop(&mut self) {
        // All of a declared length was taken, and nobody asked for the end.
        if self.record.is_over() && !self.record.is_completed() {
            self.returning = None;
            self.release();
        }
    }
}

/// Reads for a moment what is yet to come of a request that is answered, and passes nothing of it on.
pub(super) fn discard(source: Source) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(tokio::time::timeout(REFUSED_BODY_WAIT, source.discard()));
    }
}

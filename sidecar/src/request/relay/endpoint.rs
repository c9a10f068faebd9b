//! MCP's first HTTP transport (2024-11-05) begins its event stream with an `endpoint` event, where to post to. One that
//! names the agent's own address is rewritten to the mesh's. Nothing else of a stream is looked at, nor held up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::card::Addresses;
use crate::audit::digest::{Tally, Way};
use crate::proxy::limits::MAX_ENDPOINT_EVENT;
use crate::proxy::streams::Exchange;

/// How the event begins; the space is the sender's choice.
const STARTS: [&[u8]; 2] = [b"event: endpoint", b"event:endpoint"];

/// The first event of a stream, as far as it came, and what came with it.
#[derive(Debug)]
pub(crate) struct First {
    addresses: Addresses,
    seen: BytesMut,
    /// Nothing more is looked at.
    done: bool,
}

impl First {
    pub(crate) fn new(addresses: Addresses) -> Self {
        Self {
            addresses,
            seen: BytesMut::new(),
            done: false,
        }
    }

    /// Takes what came next.
    pub(crate) fn came(&mut self, data: &[u8]) {
        self.seen.extend_from_slice(data);
        self.done = self.done || self.look();
    }

    /// Nothing more comes that could be of the event.
    pub(crate) fn ended(&mut self) {
        self.done = true;
    }

    /// What may go on.
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        (self.done && !self.seen.is_empty()).then(|| self.seen.split().freeze())
    }

    /// Whether enough has been seen; then it is as it must go on. In what pieces it came makes no difference.
    fn look(&mut self) -> bool {
        let seen = &self.seen[..self.seen.len().min(MAX_ENDPOINT_EVENT)];
        if !STARTS.iter().any(|start| may_begin(seen, start)) {
            return true;
        }
        let Some(end) = end_of_event(seen) else {
            return seen.len() == MAX_ENDPOINT_EVENT;
        };
        let rewritten = std::str::from_utf8(&seen[..end])
            .ok()
            .and_then(|event| self.rewrite(event));
        if let Some(event) = rewritten {
            let rest = self.seen.split_off(end);
            self.seen = BytesMut::from(event.as_bytes());
            self.seen.unsplit(rest);
        }
        true
    }

    /// The event with the mesh's address where its first line of data is the agent's own.
    fn rewrite(&self, event: &str) -> Option<String> {
        let mut lines = event.split_inclusive(['\r', '\n']);
        let data = lines.find_map(|line| line.strip_prefix("data:"))?;
        let url = data.trim();
        let rewritten = self.addresses.rewrite(url)?;
        let at = url.as_ptr().addr() - event.as_ptr().addr();
        Some([&event[..at], &rewritten, &event[at + url.len()..]].concat())
    }
}

/// Whether this may become a line that is `start`.
fn may_begin(seen: &[u8], start: &[u8]) -> bool {
    match seen.strip_prefix(start) {
        Some(rest) => matches!(rest.first(), None | Some(b'\r' | b'\n')),
        None => start.starts_with(seen),
    }
}

/// Where the last line of an event ends that an empty line follows. Lines end with CR, LF or both.
fn end_of_event(seen: &[u8]) -> Option<usize> {
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let mut from = 0;
    while let Some(length) = seen[from..].iter().position(is_end) {
        let end = from + length;
        from = end + 1 + usize::from(seen[end..].starts_with(b"\r\n"));
        if seen.get(from).is_some_and(is_end) {
            return Some(end);
        }
    }
    None
}

/// Looks at the first event of a stream.
#[derive(Debug)]
pub(crate) struct EndpointEvent {
    first: First,
    /// What came after what was seen: trailers, or the end.
    after: Option<Frame<Bytes>>,
    exchange: Arc<Exchange>,
    /// What came, before anything is rewritten.
    came: Option<Tally>,
}

impl EndpointEvent {
    pub(crate) fn new(addresses: Addresses, exchange: Arc<Exchange>) -> Self {
        Self {
            came: exchange.seed().map(|seed| Tally::new(seed, Way::Response)),
            exchange,
            first: First::new(addresses),
            after: None,
        }
    }

    /// Whether everything that was held has gone on.
    pub(crate) fn is_done(&self) -> bool {
        self.first.done && self.first.seen.is_empty() && self.after.is_none()
    }

    pub(crate) fn poll(
        &mut self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            if let Some(data) = self.first.take() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if self.first.done {
                if let Some(frame) = self.after.take() {
                    return Poll::Ready(Some(Ok(frame)));
                }
                return Poll::Ready(ready!(self.poll_incoming(incoming, cx)));
            }
            match ready!(self.poll_incoming(incoming, cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.first.came(&data),
                    Err(frame) => {
                        self.after = Some(frame);
                        self.first.ended();
                    }
                },
                None => self.first.ended(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn poll_incoming(
        &mut self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        if let (Some(came), Some(data)) = (&mut self.came, data) {
            came.add(data);
        }
        let over = frame.is_none() || incoming.is_end_stream();
        if let Some(came) = self.came.take_if(|_| over) {
            let _ = self.exchange.response_in.set(came.passed());
        }
        Poll::Ready(frame)
    }
}

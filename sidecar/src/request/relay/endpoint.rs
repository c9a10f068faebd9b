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

/// Looks at the first event of a stream.
#[derive(Debug)]
pub(crate) struct EndpointEvent {
    addresses: Addresses,
    seen: BytesMut,
    /// What came after what was seen: trailers, or the end.
    after: Option<Frame<Bytes>>,
    done: bool,
    exchange: Arc<Exchange>,
    /// What came, before anything is rewritten.
    came: Option<Tally>,
}

impl EndpointEvent {
    pub(crate) fn new(addresses: Addresses, exchange: Arc<Exchange>) -> Self {
        Self {
            came: exchange.seed().map(|seed| Tally::new(seed, Way::Response)),
            exchange,
            addresses,
            seen: BytesMut::new(),
            after: None,
            done: false,
        }
    }

    /// Whether everything that was held has gone on.
    pub(crate) fn is_done(&self) -> bool {
        self.done && self.seen.is_empty() && self.after.is_none()
    }

    pub(crate) fn poll(
        &mut self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            if self.done {
                if !self.seen.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(self.seen.split().freeze()))));
                }
                if let Some(frame) = self.after.take() {
                    return Poll::Ready(Some(Ok(frame)));
                }
                return Poll::Ready(ready!(self.poll_incoming(incoming, cx)));
            }
            match ready!(self.poll_incoming(incoming, cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.seen.extend_from_slice(&data);
                        self.done = self.look();
                    }
                    Err(frame) => {
                        self.after = Some(frame);
                        self.done = true;
                    }
                },
                None => self.done = true,
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

    /// Whether enough has been seen; then it is as it must go on.
    fn look(&mut self) -> bool {
        let seen = &self.seen[..];
        let may_be = |start: &&&[u8]| seen.starts_with(&start[..start.len().min(seen.len())]);
        if STARTS.iter().find(may_be).is_none() || seen.len() > MAX_ENDPOINT_EVENT {
            return true;
        }
        let ends: [&[u8]; 2] = [b"\n\n", b"\r\n\r\n"];
        let end = ends
            .iter()
            .filter_map(|end| seen.windows(end.len()).position(|w| w == *end))
            .min();
        let Some(end) = end else { return false };
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

    fn rewrite(&self, event: &str) -> Option<String> {
        let data = event.split_once("data:")?.1;
        let url = data.lines().next()?.trim();
        let rewritten = self.addresses.rewrite(url)?;
        Some(event.replacen(url, &rewritten, 1))
    }
}

//! Where a body comes from.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::super::classify::held::Held;
use super::super::relay::endpoint::EndpointEvent;
use crate::proxy::limits::ANSWERED_BODY_BYTES;

#[derive(Debug, Default)]
pub(super) enum Source {
    #[default]
    Empty,
    Whole(Bytes),
    /// What came after the data, too.
    Trailed(Box<(Bytes, HeaderMap)>),
    Stream(Incoming),
    /// What had come of it when the request went on, and the rest.
    Begun(Option<Result<Frame<Bytes>, hyper::Error>>, Incoming),
    /// What was read of it before, and the rest.
    Rest(Box<Front>, Incoming),
    /// An event stream whose first event may be rewritten.
    Events(Box<EndpointEvent>, Incoming),
}

/// What was read of a body, until it is sent on.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) bytes: Bytes,
    /// What that takes of what may be held.
    pub(super) held: Option<Held>,
}

impl Source {
    pub(super) fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) | Self::Trailed(_) => false,
            Self::Stream(incoming) => incoming.is_end_stream(),
            Self::Begun(first, incoming) => first.is_none() && incoming.is_end_stream(),
            Self::Rest(front, incoming) => front.bytes.is_empty() && incoming.is_end_stream(),
            Self::Events(first, incoming) => first.is_done() && incoming.is_end_stream(),
        }
    }

    /// Bytes of data that are yet to come, where their number was declared.
    pub(super) fn remains(&self) -> Option<u64> {
        match self {
            Self::Stream(incoming) | Self::Begun(None, incoming) => incoming.size_hint().exact(),
            _ => None,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Trailed(whole) => {
                let (bytes, trailers) = (std::mem::take(&mut whole.0), &mut whole.1);
                let frame = match bytes.is_empty() {
                    true => Frame::trailers(std::mem::take(trailers)),
                    false => Frame::data(bytes),
                };
                Poll::Ready(Some(Ok(frame)))
            }
            Self::Stream(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Begun(first, incoming) => match first.take() {
                Some(first) => Poll::Ready(Some(first)),
                None => Pin::new(incoming).poll_frame(cx),
            },
            Self::Rest(front, incoming) => match std::mem::take(&mut front.bytes) {
                bytes if bytes.is_empty() => Pin::new(incoming).poll_frame(cx),
                bytes => {
                    front.held = None;
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
            },
            Self::Events(first, incoming) => first.poll(incoming, cx),
        }
    }

    /// Takes no notice of what is yet to come, where it is not in memory.
    pub(super) async fn discard(mut self) {
        let is_coming = matches!(self, Self::Stream(_) | Self::Begun(..) | Self::Rest(..));
        let mut bytes = 0;
        while is_coming && !self.is_end() && bytes < ANSWERED_BODY_BYTES {
            let Some(Ok(frame)) = std::future::poll_fn(|cx| self.poll(cx)).await else {
                return;
            };
            bytes += frame.data_ref().map_or(0, Bytes::len);
            // However fast it comes, whoever limits this is asked.
            tokio::task::yield_now().await;
        }
    }
}

//! What comes after a Hello is small, and is looked at before it is read: gRPC's own bound is that of the Hello, which lists
//! all that a sidecar holds, and a message of that size could wait half-read for as long as its stream lives.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use aip_runtime::grpc;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Code;
use tonic::server::NamedService;
use tower::Service;

use crate::refusal::Reason;

/// Largest message after the first: a thousand names, or the rejections of one push. Sidecars cut what they say for people to
/// fit in it.
const MAX_LATER_BYTES: u32 = 256 * 1024;
/// gRPC's prefix of each message: a flag, and four bytes of length.
const PREFIX: usize = 5;

/// A service whose requests' messages but the first are small.
#[derive(Debug, Clone)]
pub(crate) struct Small<S>(pub(crate) S);

impl<S: NamedService> NamedService for Small<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Small<S>
where
    S: Service<http::Request<Looked<B>>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> S::Future {
        self.0.call(request.map(|body| Looked {
            body,
            messages: Messages::default(),
        }))
    }
}

/// A request's body, whose messages are looked at.
#[derive(Debug)]
pub(crate) struct Looked<B> {
    body: B,
    messages: Messages,
}

/// How far the messages have come.
#[derive(Debug, Default)]
struct Messages {
    prefix: Vec<u8>,
    /// Bytes of the message that are still to come.
    left: usize,
    first_came: bool,
}

impl Messages {
    /// Looks at what comes next; false where a message is longer than it may be.
    fn take(&mut self, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(data.len());
                self.left -= passed;
                data = &data[passed..];
                continue;
            }
            let wanted = (PREFIX - self.prefix.len()).min(data.len());
            self.prefix.extend_from_slice(&data[..wanted]);
            data = &data[wanted..];
            let [_, a, b, c, d] = self.prefix[..] else { continue };
            self.prefix.clear();
            let length = u32::from_be_bytes([a, b, c, d]);
            if std::mem::replace(&mut self.first_came, true) && length > MAX_LATER_BYTES {
                return false;
            }
            self.left = length as usize;
        }
        true
    }
}

impl<B> Body for Looked<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        };
        if frame.data_ref().is_some_and(|data| !self.messages.take(data)) {
            let detail = format!("a message of more than {MAX_LATER_BYTES} bytes after the Hello");
            let reason = Reason::ProtocolViolation.row().reason;
            return Poll::Ready(Some(Err(grpc::status(Code::InvalidArgument, reason, detail).into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(PREFIX + length as usize, 7);
        bytes
    }

    #[test]
    fn only_the_first_message_may_be_large_however_it_is_cut() {
        let good = [message(1 << 20), message(0), message(MAX_LATER_BYTES), message(3)].concat();
        let bad = [message(1 << 20), message(3), message(MAX_LATER_BYTES + 1)].concat();
        for cut in [1, 2, 3, 5, 7, 4_096, 1 << 21] {
            let mut messages = Messages::default();
            assert!(good.chunks(cut).all(|data| messages.take(data)), "{cut}");
            let mut messages = Messages::default();
            let read = bad.chunks(cut).take_while(|data| messages.take(data)).count() * cut;
            assert!(read <= (1 << 20) + 3 + 3 * PREFIX, "{cut}: its length was enough");
        }
    }
}

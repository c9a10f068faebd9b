//! What comes is looked at before it is read. A Hello lists all that a sidecar holds, and no more than may be: read, it is many times
//! as large as it came. What comes after it is small: gRPC's own bound is that of the Hello, and a message of that size could wait
//! half-read for as long as its stream lives.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use aip_runtime::grpc;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Code;
use tonic::server::NamedService;
use tower::Service;

use super::entries::Entries;
use crate::refusal::Reason;

/// Largest message after the first: a thousand names, or the rejections of one push. Sidecars cut what they say for people to
/// fit in it.
const MAX_LATER_BYTES: u32 = 256 * 1024;
const LARGE: &str = "a message of more than 256 KiB after the Hello";
const LONG_LIST: &str = "the Hello lists more than 100,000 resources, or is none";
/// gRPC's prefix of each message: a flag, and four bytes of length.
const PREFIX: usize = 5;

/// A service whose requests' first message lists a bounded number of resources, and whose others are small.
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
    at: At,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Nothing,
    Hello(Entries),
    Later,
}

impl Messages {
    /// Looks at what comes next.
    ///
    /// # Errors
    /// A message is longer than it may be, or lists more.
    fn take(&mut self, mut data: &[u8]) -> Result<(), &'static str> {
        while !data.is_empty() {
            if self.left > 0 {
                let (passed, rest) = data.split_at(self.left.min(data.len()));
                if let At::Hello(entries) = &mut self.at
                    && !entries.take(passed)
                {
                    return Err(LONG_LIST);
                }
                self.left -= passed.len();
                data = rest;
                continue;
            }
            let wanted = (PREFIX - self.prefix.len()).min(data.len());
            self.prefix.extend_from_slice(&data[..wanted]);
            data = &data[wanted..];
            let [_, a, b, c, d] = self.prefix[..] else { continue };
            self.prefix.clear();
            let length = u32::from_be_bytes([a, b, c, d]);
            self.at = match self.at {
                At::Nothing => At::Hello(Entries::default()),
                _ => At::Later,
            };
            if matches!(self.at, At::Later) && length > MAX_LATER_BYTES {
                return Err(LARGE);
            }
            self.left = length as usize;
        }
        Ok(())
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
        if let Some(Err(detail)) = frame.data_ref().map(|data| self.messages.take(data)) {
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
        // Read, these are numbers that nobody knows.
        bytes.resize(PREFIX + length as usize, 0x78);
        bytes
    }

    #[test]
    fn only_the_first_message_may_be_large_however_it_is_cut() {
        let good = [message(1 << 20), message(0), message(MAX_LATER_BYTES), message(3)].concat();
        let bad = [message(1 << 20), message(3), message(MAX_LATER_BYTES + 1)].concat();
        for cut in [1, 2, 3, 5, 7, 4_096, 1 << 21] {
            let mut messages = Messages::default();
            assert!(good.chunks(cut).all(|data| messages.take(data).is_ok()), "{cut}");
            let mut messages = Messages::default();
            let read = bad.chunks(cut).take_while(|data| messages.take(data).is_ok()).count() * cut;
            assert!(read <= (1 << 20) + 3 + 3 * PREFIX, "{cut}: its length was enough");
        }
    }
}

//! Bodies on their way through: nothing is buffered, every frame goes on as it comes, and what passes is counted.

mod grpc;
mod source;
mod tail;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::classify::headers;
use super::classify::held::Held;
use super::record::Wait;
use super::refusal::Cut;
use super::relay::endpoint::EndpointEvent;
use crate::audit::digest::{Tally, Way};
use crate::proxy::stalled::UnderWay;
use crate::proxy::streams::{Exchange, Progress};
use grpc::{Came, Opened, Opening};
use source::{Front, Source};
pub(crate) use tail::{Tail, Waits};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The connection that it came on broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// It was cut.
    #[error("cut: {}", .0.reason())]
    Cut(Cut),
    /// It calls itself gRPC and is not.
    #[error("it calls itself gRPC, and does not begin as a message of it")]
    NotGrpc,
    /// Its answer was over when more of it came.
    #[error("its answer was over when more of it came")]
    Answered,
    /// How it ended can't be recorded, and that must be before anybody learns of it.
    #[error("how it ended can't be recorded")]
    Unrecorded,
}

/// A body, of a request or of a response.
#[derive(Debug, Default)]
pub(crate) struct Body {
    source: Source,
    watched: Option<Watched>,
    /// So that it ends when it is cut, whether or not it is asked for more.
    under_way: Option<UnderWay>,
    /// What it begins with is yet to be looked at, as far as it has come.
    grpc: Option<Box<Opening>>,
    /// Its last frame, while the record of its end is brought to disk.
    last: Option<Box<Last>>,
}

/// The end of a response, which waits for its record.
struct Last {
    frame: Option<Frame<Bytes>>,
    wait: Wait,
}

impl std::fmt::Debug for Last {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Last")
    }
}

#[derive(Debug)]
enum Watched {
    Request(Arc<Exchange>, Option<Box<Tally>>),
    Response(Arc<Exchange>, Box<Tail>),
    Answer(Arc<Exchange>, Box<Tail>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::default()
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            watched: None,
            under_way: None,
            grpc: None,
            last: None,
        }
    }

    /// As a body that calls itself gRPC. Nobody waits for its first byte, since a stream may send that late, or never:
    /// it is looked at when it comes, and nothing goes on of what does not begin as a message.
    pub(crate) fn of_grpc(mut self) -> Self {
        self.grpc = Some(Box::default());
        self
    }

    /// Whether what has come is no gRPC, though it calls itself so.
    pub(crate) fn is_no_grpc(&self) -> bool {
        let first = match &self.source {
            Source::Begun(Some(Ok(first)), _) => first.data_ref(),
            _ => None,
        };
        self.grpc.is_some() && first.is_some_and(|data| grpc::is_otherwise(data))
    }

    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::of(if bytes.is_empty() {
            Source::Empty
        } else {
            Source::Whole(bytes)
        })
    }

    /// A whole body, with what came after its data.
    pub(crate) fn with_trailers(bytes: Bytes, trailers: Option<HeaderMap>) -> Self {
        let Some(trailers) = trailers else {
            return Self::whole(bytes);
        };
        Self::of(Source::Trailed(Box::new((bytes, trailers))))
    }

    pub(crate) fn stream(incoming: Incoming) -> Self {
        Self::of(if incoming.is_end_stream() {
            Source::Empty
        } else {
            Source::Stream(incoming)
        })
    }

    pub(crate) fn rest(bytes: Bytes, held: Option<Held>, incoming: Incoming) -> Self {
        Self::of(Source::Rest(Box::new(Front { bytes, held }), incoming))
    }

    /// One that broke while it was looked at.
    pub(crate) fn broken(error: hyper::Error, incoming: Incoming) -> Self {
        Self::of(Source::Begun(Some(Err(error)), incoming))
    }

    pub(crate) fn events(first: EndpointEvent, incoming: Incoming) -> Self {
        Self::of(Source::Events(Box::new(first), incoming))
    }

    /// Takes what came together with the head, so that it goes on together with the head: one write and one TLS record
    /// instead of two, here and at each end that follows. Does not wait for what is yet to come.
    pub(crate) async fn begun(mut self) -> Self {
        let Some(mut incoming) = self.take_stream() else {
            return self;
        };
        let mut asked = false;
        let first = std::future::poll_fn(|cx| match Pin::new(&mut incoming).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame),
            Poll::Pending if asked => Poll::Ready(None),
            Poll::Pending => {
                // Now that it is asked for, the connection hands out what it has read, before this is polled again.
                asked = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        });
        let first = first.await;
        self.source = Source::Begun(first, incoming);
        self
    }

    /// As a request's body: counted, and ended when the exchange is cut.
    pub(crate) fn of_request(mut self, exchange: Arc<Exchange>) -> Self {
        if !matches!(self.source, Source::Empty) {
            let tally = exchange.seed().map(|seed| Box::new(Tally::new(seed, Way::Request)));
            self.under_way = Some(exchange.sends(Way::Request));
            self.watched = Some(Watched::Request(exchange, tally));
        }
        self
    }

    /// As a response's body: counted, ended when the exchange is cut, and at its end everything is given back.
    pub(crate) fn of_response(mut self, exchange: Arc<Exchange>, tail: Tail) -> Self {
        if !matches!(self.source, Source::Empty) {
            let under_way = exchange.sends(Way::Response);
            // Made in the future that sends it, which may never ask for the first of it.
            under_way.is_carried();
            self.under_way = Some(under_way);
        }
        self.watched = Some(Watched::Response(exchange, Box::new(tail)));
        self.ended();
        self
    }

    /// Where it was at its end from the beginning, and that must be recorded before anybody learns of it: what to wait
    /// for.
    pub(crate) fn recorded(&mut self) -> Option<Wait> {
        self.last.take().map(|last| last.wait)
    }

    /// As the body of an answer of ours: counted, never cut.
    pub(crate) fn of_answer(mut self, exchange: Arc<Exchange>, tail: Tail) -> Self {
        self.watched = Some(Watched::Answer(exchange, Box::new(tail)));
        self.ended();
        self
    }

    /// The stream that it is, where nothing of it was read; nothing is left of it then.
    pub(crate) fn take_stream(&mut self) -> Option<Incoming> {
        match std::mem::take(&mut self.source) {
            Source::Stream(incoming) => Some(incoming),
            source => {
                self.source = source;
                None
            }
        }
    }

    /// The data, where it is in memory as a whole.
    pub(crate) fn in_memory(&self) -> Option<Bytes> {
        match &self.source {
            Source::Empty => Some(Bytes::new()),
            Source::Whole(bytes) => Some(bytes.clone()),
            Source::Trailed(whole) => Some(whole.0.clone()),
            _ => None,
        }
    }

    /// Bytes of the data, where they are known.
    pub(crate) fn size(&self) -> Option<u64> {
        match &self.source {
            Source::Trailed(whole) => Some(whole.0.len() as u64),
            _ => self.size_hint().exact(),
        }
    }

    /// Whether something comes after the data, as far as is known by now.
    pub(crate) fn has_trailers(&self) -> bool {
        matches!(self.source, Source::Trailed(_))
    }

    /// At the end: it is recorded, and what was borrowed goes back, without waiting for whoever holds the body to drop it.
    fn ended(&mut self) {
        let ended = self.source.is_end();
        match &mut self.watched {
            Some(Watched::Request(exchange, tally)) => {
                // A body of a declared length may be dropped by its reader before the end comes.
                let whole = ended
                    || tally
                        .as_ref()
                        .is_some_and(|t| self.source.remains() == Some(0) && t.bytes() > 0);
                if let Some(tally) = tally.take_if(|_| whole) {
                    let _ = exchange.request_in.set(tally.passed());
                }
            }
            Some(Watched::Response(exchange, tail) | Watched::Answer(exchange, tail)) => {
                if ended || self.source.remains() == Some(0) {
                    // First: what is recorded of the request is all that goes on of it.
                    exchange.answer_is_recorded();
                    let wait = tail.record.over(&mut tail.passed);
                    self.last = self
                        .last
                        .take()
                        .or(wait.map(|wait| Box::new(Last { frame: None, wait })));
                }
                if ended && !tail.record.is_completed() {
                    tail.record.completed();
                    tail.release();
                }
            }
            None => {}
        }
    }

    fn cut(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        match &self.watched {
            Some(Watched::Request(exchange, _)) => exchange.poll_request_cut(cx),
            Some(Watched::Response(exchange, _)) => exchange.poll_response_cut(cx),
            Some(Watched::Answer(..)) | None => Poll::Pending,
        }
    }

    /// How far its answer has come, where it is a request's.
    fn answer(&self) -> Progress {
        match &self.watched {
            Some(Watched::Request(exchange, _)) => exchange.answer(),
            _ => Progress::GoesOn,
        }
    }

    fn passed(&mut self, data: &[u8]) {
        let (exchange, count, tally) = match &mut self.watched {
            Some(Watched::Request(exchange, tally)) => (&*exchange, &exchange.received, tally.as_deref_mut()),
            Some(Watched::Response(exchange, tail) | Watched::Answer(exchange, tail)) => {
                (&*exchange, &exchange.sent, tail.passed.as_mut())
            }
            None => return,
        };
        count.fetch_add(data.len() as u64, Ordering::Relaxed);
        if let Some(tally) = tally {
            tally.add(data);
        }
        exchange.moved();
    }

    /// Notes whether the sender of a request's body is waited for; and when it is not any more, since from then on the
    /// other end is.
    fn waits(&self, pending: bool) {
        if let Some(Watched::Request(exchange, _)) = &self.watched
            && exchange.awaits_body.swap(pending, Ordering::Relaxed)
            && !pending
        {
            exchange.moved();
        }
    }

    /// What goes on now of what came.
    fn opened(&mut self, came: Option<Came>) -> Opened {
        let opened = match &mut self.grpc {
            Some(opening) => opening.opened(came),
            None => Opened::Passes(came),
        };
        if matches!(opened, Opened::Otherwise)
            && let Some(Watched::Request(exchange, _)) = &self.watched
        {
            exchange.is_no_grpc.store(true, Ordering::Release);
        }
        opened
    }

    fn broke(&mut self) {
        match &mut self.watched {
            Some(Watched::Response(_, tail)) => tail.record.broke(),
            // On the connection that it goes out on there is half a request.
            Some(Watched::Request(..)) => self.under_way.iter().for_each(UnderWay::breaks),
            Some(Watched::Answer(..)) | None => {}
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A client that is still sending would read a reset instead of the answer. From one that was cut nothing is taken.
        if let Some(Watched::Request(exchange, _)) = &self.watched
            && exchange.answer() == Progress::Over
            && exchange.is_cut().is_none()
            && !self.source.is_end()
        {
            tail::discard(std::mem::take(&mut self.source));
        }
    }
}

/// What is left: `before`, and what has yet to come.
fn after(before: usize, incoming: &Incoming) -> SizeHint {
    let (before, rest) = (before as u64, incoming.size_hint());
    let mut hint = SizeHint::new();
    hint.set_lower(before + rest.lower());
    if let Some(upper) = rest.upper() {
        hint.set_upper(before + upper);
    }
    hint
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(under_way) = &self.under_way {
            under_way.is_carried();
        }
        if let Poll::Ready(cut) = self.cut(cx) {
            return Poll::Ready(Some(Err(BodyError::Cut(cut))));
        }
        if let Some(last) = &mut self.last {
            let recorded = ready!(last.wait.as_mut().poll(cx));
            let frame = self.last.take().and_then(|last| last.frame);
            return Poll::Ready(match recorded {
                true => frame.map(Ok),
                false => Some(Err(BodyError::Unrecorded)),
            });
        }
        if let Some(Watched::Response(_, tail)) = &mut self.watched {
            ready!(tail.poll_room(cx));
        }
        if self.answer() == Progress::Recorded {
            // Woken when the answer is over.
            return Poll::Pending;
        }
        let polled = self.source.poll(cx);
        self.waits(polled.is_pending());
        let mut frame = match self.opened(ready!(polled)) {
            Opened::Passes(frame) => frame,
            Opened::Held => return self.poll_frame(cx),
            Opened::Otherwise => return Poll::Ready(Some(Err(BodyError::NotGrpc))),
        };
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.passed(data);
                }
                // Looked at when it is counted: it is in the record of the end, or goes nowhere. An empty frame may be the
                // end itself.
                let is_empty = frame.data_ref().is_some_and(Bytes::is_empty);
                if !is_empty && self.answer() != Progress::GoesOn {
                    self.broke();
                    return Poll::Ready(Some(Err(BodyError::Answered)));
                }
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                    // Nothing comes after trailers.
                    self.source = Source::Empty;
                }
            }
            None => self.source = Source::Empty,
            Some(Err(_)) => self.broke(),
        }
        self.ended();
        if let Some(Watched::Response(_, tail)) = &self.watched {
            frame = frame.map(|frame| frame.map(|frame| tail.counted(frame)));
        }
        match (&mut self.last, frame) {
            (Some(last), Some(Ok(frame))) => last.frame = Some(frame),
            (Some(_), None) => {}
            (_, frame) => return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken))),
        }
        self.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        let holds = self.grpc.as_ref().is_some_and(|opening| opening.holds());
        self.last.is_none() && !holds && self.source.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream(incoming) => incoming.size_hint(),
            Source::Trailed(whole) => {
                // No more than this: in HTTP/1.1 an exact size would leave no room for trailers.
                let mut hint = SizeHint::new();
                hint.set_lower(whole.0.len() as u64);
                hint
            }
            Source::Begun(first, incoming) => {
                let first = first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref());
                after(first.map_or(0, Bytes::len), incoming)
            }
            Source::Rest(front, incoming) => after(front.bytes.len(), incoming),
            Source::Events(..) => SizeHint::default(),
        }
    }
}

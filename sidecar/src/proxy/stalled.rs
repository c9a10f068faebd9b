//! Ends what carries a body to a reader that takes nothing.
//!
//! The HTTP library asks a body for more only where there is room for it. While there is none, since the other end reads
//! nothing, a body does not hear that its exchange was cut, and keeps all that it holds: a place with the agent, its connection,
//! the record. So what the library polls bodies in is polled in here, and is dropped when the body that it carries was given up. An
//! HTTP/2 stream is reset by that, and an HTTP/1 connection closed.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

const UNDER_WAY: u8 = 0;
const OVER: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A body under way, as whoever may give it up knows it. It keeps nothing of the body or of its exchange.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    state: AtomicU8,
    carrier: AtomicWaker,
    /// Who waits for its end.
    waits: AtomicWaker,
}

impl Sending {
    fn ends(&self, how: u8) {
        let _ = self
            .state
            .compare_exchange(UNDER_WAY, how, Ordering::AcqRel, Ordering::Acquire);
        self.waits.wake();
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.state.load(Ordering::Acquire) == UNDER_WAY
    }

    /// Resolves when it is over or given up: whether it came to its end. One waiter at a time.
    pub(crate) async fn over(&self) -> bool {
        std::future::poll_fn(|cx| {
            self.waits.register(cx.waker());
            match self.state.load(Ordering::Acquire) {
                UNDER_WAY => Poll::Pending,
                state => Poll::Ready(state == OVER),
            }
        })
        .await
    }

    /// Nobody waits any longer for its reader.
    pub(crate) fn give_up(&self) {
        self.ends(GIVEN_UP);
        self.carrier.wake();
    }

    /// Whether it was given up; else whoever carries it is woken when it is.
    fn poll_given_up(&self, cx: &mut Context<'_>) -> bool {
        self.carrier.register(cx.waker());
        self.state.load(Ordering::Acquire) == GIVEN_UP
    }
}

thread_local! {
    /// What the future that is being polled carries.
    static CARRIED: Cell<Option<Arc<Sending>>> = const { Cell::new(None) };
}

/// A body's own end of its [`Sending`]: over when it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Sending>);

impl UnderWay {
    pub(crate) fn new(sending: Arc<Sending>) -> Self {
        Self(sending)
    }

    /// Notes that the future that is being polled carries this from now on.
    pub(crate) fn is_carried(&self) {
        let known = CARRIED.take().filter(|carried| Arc::ptr_eq(carried, &self.0));
        CARRIED.set(Some(known.unwrap_or_else(|| self.0.clone())));
    }

    /// Notes that it does not come to its end.
    pub(crate) fn breaks(&self) {
        self.0.ends(GIVEN_UP);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ends(OVER);
        // What carried it must not pass for what carries the next one.
        let _ = CARRIED.try_with(|carried| {
            let other = carried.take().filter(|carried| !Arc::ptr_eq(carried, &self.0));
            carried.set(other);
        });
    }
}

/// What is open until this is dropped: then nobody waits for its reader.
#[derive(Debug)]
pub(crate) struct OpenEnd(Arc<Sending>);

impl OpenEnd {
    /// A switched connection, which begins in the future that is being polled, and goes on in what that starts.
    pub(crate) fn here() -> Self {
        let sending = Arc::<Sending>::default();
        CARRIED.set(Some(sending.clone()));
        Self(sending)
    }
}

impl Drop for OpenEnd {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// A future in which bodies are polled. Resolves to nothing where it was dropped.
pub(crate) struct UntilGivenUp<F> {
    /// On the heap: it can be dropped in its place, and is moved as often as it likes.
    future: Option<Pin<Box<F>>>,
    carried: Option<Arc<Sending>>,
}

impl<F: Future> UntilGivenUp<F> {
    pub(crate) fn new(future: F) -> Self {
        Self {
            future: Some(Box::pin(future)),
            carried: None,
        }
    }

    /// As [`Self::new`], of what goes on with what the future that is being polled has carried until now.
    pub(super) fn going_on(future: F) -> Self {
        Self {
            carried: CARRIED.take(),
            ..Self::new(future)
        }
    }

    /// The future, until it is dropped.
    pub(super) fn inner(&mut self) -> Option<Pin<&mut F>> {
        self.future.as_mut().map(Pin::as_mut)
    }
}

impl<F: Future> Future for UntilGivenUp<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(future) = &mut this.future else {
            return Poll::Ready(None);
        };
        let around = CARRIED.replace(this.carried.take());
        // First: a body that is asked for more ends in its own way.
        let polled = future.as_mut().poll(cx);
        this.carried = CARRIED.replace(around);
        if polled.is_pending() && this.carried.as_ref().is_some_and(|sending| sending.poll_given_up(cx)) {
            this.future = None;
            return Poll::Ready(None);
        }
        polled.map(Some)
    }
}

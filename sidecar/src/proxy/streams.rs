//! Requests in flight: what was counted of them, what cuts them, and what they were decided on.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aip_api::id::HopId;
use aip_audit::record::Passed;
use dashmap::DashMap;
use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::connections::Live;
use super::stalled::{Sending, UnderWay};
use crate::audit::digest::{Salt, Seed, Way};
use crate::kill::lease::Lease;
use crate::request::refusal::Cut;
use crate::request::told::Decided;

/// How far an answer has come, as the body of its request has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    GoesOn,
    /// Its end is recorded, and yet to come.
    Recorded,
    Over,
}

/// One request in flight, shared by its two bodies, its record and whoever may cut it.
#[derive(Debug)]
pub(crate) struct Exchange {
    started: Instant,
    /// Body bytes from the caller.
    pub(crate) received: AtomicU64,
    /// Body bytes to the caller.
    pub(crate) sent: AtomicU64,
    /// Milliseconds after `started` at which a byte last moved.
    moved: AtomicU64,
    /// More of the request's body was asked for, and has not come: its sender is waited for, and nobody else.
    pub(crate) awaits_body: AtomicBool,
    cut: AtomicU8,
    /// The [`Progress`] of its answer.
    answer: AtomicU8,
    /// Nothing passes without it.
    lease: Arc<Lease>,
    /// Its body called itself gRPC, and was not.
    pub(crate) is_no_grpc: AtomicBool,
    request: AtomicWaker,
    response: AtomicWaker,
    /// Its bodies as they are under way, whether or not they are asked for more.
    request_sending: OnceLock<Arc<Sending>>,
    response_sending: OnceLock<Arc<Sending>>,
    /// The salt of its digests; none where nothing is recorded.
    salt: Option<OnceLock<Salt>>,
    /// Which hop it is, once that is known.
    hop: OnceLock<HopId>,
    /// The request's body, once all of it has passed.
    pub(crate) request_in: OnceLock<Passed>,
    /// The response's body as it came, where it was rewritten on its way.
    pub(crate) response_in: OnceLock<Passed>,
    /// What it was decided on, once it was.
    decided: OnceLock<Decided>,
    /// The connection to the other sidecar that it is on.
    live: Mutex<Option<Arc<Live>>>,
}

impl Exchange {
    /// A new one; bodies are digested where it will be recorded.
    pub(crate) fn begin(recorded: bool, lease: &Arc<Lease>) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            awaits_body: AtomicBool::new(false),
            cut: AtomicU8::new(0),
            answer: AtomicU8::new(Progress::GoesOn as u8),
            lease: lease.clone(),
            is_no_grpc: AtomicBool::new(false),
            request: AtomicWaker::new(),
            response: AtomicWaker::new(),
            request_sending: OnceLock::new(),
            response_sending: OnceLock::new(),
            salt: recorded.then(OnceLock::new),
            hop: OnceLock::new(),
            request_in: OnceLock::new(),
            response_in: OnceLock::new(),
            decided: OnceLock::new(),
            live: Mutex::default(),
        })
    }

    /// What digests of its bodies begin with, where they are made: with the salt that the caller's sidecar made, or else a new
    /// one.
    pub(crate) fn seed(&self) -> Option<Seed> {
        let salt = *self.salt.as_ref()?.get_or_init(Salt::fresh);
        // Of what never became a hop there is nothing to compare.
        let hop = *self.hop.get_or_init(HopId::fresh);
        Some(Seed { hop, salt })
    }

    /// Which hop it is.
    pub(crate) fn on(&self, hop: HopId) {
        let _ = self.hop.set(hop);
    }

    /// The salt, if anything was digested with it.
    pub(crate) fn used_salt(&self) -> Option<Salt> {
        self.salt.as_ref().and_then(OnceLock::get).copied()
    }

    /// Takes the salt that the caller's sidecar made.
    pub(crate) fn salted(&self, theirs: Salt) {
        if let Some(salt) = &self.salt {
            let _ = salt.set(theirs);
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes that bytes moved.
    pub(crate) fn moved(&self) {
        self.moved.store(millis(self.elapsed()), Ordering::Relaxed);
    }

    /// When a byte last moved, in milliseconds after it began.
    pub(crate) fn moved_at(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub(crate) fn decided(&self) -> Option<&Decided> {
        self.decided.get()
    }

    pub(crate) fn decide(&self, decided: Decided) {
        // Decided once: a request has one decision at this end.
        let _ = self.decided.set(decided);
    }

    /// Notes the connection to the other sidecar that it goes over.
    pub(crate) fn goes_over(&self, live: &Arc<Live>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(live.clone());
    }

    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Cuts it. The first reason stays.
    pub(crate) fn cut(&self, cut: Cut) {
        if self
            .cut
            .compare_exchange(0, cut as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            super::metrics::stream_cut(cut);
        }
        self.request.wake();
        self.response.wake();
        self.give_up();
    }

    /// What is under way of it waits for no reader any longer.
    pub(crate) fn give_up(&self) {
        let sending = [&self.request_sending, &self.response_sending];
        sending
            .into_iter()
            .filter_map(OnceLock::get)
            .for_each(|sending| sending.give_up());
    }

    /// One of its bodies is under way from now on.
    pub(crate) fn sends(&self, way: Way) -> UnderWay {
        let sending = match way {
            Way::Request => &self.request_sending,
            Way::Response => &self.response_sending,
        };
        let under_way = UnderWay::new(sending.get_or_init(Arc::default).clone());
        // Set first: a cut in this moment is seen here, or gives it up.
        if self.is_cut().is_some() {
            self.give_up();
        }
        under_way
    }

    /// The end of its answer is recorded now: what comes of its request from here on would be in no record, and does not
    /// go on.
    pub(crate) fn answer_is_recorded(&self) {
        self.answer.fetch_max(Progress::Recorded as u8, Ordering::AcqRel);
        // Before the bytes are read that are recorded, as those are counted before [`Self::answer`] is asked.
        fence(Ordering::SeqCst);
    }

    /// Its answer has come to its end: the body of its request, where that is still under way.
    pub(crate) fn answer_is_over(&self) -> Option<Arc<Sending>> {
        self.answer.fetch_max(Progress::Over as u8, Ordering::AcqRel);
        self.request.wake();
        self.request_sending
            .get()
            .filter(|sending| sending.is_under_way())
            .cloned()
    }

    pub(crate) fn answer(&self) -> Progress {
        fence(Ordering::SeqCst);
        match self.answer.load(Ordering::Acquire) {
            0 => Progress::GoesOn,
            1 => Progress::Recorded,
            _ => Progress::Over,
        }
    }

    pub(crate) fn is_cut(&self) -> Option<Cut> {
        Cut::from_code(self.cut.load(Ordering::Acquire))
    }

    /// Whether it is cut; else the request's side is woken when it is.
    pub(crate) fn poll_request_cut(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        self.poll_cut(&self.request, cx)
    }

    /// Whether it is cut; else the response's side is woken when it is.
    pub(crate) fn poll_response_cut(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        self.poll_cut(&self.response, cx)
    }

    fn poll_cut(&self, waker: &AtomicWaker, cx: &mut Context<'_>) -> Poll<Cut> {
        waker.register(cx.waker());
        // A process that was stopped, and goes on, passes nothing before somebody has looked at the clock.
        if self.is_cut().is_none() && self.lease.is_lost() {
            self.cut(Cut::LeaseLost);
        }
        self.is_cut().map_or(Poll::Pending, Poll::Ready)
    }

    /// Resolves when it is cut. One waiter at a time: the response's side.
    pub(crate) async fn ended(&self) -> Cut {
        std::future::poll_fn(|cx| self.poll_response_cut(cx)).await
    }

    /// How long no byte has moved.
    pub(crate) fn silent_for(&self) -> Duration {
        self.elapsed()
            .saturating_sub(Duration::from_millis(self.moved.load(Ordering::Relaxed)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The requests in flight of this sidecar that have been decided.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: DashMap<u64, Arc<Exchange>>,
    next: AtomicU64,
}

impl Streams {
    /// Adds one; the number takes it away again.
    pub(crate) fn add(&self, exchange: Arc<Exchange>) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.insert(id, exchange);
        id
    }

    pub(crate) fn remove(&self, id: u64) {
        self.open.remove(&id);
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Those in flight now.
    pub(crate) fn all(&self) -> Vec<Arc<Exchange>> {
        self.open.iter().map(|entry| entry.value().clone()).collect()
    }

    /// Cuts those that go over this connection: dropping it is not enough, since the HTTP library keeps one alive for
    /// the streams on it.
    pub(crate) fn cut_on(&self, live: &Arc<Live>, cut: Cut) {
        let on_it = |exchange: &&Arc<Exchange>| exchange.live().is_some_and(|l| Arc::ptr_eq(&l, live));
        self.all().iter().filter(on_it).for_each(|exchange| exchange.cut(cut));
    }

    /// Cuts those in whose response nothing moved for their idle limit.
    pub(crate) fn cut_idle(&self) {
        for exchange in self.all() {
            let limit = exchange.decided().and_then(Decided::idle_limit);
            if limit.is_some_and(|limit| exchange.silent_for() > limit) {
                exchange.cut(Cut::Idle);
            }
        }
    }
}

//! The load generator.
//!
//! Requests are the same in every measurement: a `POST` with an MCP-shaped body of [`BODY`]'s size over keep-alive
//! HTTP/1.1. Latency runs from the moment a request was *due* to the last byte of its answer. In the open loop that
//! moment comes from a fixed schedule that waits for nobody, so a stalled server is charged for everything that had to
//! queue meanwhile (no coordinated omission). In the closed loop a request is due when the connection is free.

mod connection;
mod schedule;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use tokio::task::{JoinHandle, JoinSet};

use connection::worker;
use schedule::Schedule;

/// A tool call as an MCP client sends it, 390 bytes.
pub(crate) const BODY: &str = concat!(
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search_documents","arguments":{"query":"#,
    r#""quarterly revenue by region, compared with the year before","limit":20,"filters":{"language":"en","#,
    r#""published_after":"2026-01-01","collections":["finance","reports","filings"]},"sort":"relevance","#,
    r#""include_snippets":true},"_meta":{"progressToken":"c0ffee-001","client":"bench-client/1"}}}"#
);
/// How long answers may take to come in after the last request was due.
const DRAIN: Duration = Duration::from_secs(5);
/// Longest time to open all connections.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest latency that is told apart; longer ones count as this.
const MAX_LATENCY: Duration = Duration::from_secs(60);

/// Where requests go, and what they carry.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) headers: Vec<(http::HeaderName, http::HeaderValue)>,
}

/// When requests are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As soon as a connection is free: shows the highest throughput, not the latency of a server in use.
    Closed,
    /// At fixed moments, whatever the answers do.
    Fixed { per_second: u32 },
}

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
    pub(crate) warmup: Duration,
    pub(crate) length: Duration,
}

/// What one measurement saw. `T` is what the caller read at the start and at the end of the measured window.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    /// Nanoseconds from due to answered, of the requests that were due in the window and answered with 200.
    pub(crate) latency: Histogram<u64>,
    /// Requests that were due in the window and not answered with 200, or not in time.
    pub(crate) errors: u64,
    /// The first thing that went wrong.
    pub(crate) first_error: Option<String>,
    pub(crate) window: Duration,
    pub(crate) before: T,
    pub(crate) after: T,
}

/// What the workers of one measurement share; all on one thread.
pub(crate) struct Shared {
    target: Target,
    schedule: Option<Schedule>,
    window: Cell<Option<(Instant, Option<Instant>)>>,
    stop: Cell<bool>,
    latency: RefCell<Histogram<u64>>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
}

/// One request and its whole answer, to see that the way is open.
pub(crate) async fn probe(target: &Target) -> anyhow::Result<()> {
    let mut connection = connection::open(target.addr).await?;
    connection::exchange(&mut connection, target).await
}

/// Runs one measurement; `read` is called at both ends of the window.
pub(crate) async fn run<T>(plan: &Plan, read: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<Outcome<T>> {
    ensure!(
        plan.target.addr.ip().is_loopback(),
        "{} is not a loopback address",
        plan.target.addr
    );
    let shared = Rc::new(Shared::of(plan)?);
    let workers = connect(plan, &shared).await?;
    let ticker = tick(&shared);

    tokio::time::sleep(plan.warmup).await;
    let before = read()?;
    let start = Instant::now();
    shared.window.set(Some((start, None)));
    tokio::time::sleep(plan.length).await;
    let end = Instant::now();
    shared.window.set(Some((start, Some(end))));
    let after = read()?;

    shared.stop.set(true);
    if let Some(ticker) = ticker {
        ticker.await??;
    }
    drain(workers, &shared).await;
    let latency = shared.latency.borrow().clone();
    let first_error = shared.first_error.borrow().clone();
    Ok(Outcome {
        latency,
        errors: shared.errors.get(),
        first_error,
        window: end - start,
        before,
        after,
    })
}

/// The connections, each with a worker.
async fn connect(plan: &Plan, shared: &Rc<Shared>) -> anyhow::Result<JoinSet<()>> {
    let mut workers = JoinSet::new();
    for _ in 0..plan.connections {
        let connection = tokio::time::timeout(CONNECT, connection::open(plan.target.addr))
            .await
            .with_context(|| format!("no connection to {} in time", plan.target.addr))??;
        workers.spawn_local(worker(Rc::clone(shared), connection));
    }
    Ok(workers)
}

/// Keeps the schedule, where there is one.
fn tick(shared: &Rc<Shared>) -> Option<JoinHandle<anyhow::Result<()>>> {
    shared.schedule.as_ref()?;
    let shared = Rc::clone(shared);
    Some(tokio::task::spawn_local(async move {
        match &shared.schedule {
            Some(schedule) => schedule.tick(&shared.stop).await,
            None => Ok(()),
        }
    }))
}

/// Waits for the last answers; those that do not come in time are errors.
async fn drain(mut workers: JoinSet<()>, shared: &Shared) {
    let drained = tokio::time::timeout(DRAIN, async { while workers.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        let late = workers.len() as u64 + shared.schedule.as_ref().map_or(0, Schedule::waiting);
        shared.fail_many(late, "not answered in time");
        workers.shutdown().await;
    }
}

impl Shared {
    fn of(plan: &Plan) -> anyhow::Result<Self> {
        Ok(Self {
            target: plan.target.clone(),
            schedule: match plan.pace {
                Pace::Closed => None,
                Pace::Fixed { per_second } => Some(Schedule::new(per_second)),
            },
            window: Cell::new(None),
            stop: Cell::new(false),
            latency: RefCell::new(Histogram::new_with_max(MAX_LATENCY.as_nanos() as u64, 3)?),
            errors: Cell::new(0),
            first_error: RefCell::new(None),
        })
    }

    /// When the next request is due; `None` when the measurement is over.
    async fn next_due(&self) -> Option<Instant> {
        match &self.schedule {
            Some(schedule) => schedule.next().await,
            None => (!self.stop.get()).then(Instant::now),
        }
    }

    /// Takes down an answer to a request that was due at `due`.
    fn answered(&self, due: Instant, result: anyhow::Result<()>) {
        let Some((start, end)) = self.window.get() else { return };
        if due < start || end.is_some_and(|end| due >= end) {
            return;
        }
        match result {
            Ok(()) => self
                .latency
                .borrow_mut()
                .saturating_record(due.elapsed().as_nanos() as u64),
            Err(error) => self.fail_many(1, &format!("{error:#}")),
        }
    }

    fn fail_many(&self, count: u64, why: &str) {
        self.errors.set(self.errors.get() + count);
        if count > 0 {
            self.first_error.borrow_mut().get_or_insert_with(|| why.to_owned());
        }
    }
}

#[cfg(test)]
mod tests;

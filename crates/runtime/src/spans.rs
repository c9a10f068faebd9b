//! Spans of what a process forwards, for an OTLP collector: made whole by whoever knows a request from its beginning to
//! its end, gathered in a bounded queue, and sent by a task of its own. Traffic never waits for any of it: what finds no
//! room, or no collector, is dropped and counted.
//!
//! Sending is behind the feature `otlp`. Without it nothing can be started, so nothing is sampled either.

#[cfg(feature = "otlp")]
mod collector;
mod sampler;
mod settings;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::Counter;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use sampler::Sampler;
pub use settings::{Asked, Settings};

/// Whether this build can send spans.
pub const BUILT: bool = cfg!(feature = "otlp");

/// Spans that wait to be sent, as OpenTelemetry's own default: about 5 MiB of the largest.
#[cfg(feature = "otlp")]
const MAX_QUEUED: usize = 2_048;
/// Spans that were sent.
#[cfg(feature = "otlp")]
const EXPORTED: &str = "aip_spans_exported_total";
/// Spans that were not.
#[cfg(feature = "otlp")]
const DROPPED: &str = "aip_spans_dropped_total";

/// Which end of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of who was called.
    Server,
    /// Of who calls.
    Client,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A word of ours.
    Word(&'static str),
    /// Text, bounded by whoever makes the span.
    Text(String),
    /// A count.
    Number(u64),
    /// Whether something is so.
    Flag(bool),
}

/// One end of one call.
#[derive(Debug, Clone)]
pub struct Span {
    /// The trace's id.
    pub trace: [u8; 16],
    /// Its own.
    pub id: [u8; 8],
    /// The span that it is a part of, of another process.
    pub parent: Option<[u8; 8]>,
    /// Which end it is.
    pub kind: Kind,
    /// What was done, in few different words.
    pub name: String,
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Whether it failed, as its end sees it.
    pub failed: bool,
    /// What is known of it, by names of OpenTelemetry's conventions and of `aip.`.
    pub attributes: Vec<(&'static str, Value)>,
}

/// Why no spans can be sent.
#[derive(Debug, thiserror::Error)]
pub enum SpansError {
    /// Built without the feature.
    #[error("this build can't send spans: build aip-sidecar with the feature `otlp`")]
    NotBuilt,
    /// The endpoint's certificates can't be checked.
    #[error("{file}: {why}")]
    Roots {
        /// Where they should be.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// The exporter can't be made.
    #[error("no exporter for {endpoint}: {why}")]
    Exporter {
        /// Where to.
        endpoint: String,
        /// What is wrong.
        why: String,
    },
}

/// Where spans go. Cloning shares it; by default nowhere.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<Inner>>);

struct Inner {
    sampler: Sampler,
    queue: mpsc::Sender<Span>,
    full: Counter,
    closing: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spans({})", if self.0.is_some() { "on" } else { "off" })
    }
}

impl Spans {
    /// Sends spans as `settings` say, from a task on this runtime. The collector need not be there yet.
    ///
    /// # Errors
    /// Built without sending, or the certificates to trust can't be read.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[cfg(feature = "otlp")]
    pub fn start(settings: &Settings) -> Result<Self, SpansError> {
        let collector = collector::Collector::new(settings)?;
        let (queue, waiting) = mpsc::channel(MAX_QUEUED);
        let (closing, closed) = watch::channel(false);
        let task = tokio::spawn(collector.run(waiting, closed));
        Ok(Self(Some(Arc::new(Inner {
            sampler: settings.sampler,
            queue,
            full: metrics::counter!(DROPPED, "reason" => "queue_full"),
            closing,
            task: Mutex::new(Some(task)),
        }))))
    }

    /// Nothing is sent by this build.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "otlp"))]
    pub fn start(_: &Settings) -> Result<Self, SpansError> {
        Err(SpansError::NotBuilt)
    }

    /// What decides of each trace whether its spans are sent; none where none are.
    pub fn sampler(&self) -> Option<&Sampler> {
        self.0.as_deref().map(|inner| &inner.sampler)
    }

    /// Sends a span, sooner or later; never waits.
    pub fn send(&self, span: Span) {
        if let Some(inner) = &self.0
            && inner.queue.try_send(span).is_err()
        {
            inner.full.increment(1);
        }
    }

    /// Sends what is left, for at most `deadline`: true, or false where some of it was not sent. Later spans are dropped.
    pub async fn close(&self, deadline: Duration) -> bool {
        let Some(inner) = &self.0 else { return true };
        inner.closing.send_replace(true);
        let task = inner.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut task) = task else { return true };
        let sent = tokio::time::timeout(deadline, &mut task).await.is_ok();
        if !sent {
            task.abort();
            tracing::warn!("the last spans could not be sent in time");
        }
        sent
    }
}

#[cfg(test)]
#[cfg(feature = "otlp")]
mod tests;

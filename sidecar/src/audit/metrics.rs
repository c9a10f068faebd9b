//! The audit's metrics. `docs/metrics.md` lists them; a test compares.

use std::time::Duration;

use aip_audit::record::Event;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// Records, by kind.
const RECORDS: &str = "aip_audit_records_total";
/// Bytes of records.
const BYTES: &str = "aip_audit_bytes_total";
/// Records that could not be written.
const LOST: &str = "aip_audit_lost_total";
/// Seconds of a flush.
const FLUSH_SECONDS: &str = "aip_audit_flush_seconds";
/// Whether there is a log that takes records.
const OPEN: &str = "aip_audit_log_open";
/// Records that no checkpoint covers.
const UNSIGNED: &str = "aip_audit_unsigned_records";
const UNSIGNED_SECONDS: &str = "aip_audit_unsigned_seconds";
/// Bytes that the control plane does not have.
const UNSENT: &str = "aip_audit_unsent_bytes";
/// Times that the thread which brings records to disk failed.
const PANICS: &str = "aip_audit_thread_failures_total";
/// What the control plane refused.
const REFUSED: &str = "aip_audit_refused_total";

/// Kinds of records.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Decision,
    End,
    Strangers,
    Gap,
    Dropped,
}

impl Kind {
    pub(super) const fn of(event: &Event) -> Self {
        match event {
            Event::Decision(_) => Self::Decision,
            Event::End(_) => Self::End,
            Event::Strangers(_) => Self::Strangers,
            Event::Gap(_) => Self::Gap,
            Event::Dropped(_) => Self::Dropped,
        }
    }
}

/// Handles, registered once.
pub(super) struct Metrics {
    records: [Counter; 5],
    bytes: Counter,
    flush: Histogram,
    open: Gauge,
    unsigned: Gauge,
    unsigned_seconds: Gauge,
    unsent: Gauge,
}

impl Metrics {
    pub(super) fn register() -> Self {
        Self {
            records: ["decision", "end", "strangers", "gap", "dropped"].map(|kind| counter!(RECORDS, "kind" => kind)),
            bytes: counter!(BYTES),
            flush: histogram!(FLUSH_SECONDS),
            open: gauge!(OPEN),
            unsigned: gauge!(UNSIGNED),
            unsigned_seconds: gauge!(UNSIGNED_SECONDS),
            unsent: gauge!(UNSENT),
        }
    }

    pub(super) fn recorded(&self, kind: Kind, bytes: u64) {
        self.records[kind as usize].increment(1);
        self.bytes.increment(bytes);
    }

    pub(super) fn lost(&self, reason: &'static str, records: u64) {
        counter!(LOST, "reason" => reason).increment(records);
    }

    pub(super) fn flushed(&self, took: Duration) {
        self.flush.record(took.as_secs_f64());
    }

    pub(super) fn open(&self, open: bool) {
        self.open.set(if open { 1.0 } else { 0.0 });
    }

    pub(super) fn unsigned(&self, records: u64, oldest: Duration) {
        self.unsigned.set(records as f64);
        self.unsigned_seconds.set(oldest.as_secs_f64());
    }

    pub(super) fn unsent(&self, bytes: u64) {
        self.unsent.set(bytes as f64);
    }

    pub(super) fn panicked(&self) {
        counter!(PANICS).increment(1);
    }

    pub(super) fn refused(&self, reason: &'static str) {
        counter!(REFUSED, "reason" => reason).increment(1);
    }
}

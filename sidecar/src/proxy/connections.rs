//! Live connections: who is at the other end, and what ends them before their time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aip_policy::Direction;
use aip_runtime::unix_now;
use aip_runtime::x509::PeerIdentity;
use dashmap::DashMap;
use serde::Serialize;
use tokio::sync::Notify;

use super::limits::RETIRE_BEFORE_EXPIRY;
use crate::request::refusal::Cut;

/// A connection with a verified peer.
#[derive(Debug)]
pub struct Live {
    /// Who is at the other end.
    pub peer: PeerIdentity,
    /// Who opened it: the peer (inbound) or we (outbound).
    pub direction: Direction,
    /// Unix seconds at which one of the two certificates ends.
    pub expires: u64,
    since: Instant,
    requests: AtomicU64,
    cut: AtomicU8,
    notify: Notify,
}

impl Live {
    /// Cuts the connection and everything on it. The first reason stays.
    pub(crate) fn cut(&self, cut: Cut) {
        let first = self
            .cut
            .compare_exchange(0, cut as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first {
            super::metrics::connection_cut(cut);
            tracing::info!(peer = %self.peer.id, serial = self.peer.serial, reason = cut.reason(), "connection cut");
        }
        self.notify.notify_waiters();
        // Also for whoever has not begun to wait.
        self.notify.notify_one();
    }

    /// Why it was cut, if it was.
    pub(crate) fn is_cut(&self) -> Option<Cut> {
        Cut::from_code(self.cut.load(Ordering::Acquire))
    }

    /// Resolves when it is cut, or when a certificate expires: the connection ends then.
    pub(crate) async fn ended(&self) -> Cut {
        let until_expiry = tokio::time::sleep(self.remaining());
        tokio::pin!(until_expiry);
        loop {
            if let Some(cut) = self.is_cut() {
                return cut;
            }
            tokio::select! {
                () = self.notify.notified() => {}
                // Looks at the clock again: a machine that slept counts no time.
                () = &mut until_expiry => self.cut(Cut::Expired),
            }
        }
    }

    /// Resolves a moment before that: no new requests from then on.
    pub(crate) async fn retires(&self) {
        let remaining = self.remaining();
        tokio::time::sleep(remaining - RETIRE_BEFORE_EXPIRY.min(remaining / 4)).await;
    }

    fn remaining(&self) -> Duration {
        Duration::from_secs(self.expires.saturating_sub(unix_now()))
    }

    /// Why it ends where this sidecar has no SVID any more: that has expired, or was taken away.
    pub(crate) fn without_ours(&self) -> Cut {
        if self.remaining().is_zero() {
            Cut::Expired
        } else {
            Cut::Suspended
        }
    }

    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection as an operator sees it.
#[derive(Debug, Serialize)]
struct Shown {
    direction: &'static str,
    peer: String,
    serial: String,
    generation: u64,
    expires: u64,
    age_seconds: u64,
    requests: u64,
}

/// The live connections of this sidecar.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    live: DashMap<u64, Arc<Live>>,
    next: AtomicU64,
}

/// A connection's place among the live ones, until it is dropped.
pub(crate) struct Registered {
    proxy: Arc<super::Proxy>,
    id: u64,
    /// The connection.
    pub(crate) live: Arc<Live>,
}

impl Registered {
    /// Cuts the requests on it.
    pub(crate) fn cut_streams(&self, cut: Cut) {
        self.proxy.streams.cut_on(&self.live, cut);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.proxy.live.live.remove(&self.id);
        self.proxy.metrics.connections(self.live.direction, -1.0);
    }
}

impl Connections {
    /// Registers a connection; what was revoked since its handshake is cut at once.
    pub(crate) fn register(
        proxy: &Arc<super::Proxy>,
        peer: PeerIdentity,
        direction: Direction,
        own: u64,
    ) -> Registered {
        let live = Arc::new(Live {
            expires: peer.not_after.min(own),
            peer,
            direction,
            since: Instant::now(),
            requests: AtomicU64::new(0),
            cut: AtomicU8::new(0),
            notify: Notify::new(),
        });
        let id = proxy.live.next.fetch_add(1, Ordering::Relaxed);
        proxy.live.live.insert(id, live.clone());
        proxy.metrics.connections(direction, 1.0);
        // Registered first: a revocation that lands now is seen here or by whoever walks the list.
        if let Some(reason) = proxy.trust.load().revoked(&live.peer) {
            live.cut(Cut::of_revocation(reason));
        }
        Registered {
            proxy: proxy.clone(),
            id,
            live,
        }
    }

    /// Calls `look` with each of them.
    pub(crate) fn each(&self, mut look: impl FnMut(&Live)) {
        let all: Vec<Arc<Live>> = self.live.iter().map(|entry| entry.value().clone()).collect();
        all.iter().for_each(|live| look(live));
    }

    pub(crate) fn list(&self) -> serde_json::Value {
        let mut shown = Vec::new();
        self.each(|live| {
            shown.push(Shown {
                direction: live.direction.as_str(),
                peer: live.peer.id.to_string(),
                serial: live.peer.serial.clone(),
                generation: live.peer.result.generation,
                expires: live.expires,
                age_seconds: live.since.elapsed().as_secs(),
                requests: live.requests.load(Ordering::Relaxed),
            });
        });
        serde_json::to_value(shown).unwrap_or_default()
    }
}

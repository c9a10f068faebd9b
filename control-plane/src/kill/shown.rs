//! Where a set stands, as it is shown.

use serde::Serialize;
use utoipa::ToSchema;

/// A sidecar that has enforced a set, and has it on disk.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Enforced {
    /// `agent/instance`.
    pub sidecar: String,
    /// Milliseconds from the commit to its acknowledgement; absent for a commit that this process does not remember.
    pub ms: Option<f64>,
    /// Microseconds that it took at the sidecar.
    pub enforced_micros: u64,
    /// Connections that were cut for it.
    pub connections_cut: u64,
    /// Streams, tunnels and waiting requests that were cut for it.
    pub streams_cut: u64,
}

/// A sidecar that has not.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Missing {
    /// `agent/instance`.
    pub sidecar: String,
    /// Whether its stream is open.
    pub connected: bool,
    /// Why it did not take the set, where it said so.
    pub rejected: Option<String>,
    /// Unix seconds by which it has certainly stopped.
    pub stopped_by: u64,
    /// What stops it then: `lease` or `svid`.
    pub stopped_how: &'static str,
}

/// An agent with no sidecar that is known to run, and with an SVID that has not ended: one that is started again out of
/// reach goes on with what it holds.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Away {
    /// Its name.
    pub agent: String,
    /// Unix seconds by which no sidecar of it serves that has not come by here.
    pub stopped_by: u64,
}

/// A sidecar, as far as orders to stop are concerned.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Standing {
    /// Whose.
    pub agent: String,
    /// The process.
    pub instance: String,
    /// Term and epoch of the highest set that it has enforced and has on disk, as far as is known.
    pub enforced: Option<(u64, u64)>,
    /// Unix seconds until which it may go on without being heard of: a lease that denies, else its SVID.
    pub runs_until: u64,
    /// What stops it then: `lease` or `svid`.
    pub stopped_how: &'static str,
    /// Unix seconds since which its kill stream is down; absent while it is up.
    pub unreachable_since: Option<u64>,
    /// It has said that it ends.
    pub drained: bool,
}

/// Where a set stands.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Progress {
    /// Its term.
    pub term: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Sidecars that have enforced it, or a later one.
    pub enforced: Vec<Enforced>,
    /// Sidecars that have not, and may say so soon: ones with a stream, and ones whose stream broke off a moment ago.
    pub missing: Vec<Missing>,
    /// Sidecars that have not, and have been out of reach for longer. Nobody waits for them; each has certainly stopped at its time.
    pub vanished: Vec<Missing>,
    /// As the vanished, and they have reported a drift before: they serve nothing, and their agents' processes may run on.
    /// Nobody waits for them.
    pub drifted: Vec<Missing>,
    /// Agents of which nothing is known to run. Nobody waits for them.
    pub away: Vec<Away>,
    /// Unix seconds until which sidecars may serve of which nothing is known at all, since the store was restored from a copy; absent
    /// where it was not, and once that is over. Nobody waits for them.
    pub unknown_until: Option<u64>,
    /// Half of the acknowledgements came within so many milliseconds of the commit.
    pub p50_ms: Option<f64>,
    /// 99 of 100 did.
    pub p99_ms: Option<f64>,
    /// The last one so far did.
    pub last_ms: Option<f64>,
}

impl Progress {
    /// With the times of what is enforced.
    pub(super) fn timed(mut self) -> Self {
        let mut times: Vec<f64> = self.enforced.iter().filter_map(|enforced| enforced.ms).collect();
        times.sort_by(f64::total_cmp);
        // The smallest that this share of all does not exceed.
        let at = |share: f64| {
            let rank = (share * times.len() as f64).ceil() as usize;
            times.get(rank.saturating_sub(1)).copied()
        };
        (self.p50_ms, self.p99_ms, self.last_ms) = (at(0.5), at(0.99), times.last().copied());
        self
    }
}

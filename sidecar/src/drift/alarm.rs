//! From what was seen to a suspension: stop serving, make it last, then find out what runs now.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aip_api::Digest;
use aip_api::evidence::MAX_DRIFTED_NAMED;
use aip_runtime::backoff::Backoff;
use aip_runtime::svid::SvidSource;
use aip_runtime::unix_now;

use super::suspension::{Marker, Suspension};
use crate::config::Config;
use crate::identity::{Measurement, measure};

/// First and last bound of the wait between attempts to write a marker that the disk did not take: it must be there
/// soon after there is room, and a full disk is not written to without end.
const WRITE_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Suspends this sidecar. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Alarm {
    config: Arc<Config>,
    svid: SvidSource,
    suspension: Suspension,
    /// What was measured when the SVID in use was issued.
    measured: Arc<Mutex<Option<Arc<Measurement>>>>,
    /// A task tries to write the marker.
    trying: Arc<AtomicBool>,
}

impl Alarm {
    /// An alarm that has not gone off.
    pub fn new(config: Arc<Config>, svid: SvidSource, suspension: Suspension) -> Self {
        Self {
            config,
            svid,
            suspension,
            measured: Arc::default(),
            trying: Arc::default(),
        }
    }

    /// Whether this sidecar serves.
    pub fn suspension(&self) -> &Suspension {
        &self.suspension
    }

    /// Notes what the agent is to be from now on.
    pub fn expect(&self, measured: Measurement) {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(measured));
    }

    /// What the agent is to be.
    pub fn expected(&self) -> Option<Arc<Measurement>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this is what the agent is to be.
    pub fn fits(&self, measured: &Measurement) -> bool {
        let name = &self.config.name;
        self.expected()
            .is_none_or(|expected| expected.fingerprint(name) == measured.fingerprint(name))
    }

    /// Suspends, for these paths changed; then measures what is there now. Returns once that is on disk.
    pub async fn raise(&self, changed: Vec<String>) {
        let generation = self.svid.current().map_or(0, |svid| svid.result().generation);
        let was = self
            .expected()
            .map_or_else(|| Digest::sha256(b""), |expected| expected.code);
        self.raise_as(changed, generation, was).await;
    }

    /// The same for what a process before this one had measured.
    pub async fn raise_as(&self, changed: Vec<String>, generation: u64, was: Digest) {
        let count = changed.len() as u64;
        let marker = Marker {
            run: self.config.run.clone(),
            generation,
            was,
            found: None,
            measurement: None,
            files: 0,
            paths: changed.into_iter().take(MAX_DRIFTED_NAMED).collect(),
            changed: count,
            at: unix_now(),
            reported: false,
        };
        if !self.suspension.begin(marker) {
            return;
        }
        metrics::counter!("aip_drifts_total").increment(1);
        metrics::gauge!("aip_drifted").set(1.0);
        let names = self.suspension.marker().map(|m| m.names()).unwrap_or_default();
        tracing::error!(
            reason = "drifted",
            changed = names,
            "the agent is not what was approved any more; nothing is served until it is approved and restarted"
        );
        self.persist().await;
        self.complete().await;
    }

    /// Finds out what lies there now, and writes that down, too.
    pub async fn complete(&self) {
        let declared = self.config.measured.clone();
        let found = tokio::task::spawn_blocking(move || measure(&declared)).await;
        match found {
            Ok(Ok(found)) => self.found(&found),
            Ok(Err(error)) => tracing::warn!(reason = error.reason(), %error, "what runs now can't be measured"),
            Err(error) => tracing::warn!(%error, "what runs now was not measured"),
        }
        self.persist().await;
        self.suspension.settle();
    }

    fn found(&self, found: &Measurement) {
        let expected = self.expected();
        self.suspension.amend(|marker| {
            marker.found = Some(found.code);
            marker.files = found.files.len();
            marker.measurement = Some(found.approvable(&self.config.name));
            // Where only the measurement told, it also says where.
            if let (true, Some(expected)) = (marker.paths.is_empty(), expected) {
                let differing = differing(&expected, found);
                marker.changed = differing.len() as u64;
                marker.paths = differing.into_iter().take(MAX_DRIFTED_NAMED).collect();
            }
        });
    }

    /// Writes the marker. Where the disk does not take it, a task tries again until it does: nobody waits for that, since
    /// this process stays suspended whether it is written or not.
    async fn persist(&self) {
        if self.is_written().await || self.trying.swap(true, Ordering::AcqRel) {
            return;
        }
        let alarm = self.clone();
        tokio::spawn(async move {
            let mut backoff = Backoff::new(WRITE_AGAIN.0, WRITE_AGAIN.1);
            loop {
                tokio::time::sleep(backoff.next()).await;
                if alarm.is_written().await {
                    tracing::info!("the drift marker is written");
                    break;
                }
            }
            alarm.trying.store(false, Ordering::Release);
        });
    }

    async fn is_written(&self) -> bool {
        let suspension = self.suspension.clone();
        let written = tokio::task::spawn_blocking(move || suspension.persist()).await;
        let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        if let Err(error) = &written {
            // Until it is there, a successor of this process knows of the drift by measuring alone.
            tracing::error!(reason = "drift_not_kept", %error, "the drift marker is not written; trying again");
        }
        written.is_ok()
    }
}

/// The paths that are in one only, or of other content in both.
fn differing(before: &Measurement, after: &Measurement) -> Vec<String> {
    let gone = before.files.iter().filter(|f| !after.files.contains(f));
    let come = after.files.iter().filter(|f| !before.files.contains(f));
    let mut all: Vec<String> = gone.chain(come).map(|f| f.path.clone()).collect();
    if before.executable != after.executable {
        all.push("the executable".into());
    }
    if before.config != after.config {
        all.push("the configuration".into());
    }
    all.sort();
    all.dedup();
    all
}

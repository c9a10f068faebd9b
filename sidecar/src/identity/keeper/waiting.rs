//! Between two attempts to get an SVID: what waits for a person's approval may be edited meanwhile.

use aip_runtime::backoff::Backoff;

use super::{Keeper, RETRY};
use crate::config::Measured;
use crate::identity::{JoinError, MeasureError, Measurement, measure};

impl Keeper {
    /// Waits before the next attempt, which shows what lies there then: while nobody approves, it may be edited.
    pub(super) async fn retry_later(&self, error: &JoinError, backoff: &mut Backoff, shown: &mut Measurement) {
        let wait = backoff.next();
        tracing::warn!(reason = error.reason(), %error, wait_ms = wait.as_millis() as u64, "no SVID yet; trying again");
        let name = &self.config.name;
        if error.waits_for_approval() {
            self.supervisor.waits_for(shown.fingerprint(name));
        }
        tokio::time::sleep(wait).await;
        let now = loop {
            match measured(&self.config.measured).await {
                Ok(now) => break now,
                // In the middle of an edit. What was measured before is not asked for: it lies there no more.
                Err(error) => {
                    tracing::warn!(reason = error.reason(), %error, "what runs can't be measured; trying again");
                    tokio::time::sleep(RETRY.0).await;
                }
            }
        };
        if now.fingerprint(name) == shown.fingerprint(name) {
            return;
        }
        tracing::warn!(
            reason = "measurement_changed",
            measurement = %now.fingerprint(name),
            "the agent was edited before there was an SVID: asking with what lies there now"
        );
        self.alarm.expect(now.clone());
        *shown = now;
        backoff.reset();
    }
}

/// What is there now.
pub(super) async fn measured(declared: &Measured) -> Result<Measurement, JoinError> {
    let declared = declared.clone();
    let measured = tokio::task::spawn_blocking(move || measure(&declared)).await;
    // A panic of the task is the only other way out, and there is none in it.
    measured
        .unwrap_or_else(|e| Err(MeasureError::Glob(e.to_string())))
        .map_err(JoinError::from)
}

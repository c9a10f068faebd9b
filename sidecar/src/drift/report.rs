//! Tells the control plane, over and over until it answers. This sidecar is suspended before, and stays so whatever the
//! answer is.
//!
//! It says it again each time that the control plane lets it in anew: that may be one that was restored from a copy of
//! before the report, and a report that is known already changes nothing.

use std::sync::Arc;
use std::time::Duration;

use aip_api::evidence::{DRIFT_TYP, Drift};
use aip_api::wire;
use aip_runtime::backoff::Backoff;
use aip_runtime::grpc::{self, identity_client::IdentityClient};
use aip_runtime::svid::SvidSource;
use aip_runtime::trust::Trust;
use aip_runtime::{jws, tls, unix_now};
use tokio::sync::watch;

use super::suspension::Suspension;
use crate::config::Config;
use crate::identity::revoked::means_revoked;

/// First and last bound of the wait between attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long the report waits for what was found. The agent is cut off already; its peers still hold an SVID of it for good.
const SETTLED: Duration = Duration::from_secs(1);
/// How long one attempt may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a report did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Nothing to sign it with.
    #[error("there is no SVID to sign the report with; evidence will say it when the agent joins again")]
    NoSvid,
    /// Signing failed.
    #[error("the report can't be signed: {0}")]
    Signing(#[from] jws::JwsError),
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The control plane can't be reached.
    #[error(transparent)]
    Channel(#[from] grpc::ChannelError),
    /// It refused, or broke off.
    #[error("the control plane did not take the report ({}): {}", grpc::reason(.0).unwrap_or("no_answer"), .0.message())]
    Refused(Box<tonic::Status>),
    /// It did not answer in time.
    #[error("the control plane did not answer in time")]
    Timeout,
    /// It takes the SVID that the report is signed with no more.
    #[error("the control plane has revoked the SVID of the report ({0})")]
    Revoked(String),
}

impl ReportError {
    /// The same, or that it is for a revocation: as the handshake told, or the refusal.
    fn or_revoked(self, heard: Option<&'static str>) -> Self {
        let refused = match &self {
            Self::Refused(status) => grpc::reason(status).filter(|reason| means_revoked(reason)),
            _ => None,
        };
        match heard.or(refused) {
            Some(reason) => Self::Revoked(reason.to_owned()),
            None => self,
        }
    }
}

/// Reports for one sidecar.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// Who.
    pub config: Arc<Config>,
    /// With whose key.
    pub svid: SvidSource,
    /// Whom it trusts to be the control plane.
    pub trust: Trust,
    /// What is reported.
    pub suspension: Suspension,
    /// How often the control plane has answered a greeting of this process, as [`crate::mesh::client::Client::answered`]
    /// counts.
    pub answers: watch::Receiver<u64>,
}

impl Reporter {
    /// Waits for a suspension, and reports it until that was answered; then once more after each further answer to a
    /// greeting, since it may be of a control plane that knows nothing of the report.
    pub async fn run(mut self) {
        let mut suspended = self.suspension.subscribe();
        if suspended.wait_for(|on| *on).await.is_err() {
            return;
        }
        // Written down, and measured: a person approves what the report says was found.
        let _ = tokio::time::timeout(SETTLED, self.suspension.settled()).await;
        if self.suspension.marker().is_some_and(|marker| !marker.reported) {
            self.answers.mark_unchanged();
            self.until_answered().await;
        }
        while self.answers.changed().await.is_ok() {
            self.until_answered().await;
        }
    }

    /// Reports until the control plane took it, or takes nothing of this SVID any more. The latter is its own word: what
    /// this sidecar holds of revocations may be of before it was restored.
    async fn until_answered(&self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.once().await {
                Ok(generation) => {
                    tracing::warn!(
                        generation,
                        "the drift is reported; SVIDs of earlier generations are revoked"
                    );
                    return self.answered().await;
                }
                Err(ReportError::Revoked(reason)) => {
                    tracing::warn!(
                        reason,
                        "the SVID is revoked; whether by this report or by an operator, nobody takes it"
                    );
                    return self.answered().await;
                }
                Err(error) => {
                    let wait = backoff.next();
                    tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "the drift is not reported yet; trying again");
                    metrics::counter!("aip_drift_report_failures_total").increment(1);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// One attempt; answers the generation that begins.
    ///
    /// # Errors
    /// As [`ReportError`] lists.
    pub async fn once(&self) -> Result<u64, ReportError> {
        let (svid, marker) = (self.svid.current(), self.suspension.marker());
        let (Some(svid), Some(marker)) = (svid, marker) else {
            return Err(ReportError::NoSvid);
        };
        let drift = Drift {
            v: 1,
            agent: self.config.name.clone(),
            generation: svid.result().generation,
            was: marker.was,
            found: marker.found,
            measurement: marker.measurement.clone(),
            files: marker.files,
            run: marker.run.clone(),
            paths: marker.paths.clone(),
            changed: marker.changed.max(marker.paths.len() as u64),
            at: marker.at,
            iat: unix_now(),
        };
        let statement = jws::sign_es256(svid.pkcs8(), DRIFT_TYP, &drift)?;
        let tls = tls::control_plane_client(Some(self.svid.slot()), &self.trust)?;
        let heard = tls::Heard::default();
        let asked = async {
            let channel = grpc::channel_hearing(self.config.control_plane, tls, &heard).await?;
            let mut stub = IdentityClient::new(channel);
            let answer = stub.report_drift(wire::DriftReport { statement }).await;
            let answer = answer.map_err(|status| ReportError::Refused(Box::new(status)))?;
            Ok(answer.into_inner().generation)
        };
        let said = tokio::time::timeout(ANSWER, asked)
            .await
            .unwrap_or(Err(ReportError::Timeout));
        said.map_err(|error| error.or_revoked(heard.revocation()))
    }

    async fn answered(&self) {
        if self.suspension.marker().is_none_or(|marker| marker.reported) {
            return;
        }
        self.suspension.amend(|marker| marker.reported = true);
        let suspension = self.suspension.clone();
        let written = tokio::task::spawn_blocking(move || suspension.persist()).await;
        if let Ok(Err(error)) = written {
            // It will be said again, which changes nothing.
            tracing::warn!(%error, "that the drift was reported is not on disk");
        }
    }
}

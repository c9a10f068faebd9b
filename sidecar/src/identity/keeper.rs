//! Keeps an SVID current: the first one from the vault or by joining, then a renewal at half of its life.

mod lapse;
mod renewing;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use aip_api::Digest;
use aip_api::token::JoinToken;
use aip_runtime::backoff::Backoff;
use aip_runtime::ready::Readiness;
use aip_runtime::svid::{PendingKey, Svid, SvidSource};
use aip_runtime::tls;
use aip_runtime::trust::Trust;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::revoked::Revoked;
use super::{JoinError, Joined, Joiner, Measurement, SealedIdentity, Vault};
use crate::config::Config;
use crate::drift::report::Reporter;
use crate::drift::{Alarm, Marker, Suspension};
use crate::kill::supervisor::Supervisor;
use crate::mesh::world::Origin;
use waiting::measured;

/// First and last bound of the wait between attempts to get an SVID.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Gets and keeps the SVID of one sidecar.
pub struct Keeper {
    config: Arc<Config>,
    joiner: Joiner,
    svid: SvidSource,
    trust: Trust,
    vault: Option<Vault>,
    ready: Readiness,
    origins: mpsc::Sender<Origin>,
    alarm: Alarm,
    revoked: Revoked,
    supervisor: Supervisor,
}

/// What an SVID comes to: the kept one, a new one, or what a token must be shown for.
enum Kept {
    Serves(Origin),
    /// Suspended: it only reports, and refuses what comes.
    Suspended(Origin),
    Nothing,
}

impl Keeper {
    /// A keeper; renewed roots and keys go to `origins`.
    pub fn new(
        config: Arc<Config>,
        svid: SvidSource,
        trust: Trust,
        vault: Option<Vault>,
        ready: Readiness,
        origins: mpsc::Sender<Origin>,
        alarm: Alarm,
    ) -> Self {
        let joiner = Joiner {
            agent: config.name.clone(),
            control_plane: config.control_plane,
            run: config.run.clone(),
            suspension: alarm.suspension().clone(),
        };
        Self {
            config,
            joiner,
            svid,
            trust,
            vault,
            ready,
            origins,
            alarm,
            revoked: Revoked::default(),
            supervisor: Supervisor::default(),
        }
    }

    /// The same, which hears here that its SVID is revoked.
    #[must_use]
    pub fn told_by(self, revoked: Revoked) -> Self {
        Self { revoked, ..self }
    }

    /// The same, which says there what a person must approve.
    #[must_use]
    pub fn telling(self, supervisor: Supervisor) -> Self {
        Self { supervisor, ..self }
    }

    fn suspension(&self) -> &Suspension {
        self.alarm.suspension()
    }

    /// The first SVID: the kept one if the agent still measures the same, else a new one by token. Tries until it can
    /// be had, or until trying is pointless. A run of the agent that drifted gets none: this sidecar then knows its kept
    /// one, to report with, and serves nothing.
    ///
    /// # Errors
    /// Trying again can't help.
    pub async fn first(&self) -> Result<Origin, JoinError> {
        if let Some(marker) = self.suspension().marker() {
            return self.after_drift(&marker).await;
        }
        let mut measured = measured(&self.config.measured).await?;
        self.alarm.expect(measured.clone());
        if measured.is_of_nothing() {
            tracing::warn!(
                reason = "nothing_measured",
                "neither --code nor --executable is given: the attestation says nothing about what this agent runs"
            );
        } else if measured.is_of_foreign_program(&self.config.measured) {
            tracing::warn!(
                reason = "only_program_measured",
                "no file is measured, only a program that lies outside the root, as interpreters do, and its command \
                 line: any code that it loads is attested alike; declare that code with --code"
            );
        }
        match self.kept(&mut measured).await? {
            Kept::Serves(origin) | Kept::Suspended(origin) => Ok(origin),
            Kept::Nothing => self.join(&mut measured).await,
        }
    }

    /// What a sidecar does that finds itself suspended.
    async fn after_drift(&self, marker: &Marker) -> Result<Origin, JoinError> {
        let kept = self.vault.as_ref().and_then(|vault| vault.load().ok().flatten());
        let kept = kept.filter(|kept| kept.svid.id().agent == self.config.name);
        let drifted = || JoinError::Drifted {
            agent: self.config.name.clone(),
            changed: marker.names(),
        };
        let same_run = marker.run == self.config.run;
        tracing::warn!(
            reason = "drifted",
            changed = marker.names(),
            since = marker.at,
            restarted = !same_run,
            "this sidecar suspended itself before, and serves nothing until its agent is approved and restarted"
        );
        metrics::gauge!("aip_drifted").set(1.0);
        if same_run {
            if marker.found.is_none() && !marker.reported {
                // The process before this one ended before it knew.
                self.alarm.complete().await;
            }
            return kept.ok_or_else(drifted).and_then(|kept| self.only_report(kept));
        }
        let let_back_in = |kept: &SealedIdentity| {
            kept.run.as_deref() == Some(&self.config.run) && kept.svid.result().generation > marker.generation
        };
        if kept.as_ref().is_some_and(let_back_in) {
            // The process before this one ended in the moment between the new SVID and the end of the marker.
            return self.serve_again().await;
        }
        if let Some(kept) = kept {
            self.only_report(kept)?;
            // With what changed; what follows tells without it. Also what was reported: the control plane may have been
            // restored from a copy of before that.
            if let Err(error) = self.reporter().once().await {
                tracing::warn!(%error, "the drift is not reported now; the evidence says it");
            }
            self.svid.clear();
        }
        let mut measured = measured(&self.config.measured).await?;
        self.alarm.expect(measured.clone());
        if self.config.join_token_file.is_none() && std::env::var_os(TOKEN_VARIABLE).is_none() {
            return Err(drifted());
        }
        let origin = self.join(&mut measured).await?;
        self.end_suspension()?;
        Ok(origin)
    }

    async fn serve_again(&self) -> Result<Origin, JoinError> {
        self.end_suspension()?;
        Box::pin(self.first()).await
    }

    fn end_suspension(&self) -> Result<(), JoinError> {
        let ended = self.suspension().end();
        ended.map_err(|source| JoinError::Marker(source.to_string()))?;
        metrics::gauge!("aip_drifted").set(0.0);
        self.ready.set("identity", self.svid.current().is_some());
        tracing::info!("approved and restarted: this sidecar serves again");
        Ok(())
    }

    fn reporter(&self) -> Reporter {
        Reporter {
            config: self.config.clone(),
            svid: self.svid.clone(),
            trust: self.trust.clone(),
            suspension: self.suspension().clone(),
            // Nobody greets yet: it says it once.
            answers: tokio::sync::watch::channel(0).1,
        }
    }

    /// Holds an SVID for nothing but reports.
    fn only_report(&self, kept: SealedIdentity) -> Result<Origin, JoinError> {
        self.trust.store(Arc::new(kept.origin.trust()));
        self.svid.set(kept.svid)?;
        Ok(kept.origin)
    }

    /// A new SVID by token.
    async fn join(&self, measured: &mut Measurement) -> Result<Origin, JoinError> {
        let token = join_token(&self.config).inspect_err(|_| self.supervisor.needs_token(None))?;
        let key = match &self.vault {
            Some(vault) => vault.pending_key(&token.id_text())?,
            None => PendingKey::generate()?,
        };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            // One key for all attempts: a reply that got lost can be had again with the same key only.
            match self.joiner.with_token(&token, &key, measured).await {
                Ok(joined) => {
                    return self
                        .adopt(joined, measured.fingerprint(&self.config.name))
                        .map_err(JoinError::from);
                }
                Err(error) if error.retryable() => self.retry_later(&error, &mut backoff, measured).await,
                Err(error) => {
                    // Whoever starts this sidecar again may have one by then.
                    if error.needs_token() {
                        self.supervisor.needs_token(Some(&token.id_text()));
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The kept identity, if the agent measures as it did when it was issued. If it measures otherwise, the kept one
    /// only proves who asks: a new one is issued when the new measurement is approved. In the same run of the agent that is
    /// drift: what it loaded is not what lies there now.
    async fn kept(&self, measured: &mut Measurement) -> Result<Kept, JoinError> {
        let Some(vault) = &self.vault else {
            return Ok(Kept::Nothing);
        };
        let kept = match vault.load() {
            Ok(Some(kept)) => kept,
            Ok(None) => return Ok(Kept::Nothing),
            Err(error) => {
                tracing::warn!(reason = "kept_identity_unusable", %error, "the kept identity is not used; joining anew");
                return Ok(Kept::Nothing);
            }
        };
        if kept.svid.id().agent != self.config.name {
            tracing::warn!(kept = %kept.svid.id(), "the kept identity is another agent's; joining anew");
            return Ok(Kept::Nothing);
        }
        self.trust.store(Arc::new(kept.origin.trust()));
        if kept.measured == measured.fingerprint(&self.config.name) {
            tracing::info!(id = %kept.svid.id(), "serving from the kept identity");
            self.svid.set(kept.svid)?;
            self.ready.set("identity", true);
            return Ok(Kept::Serves(kept.origin));
        }
        if kept.run.as_deref() == Some(self.config.run.as_str()) {
            let (generation, was) = (kept.svid.result().generation, kept.svid.result().code);
            self.alarm.raise_as(Vec::new(), generation, was).await;
            return self.only_report(kept).map(Kept::Suspended);
        }
        tracing::warn!(
            reason = "measurement_changed",
            "the agent measures otherwise than when its SVID was issued"
        );
        self.rejoin(kept.svid, measured).await
    }

    /// Asks for a new SVID with the old one as credential, presented nowhere but to the control plane.
    async fn rejoin(&self, old: Svid, measured: &mut Measurement) -> Result<Kept, JoinError> {
        let slot = aip_runtime::tls::IdentitySlot::default();
        slot.set(&old.chain, old.pkcs8())?;
        let key = PendingKey::generate()?;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self
                .joiner
                .with_svid(&slot, &self.trust, &key, measured, &tls::Heard::default())
                .await
            {
                Ok(joined) => {
                    return self
                        .adopt(joined, measured.fingerprint(&self.config.name))
                        .map(Kept::Serves)
                        .map_err(JoinError::from);
                }
                Err(error) if error.retryable() => self.retry_later(&error, &mut backoff, measured).await,
                Err(error) if self.config.join_token_file.is_some() => {
                    tracing::warn!(reason = error.reason(), %error, "the old SVID is no credential any more; using the token");
                    return Ok(Kept::Nothing);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn adopt(&self, joined: Joined, measured: Digest) -> Result<Origin, aip_runtime::tls::TlsError> {
        let Joined { svid, origin } = joined;
        if let Some(vault) = &self.vault {
            match vault.store(&svid, &origin, measured, &self.config.run) {
                Ok(()) => vault.forget_pending_key(),
                // Serving goes on: only a restart without a control plane is lost.
                Err(error) => {
                    tracing::error!(reason = "identity_not_kept", %error, "a restart will need the control plane");
                }
            }
        }
        tracing::info!(
            id = %svid.id(), serial = svid.identity.serial, not_after = svid.identity.not_after,
            generation = svid.result().generation, "SVID issued"
        );
        let lives = svid.identity.not_after.saturating_sub(svid.result().iat);
        metrics::gauge!("aip_svid_lifetime_seconds").set(lives as f64);
        metrics::gauge!("aip_svid_not_after_seconds").set(svid.identity.not_after as f64);
        self.svid.set(svid)?;
        self.revoked.given_up().clear();
        self.ready.set("identity", !self.suspension().is_on());
        Ok(origin)
    }

    /// Renews for as long as the process lives. An SVID that expires is taken away: no handshake succeeds, and the
    /// sidecar is not ready.
    pub async fn keep(self) {
        let mut suspended = self.suspension().subscribe();
        tokio::select! {
            // A suspended sidecar renews nothing: what it would be attested as is not approved.
            _ = suspended.wait_for(|on| *on) => self.ready.set("identity", false),
            () = self.renew_forever() => {}
            // By itself: an attempt to renew may hang for longer than the SVID lives.
            () = self.clear_expired() => {}
            () = self.clear_revoked() => {}
        }
    }

    /// Gives up an SVID that the control plane takes no more, the kept copy first: a restart may not bring it back.
    async fn clear_revoked(&self) {
        loop {
            let said = self.revoked.of(&self.svid).await;
            tracing::error!(
                reason = said.reason,
                serial = said.serial,
                "the control plane has revoked this SVID; nothing is served until a new join token gets another"
            );
            self.give_up(&self.svid);
        }
    }

    /// Presents it from now on to nobody, but to be told of orders to stop.
    fn give_up(&self, revoked: &SvidSource) {
        if let Some(Err(error)) = self.vault.as_ref().map(Vault::forget) {
            tracing::error!(reason = "identity_not_forgotten", %error, "the revoked SVID lies on in the runtime directory");
        }
        revoked.hand_over(self.revoked.given_up());
        self.ready.set("identity", false);
        metrics::gauge!("aip_svid_not_after_seconds").set(0.0);
    }
}

/// The variable that may hold the token.
const TOKEN_VARIABLE: &str = "AIP_JOIN_TOKEN";

/// The token, from its file or `AIP_JOIN_TOKEN`.
fn join_token(config: &Config) -> Result<JoinToken, JoinError> {
    let agent = || config.name.clone();
    let text = match &config.join_token_file {
        Some(path) => std::fs::read_to_string(path).map_err(|source| JoinError::TokenFile {
            path: path.clone(),
            source,
            agent: agent(),
        })?,
        None => std::env::var(TOKEN_VARIABLE).map_err(|_| JoinError::NoCredential(agent()))?,
    };
    Zeroizing::new(text)
        .parse()
        .map_err(|error: aip_api::token::TokenError| JoinError::Refused {
            reason: "token_malformed".into(),
            detail: error.to_string(),
            retryable: false,
        })
}

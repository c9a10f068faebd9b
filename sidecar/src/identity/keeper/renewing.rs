//! From one SVID to the next, at half of its life.

use std::time::Duration;

use aip_api::token::JoinToken;
use aip_runtime::backoff::{Backoff, jitter};
use aip_runtime::svid::PendingKey;
use aip_runtime::{tls, unix_now};
use ring::rand::SystemRandom;

use super::waiting::measured;
use super::{Keeper, RETRY, TOKEN_VARIABLE, join_token};
use crate::identity::revoked::{Said, means_revoked};
use crate::identity::{JoinError, Joined, Measurement};
use crate::mesh::world::Origin;

/// Renewal begins at this part of the SVID's life, give or take [`SPREAD`], so that a fleet that joined together does
/// not renew together.
const RENEW_AT: f64 = 0.5;
const SPREAD: f64 = 0.1;

/// When an SVID that was issued then is renewed. Its certificate begins a minute before, for peers whose clocks lag: counted from
/// there, half of a short life would be over at once, and the next would be asked for again and again.
fn due(issued: u64, not_after: u64, part: f64) -> u64 {
    let life = not_after.saturating_sub(issued) as f64;
    issued.saturating_add((life * part) as u64)
}

impl Keeper {
    pub(super) async fn renew_forever(&self) {
        let random = SystemRandom::new();
        loop {
            let mut not_after = 0;
            if let Some(current) = self.svid.current() {
                not_after = current.identity.not_after;
                let part = RENEW_AT - SPREAD + 2.0 * SPREAD * jitter(&random);
                let due = due(current.result().iat, not_after, part);
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(due.saturating_sub(unix_now()))) => {}
                    () = self.svid.gone() => not_after = 0,
                }
            }
            self.renew_until_done(not_after).await;
        }
    }

    async fn renew_until_done(&self, not_after: u64) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut key = None;
        loop {
            match self.renew(&mut key).await {
                Ok(origin) => {
                    let _ = self.origins.send(origin).await;
                    return;
                }
                Err(error) => {
                    tracing::warn!(reason = error.reason(), %error, "the SVID was not renewed");
                    metrics::counter!("aip_svid_renewal_failures_total").increment(1);
                }
            }
            let left = not_after.saturating_sub(unix_now());
            let wait = backoff.next();
            tokio::time::sleep(if left == 0 {
                wait
            } else {
                wait.min(Duration::from_secs(left))
            })
            .await;
        }
    }

    /// Renews, with the key of the attempts before where there were any: who asks again after an answer that got lost is the same
    /// process by that.
    async fn renew(&self, key: &mut Option<PendingKey>) -> Result<Origin, JoinError> {
        let measured = measured(&self.config.measured).await?;
        if !self.alarm.fits(&measured) {
            // Also where no notice of it came. Nothing is asked for what was not approved.
            let alarm = self.alarm.clone();
            // By itself: this task ends with the suspension, and the marker must still be written.
            tokio::spawn(async move { alarm.raise(Vec::new()).await });
            return std::future::pending().await;
        }
        let key = match key {
            Some(key) => key,
            None => key.insert(PendingKey::generate()?),
        };
        let joined = match self.renewed(key, &measured).await {
            // An expired SVID proves nothing; an unspent token still does.
            Err(error) if !error.retryable() && self.expired() => self.joined_anew(key, &measured).await?,
            other => other?,
        };
        Ok(self.adopt(joined, measured.fingerprint(&self.config.name))?)
    }

    /// Joins again, with the token that is there by now.
    async fn joined_anew(&self, key: &PendingKey, measured: &Measurement) -> Result<Joined, JoinError> {
        let token = join_token(&self.config);
        let used = token.as_ref().ok().map(JoinToken::id_text);
        let joined = match token {
            Ok(token) => self.joiner.with_token(&token, key, measured).await,
            Err(error) => Err(error),
        };
        joined.map_err(|error| match error.needs_token() {
            true => self.ended(used.as_deref(), error),
            false => error,
        })
    }

    /// Nothing but another join token helps, and whoever can give one is asked for it. Not where the SVID was revoked: then a
    /// person decides.
    fn ended(&self, used: Option<&str>, source: JoinError) -> JoinError {
        if self.revoked.given_up().current().is_some() {
            return source;
        }
        self.supervisor.needs_token(used);
        let place = match &self.config.join_token_file {
            Some(path) => format!("for {}, which is read again at each try", path.display()),
            None => format!("for {TOKEN_VARIABLE}, with which this sidecar is then started again"),
        };
        JoinError::Ended {
            agent: self.config.name.clone(),
            place,
            source: Box::new(source),
        }
    }

    /// Shows the SVID for the next. One that is refused as revoked is given up.
    async fn renewed(&self, key: &PendingKey, measured: &Measurement) -> Result<Joined, JoinError> {
        let (shown, heard) = (self.svid.current(), tls::Heard::default());
        let (slot, trust) = (self.svid.slot(), &self.trust);
        let renewed = self.joiner.with_svid(slot, trust, key, measured, &heard).await;
        if let (Some(shown), Err(error)) = (shown, &renewed) {
            let reason = heard.revocation().unwrap_or(error.reason());
            if means_revoked(reason) {
                let (serial, reason) = (shown.identity.serial.clone(), reason.to_owned());
                self.revoked.say(Said { serial, reason });
            }
        }
        renewed
    }

    fn expired(&self) -> bool {
        self.svid
            .current()
            .is_none_or(|svid| svid.identity.not_after <= unix_now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_svid_is_renewed_at_half_of_its_life_however_short_that_is() {
        let issued = 1_800_000_000;
        for life in [60, 180, 3_600, 86_400] {
            let after =
                [RENEW_AT - SPREAD, RENEW_AT, RENEW_AT + SPREAD].map(|part| due(issued, issued + life, part) - issued);
            assert_eq!(after, [life * 2 / 5, life / 2, life * 3 / 5]);
        }
        assert_eq!(due(issued, issued - 1, RENEW_AT), issued);
    }
}

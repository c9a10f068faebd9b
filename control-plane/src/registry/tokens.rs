//! Join tokens: made, listed, revoked. They are spent in the issuing transaction (`crate::identity`).

use aip_api::resource::{Agent, Kind};
use aip_api::token::{ID_BYTES, JoinToken, SECRET_BYTES};
use aip_api::{AgentName, Digest};
use ring::rand::{SecureRandom, SystemRandom};

use super::records::TokenRecord;
use super::{Actor, Registry, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::Expect;

/// Lifetime of a token, unless asked otherwise: from the terminal where it was made to the one where it is used.
pub const DEFAULT_TTL: u64 = 600;
/// Longest lifetime: what waits for a person's approval in a `prod` mesh may wait for a day.
pub const MAX_TTL: u64 = 86_400;
/// Most tokens at once; they are swept when they have expired.
pub(super) const MAX_TOKENS: usize = 10_000;

/// A token that was just made; its secret is shown once.
#[derive(Debug)]
pub struct NewToken {
    /// The token.
    pub token: JoinToken,
    /// What is kept of it.
    pub record: TokenRecord,
    /// The store's revision.
    pub revision: u64,
}

impl Registry {
    /// Makes a token that lets `agent` in, once.
    ///
    /// # Errors
    /// Unknown agent, a lifetime out of bounds, too many tokens, or the store fails.
    pub async fn create_token(
        &self,
        actor: &Actor,
        agent: &AgentName,
        ttl: u64,
        root: Digest,
    ) -> Result<NewToken, Refusal> {
        if !(1..=MAX_TTL).contains(&ttl) {
            let message = format!("{ttl} is out of bounds: 1 to {MAX_TTL} seconds");
            return Err(Refusal::invalid(vec![aip_api::problem::FieldError::new(
                "ttl_seconds",
                message,
            )]));
        }
        // The agent's document also changes by itself, as when a drift raises its generation.
        retrying(async || self.create_token_once(actor, agent, ttl, root).await).await
    }

    async fn create_token_once(
        &self,
        actor: &Actor,
        agent: &AgentName,
        ttl: u64,
        root: Digest,
    ) -> Result<NewToken, Refusal> {
        let registered = keys::resource(Kind::Agent, agent.as_str());
        let held = self.resource::<Agent>(agent.as_str()).await?.ok_or_else(|| {
            Refusal::new(
                Reason::AgentUnknown,
                format!("register {agent} first: a token is bound to an agent"),
            )
        })?;
        if self.store.scan(keys::TOKENS, "", MAX_TOKENS).await?.len() >= MAX_TOKENS {
            return Err(Refusal::new(
                Reason::LimitReached,
                format!("{MAX_TOKENS} tokens are waiting; revoke some"),
            ));
        }
        let token = JoinToken {
            id: random::<ID_BYTES>()?,
            secret: random::<SECRET_BYTES>()?,
            root,
        };
        let now = self.clock.now();
        let record = TokenRecord {
            agent: agent.clone(),
            secret: token.secret_digest(),
            created_at: now,
            expires_at: now + ttl,
            created_by: actor.0.clone(),
            spent: None,
        };
        let draft = self.change(actor, "token.create", format!("{agent}/{}", token.id_text()));
        let draft = draft.put(keys::token(&token.id_text()), &record, Expect::Absent);
        let revision = draft.check(registered, Expect::At(held.revision)).commit().await?;
        Ok(NewToken {
            token,
            record,
            revision,
        })
    }

    /// Forgets a token.
    ///
    /// # Errors
    /// Unknown, or the store fails.
    pub async fn revoke_token(&self, actor: &Actor, id: &str) -> Result<u64, Refusal> {
        let key = keys::token(id);
        let held = self
            .store
            .get(key.clone())
            .await?
            .ok_or_else(|| Refusal::new(Reason::NotFound, format!("there is no join token {id:?}")))?;
        self.change(actor, "token.revoke", id)
            .delete(key, Expect::At(held.revision))
            .commit()
            .await
    }
}

/// Random bytes.
///
/// # Errors
/// The system gives no randomness.
pub fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut out = [0; N];
    let failed = |_| Refusal::new(Reason::Internal, "the system gives no randomness");
    SystemRandom::new().fill(&mut out).map_err(failed)?;
    Ok(out)
}

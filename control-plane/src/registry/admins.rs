//! Admin tokens: issued, claimed, revoked. In a `prod` mesh nobody but the person ever holds the person's token: the
//! person makes a secret and gives away its digest, and the token is handed out for the secret alone. So no one can be
//! the second person to themselves.

use aip_api::Digest;
use aip_api::problem::FieldError;
use serde::{Deserialize, Serialize};

use super::records::{Action, AdminTokenRecord, Claim, Proposal, SecondPerson};
use super::{Actor, Draft, Outcome, Registry, Versioned, decode, keys};
use crate::admin::roles::{Permission, Role, may};
use crate::refusal::{Reason, Refusal};
use crate::reputation::signed;
use crate::store::{Expect, Op};

/// Longest lifetime of an admin token.
pub const MAX_TTL: u64 = 90 * 86_400;
/// Shortest: less can't be used.
pub const MIN_TTL: u64 = 60;
/// Admin tokens that are known at once.
pub const MAX_ADMIN_TOKENS: usize = 1_000;
/// Longest `sub`.
const MAX_SUB: usize = 64;
/// A claim's secret: 32 random bytes in hex.
const SECRET_DIGITS: usize = 64;

/// An admin token that somebody wants issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewAdmin {
    /// Whose.
    pub sub: String,
    /// What it may.
    pub role: Role,
    /// For how long, from when it is approved.
    pub ttl_seconds: u64,
    /// Digest of the secret for which the token is handed out; `None`: it is in the answer.
    pub claim: Option<Digest>,
    /// The key by which reports under it are signed, as [`AdminTokenRecord::key`] has it.
    #[serde(default)]
    pub key: Option<String>,
    /// Who asked for it.
    pub asked_by: String,
}

/// What became of it.
#[derive(Debug)]
pub enum Issued {
    /// The record stands.
    Done {
        /// The token, without the token.
        record: Box<AdminTokenRecord>,
        /// The store's revision.
        revision: u64,
    },
    /// Waits for a second person.
    Proposed(Outcome),
}

impl NewAdmin {
    fn check(&self) -> Result<(), Refusal> {
        let mut mistakes = Vec::new();
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-@".contains(&b);
        if !(1..=MAX_SUB).contains(&self.sub.len()) || !self.sub.bytes().all(word) {
            mistakes.push(FieldError::new("sub", "1 to 64 of a-z, 0-9, '.', '_', '-', '@'"));
        }
        let ttl = self.ttl_seconds;
        if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
            let message = format!("{ttl} is out of bounds: {MIN_TTL} to {MAX_TTL}");
            mistakes.push(FieldError::new("ttl_seconds", message));
        }
        if self.key.as_deref().is_some_and(|key| signed::point(key).is_none()) {
            let message = "the point of a P-256 key, uncompressed: 65 bytes in base64; aip reputation keygen makes one";
            mistakes.push(FieldError::new("key", message));
        }
        if mistakes.is_empty() {
            return Ok(());
        }
        Err(Refusal::invalid(mistakes))
    }
}

impl Registry {
    /// Issues an admin token. In a `prod` mesh: proposes to, but for the very first second person.
    ///
    /// # Errors
    /// Mistakes, too many tokens, or the store fails.
    pub async fn issue_admin(&self, wanted: NewAdmin) -> Result<Issued, Refusal> {
        wanted.check()?;
        self.room_for_admin().await?;
        if !self.needs_second_person() {
            return self.issue_now(wanted, "admin_token.issue", None).await;
        }
        if wanted.claim.is_none() {
            let message = "in a prod mesh the person makes a secret, and this is its SHA-256: see docs/operations.md";
            return Err(Refusal::invalid(vec![FieldError::new("claim", message)]));
        }
        let decides = wanted.sub != wanted.asked_by && may(wanted.role, Permission::Decide);
        if decides && self.store.get(keys::SECOND_PERSON).await?.is_none() {
            let second = SecondPerson {
                sub: wanted.sub.clone(),
                by: wanted.asked_by.clone(),
                at: self.clock.now(),
            };
            return self.issue_now(wanted, "admin_token.second_person", Some(second)).await;
        }
        let asked_by = wanted.asked_by.clone();
        let proposed = self.do_or_propose(&asked_by, Action::IssueAdmin { wanted }).await?;
        Ok(Issued::Proposed(proposed))
    }

    async fn issue_now(
        &self,
        wanted: NewAdmin,
        action: &'static str,
        second: Option<SecondPerson>,
    ) -> Result<Issued, Refusal> {
        let record = self.admin_record(&wanted);
        let draft = self.change(&Actor::admin(&wanted.asked_by), action, &record.jti);
        let signs = record.key.as_ref().map(|key| format!(", whose reports {key} signs"));
        let detail = format!(
            "{} as {}{}",
            record.sub,
            record.role.as_str(),
            signs.unwrap_or_default()
        );
        let draft = draft.detail(detail);
        let draft = match &second {
            // Of two at once, one is the second person; the other is proposed, when it is repeated.
            Some(second) => draft.put(keys::SECOND_PERSON, second, Expect::Absent),
            None => draft,
        };
        let revision = admin_ops(draft, &record).commit().await?;
        let record = Box::new(record);
        Ok(Issued::Done { record, revision })
    }

    /// What is kept of a token that is issued now.
    pub(super) fn admin_record(&self, wanted: &NewAdmin) -> AdminTokenRecord {
        let now = self.clock.now();
        AdminTokenRecord {
            jti: uuid::Uuid::now_v7().hyphenated().to_string(),
            sub: wanted.sub.clone(),
            role: wanted.role,
            issued_at: now,
            expires_at: now + wanted.ttl_seconds,
            issued_by: wanted.asked_by.clone(),
            claim: wanted.claim,
            key: wanted.key.clone(),
            revoked_at: None,
        }
    }

    /// Whether one more token can be known.
    pub(super) async fn room_for_admin(&self) -> Result<(), Refusal> {
        let known = self.store.scan(keys::ADMIN_TOKENS, "", MAX_ADMIN_TOKENS).await?;
        if known.len() < MAX_ADMIN_TOKENS {
            return Ok(());
        }
        let detail = format!("{MAX_ADMIN_TOKENS} admin tokens are known; they are forgotten a day after they expire");
        Err(Refusal::new(Reason::LimitReached, detail))
    }

    /// Takes the claim of a token: once, by whoever knows the secret.
    ///
    /// # Errors
    /// Nothing waits for this secret, the token was revoked or has expired, or the store fails.
    pub async fn claim_admin(&self, secret: &str) -> Result<AdminTokenRecord, Refusal> {
        if secret.len() != SECRET_DIGITS || !secret.bytes().all(|b| b.is_ascii_hexdigit()) {
            let message = format!("{SECRET_DIGITS} hex digits: openssl rand -hex 32 makes them");
            return Err(Refusal::invalid(vec![FieldError::new("secret", message)]));
        }
        let nothing = || Refusal::new(Reason::NotFound, "no token waits for this secret");
        let key = keys::claim(&Digest::sha256(secret.as_bytes()));
        let claim: Option<Versioned<Claim>> = self.record(key.clone()).await?;
        let claim = claim.ok_or_else(nothing)?;
        let of = keys::admin_token(&claim.value.jti);
        let held: Option<Versioned<AdminTokenRecord>> = self.record(of.clone()).await?;
        let held = held.ok_or_else(nothing)?;
        if held.value.revoked_at.is_some() || held.value.expires_at <= self.clock.now() {
            return Err(nothing());
        }
        let record = AdminTokenRecord {
            claim: None,
            ..held.value
        };
        let draft = self.change(&Actor::admin(&record.sub), "admin_token.claim", &record.jti);
        let draft = draft.delete(key, Expect::At(claim.revision));
        draft.put(of, &record, Expect::At(held.revision)).commit().await?;
        Ok(record)
    }

    /// Revokes an admin token; requests with it are refused from now on, and what its person proposed is void: nobody
    /// knows which of it was theirs. So is what would issue that person another: who proposed it did not know.
    ///
    /// # Errors
    /// Unknown, or the store fails.
    pub async fn revoke_admin(&self, actor: &Actor, jti: &str) -> Result<u64, Refusal> {
        let key = keys::admin_token(jti);
        let held: Option<Versioned<AdminTokenRecord>> = self.record(key.clone()).await?;
        let held = held.ok_or_else(|| Refusal::new(Reason::NotFound, "no such admin token"))?;
        if held.value.revoked_at.is_some() {
            return Ok(held.revision);
        }
        let revoked = AdminTokenRecord {
            revoked_at: Some(self.clock.now()),
            ..held.value
        };
        let for_them = |action: &Action| matches!(action, Action::IssueAdmin { wanted } if wanted.sub == revoked.sub);
        let mut void = Vec::new();
        // All of them: of many that are made at once, more may wait than should.
        for entry in self.store.snapshot(keys::PROPOSALS).await?.entries {
            let proposal = decode::<Proposal>(&entry)?.value;
            if proposal.proposed_by == revoked.sub || for_them(&proposal.action) {
                void.push(Op::Delete {
                    key: entry.key,
                    expect: Expect::Any,
                });
            }
        }
        let draft = self.change(actor, "admin_token.revoke", jti).ops(void);
        draft.put(key, &revoked, Expect::At(held.revision)).commit().await
    }
}

/// Adds what makes a token known, and its claim.
pub(super) fn admin_ops(draft: Draft, record: &AdminTokenRecord) -> Draft {
    let draft = draft.put(keys::admin_token(&record.jti), record, Expect::Absent);
    let Some(digest) = &record.claim else { return draft };
    let claim = Claim {
        jti: record.jti.clone(),
        expires_at: record.expires_at,
    };
    // A secret is good for one token.
    draft.put(keys::claim(digest), &claim, Expect::Absent)
}

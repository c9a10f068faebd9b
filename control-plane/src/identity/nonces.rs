//! Nonces without a table: who asks is not authenticated yet, so nothing is kept for the asking.
//!
//! A nonce is its time, random bytes and a MAC over both and the agent's name, under a key of this process. Only
//! nonces that were *answered* by somebody with a valid credential are remembered, until they expire anyway.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use aip_api::AgentName;
use ring::hmac;

use crate::refusal::{Reason, Refusal};
use crate::registry::tokens::random;

/// How long a nonce can be answered.
pub const TTL_SECONDS: u64 = 60;
/// Answered nonces that are remembered: 1,600 issuances a second for a minute; more are refused, never forgotten early.
const MAX_ANSWERED: usize = 100_000;
/// Answered nonces of one agent: one that re-joins every second is broken.
const MAX_PER_AGENT: usize = 64;

const RANDOM: usize = 8;
const MAC: usize = 16;

/// Makes nonces and takes their answers.
pub struct Nonces {
    key: hmac::Key,
    answered: Mutex<Answered>,
}

#[derive(Default)]
struct Answered {
    by_time: BTreeMap<(u64, [u8; 32]), AgentName>,
    per_agent: HashMap<AgentName, usize>,
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonces(key withheld)")
    }
}

impl Nonces {
    /// With a fresh key: nonces do not survive a restart.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new() -> Result<Self, Refusal> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>()?);
        Ok(Self {
            key,
            answered: Mutex::default(),
        })
    }

    fn mac(&self, agent: &AgentName, head: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(head);
        context.update(agent.as_str().as_bytes());
        context.sign()
    }

    /// A nonce for `agent`.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn challenge(&self, agent: &AgentName, now: u64) -> Result<[u8; 32], Refusal> {
        let mut out = [0; 32];
        out[..8].copy_from_slice(&now.to_be_bytes());
        out[8..8 + RANDOM].copy_from_slice(&random::<RANDOM>()?);
        let tag = self.mac(agent, &out[..8 + RANDOM]);
        out[8 + RANDOM..].copy_from_slice(&tag.as_ref()[..MAC]);
        Ok(out)
    }

    /// Takes the answer to a nonce; each is taken once.
    ///
    /// # Errors
    /// Not ours or for another agent, expired, answered before, or too many at once.
    pub fn answer(&self, agent: &AgentName, nonce: &[u8], now: u64) -> Result<(), Refusal> {
        let nonce: [u8; 32] = nonce.try_into().map_err(|_| Refusal::from(Reason::NonceUnknown))?;
        let (head, mac) = nonce.split_at(8 + RANDOM);
        let expected = self.mac(agent, head);
        // Comparing digests of both takes the same time wherever they differ.
        let digest = |part: &[u8]| ring::digest::digest(&ring::digest::SHA256, part);
        if digest(mac).as_ref() != digest(&expected.as_ref()[..MAC]).as_ref() {
            return Err(Reason::NonceUnknown.into());
        }
        let mut made = [0; 8];
        made.copy_from_slice(&head[..8]);
        let made = u64::from_be_bytes(made);
        if made + TTL_SECONDS <= now {
            return Err(Reason::NonceExpired.into());
        }
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.forget(now);
        if answered.by_time.contains_key(&(made, nonce)) {
            return Err(Reason::NonceReused.into());
        }
        let of_agent = answered.per_agent.get(agent).copied().unwrap_or(0);
        if answered.by_time.len() >= MAX_ANSWERED || of_agent >= MAX_PER_AGENT {
            return Err(Refusal::new(
                Reason::RateExceeded,
                "too many issuances in the last minute",
            ));
        }
        answered.by_time.insert((made, nonce), agent.clone());
        *answered.per_agent.entry(agent.clone()).or_insert(0) += 1;
        Ok(())
    }
}

impl Answered {
    fn forget(&mut self, now: u64) {
        while let Some(first) = self.by_time.first_entry().filter(|e| e.key().0 + TTL_SECONDS <= now) {
            let agent = first.remove();
            if let Some(count) = self.per_agent.get_mut(&agent) {
                *count -= 1;
                if *count == 0 {
                    self.per_agent.remove(&agent);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_answered_once_in_time_by_its_agent() {
        let nonces = Nonces::new().unwrap();
        let (planner, ledger): (AgentName, AgentName) = ("planner".parse().unwrap(), "ledger".parse().unwrap());
        let nonce = nonces.challenge(&planner, 1_000).unwrap();
        let reason = |agent, nonce: &[u8], now| nonces.answer(agent, nonce, now).unwrap_err().reason();
        assert_eq!(reason(&ledger, &nonce, 1_000), "nonce_unknown");
        assert_eq!(reason(&planner, &nonce, 1_060), "nonce_expired");
        assert_eq!(reason(&planner, &[0; 32], 1_000), "nonce_unknown");
        assert_eq!(reason(&planner, &nonce[1..], 1_000), "nonce_unknown");
        nonces.answer(&planner, &nonce, 1_059).unwrap();
        assert_eq!(reason(&planner, &nonce, 1_059), "nonce_reused");
        assert_eq!(
            reason(&planner, &nonce, 1_060),
            "nonce_expired",
            "a forgotten one has expired"
        );
        let other = Nonces::new().unwrap();
        assert_eq!(
            other.answer(&planner, &nonce, 1_000).unwrap_err().reason(),
            "nonce_unknown"
        );
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let nonces = Nonces::new().unwrap();
        let agent: AgentName = "planner".parse().unwrap();
        for _ in 0..MAX_PER_AGENT {
            nonces.answer(&agent, &nonces.challenge(&agent, 5).unwrap(), 5).unwrap();
        }
        let more = nonces.challenge(&agent, 5).unwrap();
        assert_eq!(nonces.answer(&agent, &more, 5).unwrap_err().reason(), "rate_exceeded");
        let later = nonces.challenge(&agent, 100).unwrap();
        nonces.answer(&agent, &later, 100).unwrap();
        assert_eq!(nonces.answered.lock().unwrap().by_time.len(), 1);
    }
}

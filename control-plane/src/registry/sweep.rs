//! Forgetting what has expired, a bounded number of rows at a time.

use aip_api::resource::{Kind, Revocation};
use serde_json::Value;

use super::{Actor, Registry, keys};
use crate::refusal::Refusal;
use crate::reputation::reports::REPORT_MEMORY_SECONDS;
use crate::store::{Expect, Op};

/// Rows that are read at a time, and most that go in one transaction.
const PAGE: usize = 1_000;
/// How long an expired token is still known, so that it is refused as expired and not as unknown.
const TOKEN_MEMORY: u64 = 86_400;
/// How long a measurement waits for a person.
const PENDING_SECONDS: u64 = 7 * 86_400;

/// How long it is known how much somebody reported: as long as it counts, and as much as clocks may be off.
const REPORTER_MEMORY: u64 = 2 * 3_600;

/// Whether a row is over, and what it is called in the audit.
type Over = fn(&Value, u64) -> bool;

fn passed(row: &Value, field: &str, memory: u64, now: u64) -> bool {
    row.get(field)
        .and_then(Value::as_u64)
        .is_some_and(|at| at + memory <= now)
}

fn revocation_over(row: &Value, now: u64) -> bool {
    serde_json::from_value::<Revocation>(row.clone()).is_ok_and(|r| r.expires() <= now)
}

impl Registry {
    /// Removes what has expired; answers how many rows went.
    ///
    /// # Errors
    /// The store fails.
    pub async fn sweep(&self) -> Result<usize, Refusal> {
        let kinds: [(String, Over); 10] = [
            (keys::TOKENS.into(), |row, now| {
                passed(row, "expires_at", TOKEN_MEMORY, now)
            }),
            (keys::SVIDS.into(), |row, now| passed(row, "not_after", 0, now)),
            (keys::PROPOSALS.into(), |row, now| passed(row, "expires_at", 0, now)),
            (keys::CLAIMS.into(), |row, now| passed(row, "expires_at", 0, now)),
            (keys::ADMIN_TOKENS.into(), |row, now| {
                passed(row, "expires_at", TOKEN_MEMORY, now)
            }),
            (keys::PENDING.into(), |row, now| {
                passed(row, "last_seen", PENDING_SECONDS, now)
            }),
            (keys::REPUTATION_REPORTS.into(), |row, now| {
                passed(row, "at", REPORT_MEMORY_SECONDS, now)
            }),
            (keys::REPUTATION_HOPS.into(), |row, now| {
                passed(row, "at", REPORT_MEMORY_SECONDS, now)
            }),
            (keys::REPUTATION_REPORTERS.into(), |row, now| {
                passed(row, "at", REPORTER_MEMORY, now)
            }),
            (keys::of_kind(Kind::Revocation), revocation_over),
        ];
        let mut count = 0;
        for (prefix, over) in kinds {
            count += self.sweep_kind(&prefix, over).await?;
        }
        Ok(count)
    }

    async fn sweep_kind(&self, prefix: &str, over: Over) -> Result<usize, Refusal> {
        // What is forgotten does not come back when a clock is set right.
        let (now, mut after, mut count) = (self.clock.steady(), String::new(), 0);
        loop {
            let rows = self.store.scan(prefix, after.clone(), PAGE).await?;
            let Some(last) = rows.last() else { return Ok(count) };
            after.clone_from(&last.key);
            let expired = rows
                .iter()
                .filter(|e| serde_json::from_slice(&e.value).is_ok_and(|row| over(&row, now)));
            let gone: Vec<_> = expired
                .map(|e| Op::Delete {
                    key: e.key.clone(),
                    expect: Expect::At(e.revision),
                })
                .collect();
            if !gone.is_empty() {
                count += gone.len();
                let subject = format!("{} expired rows of {prefix}", gone.len());
                self.change(&Actor::control_plane(), "sweep", subject)
                    .routine()
                    .ops(gone)
                    .commit()
                    .await?;
            }
        }
    }
}

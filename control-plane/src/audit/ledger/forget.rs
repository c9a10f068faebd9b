//! What goes of the log of checkpoints when it is old: its first checkpoints, in their order. A statement that the control
//! plane signs says how many, and holds the subtrees over them, so that every later head and proof still comes out.

use std::collections::BTreeSet;

use aip_audit::log::claims_of;
use aip_audit::merkle::Tree;

use super::Ledger;
use super::rows::{BeginsRow, ChainRow, StatementRow, keys};
use super::take::Batch;
use crate::refusal::Refusal;
use crate::store::{Entry, StoreError};

/// Checkpoints that one transaction lets go of: some milliseconds, while others wait to be taken.
pub(super) const FORGET: usize = 1_000;
/// How much longer a chain stays than the last checkpoint that it signed, in seconds: its row is not written again for
/// every one.
const CHAIN_SECONDS: u64 = 2 * 86_400;
/// How often the row of a chain that is used says so, in seconds.
pub(super) const CHAIN_USED: u64 = 86_400;

fn number(entry: &Entry) -> Option<u64> {
    entry.key.rsplit('/').next()?.parse().ok()
}

/// Where the complete subtrees of the first `size` leaves stand.
fn peaks(size: u64) -> BTreeSet<String> {
    let (mut from, mut places) = (0, BTreeSet::new());
    for height in (0..u64::BITS).rev().filter(|height| size >> height & 1 == 1) {
        places.insert(keys::node(height, from >> height));
        from += 1 << height;
    }
    places
}

impl Ledger {
    /// Lets go of checkpoints that were signed and taken before `until` (Unix milliseconds), of a bounded number; whether
    /// there may be more.
    ///
    /// # Errors
    /// The store fails.
    pub async fn forget(&self, until: u64) -> Result<bool, Refusal> {
        let gone = self.ask(|reply| super::Command::Forget(until, reply)).await?;
        Ok(gone as usize == FORGET)
    }
}

impl Batch {
    /// Leaves out the oldest checkpoints; how many.
    pub(super) async fn forget(&mut self, until: u64) -> Result<u64, Refusal> {
        let damaged = || super::failed("its oldest checkpoints are not in their order");
        let held: Option<BeginsRow> = self.read(keys::BEGINS.to_owned()).await?;
        let (from, subtrees) = held.map_or((0, Vec::new()), |held| (held.from, held.subtrees));
        let mut tree = Tree::from_peaks(from, subtrees).ok_or_else(damaged)?;
        let mut gone = peaks(from);
        for entry in self.store.scan(keys::STATEMENTS, "", FORGET).await? {
            let row: StatementRow = crate::registry::decode(&entry)?.value;
            let index = tree.size();
            if number(&entry) != Some(index) {
                return Err(damaged().into());
            }
            let signed = claims_of(&row.statement).map_or(0, |claims| claims.at);
            if signed >= until || row.taken * 1_000 >= until {
                break;
            }
            tree.append(aip_audit::merkle::leaf(row.statement.as_bytes()));
            gone.insert(entry.key);
            let size = keys::size_of(&row.log, row.size);
            let newest: Option<(aip_api::Digest, u64)> = self.read(size.clone()).await?;
            if newest.is_some_and(|(_, place)| place == index) {
                gone.insert(size);
            }
            gone.extend((0..=(index + 1).trailing_zeros()).map(|height| keys::node(height, index >> height)));
        }
        let count = tree.size() - from;
        if count == 0 {
            return Ok(0);
        }
        for kept in peaks(tree.size()) {
            gone.remove(&kept);
        }
        self.rows.extend(gone.into_iter().map(|key| (key, None)));
        self.forget_chains(until).await?;
        self.begins = Some((tree, until));
        Ok(count)
    }

    /// Chains that no checkpoint names any more: of as many as one transaction looks at.
    async fn forget_chains(&mut self, until: u64) -> Result<(), StoreError> {
        // Their keys are digests: from another place each time, all of them are looked at in the end.
        let from = keys::chain(&aip_api::Digest::sha256(&until.to_be_bytes()));
        for entry in self.store.scan(keys::CHAINS, from, FORGET).await? {
            let row: ChainRow = crate::registry::decode(&entry)?.value;
            if (row.used + CHAIN_SECONDS) * 1_000 < until && !self.rows.contains_key(&entry.key) {
                self.rows.insert(entry.key, None);
            }
        }
        Ok(())
    }
}

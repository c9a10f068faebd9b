//! The log of checkpoints as it is read: in its own order, and each with the chain that signed it.

use aip_api::Digest;

use super::rows::{BeginsRow, ChainRow, Listed, StatementRow, TakenRow, keys};
use super::{Ledger, failed};
use crate::store::StoreError;

impl Ledger {
    /// The checkpoint at `index`; none where it was never taken, or is older than is kept.
    ///
    /// # Errors
    /// The store fails.
    pub async fn at(&self, index: u64) -> Result<Option<TakenRow>, StoreError> {
        let Some(row) = self.row::<StatementRow>(keys::statement(index)).await? else {
            return Ok(None);
        };
        let chain = self.chain(&row.chain).await?;
        Ok(Some(TakenRow {
            log: row.log,
            size: row.size,
            statement: row.statement,
            chain: chain.ok_or_else(|| failed("a chain of certificates is missing"))?,
        }))
    }

    /// A chain of certificates: DER in base64, leaf first.
    ///
    /// # Errors
    /// The store fails.
    pub async fn chain(&self, digest: &Digest) -> Result<Option<Vec<String>>, StoreError> {
        let row = self.row::<ChainRow>(keys::chain(digest)).await?;
        Ok(row.map(|row| row.certificates))
    }

    /// Checkpoints in the order in which they were taken, after the one whose key ends so; from the first where that is
    /// empty.
    ///
    /// # Errors
    /// The store fails.
    pub async fn listed(&self, after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let rows: Vec<(String, StatementRow)> = self.rows(keys::STATEMENTS, after, limit).await?;
        let listed = |(index, row): (String, StatementRow)| {
            Some(Listed {
                index: index.parse().ok()?,
                log: row.log,
                size: row.size,
                statement: row.statement,
                chain: row.chain,
            })
        };
        let listed = rows
            .into_iter()
            .map(|row| listed(row).ok_or_else(|| failed("a row's key")));
        listed.collect()
    }

    /// The signed statement about the checkpoints that are older than is kept; none where all of them are here.
    ///
    /// # Errors
    /// The store fails.
    pub async fn begins(&self) -> Result<Option<String>, StoreError> {
        let row = self.row::<BeginsRow>(keys::BEGINS).await?;
        Ok(row.map(|row| row.statement))
    }
}

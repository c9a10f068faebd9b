//! The control plane's own log: every checkpoint that was taken, as a leaf of an RFC 6962 tree whose head it signs.
//!
//! It has a database of its own beside the store of the mesh: a fleet signs a checkpoint every few seconds, and none of
//! them is a change that a person made or a sidecar must hear of. Checkpoints that come together share one transaction:
//! statements, subtrees and the signed head are on disk before any of them is acknowledged.

mod forget;
mod listed;
mod proofs;
pub mod rows;
mod take;

use std::path::Path;
use std::sync::Arc;

use aip_api::resource::KeyPurpose;
use aip_api::{AgentName, Digest, TrustDomain};
use aip_audit::checkpoint::{LEDGER_BEGINS_TYP, LedgerBegins, TREE_HEAD_TYP, TreeHead};
use aip_audit::merkle::Tree;
use aip_runtime::jws;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::ca::Ca;
use crate::refusal::{Reason, Refusal};
use crate::registry::encode;
use crate::store::disk::DiskStore;
use crate::store::{Keep, Op, Store, StoreError, Transaction};

use rows::keys;
pub use rows::{Broken, Finding, Listed, LogRow, Mismatch, Taken, TakenRow};
pub use take::Take;

/// The database, in the audit directory.
pub const LEDGER_FILE: &str = "checkpoints.redb";
/// Checkpoints that wait for the next transaction; who comes then waits to be let in.
const WAITING: usize = 1_024;
/// Most checkpoints of one transaction: some milliseconds of work for one flush.
const BATCH: usize = 256;
/// Nothing watches this store, and its transactions tell nobody: one row each is kept of what the store keeps.
const KEEP: Keep = Keep { log: 1, audit: 1 };
/// Mismatches that are kept: the newest; some 400 bytes each.
pub const MAX_MISMATCHES: u64 = 100_000;
/// And of one caller with one callee: two that contradict each other all the time push out nothing but their own.
pub const MAX_MISMATCHES_EACH: usize = 256;
/// Findings that are kept as evidence. Past it they are only counted: nobody can push out what is held against them.
pub const MAX_FINDINGS: u64 = 100_000;
/// And of one agent: it keeps nobody's evidence but more of its own from being kept.
pub const MAX_FINDINGS_EACH: u64 = 256;

/// Why nothing more is taken of a log that went whole, since it was older than records are kept: no evidence of anything.
pub const EXPIRED: &str = "expired";

enum Command {
    Take(Box<Take>, oneshot::Sender<Result<Taken, Refusal>>),
    Break(Box<Finding>, oneshot::Sender<Result<(), Refusal>>),
    Mismatch(Box<Mismatch>),
    Forget(u64, oneshot::Sender<Result<u64, Refusal>>),
}

/// The log of checkpoints. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Ledger {
    store: Store,
    commands: mpsc::Sender<Command>,
}

/// The one that writes.
pub struct Writing {
    store: Store,
    ca: Arc<Ca>,
    trust_domain: TrustDomain,
    tree: Tree,
    findings: u64,
    mismatches: u64,
    // A transaction failed: what stands on disk is looked up before the next one.
    unsure: bool,
    commands: mpsc::Receiver<Command>,
}

fn failed(why: &str) -> StoreError {
    StoreError::Damaged(format!("the log of checkpoints: {why}"))
}

impl Ledger {
    /// Opens it in `dir`, or makes it; [`Writing::run`] must then be run.
    ///
    /// # Errors
    /// The database can't be opened, or is not whole.
    pub async fn open(dir: &Path, ca: Arc<Ca>) -> Result<(Self, Writing), StoreError> {
        let path = dir.join(LEDGER_FILE);
        let opened = tokio::task::spawn_blocking(move || DiskStore::keeping(&path, KEEP)).await;
        let store = Store::apart(opened.map_err(|e| StoreError::Failed(e.to_string()))??)?;
        let (sender, commands) = mpsc::channel(WAITING);
        let ledger = Self {
            store: store.clone(),
            commands: sender,
        };
        let tree = tree(&store).await?;
        if let Some(head) = ledger.head().await? {
            // What was signed last is what stands there: a file that was changed meanwhile does not go on unnoticed.
            let kid = |kid: &str| {
                Some(ca.signer(KeyPurpose::Audit))
                    .filter(|s| s.kid() == kid)
                    .map(|s| s.public_key())
            };
            let claims: TreeHead =
                jws::verify_eddsa(&head, TREE_HEAD_TYP, kid).map_err(|e| failed(&format!("its tree head: {e}")))?;
            if (claims.size, claims.root) != (tree.size(), tree.root()) {
                return Err(failed("its tree is not the one whose head was signed"));
            }
        } else if tree.size() > 0 {
            return Err(failed("its tree head is missing"));
        }
        let writing = Writing {
            trust_domain: ca.trust_domain().clone(),
            ca,
            tree,
            findings: count(&store, keys::FINDINGS).await?,
            mismatches: count(&store, keys::MISMATCHES).await?,
            unsure: false,
            store,
            commands,
        };
        Ok((ledger, writing))
    }

    /// Checkpoints in the log.
    ///
    /// # Errors
    /// The store fails.
    pub async fn size(&self) -> Result<u64, StoreError> {
        Ok(self.row::<u64>(keys::SIZE).await?.unwrap_or(0))
    }

    /// The signed tree head; none before the first checkpoint.
    ///
    /// # Errors
    /// The store fails.
    pub async fn head(&self) -> Result<Option<String>, StoreError> {
        self.row(keys::HEAD).await
    }

    async fn row<T: DeserializeOwned>(&self, key: impl Into<String>) -> Result<Option<T>, StoreError> {
        read(&self.store, key).await
    }

    async fn rows<T: DeserializeOwned>(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let after = if after.is_empty() {
            String::new()
        } else {
            format!("{prefix}{after}")
        };
        let rows = self.store.scan(prefix, after, limit).await?;
        let name = |key: &str| key.strip_prefix(prefix).unwrap_or_default().to_owned();
        let read = |entry: &crate::store::Entry| Ok((name(&entry.key), crate::registry::decode(entry)?.value));
        rows.iter().map(read).collect()
    }

    /// What is known of a log.
    ///
    /// # Errors
    /// The store fails.
    pub async fn log(&self, log: &str) -> Result<Option<LogRow>, StoreError> {
        self.row(keys::log(log)).await
    }

    /// Logs by name, after `after`.
    ///
    /// # Errors
    /// The store fails.
    pub async fn logs(&self, after: &str, limit: usize) -> Result<Vec<(String, LogRow)>, StoreError> {
        self.rows(keys::LOGS, after, limit).await
    }

    /// Sizes of a log that checkpoints speak of, beyond `after`, each with its root and its place here.
    ///
    /// # Errors
    /// The store fails.
    pub async fn sizes(&self, log: &str, after: u64, limit: usize) -> Result<Vec<(u64, Digest, u64)>, StoreError> {
        self.sizes_from(log, &format!("{after:020}"), limit).await
    }

    /// The same after a size as its key has it; from the first where that is empty.
    ///
    /// # Errors
    /// The store fails.
    pub async fn sizes_from(
        &self,
        log: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(u64, Digest, u64)>, StoreError> {
        let prefix = keys::sizes(log);
        let rows: Vec<(String, (Digest, u64))> = self.rows(&prefix, after, limit).await?;
        let number = |(name, (root, index)): (String, (Digest, u64))| Some((name.parse().ok()?, root, index));
        rows.into_iter()
            .map(|row| number(row).ok_or_else(|| failed("a row's key")))
            .collect()
    }

    /// Findings: what was refused and kept as evidence.
    ///
    /// # Errors
    /// The store fails.
    pub async fn findings(&self, after: &str, limit: usize) -> Result<Vec<(String, Finding)>, StoreError> {
        self.rows(keys::FINDINGS, after, limit).await
    }

    /// How much was found in an agent's logs, also what was only counted.
    ///
    /// # Errors
    /// The store fails.
    pub async fn findings_of(&self, agent: &AgentName) -> Result<u64, StoreError> {
        Ok(self.row(keys::found(agent.as_str())).await?.unwrap_or(0))
    }

    /// Hops whose ends disagree.
    ///
    /// # Errors
    /// The store fails.
    pub async fn mismatches(&self, after: &str, limit: usize) -> Result<Vec<(String, Mismatch)>, StoreError> {
        self.rows(keys::MISMATCHES, after, limit).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Command) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let stopped = |_| Refusal::from(Reason::Draining);
        self.commands.send(command(reply)).await.map_err(|_| stopped(()))?;
        answer.await.map_err(|_| stopped(()))?
    }

    /// Takes a verified checkpoint: when this answers, it is on disk under a signed tree head.
    ///
    /// # Errors
    /// It contradicts what was taken before, is behind it, is of another's log, or the store fails.
    pub async fn take(&self, take: Take) -> Result<Taken, Refusal> {
        self.ask(|reply| Command::Take(Box::new(take), reply)).await
    }

    /// Keeps a finding; its log is taken no further.
    ///
    /// # Errors
    /// The store fails.
    pub async fn broken(&self, finding: Finding) -> Result<(), Refusal> {
        self.ask(|reply| Command::Break(Box::new(finding), reply)).await
    }

    /// Keeps a mismatch, some time soon. Where too much waits it is only counted.
    pub fn mismatch(&self, mismatch: Mismatch) {
        let _ = self.commands.try_send(Command::Mismatch(Box::new(mismatch)));
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.store.close().await;
    }
}

async fn read<T: DeserializeOwned>(store: &Store, key: impl Into<String>) -> Result<Option<T>, StoreError> {
    let entry = store.get(key).await?;
    Ok(entry
        .as_ref()
        .map(crate::registry::decode)
        .transpose()?
        .map(|v| v.value))
}

/// The tree as its subtrees say it.
async fn tree(store: &Store) -> Result<Tree, StoreError> {
    let size = read(store, keys::SIZE).await?.unwrap_or(0);
    let (mut peaks, mut from) = (Vec::new(), 0);
    for height in (0..u64::BITS).rev().filter(|height| size >> height & 1 == 1) {
        let peak = read(store, keys::node(height, from >> height)).await?;
        peaks.push(peak.ok_or_else(|| failed("a subtree is missing"))?);
        from += 1 << height;
    }
    Tree::from_peaks(size, peaks).ok_or_else(|| failed("its size is not that of its subtrees"))
}

/// The number after the last one below `prefix`.
async fn count(store: &Store, prefix: &str) -> Result<u64, StoreError> {
    let key = format!("next/{prefix}");
    Ok(read(store, key).await?.unwrap_or(0))
}

impl Writing {
    /// Writes until nobody asks any more.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        while self.commands.recv_many(&mut batch, BATCH).await > 0 {
            self.commit(std::mem::take(&mut batch)).await;
        }
    }

    /// One transaction for all that came together.
    async fn commit(&mut self, batch: Vec<Command>) {
        if let Err(error) = self.sure().await {
            let refusal = Refusal::from(error);
            return take::Batch::refuse(batch, &refusal);
        }
        let mut draft = take::Batch::new(&self.store, self.tree.clone(), (self.findings, self.mismatches));
        for command in batch {
            draft.add(command).await;
        }
        let begun = std::time::Instant::now();
        let written = self.write(&mut draft).await;
        metrics::histogram!("aip_audit_ledger_commit_seconds").record(begun.elapsed().as_secs_f64());
        match &written {
            Ok(()) => {
                self.tree = draft.tree.clone();
                (self.findings, self.mismatches) = draft.next;
            }
            Err(_) => self.unsure = true,
        }
        draft.answer(&written);
    }

    /// A commit whose flush failed may stand all the same.
    async fn sure(&mut self) -> Result<(), StoreError> {
        if self.unsure {
            self.tree = tree(&self.store).await?;
            self.findings = count(&self.store, keys::FINDINGS).await?;
            self.mismatches = count(&self.store, keys::MISMATCHES).await?;
            self.unsure = false;
        }
        Ok(())
    }

    async fn write(&self, draft: &mut take::Batch) -> Result<(), Refusal> {
        if draft.rows.is_empty() {
            return Ok(());
        }
        if draft.tree.size() > self.tree.size() {
            let head = TreeHead {
                v: 1,
                iss: self.trust_domain.to_string(),
                size: draft.tree.size(),
                root: draft.tree.root(),
                at: aip_runtime::unix_now() * 1_000,
            };
            let signed = jws::sign_eddsa(&self.ca.signer(KeyPurpose::Audit), TREE_HEAD_TYP, &head)
                .map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
            draft.put(keys::HEAD.into(), &signed)?;
            draft.put(keys::SIZE.into(), &head.size)?;
        }
        if let Some((tree, until)) = draft.begins.take() {
            let begins = LedgerBegins {
                v: 1,
                iss: self.trust_domain.to_string(),
                from: tree.size(),
                root: tree.root(),
                subtrees: tree.peaks().to_vec(),
                until,
                at: aip_runtime::unix_now() * 1_000,
            };
            let statement = jws::sign_eddsa(&self.ca.signer(KeyPurpose::Audit), LEDGER_BEGINS_TYP, &begins)
                .map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
            let row = rows::BeginsRow {
                from: begins.from,
                subtrees: begins.subtrees,
                statement,
            };
            draft.put(keys::BEGINS.into(), &row)?;
        }
        let ops = std::mem::take(&mut draft.rows);
        let ops = ops.into_iter().map(|(key, value)| match value {
            Some(value) => Op::Put {
                key,
                value,
                expect: crate::store::Expect::Any,
            },
            None => Op::Delete {
                key,
                expect: crate::store::Expect::Any,
            },
        });
        let transaction = Transaction {
            ops: ops.collect(),
            ..Transaction::default()
        };
        self.store.txn(transaction).await?;
        Ok(())
    }
}

fn value_of<T: Serialize>(value: &T) -> Result<bytes::Bytes, StoreError> {
    encode(value)
}

#[cfg(test)]
mod tests;

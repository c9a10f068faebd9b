//! One transaction of the log of checkpoints: everything that came together, each held against what stands there and
//! against what comes before it in the same transaction.

use std::collections::{BTreeMap, VecDeque};

use aip_api::{AgentName, Digest};
use aip_audit::merkle::{self, Tree};
use aip_audit::{Checkpoint, Closing};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::forget::CHAIN_USED;
use super::rows::{ChainRow, Finding, LogRow, Mismatch, Newest, StatementRow, Taken, keys};
use super::{Command, EXPIRED, MAX_FINDINGS, MAX_FINDINGS_EACH, MAX_MISMATCHES, MAX_MISMATCHES_EACH, value_of};
use crate::refusal::{Reason, Refusal};
use crate::registry::decode;
use crate::store::{Store, StoreError};

/// Logs of one agent: each start after a clean end makes one, of each of its replicas.
const MAX_LOGS_PER_AGENT: u64 = 100_000;

/// A checkpoint whose signature was verified.
#[derive(Debug, Clone)]
pub struct Take {
    /// Whose sidecar sent it: the agent that the SVID of its stream names, and the one that signed.
    pub agent: AgentName,
    /// What it says.
    pub claims: Checkpoint,
    /// The JWS.
    pub statement: String,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

impl Take {
    fn chain(&self) -> Vec<String> {
        self.chain.iter().map(|der| STANDARD.encode(der)).collect()
    }
}

/// What is told when the transaction is on disk.
enum Reply {
    Taken(oneshot::Sender<Result<Taken, Refusal>>, Result<Taken, Refusal>),
    Broken(oneshot::Sender<Result<(), Refusal>>, Result<(), Refusal>),
    Forgot(oneshot::Sender<Result<u64, Refusal>>, Result<u64, Refusal>),
}

/// What is put together.
pub(super) struct Batch {
    pub(super) store: Store,
    pub(super) rows: BTreeMap<String, Option<Bytes>>,
    pub(super) tree: Tree,
    /// Numbers of the next finding and mismatch.
    pub(super) next: (u64, u64),
    /// How the log begins from now on, and what was signed before then (Unix milliseconds) is gone.
    pub(super) begins: Option<(Tree, u64)>,
    replies: Vec<Reply>,
}

impl Batch {
    pub(super) fn new(store: &Store, tree: Tree, next: (u64, u64)) -> Self {
        Self {
            store: store.clone(),
            rows: BTreeMap::new(),
            tree,
            next,
            begins: None,
            replies: Vec::new(),
        }
    }

    pub(super) async fn add(&mut self, command: Command) {
        match command {
            Command::Take(take, reply) => {
                let done = self.take(&take).await;
                self.replies.push(Reply::Taken(reply, done));
            }
            Command::Break(finding, reply) => {
                let done = self.broken(*finding).await;
                self.replies.push(Reply::Broken(reply, done));
            }
            Command::Forget(until, reply) => {
                // One a transaction: what is to go is looked up in the store.
                let done = match self.begins {
                    None => self.forget(until).await,
                    Some(_) => Ok(0),
                };
                self.replies.push(Reply::Forgot(reply, done));
            }
            Command::Mismatch(mismatch) => {
                if let Err(error) = self.mismatch(&mismatch).await {
                    tracing::warn!(%error, hop = mismatch.hop, "a mismatch was not kept");
                }
            }
        }
    }

    /// Answers everybody: with the failure, where the transaction has one.
    pub(super) fn answer(self, written: &Result<(), Refusal>) {
        fn tell<T>(
            reply: oneshot::Sender<Result<T, Refusal>>,
            done: Result<T, Refusal>,
            written: &Result<(), Refusal>,
        ) {
            let done = match written {
                // What was refused is refused, whether or not others were written.
                Ok(()) => done,
                Err(refusal) => done.and(Err(refusal.clone())),
            };
            // Who is gone learns it from the next stream.
            let _ = reply.send(done);
        }
        for reply in self.replies {
            match reply {
                Reply::Taken(reply, done) => tell(reply, done, written),
                Reply::Broken(reply, done) => tell(reply, done, written),
                Reply::Forgot(reply, done) => tell(reply, done, written),
            }
        }
    }

    /// Refuses everything that came.
    pub(super) fn refuse(batch: Vec<Command>, refusal: &Refusal) {
        for command in batch {
            match command {
                Command::Take(_, reply) => drop(reply.send(Err(refusal.clone()))),
                Command::Break(_, reply) => drop(reply.send(Err(refusal.clone()))),
                Command::Forget(_, reply) => drop(reply.send(Err(refusal.clone()))),
                Command::Mismatch(_) => {}
            }
        }
    }

    pub(super) async fn read<T: DeserializeOwned>(&self, key: String) -> Result<Option<T>, StoreError> {
        match self.rows.get(&key) {
            Some(None) => Ok(None),
            Some(Some(value)) => {
                let damaged = |e: serde_json::Error| StoreError::Failed(e.to_string());
                serde_json::from_slice(value).map(Some).map_err(damaged)
            }
            None => {
                let entry = self.store.get(key).await?;
                Ok(entry.as_ref().map(decode).transpose()?.map(|v| v.value))
            }
        }
    }

    pub(super) fn put<T: Serialize>(&mut self, key: String, value: &T) -> Result<(), StoreError> {
        self.rows.insert(key, Some(value_of(value)?));
        Ok(())
    }

    /// The log's row, made where there is none: it is then this agent's for ever.
    async fn open(&mut self, log: &str, agent: &AgentName) -> Result<LogRow, Refusal> {
        if let Some(row) = self.read::<LogRow>(keys::log(log)).await? {
            return match row.agent == *agent {
                true => Ok(row),
                false => Err(Reason::LogOfAnother.into()),
            };
        }
        let count: u64 = self.read(keys::agent(agent.as_str())).await?.unwrap_or(0);
        if count >= MAX_LOGS_PER_AGENT {
            let detail = format!("the sidecars of {agent} have opened {MAX_LOGS_PER_AGENT} logs");
            return Err(Refusal::new(Reason::AuditLogLimit, detail));
        }
        let row = LogRow {
            agent: agent.clone(),
            opened_at: aip_runtime::unix_now(),
            taken: None,
            broken: None,
        };
        self.put(keys::agent(agent.as_str()), &(count + 1))?;
        self.put(keys::log(log), &row)?;
        Ok(row)
    }

    async fn take(&mut self, take: &Take) -> Result<Taken, Refusal> {
        let claims = &take.claims;
        let mut row = self.open(&claims.log, &take.agent).await?;
        if let Some(broken) = &row.broken {
            let detail = format!("{}: nothing more of this log is taken", broken.reason);
            return Err(Refusal::new(Reason::LogBroken, detail));
        }
        let newest = row.taken.as_ref();
        if newest.is_some_and(|newest| claims.size <= newest.size) {
            let held: Option<(Digest, u64)> = self.read(keys::size_of(&claims.log, claims.size)).await?;
            // The last one of a log may be older than is kept.
            let last = newest.filter(|newest| newest.size == claims.size);
            let held = held.or(last.map(|newest| (newest.root, newest.index)));
            let Some((root, index)) = held else {
                let detail = format!("{} records, after a checkpoint of more", claims.size);
                return Err(Refusal::new(Reason::CheckpointBehind, detail));
            };
            if root != claims.root {
                return Err(self.forked(take, index).await?);
            }
            let closes = claims.closing == Closing::Close
                && newest.is_some_and(|n| n.size == claims.size && n.closing != Closing::Close);
            if !closes {
                return Ok(Taken { index, again: true });
            }
        }
        let index = self.append(take).await?;
        row.taken = Some(Newest {
            index,
            size: claims.size,
            root: claims.root,
            at: claims.at,
            closing: claims.closing,
        });
        self.put(keys::log(&claims.log), &row)?;
        Ok(Taken { index, again: false })
    }

    /// Adds the leaf, and every subtree that it completes.
    async fn append(&mut self, take: &Take) -> Result<u64, StoreError> {
        let index = self.tree.size();
        let mut carry = merkle::leaf(take.statement.as_bytes());
        self.put(keys::node(0, index), &carry)?;
        let peaks = self.tree.peaks().to_vec();
        for (height, left) in (1..=index.trailing_ones()).zip(peaks.iter().rev()) {
            carry = merkle::node(left, &carry);
            self.put(keys::node(height, index >> height), &carry)?;
        }
        self.tree.append(merkle::leaf(take.statement.as_bytes()));
        let row = StatementRow {
            log: take.claims.log.clone(),
            size: take.claims.size,
            statement: take.statement.clone(),
            chain: self.chain(take.chain()).await?,
            taken: aip_runtime::unix_now(),
        };
        self.put(keys::statement(index), &row)?;
        self.put(
            keys::size_of(&take.claims.log, take.claims.size),
            &(take.claims.root, index),
        )?;
        Ok(index)
    }

    /// Keeps a chain once, under the digest of what it is; all checkpoints of one SVID name the same.
    async fn chain(&mut self, certificates: Vec<String>) -> Result<Digest, StoreError> {
        let (digest, used) = (Digest::sha256(&value_of(&certificates)?), aip_runtime::unix_now());
        let key = keys::chain(&digest);
        let held: Option<ChainRow> = self.read(key.clone()).await?;
        if held.is_none_or(|held| used >= held.used + CHAIN_USED) {
            self.put(key, &ChainRow { certificates, used })?;
        }
        Ok(digest)
    }

    /// Two roots for one size, both signed: the log has two histories.
    async fn forked(&mut self, take: &Take, against: u64) -> Result<Refusal, Refusal> {
        let detail = format!(
            "checkpoint {against} says another root for {} records of this log",
            take.claims.size
        );
        self.broken(Finding {
            at: aip_runtime::unix_now(),
            agent: take.agent.clone(),
            log: take.claims.log.clone(),
            reason: Reason::CheckpointFork.row().reason.to_owned(),
            detail: detail.clone(),
            statement: take.statement.clone(),
            chain: take.chain(),
            against: Some(against),
        })
        .await?;
        Ok(Refusal::new(Reason::CheckpointFork, detail))
    }

    async fn broken(&mut self, finding: Finding) -> Result<(), Refusal> {
        let mut row = self.open(&finding.log, &finding.agent).await?;
        row.broken.get_or_insert(super::Broken {
            reason: finding.reason.clone(),
            at: finding.at,
        });
        self.put(keys::log(&finding.log), &row)?;
        if finding.reason == EXPIRED {
            return Ok(());
        }
        let of_agent = keys::found(finding.agent.as_str());
        let count = self.read::<u64>(of_agent.clone()).await?.unwrap_or(0) + 1;
        self.put(of_agent, &count)?;
        if count <= MAX_FINDINGS_EACH && self.next.0 < MAX_FINDINGS {
            self.put(keys::numbered(keys::FINDINGS, self.next.0), &finding)?;
            self.next.0 += 1;
            let next = self.next.0;
            self.put(format!("next/{}", keys::FINDINGS), &next)?;
        }
        Ok(())
    }

    async fn mismatch(&mut self, mismatch: &Mismatch) -> Result<(), StoreError> {
        let number = self.next.1;
        let key = |number| keys::numbered(keys::MISMATCHES, number);
        let pair = keys::pair(mismatch);
        let mut of_pair: VecDeque<u64> = self.read(pair.clone()).await?.unwrap_or_default();
        if of_pair.len() >= MAX_MISMATCHES_EACH
            && let Some(old) = of_pair.pop_front()
        {
            self.rows.insert(key(old), None);
        }
        of_pair.push_back(number);
        self.put(pair, &of_pair)?;
        self.put(key(number), mismatch)?;
        self.next.1 += 1;
        self.put(format!("next/{}", keys::MISMATCHES), &(number + 1))?;
        match number.checked_sub(MAX_MISMATCHES) {
            Some(old) => self.let_go(old).await,
            None => Ok(()),
        }
    }

    /// Lets go of a mismatch, if it is there still.
    async fn let_go(&mut self, number: u64) -> Result<(), StoreError> {
        let key = keys::numbered(keys::MISMATCHES, number);
        let Some(held) = self.read::<Mismatch>(key.clone()).await? else {
            return Ok(());
        };
        self.rows.insert(key, None);
        let pair = keys::pair(&held);
        let mut of_pair: VecDeque<u64> = self.read(pair.clone()).await?.unwrap_or_default();
        of_pair.retain(|kept| *kept != number);
        if of_pair.is_empty() {
            self.rows.insert(pair, None);
            return Ok(());
        }
        self.put(pair, &of_pair)
    }
}

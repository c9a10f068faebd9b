//! One change: its operations and its audit entry, committed in one transaction.

use aip_api::resource::{Kind, MAX_NAME_BYTES, MAX_PAYLOAD_BYTES, Resource};
use serde::Serialize;

use super::records::AuditEntry;
use super::{Actor, encode, keys};
use crate::refusal::{Reason, Refusal};
use crate::store::{Expect, Op, Store, StoreError, Transaction};

/// Longest audit detail; it is a remark, not a document.
const MAX_DETAIL: usize = 1_000;

/// A change that is being put together.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    audit: AuditEntry,
    ops: Vec<Op>,
    at_least: u64,
    routine: bool,
    // The first document that could not be written; reported at commit, so that building reads in one line.
    failed: Option<Refusal>,
}

impl Draft {
    pub(super) fn new(store: Store, at: u64, actor: Actor, action: &'static str, subject: String) -> Self {
        let audit = AuditEntry {
            at,
            actor: actor.0,
            action: action.to_owned(),
            subject,
            detail: String::new(),
        };
        Self {
            store,
            audit,
            ops: Vec::new(),
            at_least: 0,
            routine: false,
            failed: None,
        }
    }

    /// A remark for the audit.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.audit.detail = detail.into().chars().take(MAX_DETAIL).collect();
        self
    }

    /// A further remark.
    pub fn noting(self, more: impl AsRef<str>) -> Self {
        let (held, more) = (&self.audit.detail, more.as_ref());
        let both = match held.is_empty() {
            true => more.to_owned(),
            false => format!("{held}; {more}"),
        };
        self.detail(both)
    }

    /// Writes a record.
    pub fn put<T: Serialize>(mut self, key: impl Into<String>, value: &T, expect: Expect) -> Self {
        match encode(value) {
            Ok(value) => self.ops.push(Op::Put {
                key: key.into(),
                value,
                expect,
            }),
            Err(error) => self.failed = Some(error.into()),
        }
        self
    }

    /// Writes a resource that has no mistakes and fits into its envelope.
    pub fn resource<R: Resource>(mut self, resource: &R, expect: Expect) -> Self {
        let (mistakes, name) = (resource.validate(), resource.name());
        if !mistakes.is_empty() {
            self.failed = Some(Refusal::invalid(mistakes));
            return self;
        }
        self = self.put(keys::resource(R::KIND, &name), resource, expect);
        let size = match self.ops.last() {
            Some(Op::Put { value, .. }) => value.len(),
            _ => 0,
        };
        if size > MAX_PAYLOAD_BYTES || name.len() > MAX_NAME_BYTES {
            let detail = format!(
                "{} {name} has {size} bytes as JSON; at most {MAX_PAYLOAD_BYTES}",
                R::KIND
            );
            self.failed = Some(Refusal::new(Reason::TooLarge, detail));
        }
        self
    }

    /// Removes a resource.
    pub fn delete_resource(self, kind: Kind, name: &str, expect: Expect) -> Self {
        self.delete(keys::resource(kind, name), expect)
    }

    /// Removes a record.
    pub fn delete(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.ops.push(Op::Delete {
            key: key.into(),
            expect,
        });
        self
    }

    /// Only expects: what was decided on must still be so.
    pub fn check(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.ops.push(Op::Check {
            key: key.into(),
            expect,
        });
        self
    }

    /// Adds operations that were made elsewhere.
    pub fn ops(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.ops.extend(ops);
        self
    }

    /// A sidecar, or time, makes it happen: its audit entry never pushes out what people did.
    pub fn routine(mut self) -> Self {
        self.routine = true;
        self
    }

    /// Lifts the revision to at least this.
    pub fn at_least(mut self, revision: u64) -> Self {
        self.at_least = revision;
        self
    }

    /// Commits; answers the revision.
    ///
    /// # Errors
    /// A mistake in a document, something is not as expected, or the store fails; nothing of it happened then.
    pub async fn commit(self) -> Result<u64, Refusal> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let (audit, routine) = (encode(&self.audit)?, self.routine);
        let committed = self
            .store
            .txn(Transaction {
                ops: self.ops,
                audit,
                routine,
                at_least: self.at_least,
            })
            .await;
        let AuditEntry {
            actor, action, subject, ..
        } = &self.audit;
        match &committed {
            // Two places, since the log takes so many lines of each: what sidecars cause hides nothing that a person did.
            Ok(revision) if routine => tracing::info!(revision, %actor, %action, %subject, "changed"),
            Ok(revision) => tracing::info!(revision, %actor, %action, %subject, "changed"),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => tracing::warn!(%actor, %action, %subject, reason = error.reason(), %error, "not changed"),
        }
        Ok(committed?)
    }
}

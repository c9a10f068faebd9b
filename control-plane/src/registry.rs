//! The mesh's documents over the store: what is written, under which key, and what belongs into one transaction.
//!
//! | module | what |
//! |---|---|
//! | [`keys`] | where each thing stands in the store |
//! | [`records`] | what is stored beside the resources: tokens, pending measurements, issued SVIDs, proposals |
//! | [`draft`] | one change: operations and its audit entry, committed together |
//! | [`agents`], [`tokens`], [`measurements`], [`policies`], [`kills`], [`settings`], [`admins`] | the changes that exist |
//! | [`drift`] | agents that run something else than was approved, and their way back |
//! | [`proposals`] | those that take a second person |
//! | [`sweep`] | forgetting what has expired |

pub mod admins;
pub mod agents;
pub mod draft;
pub mod drift;
mod history;
pub mod keys;
pub mod kills;
pub mod measurements;
mod names;
pub mod policies;
pub mod proposals;
pub mod records;
pub mod restored;
pub mod settings;
pub mod sweep;
pub mod tokens;

use aip_api::problem::FieldError;
use aip_api::resource::{MeshConfig, MeshMode, Resource};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use draft::Draft;

use crate::clock::Clock;
use crate::refusal::{Reason, Refusal};
use crate::store::{Entry, Store, StoreError};

/// Most attempts of a change that collides with others. Each collision means that somebody else got through.
pub const MAX_ATTEMPTS: usize = 8;

/// Who changes something: `admin:<sub>`, `sidecar:<agent>` or `control-plane`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Actor(pub String);

impl Actor {
    /// The control plane itself.
    pub fn control_plane() -> Self {
        Self("control-plane".into())
    }

    /// A person or program with an admin token.
    pub fn admin(sub: &str) -> Self {
        Self(format!("admin:{sub}"))
    }

    /// A sidecar.
    pub fn sidecar(agent: &aip_api::AgentName) -> Self {
        Self(format!("sidecar:{agent}"))
    }
}

/// A document and the revision that wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// The document.
    pub value: T,
    /// Its revision.
    pub revision: u64,
}

/// What a change did: at which revision, or that it waits for a second person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It says what stands there already; nothing was written.
    Unchanged {
        /// The revision that wrote what stands there.
        revision: u64,
    },
    /// Done.
    Done {
        /// The store's revision.
        revision: u64,
    },
    /// Waits for approval.
    Proposed {
        /// The proposal.
        id: String,
        /// The store's revision.
        revision: u64,
    },
}

/// The documents of this mesh. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Registry {
    /// The store below.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// From the mesh's creation.
    pub mode: MeshMode,
}

fn damaged(key: &str, error: &serde_json::Error) -> StoreError {
    StoreError::Failed(format!("{key} can't be read: {error}"))
}

/// An entry's value as a document.
///
/// # Errors
/// Not such a document: the data is damaged.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<Versioned<T>, StoreError> {
    let value = serde_json::from_slice(&entry.value).map_err(|e| damaged(&entry.key, &e))?;
    Ok(Versioned {
        value,
        revision: entry.revision,
    })
}

/// A document as a value.
///
/// # Errors
/// Can't be written as JSON.
pub fn encode<T: Serialize>(value: &T) -> Result<Bytes, StoreError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|e| StoreError::Failed(e.to_string()))
}

impl Registry {
    /// The record under `key`.
    ///
    /// # Errors
    /// The store fails.
    pub async fn record<T: DeserializeOwned>(&self, key: impl Into<String>) -> Result<Option<Versioned<T>>, Refusal> {
        let entry = self.store.get(key).await?;
        Ok(entry.as_ref().map(decode).transpose()?)
    }

    /// The resource `name` of kind `R`.
    ///
    /// # Errors
    /// The store fails.
    pub async fn resource<R: Resource>(&self, name: &str) -> Result<Option<Versioned<R>>, Refusal> {
        self.record(keys::resource(R::KIND, name)).await
    }

    /// The resource `name` of kind `R`, or a refusal that says it is not there.
    ///
    /// # Errors
    /// Absent, or the store fails.
    pub async fn existing<R: Resource>(&self, name: &str) -> Result<Versioned<R>, Refusal> {
        let absent = || Refusal::new(Reason::NotFound, format!("there is no {} named {name:?}", R::KIND));
        self.resource(name).await?.ok_or_else(absent)
    }

    /// The mesh's settings.
    ///
    /// # Errors
    /// The store fails.
    pub async fn mesh_config(&self) -> Result<Versioned<MeshConfig>, Refusal> {
        self.existing(MeshConfig::NAME).await
    }

    /// All records below `prefix`, up to `limit`.
    ///
    /// # Errors
    /// The store fails.
    pub async fn all<T: DeserializeOwned>(
        &self,
        prefix: impl Into<String>,
        limit: usize,
    ) -> Result<Vec<(String, Versioned<T>)>, Refusal> {
        let entries = self.store.scan(prefix, "", limit).await?;
        let read = entries.iter().map(|e| Ok((e.key.clone(), decode(e)?)));
        Ok(read.collect::<Result<_, StoreError>>()?)
    }

    /// A change by `actor`; `action` is a stable word, `subject` what it is about.
    pub fn change(&self, actor: &Actor, action: &'static str, subject: impl Into<String>) -> Draft {
        Draft::new(
            self.store.clone(),
            self.clock.now(),
            actor.clone(),
            action,
            subject.into(),
        )
    }

    /// Whether a change needs a second person in this mesh.
    pub fn needs_second_person(&self) -> bool {
        self.mode == MeshMode::Prod
    }
}

/// A reason that is asked for says something.
///
/// # Errors
/// It is blank.
pub(crate) fn says_why(reason: &str) -> Result<(), Refusal> {
    match reason.trim().is_empty() {
        true => Err(Refusal::invalid(vec![FieldError::new(
            "reason",
            "it is blank: say why",
        )])),
        false => Ok(()),
    }
}

/// Repeats an optimistic change while it collides with others.
///
/// # Errors
/// What the last attempt failed with.
pub async fn retrying<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Refusal>>,
{
    let mut left = MAX_ATTEMPTS;
    loop {
        left -= 1;
        match attempt().await {
            Err(refusal) if refusal.reason == Reason::Conflict && left > 0 => {}
            other => return other,
        }
    }
}

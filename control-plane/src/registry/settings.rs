//! The mesh's settings.

use aip_api::resource::{MeshConfig, Resource as _};

use super::records::Action;
use super::{Draft, Outcome, Registry, keys, retrying};
use crate::refusal::{Reason, Refusal};
use crate::store::{Expect, MAX_OPS, Op};

impl Registry {
    /// Changes the settings, or proposes to. Trust domain and mode never change.
    ///
    /// # Errors
    /// Mistakes, an attempt on what is fixed, not at the expected revision, or the store fails.
    pub async fn put_mesh_config(
        &self,
        sub: &str,
        config: MeshConfig,
        expected: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        retrying(async || {
            let held = self.mesh_config().await?;
            super::agents::at_expected(held.revision, expected)?;
            if (&config.trust_domain, config.mode) != (&held.value.trust_domain, held.value.mode) {
                let detail = "trust domain and mode are fixed when the mesh is created: make another mesh";
                return Err(Refusal::new(Reason::Immutable, detail));
            }
            let mistakes = config.validate();
            if !mistakes.is_empty() {
                return Err(Refusal::invalid(mistakes));
            }
            let replaces = held.revision;
            if held.value == config {
                return Ok(Outcome::Unchanged { revision: replaces });
            }
            let config = config.clone();
            self.do_or_propose(sub, Action::PutMeshConfig { config, replaces })
                .await
        })
        .await
    }

    /// Adds what writes the settings, and keeps what they were.
    pub(super) async fn mesh_config_ops(
        &self,
        draft: Draft,
        config: &MeshConfig,
        replaces: u64,
    ) -> Result<Draft, Refusal> {
        let held = self.mesh_config().await?;
        let draft = self.keep_former(draft, &held)?;
        Ok(draft.resource(config, Expect::At(replaces)))
    }

    /// Lifts a restored store above what sidecars have seen, or proposes to: what stands in the copy then replaces
    /// everything later.
    ///
    /// # Errors
    /// Too far, or the store fails.
    pub async fn lift(&self, sub: &str, above: u64) -> Result<Outcome, Refusal> {
        let most = self.store.revision().saturating_add(MAX_AHEAD).min(MAX_REVISION);
        if above > most {
            let error = aip_api::problem::FieldError::new("above", format!("at most {most}"));
            return Err(Refusal::invalid(vec![error]));
        }
        self.do_or_propose(sub, Action::Lift { above }).await
    }

    /// Adds every resource again, at a revision that no sidecar has held.
    pub(super) async fn lift_ops(&self, draft: Draft, above: u64) -> Result<Draft, Refusal> {
        let snapshot = self.store.snapshot(keys::RESOURCES).await?;
        if snapshot.entries.len() > MAX_OPS {
            return Err(Refusal::new(
                Reason::LimitReached,
                "too many resources to rewrite in one transaction",
            ));
        }
        let mut draft = draft;
        for entry in &snapshot.entries {
            // Records name what they were decided on by the revision that it had.
            let id = keys::resource_id(&entry.key).filter(|id| super::history::is_decided_on(id.kind));
            if let Some(id) = id {
                let held = super::decode(entry)?;
                draft = self.keep_former_value(draft, id.kind, &id.name, (held.revision, held.value));
            }
        }
        let again = snapshot.entries.into_iter().map(|e| {
            let expect = Expect::At(e.revision);
            Op::Put {
                key: e.key,
                value: e.value,
                expect,
            }
        });
        let draft = super::restored::restored(draft, self.clock.now());
        Ok(draft.ops(again).at_least(above + 1))
    }
}

/// Highest revision that an operator can lift the store to: the last whole number that every reader of JSON reads as it is.
pub const MAX_REVISION: u64 = (1 << 53) - 1;
/// How far a store is lifted at once: a thousand changes a second for seven weeks, more than one that was restored from a copy is
/// behind. A slip of the hand then takes nothing of what later lifts need.
pub const MAX_AHEAD: u64 = 1 << 32;

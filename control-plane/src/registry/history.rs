//! Policies and settings as they were: what a recorded decision was made on is kept as long as the record is.

use aip_api::resource::{Kind, Resource};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Actor, Draft, Registry, Versioned, keys};
use crate::refusal::{Reason, Refusal};
use crate::store::{Expect, Op};

/// Days beyond the records': a sidecar that is cut off decides on what it last held until its SVID ends.
const MARGIN_DAYS: u64 = 2;
/// Rows that are looked at when what is over is forgotten; more go the next time.
const PAGE: usize = 256;
/// Seconds of a day.
const DAY: u64 = 86_400;

/// A resource that was replaced or removed.
#[derive(Debug, Serialize, Deserialize)]
struct Former {
    /// Unix seconds: since then it is not what sidecars are pushed.
    until: u64,
    resource: Value,
}

/// Whether decisions are made on resources of this kind.
pub(super) const fn is_decided_on(kind: Kind) -> bool {
    matches!(kind, Kind::Policy | Kind::MeshConfig)
}

impl Registry {
    /// Adds what keeps a resource that this change replaces or removes.
    pub(super) fn keep_former<R: Resource>(&self, draft: Draft, held: &Versioned<R>) -> Result<Draft, Refusal> {
        let resource = serde_json::to_value(&held.value).map_err(|e| Refusal::new(Reason::Internal, e.to_string()))?;
        Ok(self.keep_former_value(draft, R::KIND, &held.value.name(), (held.revision, resource)))
    }

    /// The same, of a resource that is known by its document.
    pub(super) fn keep_former_value(
        &self,
        draft: Draft,
        kind: Kind,
        name: &str,
        (at, resource): (u64, Value),
    ) -> Draft {
        let until = self.clock.now();
        let former = Former { until, resource };
        let key = keys::former_resource(kind, name, at);
        draft
            .put(keys::former_until(until, &key), &key, Expect::Any)
            .put(key, &former, Expect::Any)
    }

    /// A resource as the transaction `revision` wrote it.
    ///
    /// # Errors
    /// It is not kept, or the store fails.
    pub async fn resource_at<R: Resource>(&self, name: &str, revision: u64) -> Result<Versioned<Value>, Refusal> {
        let held = self.record::<Value>(keys::resource(R::KIND, name)).await?;
        if let Some(held) = held.filter(|held| held.revision == revision) {
            return Ok(held);
        }
        let former = self
            .record::<Former>(keys::former_resource(R::KIND, name, revision))
            .await?;
        let absent = || {
            let detail = format!("{} {name} of revision {revision} is not kept", R::KIND);
            Refusal::new(Reason::NotFound, detail)
        };
        let value = former.ok_or_else(absent)?.value.resource;
        Ok(Versioned { value, revision })
    }

    /// Forgets what no record that is kept can name any more.
    ///
    /// # Errors
    /// The store fails.
    pub async fn sweep_history(&self) -> Result<usize, Refusal> {
        let days = u64::from(self.mesh_config().await?.value.audit.retention.days) + MARGIN_DAYS;
        let before = self.clock.steady().saturating_sub(days * DAY);
        // Keys begin with the time.
        let rows = self.all::<String>(keys::FORMER_UNTIL, PAGE).await?;
        let over = rows
            .into_iter()
            .take_while(|(key, _)| *key < keys::former_until(before, ""));
        let gone: Vec<String> = over.flat_map(|(key, row)| [key, row.value]).collect();
        if gone.is_empty() {
            return Ok(0);
        }
        let count = gone.len() / 2;
        let delete = |key| Op::Delete {
            key,
            expect: Expect::Any,
        };
        self.change(
            &Actor::control_plane(),
            "sweep",
            format!("{count} former policies and settings"),
        )
        .routine()
        .ops(gone.into_iter().map(delete))
        .commit()
        .await?;
        Ok(count)
    }
}

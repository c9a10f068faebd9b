//! That the store was restored from a copy, and until when processes may run of which it does not know: let in after the copy
//! was made, or renewed since then.

use serde::{Deserialize, Serialize};

use super::{Actor, Draft, Registry, keys};
use crate::refusal::Refusal;
use crate::store::Expect;

/// Longest life of an SVID, in seconds, as settings bound it.
pub const LONGEST_SVID: u64 = 86_400;

/// That it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Restored {
    /// Unix seconds until which such a process may run.
    until: u64,
}

/// When the last SVID has ended that was issued before `began`: the settings that it was issued by may be lost, too.
pub const fn ended_by(began: u64) -> u64 {
    began + LONGEST_SVID
}

impl Registry {
    /// Unix seconds until which processes may run of which the store does not know.
    ///
    /// # Errors
    /// The store fails.
    pub async fn unknown_until(&self) -> Result<Option<u64>, Refusal> {
        let held = self.record::<Restored>(keys::RESTORED).await?;
        Ok(held.map(|held| held.value.until))
    }

    /// Notes that the store was restored before this process began, then.
    ///
    /// # Errors
    /// The store fails.
    pub async fn note_restored(&self, began: u64) -> Result<(), Refusal> {
        if self.unknown_until().await? >= Some(ended_by(began)) {
            return Ok(());
        }
        let draft = self.change(&Actor::control_plane(), "store.restored", "the store");
        let detail = "a sidecar shows an SVID that this store never issued: it was restored from a copy";
        restored(draft.detail(detail), began).commit().await.map(drop)
    }
}

/// Adds to a draft that the store was restored, no later than `began`.
pub(super) fn restored(draft: Draft, began: u64) -> Draft {
    let until = ended_by(began);
    draft.put(keys::RESTORED, &Restored { until }, Expect::Any)
}

#[cfg(test)]
mod tests {
    use aip_api::resource::{MeshConfig, MeshMode, Resource as _};

    use super::*;

    #[test]
    fn no_setting_makes_an_svid_last_longer() {
        let mut config = MeshConfig::new("aip.internal".parse().unwrap(), MeshMode::Dev);
        config.svid_ttl_seconds = LONGEST_SVID;
        assert_eq!(config.validate(), []);
        config.svid_ttl_seconds += 1;
        assert_eq!(config.validate()[0].field, "svid_ttl_seconds");
    }
}

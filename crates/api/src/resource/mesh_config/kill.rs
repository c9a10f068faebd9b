//! How orders to stop are given.

use serde::{Deserialize, Serialize};

/// How orders to stop are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct KillSettings {
    /// In a `prod` mesh: orders that stop more than one agent wait for a second person. Resuming always does there.
    pub second_approver: bool,
}

//! How orders to stop are given.

use serde::{Deserialize, Serialize};

use crate::kill::webhook::Webhook;
use crate::problem::FieldError;

/// How orders to stop are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct KillSettings {
    /// In a `prod` mesh: orders that stop more than one agent wait for a second person. Resuming always does there.
    pub second_approver: bool,
    /// Who is told when an order is given or lifted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

impl KillSettings {
    /// Every mistake in it, by field path.
    pub fn validate(&self) -> Vec<FieldError> {
        let webhook = self.webhook.as_ref();
        webhook.map_or_else(Vec::new, |webhook| webhook.validate("kill.webhook"))
    }
}

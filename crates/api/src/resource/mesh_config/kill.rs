//! How orders to stop are given.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::problem::FieldError;

/// Longest webhook URL, in bytes.
const MAX_WEBHOOK_BYTES: usize = 2_000;

/// How orders to stop are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct KillSettings {
    /// In a `prod` mesh: orders that stop more than one agent wait for a second person. Resuming always does there.
    pub second_approver: bool,
    /// Where the control plane posts that an order was given or taken back: `https://`, or `http://` to a loopback
    /// address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
}

impl KillSettings {
    pub(super) fn validate(&self, errors: &mut Vec<FieldError>) {
        let Some(url) = &self.webhook else { return };
        let loopback = |rest: &str| {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let address = authority.parse::<SocketAddr>();
            address.is_ok_and(|address| address.ip().is_loopback())
        };
        let secure = url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty());
        let goes = secure || url.strip_prefix("http://").is_some_and(loopback);
        let printable = url.bytes().all(|b| b.is_ascii_graphic());
        if !goes || !printable || url.contains('@') || url.len() > MAX_WEBHOOK_BYTES {
            let message = "must be https://…, or http:// with a loopback address and a port, without a user in it";
            errors.push(FieldError::new("kill.webhook", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_goes_over_tls_or_stays_on_this_machine() {
        let takes = |url: &str| {
            let mut errors = Vec::new();
            let webhook = Some(url.to_owned());
            KillSettings {
                webhook,
                ..KillSettings::default()
            }
            .validate(&mut errors);
            errors.is_empty()
        };
        for url in ["https://ops.example/kill", "http://127.0.0.1:9/x", "http://[::1]:9"] {
            assert!(takes(url), "{url}");
        }
        for url in [
            "http://ops.example/kill",
            "http://localhost:9",
            "https://",
            "https://me:secret@ops.example",
            "https://ops.example/a b",
            "file:///etc/passwd",
            "http://10.0.0.1:9",
        ] {
            assert!(!takes(url), "{url}");
        }
    }
}

//! `MeshConfig.audit`: how surely records are written, how long they are kept, and who may read what is sealed.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::problem::FieldError;

/// How long records may wait for the disk. Below 10 ms the disk does nothing else; past 10 s a power loss costs more
/// than anybody expects of a default.
const FLUSH_MS: RangeInclusive<u64> = 10..=10_000;
/// Days that records are kept: a day, in which somebody can look, up to the ten years that some laws want.
const DAYS: RangeInclusive<u32> = 1..=3_650;
/// Bytes of records that are kept of one agent: from one rotation of its segments to what one disk holds.
const BYTES: RangeInclusive<u64> = 16 * MIB..=1024 * 1024 * MIB;
const MIB: u64 = 1024 * 1024;
/// Length of an X25519 public key.
const KEY_BYTES: usize = 32;

/// What is recorded of every request, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// What an agent waits for.
    pub durability: Durability,
    /// Milliseconds that a written record may wait for the disk: what a power loss may cost under `buffered`, and how
    /// long a group gathers at most under `grouped`; 10 to 10,000.
    pub flush_ms: u64,
    /// How long records are kept.
    pub retention: Retention,
    /// X25519 public key, 32 bytes in base64: sensitive facts are sealed to it. Absent: they are not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auditor_key: Option<String>,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            flush_ms: 1_000,
            retention: Retention::default(),
            auditor_key: None,
        }
    }
}

/// What an agent waits for, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing: a crash of the sidecar loses no record, a power loss at most those of one flush interval.
    #[default]
    Buffered,
    /// The answer waits until the end record is on disk, with others of its group.
    Grouped,
    /// The agent hears nothing before the decision record is on disk, and the answer waits for the end record.
    Required,
}

impl Durability {
    /// The word in documents, obligations, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::Grouped => "grouped",
            Self::Required => "required",
        }
    }
}

/// How long records are kept, by the control plane for each agent: whichever bound is met first. Checkpoints are kept
/// for as many days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Days: 1 to 3,650.
    pub days: u32,
    /// Bytes of one agent's segments: 16 MiB to 1 TiB.
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            days: 90,
            bytes: 10 * 1024 * MIB,
        }
    }
}

impl AuditConfig {
    /// The auditor's key, where there is one.
    pub fn auditor_key(&self) -> Option<[u8; KEY_BYTES]> {
        let decoded = STANDARD.decode(self.auditor_key.as_ref()?).ok()?;
        decoded.try_into().ok()
    }

    pub(super) fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut bound = |field: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                let message = format!("{value} is out of bounds: {least} to {most}");
                errors.push(FieldError::new(format!("audit.{field}"), message));
            }
        };
        bound("flush_ms", self.flush_ms, *FLUSH_MS.start(), *FLUSH_MS.end());
        let (days, bytes) = (self.retention.days, self.retention.bytes);
        bound(
            "retention.days",
            days.into(),
            (*DAYS.start()).into(),
            (*DAYS.end()).into(),
        );
        bound("retention.bytes", bytes, *BYTES.start(), *BYTES.end());
        // The all-zero point gives everybody the same secret.
        if self.auditor_key.is_some() && self.auditor_key().is_none_or(|key| key == [0; KEY_BYTES]) {
            let message = format!("not an X25519 public key: {KEY_BYTES} bytes in base64");
            errors.push(FieldError::new("audit.auditor_key", message));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_named_by_its_field() {
        assert!(AuditConfig::default().validate().is_empty());
        let wrong = AuditConfig {
            durability: Durability::Required,
            flush_ms: 9,
            retention: Retention { days: 0, bytes: MIB },
            auditor_key: Some("AAAA".into()),
        };
        let fields: Vec<_> = wrong.validate().into_iter().map(|e| e.field).collect();
        let expected = [
            "audit.flush_ms",
            "audit.retention.days",
            "audit.retention.bytes",
            "audit.auditor_key",
        ];
        assert_eq!(fields, expected);
        let zero = AuditConfig {
            auditor_key: Some(STANDARD.encode([0; KEY_BYTES])),
            ..AuditConfig::default()
        };
        assert_eq!(zero.validate().len(), 1);
        let good = AuditConfig {
            auditor_key: Some(STANDARD.encode([9; KEY_BYTES])),
            ..AuditConfig::default()
        };
        assert_eq!((good.validate().len(), good.auditor_key()), (0, Some([9; KEY_BYTES])));
    }

    #[test]
    fn settings_from_before_have_the_defaults() {
        let read: AuditConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(read, AuditConfig::default());
        assert!(Durability::Buffered < Durability::Grouped && Durability::Grouped < Durability::Required);
    }
}

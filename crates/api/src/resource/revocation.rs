//! `Revocation`: generations and serials that are refused before they expire.

use serde::{Deserialize, Serialize};

use super::{Kind, Resource};
use crate::AgentName;
use crate::problem::FieldError;

/// One revocation, kept until what it revokes has expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Revocation {
    /// All SVIDs of `agent` whose generation is below `below`.
    Generation {
        /// The agent.
        agent: AgentName,
        /// The first generation that is good again.
        below: u64,
        /// Unix seconds after which nothing revoked here can still be valid.
        expires: u64,
    },
    /// One certificate.
    Serial {
        /// SHA-256 of the issuing certificate's DER SubjectPublicKeyInfo: a serial is unique per issuer only.
        issuer: crate::Digest,
        /// The serial, lower-case hex without leading zeros.
        serial: String,
        /// The certificate's notAfter, Unix seconds.
        expires: u64,
    },
}

impl Revocation {
    /// When it can be forgotten, Unix seconds.
    pub const fn expires(&self) -> u64 {
        match self {
            Self::Generation { expires, .. } | Self::Serial { expires, .. } => *expires,
        }
    }
}

impl Resource for Revocation {
    const KIND: Kind = Kind::Revocation;
    fn name(&self) -> String {
        match self {
            Self::Generation { agent, .. } => format!("generation/{agent}"),
            Self::Serial { issuer, serial, .. } => format!("serial/{issuer}/{serial}"),
        }
    }
    fn validate(&self) -> Vec<FieldError> {
        match self {
            Self::Serial { serial, .. }
                if serial.is_empty()
                    || serial.len() > 40
                    || !serial.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) =>
            {
                vec![FieldError::new("serial.serial", "1 to 40 lower-case hex digits")]
            }
            Self::Serial { .. } | Self::Generation { .. } => Vec::new(),
        }
    }
}

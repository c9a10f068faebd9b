//! Hop and decision ids: UUIDv7 (RFC 9562 section 5.7), so that they sort by time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Text that is not a UUIDv7 in its hyphenated form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUIDv7 in hyphenated lower-case form")]
pub struct IdError;

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id.
            pub fn fresh() -> Self {
                Self(Uuid::now_v7())
            }

            /// Its 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                let id = Uuid::try_parse(s).map_err(|_| IdError)?;
                // One spelling only: ids are compared and logged as text.
                if id.get_version_num() == 7 && id.hyphenated().to_string() == s { Ok(Self(id)) } else { Err(IdError) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                s.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

uuid_type!(
    /// One hop: one request between two sidecars. Made by the caller's sidecar, carried in `x-aip-hop`.
    HopId
);
uuid_type!(
    /// One decision of one sidecar, carried in `x-aip-decision` and in refusals.
    DecisionId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_spelling() {
        let id = HopId::fresh();
        assert_eq!(id.to_string().parse::<HopId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<HopId>().is_err());
        assert!(
            "00000000-0000-4000-8000-000000000000".parse::<HopId>().is_err(),
            "version 4 is not ours"
        );
        assert!("".parse::<HopId>().is_err());
    }
}

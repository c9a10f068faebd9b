//! Join tokens: `aip1.<id>.<secret>.<sha256 of the root's SPKI>`.
//!
//! A token is bound to an agent name by the control plane, which stores only the digest of the secret. The last part
//! lets a sidecar know its control plane before it says anything to it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::Digest;

/// Bytes of the secret: 256 bits, so that a stolen digest can't be searched.
pub const SECRET_BYTES: usize = 32;
/// Bytes of the id, which only has to be unique.
pub const ID_BYTES: usize = 12;

/// Text that is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: expected aip1.<id>.<secret>.<root digest>, as `aip token create` prints it")]
pub struct TokenError;

/// A join token. Its secret is never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which token this is; not secret.
    pub id: [u8; ID_BYTES],
    /// What proves possession.
    pub secret: [u8; SECRET_BYTES],
    /// SHA-256 of the DER SubjectPublicKeyInfo of the mesh's root.
    pub root: Digest,
}

impl JoinToken {
    /// The id as text, by which the control plane stores the token.
    pub fn id_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.id)
    }

    /// What the control plane stores instead of the secret.
    pub fn secret_digest(&self) -> Digest {
        Digest::of_parts(&[b"aip join token secret\0", &self.secret])
    }

    /// The token as the user carries it. This is the secret: never log it.
    pub fn reveal(&self) -> String {
        format!(
            "aip1.{}.{}.{}",
            self.id_text(),
            URL_SAFE_NO_PAD.encode(self.secret),
            self.root
        )
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, secret withheld)", self.id_text())
    }
}

fn decode<const N: usize>(text: &str) -> Result<[u8; N], TokenError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|v| v.try_into().ok())
        .ok_or(TokenError)
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(s: &str) -> Result<Self, TokenError> {
        // A token is about 150 bytes; the check keeps the decoder off anything larger.
        if s.len() > 256 {
            return Err(TokenError);
        }
        let mut parts = s.trim().split('.');
        let (Some("aip1"), Some(id), Some(secret), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError);
        };
        Ok(Self {
            id: decode(id)?,
            secret: decode(secret)?,
            root: root.parse().map_err(|_| TokenError)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            id: [7; ID_BYTES],
            secret: [9; SECRET_BYTES],
            root: Digest::sha256(b"root"),
        }
    }

    #[test]
    fn round_trips_and_keeps_its_secret_out_of_debug() {
        let text = token().reveal();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token());
        let secret = URL_SAFE_NO_PAD.encode([9u8; SECRET_BYTES]);
        assert!(text.contains(&secret));
        assert!(!format!("{:?}", token()).contains(&secret));
    }

    #[test]
    fn altered_tokens_are_refused() {
        let text = token().reveal();
        let cut = &text[..text.len() - 1];
        let long = format!("{text}.x");
        let other = text.replacen("aip1", "aip2", 1);
        for bad in ["", "aip1...", cut, &long, &other, &"a".repeat(10_000)] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad:?} must be refused");
        }
    }
}

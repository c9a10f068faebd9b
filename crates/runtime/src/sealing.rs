//! Sealing of secrets at rest: AES-256-GCM under a key from a file or the environment.

use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::files;

/// A sealed blob is the version byte, the nonce, the ciphertext and its tag.
const VERSION: u8 = 1;

/// Why something can't be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Cut, altered, sealed for another place, or under another key.
    #[error("the sealed data can't be opened: another key, another place, or altered")]
    NotOurs,
    /// The key's text is wrong.
    #[error("{0} does not hold a sealing key: expected 64 hex digits")]
    BadKey(String),
    /// The key's file.
    #[error("the sealing key {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    Random,
}

/// The key that seals. Never printed; wiped on drop.
pub struct SealingKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(withheld)")
    }
}

impl SealingKey {
    /// A fresh key.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *key).map_err(|_| SealError::Random)?;
        Ok(Self(key))
    }

    /// The key in hex, as [`Self::from_file`] and [`Self::from_env`] read it.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(*self.0))
    }

    fn parse(what: &str, text: &str) -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), &mut *key).map_err(|_| SealError::BadKey(what.to_owned()))?;
        Ok(Self(key))
    }

    /// The key in a file.
    ///
    /// # Errors
    /// Unreadable, or not 64 hex digits.
    pub fn from_file(path: &Path) -> Result<Self, SealError> {
        let text = std::fs::read_to_string(path).map_err(|source| SealError::File {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(&path.display().to_string(), &Zeroizing::new(text))
    }

    /// The key in an environment variable, or `None` where it is not set.
    ///
    /// # Errors
    /// Not 64 hex digits.
    pub fn from_env(variable: &str) -> Result<Option<Self>, SealError> {
        match std::env::var(variable) {
            Ok(text) => Self::parse(variable, &Zeroizing::new(text)).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The key in a file, which is made (0600) if it is absent.
    ///
    /// # Errors
    /// Unreadable, not writable, or not 64 hex digits.
    pub fn from_file_or_new(path: &Path) -> Result<Self, SealError> {
        if path.exists() {
            return Self::from_file(path);
        }
        let key = Self::generate()?;
        files::write_private(path, key.to_hex().as_bytes()).map_err(|source| SealError::File {
            path: path.display().to_string(),
            source,
        })?;
        Ok(key)
    }

    fn aead(&self) -> Result<LessSafeKey, SealError> {
        UnboundKey::new(&AES_256_GCM, &*self.0)
            .map(LessSafeKey::new)
            .map_err(|_| SealError::NotOurs)
    }

    /// Seals `plain` for the place `label`: sealed data moved elsewhere does not open.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn seal(&self, label: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut body = plain.to_vec();
        self.aead()?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(label.as_bytes()),
                &mut body,
            )
            .map_err(|_| SealError::NotOurs)?;
        let mut out = Vec::with_capacity(1 + NONCE_LEN + body.len());
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.append(&mut body);
        Ok(out)
    }

    /// Opens what [`Self::seal`] made for `label`.
    ///
    /// # Errors
    /// Cut, altered, sealed for another label or under another key.
    pub fn open(&self, label: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (&version, rest) = sealed.split_first().ok_or(SealError::NotOurs)?;
        if version != VERSION || rest.len() < NONCE_LEN {
            return Err(SealError::NotOurs);
        }
        let (nonce, body) = rest.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::NotOurs)?;
        let mut body = Zeroizing::new(body.to_vec());
        let aad = Aad::from(label.as_bytes());
        let plain = self
            .aead()?
            .open_in_place(nonce, aad, &mut body)
            .map_err(|_| SealError::NotOurs)?
            .len();
        body.truncate(plain);
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_unaltered_in_its_place_under_its_key() {
        let key = SealingKey::generate().unwrap();
        let sealed = key.seal("svid", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(&**key.open("svid", &sealed).unwrap(), b"secret");
        assert!(key.open("ca", &sealed).is_err());
        assert!(SealingKey::generate().unwrap().open("svid", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[i] ^= 1;
            assert!(key.open("svid", &altered).is_err(), "byte {i}");
            assert!(key.open("svid", &sealed[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn a_key_file_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let sealed = SealingKey::from_file_or_new(&path).unwrap().seal("x", b"y").unwrap();
        assert_eq!(
            &**SealingKey::from_file_or_new(&path).unwrap().open("x", &sealed).unwrap(),
            b"y"
        );
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(SealingKey::from_file(&path), Err(SealError::BadKey(_))));
    }
}

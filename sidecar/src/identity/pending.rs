//! The key with which a token is being spent, kept sealed until its SVID is: a sidecar that dies in between asks again
//! with the same key, which is the only one that the control plane answers for a spent token.

use aip_runtime::files;
use aip_runtime::svid::PendingKey;
use aip_runtime::x509::IdentityError;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Vault;

/// What the file is sealed for.
const LABEL: &str = "aip-sidecar pending key";
/// Its name, beside the sealed identity.
const FILE: &str = "joining.sealed";

#[derive(Serialize, Deserialize)]
struct Stored {
    /// The token that it spends, by its id.
    token: String,
    pkcs8: String,
}

impl Vault {
    /// The key for spending the token of this id: the one of an earlier attempt, or a new one, which is kept before it is
    /// used.
    ///
    /// # Errors
    /// No key can be made.
    pub fn pending_key(&self, token: &str) -> Result<PendingKey, IdentityError> {
        if let Some(key) = self.kept_key(token) {
            return Ok(key);
        }
        let key = PendingKey::generate()?;
        if let Err(error) = self.keep_key(token, &key) {
            // It joins all the same: only a crash before its SVID is kept would cost another token.
            tracing::warn!(reason = "pending_key_not_kept", %error, "the key with which this sidecar joins is not kept");
        }
        Ok(key)
    }

    /// Forgets it, once the SVID is kept.
    pub fn forget_pending_key(&self) {
        // One that stays is used for no other token, and is replaced by the next.
        let _ = std::fs::remove_file(self.path().with_file_name(FILE));
    }

    fn kept_key(&self, token: &str) -> Option<PendingKey> {
        let sealed = std::fs::read(self.path().with_file_name(FILE)).ok()?;
        let plain = self.key.open(LABEL, &sealed).ok()?;
        let stored: Stored = serde_json::from_slice(&plain).ok()?;
        let pkcs8 = Zeroizing::new(hex::decode(Zeroizing::new(stored.pkcs8)).ok()?);
        (stored.token == token).then(|| PendingKey::from_pkcs8(pkcs8).ok())?
    }

    fn keep_key(&self, token: &str, key: &PendingKey) -> std::io::Result<()> {
        let stored = Stored {
            token: token.to_owned(),
            pkcs8: hex::encode(&*key.pkcs8),
        };
        let plain = Zeroizing::new(serde_json::to_vec(&stored)?);
        let sealed = self.key.seal(LABEL, &plain).map_err(std::io::Error::other)?;
        files::write_private(&self.path().with_file_name(FILE), &sealed)
    }
}

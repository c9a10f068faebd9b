//! What this process presents, swapped at renewal.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{TlsError, provider};

/// The key and chain that TLS presents; empty until set, and then no handshake succeeds. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct IdentitySlot(Arc<ArcSwapOption<CertifiedKey>>);

impl IdentitySlot {
    /// Presents this chain (leaf first, DER) and key (PKCS#8) from the next handshake on.
    ///
    /// # Errors
    /// Not a key that TLS can use, or not the leaf's.
    pub fn set(&self, chain: &[Vec<u8>], pkcs8: &[u8]) -> Result<(), TlsError> {
        let failed = |e: rustls::Error| TlsError::OwnKey(e.to_string());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.to_vec()));
        let chain = chain.iter().map(|c| CertificateDer::from(c.clone())).collect();
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(failed)?;
        certified.keys_match().map_err(failed)?;
        self.0.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// Presents what `other` does now.
    pub(crate) fn present_as(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// Presents nothing: no handshake succeeds.
    pub fn clear(&self) {
        self.0.store(None);
    }
}

impl ResolvesServerCert for IdentitySlot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl ResolvesClientCert for IdentitySlot {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

//! Certificates that are shown without the right to, or in such a number that reading them would cost much.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;

/// Shows a chain with a key, whether they belong together or not.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

fn shows(chain: &[Vec<u8>], key: &Leaf) -> Arc<rustls::ClientConfig> {
    let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.pkcs8.clone()));
    let certified = CertifiedKey::new(chain, any_ecdsa_type(&key).unwrap());
    let mut config = (*wire::client(None, &[b"h2"])).clone();
    config.client_auth_cert_resolver = Arc::new(Shows(Arc::new(certified)));
    Arc::new(config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_worth_nothing_without_its_key_or_among_too_many() {
    let (scripted, agent, dir) = (Scripted::start(), Agent::start(), TempDir::new().unwrap());
    let sidecar: Sidecar = scripted.sidecar("callee", agent.address, dir.path()).await;
    let leaf = |name: &str| scripted.with_pki(|pki| pki.leaf(&LeafSpec::good(name)));
    let (victim, own) = (leaf("caller"), leaf("other"));
    let port = Port {
        address: sidecar.inbound,
        page: sidecar.admin,
        good: Some(leaf("caller")),
    };
    let [end, issuer] = victim.chain.as_slice() else {
        panic!("a leaf and its issuer")
    };
    let many: Vec<_> = [end].into_iter().chain([issuer; 60]).cloned().collect();
    let huge = vec![end.clone(), issuer.clone(), vec![0x30; 70_000]];
    let mut wrong = Vec::new();
    for (what, reason, chain, key) in [
        ("another's certificate", "tls_protocol", victim.chain.clone(), &own),
        (
            "an issuer's certificate",
            "certificate_malformed",
            vec![issuer.clone(), issuer.clone()],
            &own,
        ),
        (
            "a certificate without its issuer",
            "unknown_issuer",
            vec![end.clone()],
            &victim,
        ),
        (
            "a certificate that is none",
            "certificate_malformed",
            vec![vec![0x30; 200]; 2],
            &own,
        ),
        ("60 certificates", "certificate_malformed", many, &victim),
        ("a certificate of 70 KB", "not_tls", huge, &victim),
    ] {
        let before = port.failures().await;
        let outcome = wire::attempt_as(port.address, shows(&chain, key)).await;
        assert!(outcome.is_refused(), "{what}");
        let counted = port.counted_since(what, &before).await;
        if counted != reason {
            wrong.push(format!("{what}: {counted}, and not {reason}"));
        }
        port.serves(what).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(agent.seen("").is_empty());
}

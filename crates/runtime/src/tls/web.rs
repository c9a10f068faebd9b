//! A client of a server outside the mesh: its certificate comes from a root that somebody named, and is for its host.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{ClientTls, HANDSHAKE_TIMEOUT, TlsError, provider, reason_of};

/// Where machines keep the roots that they trust, the most common first.
const MACHINE_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Largest file of roots that is read; the usual one has 250 KB.
const MAX_ROOTS_BYTES: u64 = 4 * 1024 * 1024;

/// Roots that servers outside the mesh are verified against.
#[derive(Debug, Clone)]
pub struct WebRoots(Arc<RootCertStore>);

impl WebRoots {
    /// These certificates (PEM).
    ///
    /// # Errors
    /// None of them can be used.
    pub fn of(pem: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem).flatten().collect();
        let (added, _) = roots.add_parsable_certificates(certificates);
        match added {
            0 => Err(TlsError::OwnKey("no root certificate could be read".into())),
            _ => Ok(Self(Arc::new(roots))),
        }
    }

    /// Those of this machine.
    ///
    /// # Errors
    /// It has none where machines keep them.
    pub fn of_machine() -> Result<Self, TlsError> {
        let fits = |path: &&&str| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_ROOTS_BYTES);
        let path = MACHINE_ROOTS.iter().find(fits);
        let path = path.ok_or_else(|| TlsError::OwnKey("this machine has no file of root certificates".into()))?;
        Self::of(&std::fs::read(path).map_err(TlsError::Io)?)
    }
}

/// Connects to `host`, HTTP/1.1 alone.
///
/// # Errors
/// As [`TlsError`] lists: its certificate is of another host, or comes from another root.
pub async fn connect_web<IO>(host: &str, roots: &WebRoots, io: IO) -> Result<ClientTls<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host.to_owned()).map_err(|e| TlsError::Protocol(e.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| TlsError::OwnKey(e.to_string()))?
        .with_root_certificates(roots.0.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, io);
    tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| TlsError::Timeout)?
        .map_err(reason_of)
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A root that is its own server.
    fn root() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap()
    }

    /// What came of a connection to `of` under this name, verified against these roots.
    async fn said(of: &rcgen::CertifiedKey<rcgen::KeyPair>, host: &str, roots: &str) -> Result<String, TlsError> {
        let key = PrivatePkcs8KeyDer::from(of.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![of.cert.der().clone()], key.into())
            .unwrap();
        let (client, server) = tokio::io::duplex(16 * 1024);
        let served = tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            if let Ok(mut tls) = acceptor.accept(server).await {
                let _ = tls.write_all(b"hello").await;
                let _ = tls.shutdown().await;
            }
        });
        let roots = WebRoots::of(roots.as_bytes())?;
        let mut tls = connect_web(host, &roots, client).await?;
        let mut text = String::new();
        tls.read_to_string(&mut text).await.unwrap();
        served.await.unwrap();
        Ok(text)
    }

    #[tokio::test]
    async fn only_a_server_of_this_host_from_a_named_root_is_connected_to() {
        let (named, other) = (root(), root());
        assert_eq!(said(&named, "localhost", &named.cert.pem()).await.unwrap(), "hello");
        assert!(
            said(&other, "localhost", &named.cert.pem()).await.is_err(),
            "another root"
        );
        assert!(
            said(&named, "127.0.0.1", &named.cert.pem()).await.is_err(),
            "another host"
        );
        assert!(said(&named, "localhost", "no certificate").await.is_err());
    }
}

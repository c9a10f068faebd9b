//! Our verifier: chain, SPIFFE ID, attestation result, revocation, in every handshake.

use std::sync::Arc;

use aip_api::{Digest, SpiffeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Clients, Identify, TlsError, provider};
use crate::trust::{REVOKED_GENERATION, REVOKED_SERIAL, Trust};
use crate::x509::{
    IdentityError, Usage, check_control_plane, check_some_control_plane, peer_identity, spki_digest, verify_chain,
};

/// Most certificates that a peer may send: leaf, intermediate, root.
const MAX_CHAIN: usize = 4;

/// Who must answer.
#[derive(Debug)]
pub(super) enum Expected {
    Agent(SpiffeId),
    ControlPlane,
}

#[derive(Debug)]
enum Rule {
    /// An agent of this mesh; as a client, or the one that was called.
    Client {
        trust: Trust,
        clients: Clients,
    },
    Server {
        trust: Trust,
        expected: Expected,
    },
    /// Whoever chains to the root with this digest.
    Pinned(Digest),
}

/// Verifies peers for one side of TLS.
#[derive(Debug)]
pub(super) struct AgentVerifier {
    rule: Rule,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AgentVerifier {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            algorithms: provider().signature_verification_algorithms,
        }
    }

    pub(super) fn for_clients(trust: Trust, clients: Clients) -> Self {
        Self::new(Rule::Client { trust, clients })
    }

    pub(super) fn for_server(trust: Trust, expected: Expected) -> Self {
        Self::new(Rule::Server { trust, expected })
    }

    pub(super) fn pinned(root: Digest) -> Self {
        Self::new(Rule::Pinned(root))
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), IdentityError> {
        if rest.len() >= MAX_CHAIN {
            return Err(IdentityError::Malformed("the chain is too long".into()));
        }
        match &self.rule {
            Rule::Client { trust, clients } => {
                check_agent(trust, leaf, rest, (Usage::Client, clients.identify()), now).map(|_| ())
            }
            Rule::Server {
                trust,
                expected: Expected::Agent(expected),
            } => {
                let found = check_agent(trust, leaf, rest, (Usage::Server, peer_identity), now)?;
                if found == *expected {
                    return Ok(());
                }
                Err(IdentityError::WrongAgent {
                    expected: expected.to_string(),
                    found: found.to_string(),
                })
            }
            Rule::Server {
                trust,
                expected: Expected::ControlPlane,
            } => {
                let state = trust.load();
                verify_chain(leaf, rest, state.roots(), Usage::Server, now)?;
                check_control_plane(leaf, &state)
            }
            Rule::Pinned(pin) => {
                let root = rest.iter().find(|c| spki_digest(c).is_ok_and(|d| d == *pin));
                let root = root.ok_or(IdentityError::UnknownIssuer)?;
                verify_chain(leaf, rest, &[root.to_vec()], Usage::Server, now)?;
                // Every agent of the mesh chains to the same root: the name is what tells the control plane apart.
                check_some_control_plane(leaf)
            }
        }
    }
}

fn check_agent(
    trust: &Trust,
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    (usage, identify): (Usage, Identify),
    now: UnixTime,
) -> Result<SpiffeId, IdentityError> {
    let state = trust.load();
    verify_chain(leaf, rest, state.roots(), usage, now)?;
    let issuer = rest
        .first()
        .ok_or_else(|| IdentityError::Malformed("the issuing certificate was not sent".into()))?;
    identify(leaf, issuer, &state, now.as_secs()).map(|peer| peer.id)
}

/// Into rustls' error, so that the peer gets the fitting alert and the reason survives for the log. That it is revoked a
/// peer must be able to tell from all else: `certificate_revoked` where its certificate is, `access_denied` where that is
/// as good as ever and its agent's generation has ended. Nothing else here gives these two.
fn refused(error: IdentityError) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        IdentityError::Revoked(REVOKED_SERIAL) => CertificateError::Revoked,
        IdentityError::Revoked(REVOKED_GENERATION) => CertificateError::ApplicationVerificationFailure,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

/// Back out of what tokio-rustls reports.
pub(super) fn reason_of(error: std::io::Error) -> TlsError {
    let tls = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => tls,
        None => return TlsError::Io(error),
    };
    match tls {
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => {
            TlsError::Identity(IdentityError::Revoked(REVOKED_SERIAL))
        }
        rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            TlsError::Identity(IdentityError::Revoked(REVOKED_GENERATION))
        }
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            match inner.downcast_ref::<IdentityError>() {
                Some(identity) => TlsError::Identity(identity.clone()),
                None => TlsError::Protocol(tls.to_string()),
            }
        }
        rustls::Error::NoCertificatesPresented => TlsError::NoCertificate,
        rustls::Error::PeerIncompatible(why) => match why {
            rustls::PeerIncompatible::SupportedVersionsExtensionRequired
            | rustls::PeerIncompatible::Tls13RequiredForQuic
            | rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13
            | rustls::PeerIncompatible::Tls12NotOffered
            | rustls::PeerIncompatible::Tls12NotOfferedOrEnabled => TlsError::Version,
            other => TlsError::Protocol(format!("{other:?}")),
        },
        rustls::Error::NoApplicationProtocol => TlsError::Alpn,
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => TlsError::Alpn,
        rustls::Error::AlertReceived(alert) => TlsError::Refused(format!("{alert:?}")),
        rustls::Error::InvalidMessage(_) => TlsError::NotTls,
        other => TlsError::Protocol(other.to_string()),
    }
}

macro_rules! tls13_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            // Never negotiated; and if it were, never accepted.
            Err(rustls::Error::PeerIncompatible(
                rustls::PeerIncompatible::Tls12NotOffered,
            ))
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for AgentVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !matches!(
            self.rule,
            Rule::Client {
                clients: Clients::Optional,
                ..
            }
        )
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(leaf, rest, now)
            .map(|()| ClientCertVerified::assertion())
            .map_err(refused)
    }
    tls13_only!();
}

impl ServerCertVerifier for AgentVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, rest, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(refused)
    }
    tls13_only!();
}

//! How a peer refused our certificate. In TLS 1.3 a client is done with its handshake before its certificate was looked at,
//! and hears of it in place of its first answer: from whoever it has verified, and not from the line.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ClientTls, TlsError};
use crate::trust::{REVOKED_GENERATION, REVOKED_SERIAL};

/// What was heard on one connection. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<OnceLock<AlertDescription>>);

impl Heard {
    /// The refusal, if our certificate was refused.
    pub fn refusal(&self) -> Option<TlsError> {
        let alert = self.0.get()?;
        let of_certificates = matches!(
            alert,
            AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
        );
        of_certificates.then(|| TlsError::Refused(format!("{alert:?}")))
    }

    /// Why our own SVID is revoked, if it was refused for that: `revoked_serial` or `revoked_generation`.
    pub fn revocation(&self) -> Option<&'static str> {
        match self.0.get()? {
            AlertDescription::CertificateRevoked => Some(REVOKED_SERIAL),
            AlertDescription::AccessDenied => Some(REVOKED_GENERATION),
            _ => None,
        }
    }

    /// A connection whose handshake is done, of which this is noted. HTTP/2 passes its errors on as text alone.
    pub fn on<IO>(&self, tls: ClientTls<IO>) -> Hearing<IO> {
        Hearing {
            tls,
            heard: self.clone(),
            answered: false,
        }
    }

    fn note(&self, error: &io::Error) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if let Some(rustls::Error::AlertReceived(alert)) = inner {
            let _ = self.0.set(*alert);
        }
    }
}

/// A client's connection that notes how its peer ends it.
#[derive(Debug)]
pub struct Hearing<IO> {
    tls: ClientTls<IO>,
    heard: Heard,
    /// Something came back: whatever ends it then is no refusal of who we are, and a request may have been read.
    answered: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Hearing<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tls).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) => self.answered |= buf.filled().len() > before,
            Poll::Ready(Err(error)) if !self.answered => self.heard.note(error),
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        read
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Hearing<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

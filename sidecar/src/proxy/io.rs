//! A stream whose first bytes have been looked at.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// How an HTTP/2 client with prior knowledge begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a client speaks, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// HTTP/1, or something that is none and will be told so by the parser.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS.
    Tls,
}

/// A stream that yields `prefix` before what comes next.
#[derive(Debug)]
pub(crate) struct Prefixed<IO> {
    prefix: bytes::Bytes,
    io: IO,
}

impl<IO> Prefixed<IO> {
    pub(crate) fn new(prefix: bytes::Bytes, io: IO) -> Self {
        Self { prefix, io }
    }
}

/// Reads as little as tells what the client speaks, within `wait`.
///
/// # Errors
/// The client said nothing in time, or is gone.
pub(crate) async fn sniff<IO: AsyncRead + Unpin>(mut io: IO, wait: Duration) -> io::Result<(Speaks, Prefixed<IO>)> {
    let mut seen = bytes::BytesMut::with_capacity(1024);
    let look = async {
        loop {
            if io.read_buf(&mut seen).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            let shared = seen.len().min(PREFACE.len());
            if seen[0] == TLS_HANDSHAKE {
                return Ok(Speaks::Tls);
            }
            if seen[..shared] != PREFACE[..shared] {
                return Ok(Speaks::Http1);
            }
            if shared == PREFACE.len() {
                return Ok(Speaks::Http2);
            }
        }
    };
    let timed_out = |_| io::Error::from(io::ErrorKind::TimedOut);
    let speaks = tokio::time::timeout(wait, look).await.map_err(timed_out)??;
    Ok((speaks, Prefixed::new(seen.freeze(), io)))
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let some = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix.split_to(some));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn the_first_bytes_tell_and_are_not_lost() {
        for (said, expected) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], Speaks::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest", Speaks::Http2),
            (b"POST / HTTP/1.1\r\n\r\n", Speaks::Http1),
            (b"\x16\x03\x01", Speaks::Tls),
        ] {
            let (mut client, server) = tokio::io::duplex(1);
            let writing = tokio::spawn(async move { client.write_all(said).await });
            let (speaks, mut stream) = sniff(server, Duration::from_secs(5)).await.unwrap();
            assert_eq!(speaks, expected);
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            writing.await.unwrap().unwrap();
            assert_eq!(all, said);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_not_waited_for() {
        let (_client, server) = tokio::io::duplex(1);
        let error = sniff(server, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

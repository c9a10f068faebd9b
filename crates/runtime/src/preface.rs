//! A peer past its TLS handshake has to begin to speak HTTP/2: whether it is alive is asked only from then on.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long the preface may take: sidecars send it with the end of their handshake.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Its bytes (RFC 9113, section 3.4). What they are is for the HTTP library to say.
const PREFACE_BYTES: usize = 24;

/// A stream whose reads end where the preface does not come in time.
#[derive(Debug)]
pub struct Prefaced<IO> {
    io: IO,
    // None once it came.
    awaited: Option<Awaited>,
}

#[derive(Debug)]
struct Awaited {
    bytes: usize,
    until: Pin<Box<Sleep>>,
}

impl<IO> Prefaced<IO> {
    /// A stream on which nothing was read yet.
    pub fn new(io: IO) -> Self {
        let awaited = Awaited {
            bytes: PREFACE_BYTES,
            until: Box::pin(sleep(PREFACE_TIMEOUT)),
        };
        Self {
            io,
            awaited: Some(awaited),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefaced<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        let Some(awaited) = &mut this.awaited else {
            return polled;
        };
        awaited.bytes = awaited.bytes.saturating_sub(buf.filled().len() - before);
        if awaited.bytes == 0 {
            this.awaited = None;
        } else if polled.is_pending() && awaited.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefaced<IO> {
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_preface_that_trickles_in_is_not_waited_for() {
        let (mut far, near) = duplex(1024);
        let mut near = Prefaced::new(near);
        let began = Instant::now();
        let trickling = tokio::spawn(async move {
            while far.write_all(b"P").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        });
        let error = near.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap_err();
        assert_eq!(
            (error.kind(), began.elapsed()),
            (io::ErrorKind::TimedOut, PREFACE_TIMEOUT)
        );
        drop(near);
        trickling.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn after_it_nothing_is_hurried() {
        let (mut far, near) = duplex(1024);
        let mut near = Prefaced::new(near);
        far.write_all(&[0; PREFACE_BYTES]).await.unwrap();
        near.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        let late = tokio::spawn(async move {
            sleep(10 * PREFACE_TIMEOUT).await;
            far.write_all(b"late").await
        });
        near.read_exact(&mut [0; 4]).await.unwrap();
        late.await.unwrap().unwrap();
    }
}

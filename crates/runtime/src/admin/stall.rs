//! A client that takes nothing does not keep its connection: writes that make no progress end it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a client may take nothing of an answer: a bad line stutters for seconds, a held connection for good.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// A stream whose writes end when none makes progress for a while.
#[derive(Debug)]
pub struct Stalling<IO> {
    io: IO,
    limit: Duration,
    // Armed while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<IO> Stalling<IO> {
    /// A stream that nobody who takes nothing keeps for long.
    pub fn new(io: IO) -> Self {
        Self::within(io, WRITE_DEADLINE)
    }

    fn within(io: IO, limit: Duration) -> Self {
        Self {
            io,
            limit,
            waiting: None,
        }
    }

    fn timed<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let limit = self.limit;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Stalling<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Stalling<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.timed(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.timed(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.timed(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.timed(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_ends_when_nobody_takes_it_and_only_then() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut io = Stalling::within(near, Duration::from_secs(30));
        let writing = tokio::spawn(async move {
            let slow = io.write_all(&[0; 24]).await;
            (slow, io.write_all(&[0; 24]).await)
        });
        let mut taken = [0; 8];
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            far.read_exact(&mut taken).await.unwrap();
        }
        let (slow, held) = writing.await.unwrap();
        slow.unwrap();
        assert_eq!(held.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

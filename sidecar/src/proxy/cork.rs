//! Gathers what a connection writes in one turn of its thread.
//!
//! The HTTP library flushes a request's head before it takes the body's first bytes, and each stream for itself. Here
//! the first flush only steps back behind the tasks that are ready to run; what they add goes out with it, in one TLS
//! record and one system call, and what all of them have recorded is written at once. Nothing waits for a clock or for
//! another thread.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

/// What is gathered at most. A dozen small calls; longer writes pass it by.
const GATHERED_BYTES: usize = 8 * 1024;

/// A stream whose flushes wait for their turn.
pub(super) struct Corked<IO> {
    inner: BufWriter<IO>,
    /// Whether the flush that is awaited has stepped back already.
    has_waited: bool,
}

impl<IO: AsyncWrite> Corked<IO> {
    pub(super) fn new(inner: IO) -> Self {
        Self {
            inner: BufWriter::with_capacity(GATHERED_BYTES, inner),
            has_waited: false,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.inner.get_mut()).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Corked<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    /// No: the HTTP/2 library then copies bodies of less than 1 KiB behind their heads, where it would flush after each. TLS
    /// copies what is written in any case; an HTTP/1 connection to our own agent pays one copy more for it.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_waited && !self.inner.buffer().is_empty() {
            self.has_waited = true;
            // To the end of the thread's queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.has_waited = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Keeps each write apart.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

    impl AsyncWrite for Writes {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().unwrap().push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_tasks_add_before_the_turn_is_over_goes_out_in_one_write() {
        let writes = Writes::default();
        let corked = Arc::new(tokio::sync::Mutex::new(Corked::new(writes.clone())));
        corked.lock().await.write_all(b"head ").await.unwrap();
        let (first, second) = (corked.clone(), corked.clone());
        let flushing = tokio::spawn(std::future::poll_fn(move |cx| {
            let mut corked = first.try_lock().unwrap();
            Pin::new(&mut *corked).poll_flush(cx)
        }));
        let adding = tokio::spawn(async move { second.lock().await.write_all(b"body").await });
        flushing.await.unwrap().unwrap();
        adding.await.unwrap().unwrap();
        assert_eq!(*writes.0.lock().unwrap(), [b"head body".to_vec()]);
        assert!(corked.lock().await.inner.buffer().is_empty());
    }

    #[tokio::test]
    async fn every_byte_goes_out_in_order_and_long_writes_are_not_copied() {
        let writes = Writes::default();
        let mut corked = Corked::new(writes.clone());
        let long = vec![b'x'; GATHERED_BYTES];
        corked.write_all(b"a").await.unwrap();
        corked.write_all(&long).await.unwrap();
        corked.write_all(b"b").await.unwrap();
        corked.shutdown().await.unwrap();
        let writes = writes.0.lock().unwrap();
        assert_eq!(writes.concat(), [b"a", long.as_slice(), b"b"].concat());
        assert!(writes.iter().any(|write| write.len() == GATHERED_BYTES));
    }
}

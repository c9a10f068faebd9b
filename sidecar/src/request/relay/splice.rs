//! Two connections joined: bytes both ways, counted, until either ends or the exchange is cut.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use crate::proxy::streams::Exchange;
use crate::request::record::Record;

/// Bytes of each direction's buffer: one TLS record.
const BUFFER: usize = 16 * 1024;

/// Joins the two until the end; the record is written then.
pub(crate) async fn splice<A, B>(caller: A, mut callee: B, mut record: Record)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = record.exchange.clone();
    let mut caller = Counted {
        io: caller,
        exchange: exchange.clone(),
    };
    tokio::select! {
        ended = copy_bidirectional_with_sizes(&mut caller, &mut callee, BUFFER, BUFFER) => {
            if ended.is_ok() {
                record.completed();
            }
        }
        // Both are dropped.
        _ = exchange.ended() => {}
    }
}

/// The caller's end, counting.
struct Counted<IO> {
    io: IO,
    exchange: Arc<Exchange>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.exchange.received.fetch_add(read as u64, Ordering::Relaxed);
        self.exchange.moved();
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> Counted<IO> {
    fn wrote(&self, written: io::Result<usize>) -> io::Result<usize> {
        if let Ok(bytes) = &written {
            self.exchange.sent.fetch_add(*bytes as u64, Ordering::Relaxed);
            self.exchange.moved();
        }
        written
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        Poll::Ready(self.wrote(written))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices));
        Poll::Ready(self.wrote(written))
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

//! Two connections joined: bytes both ways, counted and digested, until either ends or the exchange is cut.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use crate::audit::digest::{Tally, Way};
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
    let tally = |way| {
        exchange
            .seed()
            .filter(|_| !record.blind)
            .map(|seed| Tally::new(seed, way))
    };
    let mut caller = Counted {
        io: caller,
        read: tally(Way::Request),
        written: tally(Way::Response),
        exchange: exchange.clone(),
    };
    let ended = tokio::select! {
        // Looked at first: not a byte passes that somebody has cut. Both are dropped.
        biased;
        _ = exchange.ended() => false,
        ended = copy_bidirectional_with_sizes(&mut caller, &mut callee, BUFFER, BUFFER) => ended.is_ok(),
    };
    if ended {
        record.completed();
        // Else some of it may have been lost on its way: no digest of it could be compared.
        if let (Some(read), Some(written)) = (caller.read, caller.written) {
            let _ = exchange.request_in.set(read.passed());
            record.tunnelled = Some(written.passed());
        }
    }
}

/// The caller's end, counting.
struct Counted<IO> {
    io: IO,
    exchange: Arc<Exchange>,
    read: Option<Tally>,
    written: Option<Tally>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.exchange.received.fetch_add(read as u64, Ordering::Relaxed);
        if let Some(tally) = &mut self.read {
            tally.add(&buf.filled()[before..]);
        }
        self.exchange.moved();
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> Counted<IO> {
    fn wrote<'a>(&mut self, written: io::Result<usize>, given: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        if let Ok(bytes) = &written {
            self.exchange.sent.fetch_add(*bytes as u64, Ordering::Relaxed);
            self.exchange.moved();
            let mut left = *bytes;
            for slice in given {
                let taken = slice.len().min(left);
                left -= taken;
                if let Some(tally) = &mut self.written {
                    tally.add(&slice[..taken]);
                }
            }
        }
        written
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        Poll::Ready(self.wrote(written, std::iter::once(bytes)))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices));
        Poll::Ready(self.wrote(written, slices.iter().map(|slice| &**slice)))
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

//! Connections on which nothing goes out before what is recorded of it is in the log's file.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::audit::Audit;

/// A connection that requests or answers go out on. Their records are gathered while the tasks of a turn run, and written in
/// one write before the first byte of any of them leaves.
pub(crate) struct Recorded<IO> {
    io: IO,
    audit: Audit,
}

impl<IO> Recorded<IO> {
    pub(crate) fn new(io: IO, audit: &Audit) -> Self {
        Self {
            io,
            audit: audit.clone(),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Recorded<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Recorded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.audit.write_gathered();
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.audit.write_gathered();
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The end of a connection can be the end of an answer.
        self.audit.write_gathered();
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use aip_audit::log::{Options, Reader};
    use aip_audit::record::{Event, Strangers};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::audit::When;

    #[tokio::test]
    async fn no_byte_goes_out_before_the_records_of_its_turn_are_in_the_file() {
        let home = tempfile::tempdir().unwrap();
        let audit = Audit::open(home.path(), Options::default()).unwrap();
        // The audit's own thread writes what waits, too: not while this test runs.
        audit.flush_every(3_600_000);
        let records = || {
            let log = std::fs::read_dir(home.path())
                .unwrap()
                .flatten()
                .find(|entry| entry.path().is_dir());
            Reader::open(&log.unwrap().path()).unwrap().count()
        };
        let gather = || {
            let event = Event::Strangers(Strangers {
                reason: "no_certificate".into(),
                count: 1,
                sample: String::new(),
            });
            audit.append(event, When::WithOthers).unwrap();
        };
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Recorded::new(near, &audit);
        gather();
        gather();
        near.write_all(b"a").await.unwrap();
        assert_eq!((far.read_u8().await.unwrap(), records()), (b'a', 2));
        gather();
        let slices = [IoSlice::new(b"b")];
        assert_eq!(near.write_vectored(&slices).await.unwrap(), 1);
        assert_eq!((far.read_u8().await.unwrap(), records()), (b'b', 3));
        gather();
        near.shutdown().await.unwrap();
        assert_eq!(records(), 4);
    }
}

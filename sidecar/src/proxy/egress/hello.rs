//! The server name in a TLS ClientHello: what a tunnel really goes to. Bounded, and read only as far as it must be
//! (RFC 8446 section 4.1.2, RFC 6066 section 3).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::proxy::limits::MAX_CLIENT_HELLO;

/// Why there is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("it did not come in time, or ended early")]
    Incomplete,
    #[error("it is larger than {MAX_CLIENT_HELLO} bytes")]
    TooLarge,
    #[error("it is not a ClientHello")]
    Malformed,
}

/// Reads a ClientHello: its bytes, and the server name in it, in lower case.
///
/// # Errors
/// It is none, too large, or late.
pub(crate) async fn read<IO: AsyncRead + Unpin>(
    io: &mut IO,
    wait: Duration,
) -> Result<(Bytes, Option<String>), HelloError> {
    let mut seen = BytesMut::with_capacity(2 * 1024);
    let reading = async {
        loop {
            match server_name(&seen) {
                Parsed::Done(name) => return Ok(name),
                Parsed::Malformed => return Err(HelloError::Malformed),
                Parsed::More if seen.len() >= MAX_CLIENT_HELLO => return Err(HelloError::TooLarge),
                Parsed::More => {}
            }
            if io.read_buf(&mut seen).await.map_err(|_| HelloError::Incomplete)? == 0 {
                return Err(HelloError::Incomplete);
            }
        }
    };
    let name = tokio::time::timeout(wait, reading)
        .await
        .map_err(|_| HelloError::Incomplete)??;
    Ok((seen.freeze(), name))
}

/// What the bytes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parsed {
    Done(Option<String>),
    More,
    Malformed,
}

/// Takes fields off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// A field whose length stands before it, in `width` bytes.
    fn field(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.take(width)?.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        self.take(length)
    }
}

/// The handshake bytes of the records up to the first that is none, and whether there is one: a client that goes on with an
/// earlier session sends its first request at once (RFC 8446 section 2.3).
fn handshake(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    while let [kind, major, _, high, low, rest @ ..] = bytes {
        // Handshake, SSL 3 or later on the record layer.
        if *kind != 22 || *major != 3 {
            return (out, true);
        }
        let length = usize::from(*high) << 8 | usize::from(*low);
        let here = length.min(rest.len());
        out.extend_from_slice(&rest[..here]);
        bytes = &rest[here..];
    }
    (out, false)
}

/// The server name, in lower case, as soon as the whole ClientHello is there.
pub(crate) fn server_name(bytes: &[u8]) -> Parsed {
    let (message, followed) = handshake(bytes);
    // A client's first message is a ClientHello.
    if message.first().is_some_and(|kind| *kind != 1) {
        return Parsed::Malformed;
    }
    let incomplete = if followed { Parsed::Malformed } else { Parsed::More };
    let [_, a, b, c, body @ ..] = message.as_slice() else {
        return incomplete;
    };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if length > MAX_CLIENT_HELLO {
        return Parsed::Malformed;
    }
    match body.get(..length) {
        None => incomplete,
        Some(body) => name_in(body).map_or(Parsed::Malformed, Parsed::Done),
    }
}

/// The name in a whole ClientHello; the outer `None` when it is malformed.
fn name_in(body: &[u8]) -> Option<Option<String>> {
    let mut hello = Reader(body);
    // Version and random, session id, cipher suites, compression methods.
    hello.take(34)?;
    hello.field(1)?;
    hello.field(2)?;
    hello.field(1)?;
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(hello.field(2)?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.take(2)?;
        let content = extensions.field(2)?;
        if kind != [0, 0] {
            continue;
        }
        // Twice is what readers differ on.
        if found.is_some() {
            return None;
        }
        let mut names = Reader(Reader(content).field(2)?);
        let host_name = names.take(1)? == [0];
        let name = std::str::from_utf8(names.field(2)?).ok()?;
        if !host_name || !names.0.is_empty() || name.is_empty() {
            return None;
        }
        found = Some(name.to_ascii_lowercase());
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &(content.len() as u16).to_be_bytes(), content].concat()
    }

    fn sni(name: &str) -> Vec<u8> {
        let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name.as_bytes()].concat();
        extension(0, &[&(entry.len() as u16).to_be_bytes()[..], &entry].concat())
    }

    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let extensions = extensions.concat();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
    }

    /// In records of at most `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
        message.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn the_name_is_found_also_across_records() {
        let hello = message(&[extension(43, &[2, 3, 4]), sni("Api.Example.com")]);
        for size in [1, 7, 1_000] {
            let name = Some("api.example.com".to_owned());
            assert_eq!(
                server_name(&records(&hello, size)),
                Parsed::Done(name),
                "records of {size}"
            );
        }
        assert_eq!(server_name(&records(&message(&[]), 100)), Parsed::Done(None));
    }

    /// Early data, and what clients send for the sake of old middleboxes (RFC 8446 appendix D.4).
    #[test]
    fn a_client_may_go_on_behind_its_hello_and_not_within_it() {
        let hello = records(&message(&[sni("a.com")]), 100);
        let more = [20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 1, 7];
        let name = Some("a.com".to_owned());
        assert_eq!(server_name(&[&hello[..], &more].concat()), Parsed::Done(name));
        let begun = &records(&message(&[sni("a.com")]), 4)[..9];
        assert_eq!(server_name(&[begun, &more].concat()), Parsed::Malformed);
        assert_eq!(server_name(&more), Parsed::Malformed);
    }

    #[test]
    fn what_readers_differ_on_is_malformed() {
        for bad in [
            records(&message(&[sni("a.com"), sni("b.com")]), 100),
            records(&message(&[extension(0, &[0, 9, 0])]), 100),
            records(&message(&[sni("")]), 100),
            b"\x17\x03\x03\x00\x01x".to_vec(),
            records(&[2, 0, 0, 1, 0], 100),
        ] {
            assert_eq!(server_name(&bad), Parsed::Malformed, "{bad:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = server_name(&bytes);
            let _ = server_name(&records(&[&[1, 0, 0, bytes.len() as u8][..], &bytes].concat(), 50));
        }

        /// However the bytes arrive, the answer is the same.
        #[test]
        fn a_part_asks_for_more(cut in 0usize..80) {
            let whole = records(&message(&[sni("a.example.com")]), 20);
            let part = &whole[..cut.min(whole.len() - 1)];
            prop_assert_eq!(server_name(part), Parsed::More);
        }
    }
}

//! One input for several parts.

/// The first byte, and the rest; 0 where there is none.
pub(crate) fn first(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest))
}

/// What stands before the first line end, and what comes after it.
pub(crate) fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

/// `head`, a line end, `rest`.
pub(crate) fn lines(head: &[u8], rest: &[u8]) -> Vec<u8> {
    [head, b"\n", rest].concat()
}

/// `first` before `rest`.
pub(crate) fn with(first: u8, rest: impl AsRef<[u8]>) -> Vec<u8> {
    [&[first], rest.as_ref()].concat()
}

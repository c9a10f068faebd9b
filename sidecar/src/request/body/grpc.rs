//! How a body begins that calls itself gRPC. Nobody reads what its messages say, so nothing else may pass as one: not
//! JSON that an agent reads all the same. JSON in UTF-8, UTF-16 and UTF-32 of either byte order is no message of gRPC.

use bytes::Bytes;
use http_body::Frame;

/// Bytes of a first message from which on it is not believed to be one: gRPC takes 4 MiB where nobody says otherwise.
/// JSON in UTF-16 begins with a blank or a bracket in the length's first byte, which is nine or more.
const MAX_FIRST_MESSAGE: u32 = 128 * 1024 * 1024;

/// What the first bytes of a body are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    Message,
    /// More of them decide.
    Undecided,
    Otherwise,
}

fn begins(data: &[u8]) -> Begins {
    match *data {
        [flag, ..] if flag > 1 => Begins::Otherwise,
        [_, a, b, c, d, ..] if u32::from_be_bytes([a, b, c, d]) >= MAX_FIRST_MESSAGE => Begins::Otherwise,
        // What JSON begins with in UTF-32, or the mark of its byte order. It is a length, too: another character tells.
        [0, 0, 0, b'{' | b'[' | b' ' | b'\t' | b'\r' | b'\n', 0, ref message @ ..]
        | [0, 0, 0xfe, 0xff, 0, ref message @ ..] => match *message {
            [0, 0, b' '..=b'~' | b'\t' | b'\r' | b'\n', ..] => Begins::Otherwise,
            [] | [0] | [0, 0] => Begins::Undecided,
            _ => Begins::Message,
        },
        [_, _, _, _, _, ..] => Begins::Message,
        _ => Begins::Undecided,
    }
}

/// Whether this is no beginning of a message, whatever is yet to come.
pub(super) fn is_otherwise(data: &[u8]) -> bool {
    begins(data) == Begins::Otherwise
}

/// A part of a body, or why there is none.
pub(super) type Came = Result<Frame<Bytes>, hyper::Error>;

/// What becomes of a part.
#[derive(Debug)]
pub(super) enum Opened {
    /// It goes on, with what was held before it; or the body is at its end.
    Passes(Option<Came>),
    /// It is held until more has come.
    Held,
    /// It is no gRPC.
    Otherwise,
}

/// What came of a body until it is known what it begins with: nothing of it has gone on.
#[derive(Debug, Default)]
pub(super) struct Opening {
    held: Vec<u8>,
    is_message: bool,
}

impl Opening {
    /// What becomes of what came, or of the end.
    pub(super) fn opened(&mut self, came: Option<Came>) -> Opened {
        if self.is_message {
            return Opened::Passes(came);
        }
        let ends = |came| match self.holds() {
            // A part of a prefix.
            true => Opened::Otherwise,
            false => Opened::Passes(came),
        };
        match came {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.takes(data),
                Err(trailers) => ends(Some(Ok(trailers))),
            },
            Some(Err(error)) => Opened::Passes(Some(Err(error))),
            None => ends(None),
        }
    }

    fn takes(&mut self, data: Bytes) -> Opened {
        let mut all = data;
        if all.is_empty() {
            return Opened::Passes(Some(Ok(Frame::data(all))));
        }
        if self.holds() {
            self.held.extend_from_slice(&all);
            all = std::mem::take(&mut self.held).into();
        }
        match begins(&all) {
            Begins::Otherwise => Opened::Otherwise,
            Begins::Undecided => {
                // At most seven bytes: they are copied, and their frame let go.
                self.held = all.to_vec();
                Opened::Held
            }
            Begins::Message => {
                self.is_message = true;
                Opened::Passes(Some(Ok(Frame::data(all))))
            }
        }
    }

    /// Whether something is held.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wide(text: &str, bytes: usize) -> Vec<u8> {
        match bytes {
            2 => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            _ => text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect(),
        }
    }

    const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe"}}"#;

    #[test]
    fn json_in_any_encoding_begins_no_message() {
        let beginnings = [
            "",
            " ",
            "\t",
            "\r\n",
            "\n\n\n",
            "[",
            "{\"\u{169}\":1,",
            "{\"\u{1f600}\":1,",
            "\u{feff}",
        ];
        for before in beginnings {
            let text = format!("{before}{CALL}");
            let little = |wide: Vec<u8>, n| wide.chunks(n).flat_map(|c| c.iter().rev().copied()).collect::<Vec<_>>();
            for body in [
                text.clone().into_bytes(),
                wide(&text, 2),
                wide(&text, 4),
                little(wide(&text, 2), 2),
                little(wide(&text, 4), 4),
            ] {
                assert_eq!(begins(&body), Begins::Otherwise, "{before:?}: {:x?}", &body[..8]);
            }
        }
    }

    #[test]
    fn messages_begin_as_messages() {
        for body in [
            &b"\0\0\0\0\0"[..],
            b"\0\0\0\0\0\0\0\0\0\0",
            b"\x01\0\0\0\x01{",
            b"\0\0\0\0\x05",
            b"\0\0\0\x01\0\x0a",
            b"\0\0\x40\0\0\x1f\x8b",
            b"\0\x07\xff\xff\xff\x0a",
            b"\0\0\0\0\x01\0",
            // Codecs other than protobuf's have messages that begin with zeros.
            b"\0\x01\0\0\0\0\x01\x02\x03",
            b"\0\0\0 \0\0\0\0",
            b"\0\0\0 \0\0\x01",
            b"\x01\0\0{\0\0\0{",
        ] {
            assert_eq!(begins(body), Begins::Message, "{body:x?}");
        }
        for body in [&b""[..], b"\0", b"\x01\0\0\0", b"\0\0\0{\0", b"\0\0\0{\0\0\0"] {
            assert_eq!(begins(body), Begins::Undecided, "{body:x?}");
        }
    }

    proptest! {
        /// However the bytes arrive, all of them go on, or none does.
        #[test]
        fn its_pieces_say_what_the_whole_does(body in proptest::collection::vec(0u8..3, 1..12), cut in 0usize..12) {
            let (first, rest) = body.split_at(cut.min(body.len()));
            let mut opening = Opening::default();
            let (mut passed, mut fails) = (Vec::new(), false);
            for piece in [first, rest] {
                match opening.opened(Some(Ok(Frame::data(Bytes::copy_from_slice(piece))))) {
                    Opened::Passes(Some(Ok(frame))) => passed.extend_from_slice(frame.data_ref().unwrap()),
                    Opened::Passes(ended) => panic!("{ended:?}"),
                    Opened::Held => {}
                    Opened::Otherwise => {
                        fails = true;
                        break;
                    }
                }
            }
            let ends = matches!(opening.opened(None), Opened::Passes(None));
            match begins(&body) {
                Begins::Message => prop_assert!(ends && passed == body),
                Begins::Otherwise => prop_assert!(fails && passed.is_empty()),
                Begins::Undecided => prop_assert!(!fails && !ends && passed.is_empty()),
            }
        }
    }
}

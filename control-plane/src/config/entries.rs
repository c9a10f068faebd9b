//! How many resources a Hello lists as held, counted while it comes in. Once it is read, each of them takes twenty times the
//! bytes that it may have come in, so that too many are refused before.

use super::session::MAX_HELD;

/// The Hello among the fields of a `ConfigRequest`, and the list among those of the Hello (crates/api/proto).
const HELLO: u64 = 1;
const HELD: u64 = 3;
/// Of a tag, how the field's value is written.
const WIRE_TYPE: u64 = 0b111;
/// Bits of a varint's byte that are of the number, and of the longest number.
const BITS: u32 = 7;
const MOST_BITS: u32 = 64;

/// How far a message has been looked at. What it can't follow it refuses: that is no message.
#[derive(Debug, Default)]
pub(super) struct Entries {
    held: usize,
    /// Bytes of the Hello that are still to come.
    hello: u64,
    next: Next,
    number: u64,
    bits: u32,
}

/// What the next byte is of.
#[derive(Debug, Default, Clone, Copy)]
enum Next {
    #[default]
    Tag,
    /// A value that is a varint.
    Varint,
    /// The length of a value, which is the Hello or one of its list.
    Length { is_hello: bool, is_held: bool },
    /// So many bytes of a value.
    Skipped(u64),
}

impl Entries {
    /// Looks at what comes next; false where more is held than may be, or where this is no message.
    pub(super) fn take(&mut self, mut data: &[u8]) -> bool {
        while let [first, rest @ ..] = data {
            let in_hello = self.hello > 0;
            if let Next::Skipped(left) = self.next {
                let passed = left.min(data.len() as u64);
                self.hello = self.hello.saturating_sub(passed);
                self.skip(left - passed);
                data = &data[passed as usize..];
                continue;
            }
            self.hello = self.hello.saturating_sub(1);
            data = rest;
            if self.bits >= MOST_BITS {
                return false;
            }
            self.number |= u64::from(first & 0x7f) << self.bits;
            self.bits += BITS;
            if first & 0x80 == 0 {
                self.bits = 0;
                let number = std::mem::take(&mut self.number);
                if !self.read(number, in_hello) {
                    return false;
                }
            }
        }
        true
    }

    /// A number has come to its end.
    fn read(&mut self, number: u64, in_hello: bool) -> bool {
        match self.next {
            Next::Tag => {
                let field = number / (WIRE_TYPE + 1);
                self.next = match number & WIRE_TYPE {
                    0 => Next::Varint,
                    1 => Next::Skipped(8),
                    2 => Next::Length {
                        is_hello: field == HELLO && !in_hello,
                        is_held: field == HELD && in_hello,
                    },
                    // A group's beginning and end stand alone; what is in between has tags of its own.
                    3 | 4 => Next::Tag,
                    5 => Next::Skipped(4),
                    _ => return false,
                };
            }
            Next::Length { is_hello: true, .. } => {
                self.hello = number;
                self.next = Next::Tag;
            }
            Next::Length { is_held, .. } => {
                self.held += usize::from(is_held);
                self.skip(number);
            }
            Next::Varint | Next::Skipped(_) => self.next = Next::Tag,
        }
        self.held <= MAX_HELD
    }

    fn skip(&mut self, bytes: u64) {
        self.next = match bytes {
            0 => Next::Tag,
            left => Next::Skipped(left),
        };
    }
}

#[cfg(test)]
mod tests {
    use aip_api::resource::Kind;
    use aip_api::wire::config_request::Message;
    use aip_api::wire::{ConfigRequest, Held, Hello, Resource};
    use prost::Message as _;

    use super::*;

    fn hello(held: Vec<Held>) -> Vec<u8> {
        let hello = Hello {
            instance: "3f1c".into(),
            version: "0.1.0".into(),
            held,
            newest: Some(Resource::default()),
        };
        let message = Some(Message::Hello(hello));
        ConfigRequest { message }.encode_to_vec()
    }

    fn named(number: usize) -> Held {
        Held {
            kind: Kind::Agent.to_wire() as i32,
            name: format!("agent-{number}"),
            revision: 1 << (number % 60),
        }
    }

    /// Whether all of it is taken, and how many were counted, whatever pieces it comes in.
    fn counted(bytes: &[u8]) -> (bool, usize) {
        let mut of_pieces = [1, 2, 3, 7, 4_096, 1 << 24].map(|piece| {
            let mut entries = Entries::default();
            (bytes.chunks(piece).all(|data| entries.take(data)), entries.held)
        });
        of_pieces.sort_unstable();
        assert_eq!(of_pieces[0], of_pieces[5]);
        of_pieces[0]
    }

    #[test]
    fn what_is_held_is_counted_and_nothing_else() {
        for count in [0, 1, 3, 1_000] {
            assert_eq!(counted(&hello((0..count).map(named).collect())), (true, count));
        }
        assert_eq!(counted(&hello((0..MAX_HELD).map(named).collect())), (true, MAX_HELD));
        assert!(!counted(&hello((0..=MAX_HELD).map(named).collect())).0);
    }

    #[test]
    fn what_is_held_is_counted_however_small_and_however_it_is_wrapped() {
        let many = |count| hello(vec![Held::default(); count]);
        assert!(!counted(&many(4_000_000)).0);
        // Said twice, a Hello is one with both lists.
        assert_eq!(counted(&[many(60_000), many(30_000)].concat()), (true, 90_000));
        assert!(!counted(&[many(60_000), many(60_000)].concat()).0);
        // Fields that nobody knows stand between, of every form, and lengths are written longer than they need.
        let unknown = [
            &[0x78, 0xff, 0x01][..], // 15: a varint
            &[0x79, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x7a, 3, 0x1a, 0, 0x1a],
            &[0x7d, 1, 2, 3, 4],
            &[0x7b, 0x7c],
            &[0x1a, 0x82, 0x80, 0x00, 0x08, 0x01],
        ]
        .concat();
        let length = u8::try_from(unknown.len()).unwrap();
        let message = [&[0x78, 0x01, 0x0a, length][..], &unknown, &many(2)].concat();
        let read = ConfigRequest::decode(&*message).unwrap();
        let Some(Message::Hello(read)) = read.message else {
            panic!("{read:?}");
        };
        assert_eq!(counted(&message), (true, read.held.len()));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(!counted(&[0xff; 11]).0, "a number without end");
        assert!(!counted(&[0x0e]).0, "a form that there is not");
    }
}

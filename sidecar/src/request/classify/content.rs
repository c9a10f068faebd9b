//! The body, where policy may read it: held, validated whole, and exactly those bytes go on.

use aip_policy::Fact;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::charset::Charset;
use super::headers;
use super::held::Held;
use super::json::{self, Unparsed};
use super::protocol::Content;
use crate::proxy::limits::{BODY_READ_TIMEOUT, MAX_HELD_BODY};
use crate::request::Arrived;
use crate::request::body::Body;
use crate::request::refusal::{Refusal, Refused};

/// What is kept of a body for as long as its request lasts. Its bytes, not what they are read into: that takes many
/// times as much, and is made again when an open request is decided again.
#[derive(Debug, Default)]
pub(crate) enum Kept {
    /// There is none, or it is one that is never read: gRPC's, a tunnel's.
    #[default]
    Nothing,
    /// JSON, read before.
    Json(Bytes),
    /// It is no JSON.
    NoJson,
    /// What it says is not known.
    Unread(&'static str),
}

impl Kept {
    /// Its bytes, where it was read.
    pub(crate) fn bytes(&self) -> Bytes {
        match self {
            Self::Json(bytes) => bytes.clone(),
            Self::Nothing | Self::NoJson | Self::Unread(_) => Bytes::new(),
        }
    }

    /// What it said, read again.
    pub(crate) fn content(&self) -> Content {
        match self {
            Self::Nothing => Content::Other,
            Self::NoJson => Content::NoJson,
            // Nobody waits for this one: it is made and dropped by the one task that decides again.
            Self::Json(bytes) => json::parse(bytes, None).map_or(Content::Unread("body_not_json"), Content::Json),
            Self::Unread(why) => Content::Unread(why),
        }
    }
}

/// What was read of a body.
pub(crate) struct Read {
    /// For the decision that comes next.
    pub(crate) content: Content,
    /// For those on the open request.
    pub(crate) kept: Kept,
    /// What both take of what may be held.
    pub(crate) held: Option<Held>,
}

impl Read {
    fn unread(why: &'static str, held: Option<Held>) -> Self {
        Self {
            content: Content::Unread(why),
            kept: Kept::Unread(why),
            held,
        }
    }

    fn nothing() -> Self {
        Self {
            content: Content::Other,
            kept: Kept::Nothing,
            held: None,
        }
    }

    fn no_json() -> Self {
        Self {
            content: Content::NoJson,
            kept: Kept::NoJson,
            held: None,
        }
    }

    /// Where no policy reads bodies. One that comes to read them will not know what this one said; of gRPC's it never
    /// does.
    pub(crate) fn not_asked_for(arrived: &Arrived) -> Self {
        let empty = arrived.body.as_ref().is_none_or(http_body::Body::is_end_stream);
        Self {
            kept: if empty || is_grpc(&arrived.head.headers) {
                Kept::Nothing
            } else {
                Kept::Unread("body_not_read")
            },
            ..Self::nothing()
        }
    }
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_ascii_lowercase())
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let Some(rest) = value.and_then(|value| value.strip_prefix(b"application/grpc")) else {
        return false;
    };
    matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// Whether the body says that it is JSON, or says nothing (ACP's client doesn't).
pub(crate) fn may_be_json(headers: &HeaderMap) -> bool {
    media_type(headers).is_none_or(|media| media == "application/json" || media.ends_with("+json"))
}

/// JSON documents one after the other, without an end that we could wait for.
fn is_stream_of_json(headers: &HeaderMap) -> bool {
    let streams = ["ndjson", "jsonl", "json-seq", "jsonlines"];
    media_type(headers).is_some_and(|media| streams.iter().any(|word| media.contains(word)))
}

/// How large the body is, as far as is known by now.
pub(crate) fn size(arrived: &Arrived) -> Fact<u64> {
    let known = arrived.body.as_ref().map_or(Some(0), Body::size);
    match known.or_else(|| declared(&arrived.head.headers)) {
        Some(size) => Fact::Known(size),
        None => Fact::Unestablished("body_streams"),
    }
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Why a body is not even looked at, by its head alone.
fn unreadable(headers: &HeaderMap, declares_json: bool) -> Option<&'static str> {
    let encoded = headers::spelled(headers, &CONTENT_ENCODING).any(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity"));
    // Whatever type it claims: an agent that decompresses may read JSON all the same.
    if encoded {
        Some("body_encoded")
    } else if Charset::of(headers) == Charset::Other {
        Some("body_charset")
    } else if is_stream_of_json(headers) {
        Some("body_streams")
    } else if declares_json && declared(headers).is_some_and(|size| size > MAX_HELD_BODY as u64) {
        Some("body_too_large")
    } else {
        None
    }
}

/// Reads the body where it may be JSON. What is not, or is too large, streams on; a policy that reads it will not be
/// asked about what nobody knows.
pub(crate) async fn read(arrived: &mut Arrived) -> Result<Read, Refused> {
    let headers = &arrived.head.headers;
    if headers.get_all(CONTENT_TYPE).iter().count() > 1 {
        return Err(Refusal::InvalidContent.because("Content-Type stands more than once"));
    }
    if is_grpc(headers) {
        // Held to what it says when it goes on.
        return Ok(Read::nothing());
    }
    let declares_json = headers.contains_key(CONTENT_TYPE) && may_be_json(headers);
    let unread = unreadable(headers, declares_json);
    let ascii_only = Charset::of(headers) == Charset::Ascii;
    let Some(incoming) = arrived.body.as_mut().and_then(Body::take_stream) else {
        return Ok(Read::nothing());
    };
    if let Some(why) = unread {
        arrived.body = Some(Body::stream(incoming));
        return Ok(Read::unread(why, None));
    }
    let reading = hold(incoming, declares_json, Held::waiting(arrived)?);
    let came = tokio::time::timeout(BODY_READ_TIMEOUT, reading)
        .await
        .map_err(|_| Refusal::BodyTimeout)??;
    let (whole, mut held) = match came {
        Came::Other(body, unread) => {
            let empty = body.size() == Some(0);
            arrived.body = Some(body);
            return Ok(match unread {
                Some(why) => Read::unread(why, None),
                None if empty => Read::nothing(),
                None => Read::no_json(),
            });
        }
        Came::Whole(whole, held) => (whole, held),
    };
    let bytes = whole.bytes.clone();
    arrived.body = Some(Body::with_trailers(whole.bytes, whole.trailers));
    if ascii_only && !bytes.is_ascii() {
        return Ok(Read::unread("body_charset", Some(held)));
    }
    match json::parse(&bytes, Some(&mut held)) {
        Ok(parsed) => Ok(Read {
            content: Content::Json(parsed),
            kept: Kept::Json(bytes),
            held: Some(held),
        }),
        Err(Unparsed::NoRoom(refused)) => Err(refused),
        Err(Unparsed::TooComplex) => Ok(Read::unread("body_too_complex", Some(held))),
        Err(Unparsed::Invalid(error)) if declares_json => Err(Refusal::InvalidJson.because(error)),
        // It never said that it was; but it looks like it, and its reader may be lenient.
        Err(Unparsed::Invalid(_)) => Ok(Read::unread("body_not_json", Some(held))),
    }
}

/// What lenient readers take for blanks, beside those of JSON: control characters, and Unicode's in UTF-8 and Latin-1.
const BLANKS: [&[u8]; 10] = [
    b"\x0b",
    b"\x85",
    b"\xa0",
    b"\xc2\x85",
    b"\xc2\xa0",
    b"\xe1\x9a\x80",
    b"\xe1\xa0\x8e",
    b"\xe3\x80\x80",
    b"\xef\xbb\xbf",
    b"\x7f",
];

/// Whether the body begins as JSON does for lenient readers: with a byte order mark, or the zero bytes of UTF-16 and
/// UTF-32 before a brace, a bracket or a blank (RFC 4627 section 3); with blanks that are none of JSON's, a comment, or
/// `)]}'`, with which servers keep scripts from reading theirs. A beginning that is cut short counts.
pub(crate) fn may_begin_json(data: &[u8]) -> bool {
    const MARKS: [&[u8]; 7] = [
        b"\xef\xbb\xbf",
        b"\xfe\xff",
        b"\xff\xfe",
        b"\x00\x00",
        b"/*",
        b"//",
        b")]}",
    ];
    let start = data.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(0);
    let mut data = &data[start..];
    loop {
        let wide = matches!(data, [0, b'{' | b'[' | b' ' | b'\t' | b'\r' | b'\n', ..]);
        let marked = || {
            MARKS
                .iter()
                .any(|mark| data.starts_with(mark) || mark.starts_with(data))
        };
        if wide || matches!(data, [] | [b'{' | b'[', ..]) || marked() {
            return true;
        }
        data = match data {
            [0x01..=0x20, rest @ ..] => rest,
            // General punctuation: blanks of all widths, and what has none.
            [0xe2, 0x80 | 0x81, _, rest @ ..] => rest,
            [0xe2] | [0xe2, 0x80 | 0x81] => return true,
            _ => match BLANKS
                .iter()
                .find(|blank| data.starts_with(blank) || blank.starts_with(data))
            {
                Some(blank) => data.get(blank.len()..).unwrap_or_default(),
                None => return false,
            },
        };
    }
}

/// How a body came.
enum Came {
    /// To its end, and may be JSON.
    Whole(Whole, Held),
    /// As something else, or as too much: it is on its way again.
    Other(Body, Option<&'static str>),
}

/// A body to its end.
struct Whole {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
}

/// Holds a body to its end, unless its first byte says that it is no JSON, or it is too large.
async fn hold(mut incoming: Incoming, declares_json: bool, mut held: Held) -> Result<Came, Refused> {
    // Copied: the pieces of a body may be one byte each, and each would keep the buffer that it was read into.
    let mut bytes = Vec::new();
    let mut trailers = None;
    let mut looks_like_json = declares_json;
    while let Some(frame) = incoming.frame().await {
        let data = match frame.map_err(|e| Refusal::BodyBroken.because(e))?.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        if !looks_like_json && let Some(first) = data.iter().find(|b| !b.is_ascii_whitespace()) {
            looks_like_json = matches!(first, b'{' | b'[');
            if !looks_like_json {
                let unread = may_begin_json(&data).then_some("body_encoding");
                let read = match bytes.is_empty() {
                    true => data,
                    false => extended(bytes, &data, &mut held)?.into(),
                };
                return Ok(Came::Other(Body::rest(read, Some(held), incoming), unread));
            }
        }
        bytes = extended(bytes, &data, &mut held)?;
        if bytes.len() > MAX_HELD_BODY {
            let body = Body::rest(bytes.into(), Some(held), incoming);
            return Ok(Came::Other(body, Some("body_too_large")));
        }
    }
    bytes.shrink_to_fit();
    held.body(bytes.capacity() + trailers.as_ref().map_or(0, headers::size))?;
    let whole = Whole {
        bytes: bytes.into(),
        trailers,
    };
    if looks_like_json {
        return Ok(Came::Whole(whole, held));
    }
    Ok(Came::Other(Body::with_trailers(whole.bytes, whole.trailers), None))
}

fn extended(mut bytes: Vec<u8>, data: &[u8], held: &mut Held) -> Result<Vec<u8>, Refused> {
    if bytes.is_empty() {
        // Most bodies come in one piece.
        held.body(data.len())?;
        return Ok(data.to_vec());
    }
    bytes.extend_from_slice(data);
    held.body(bytes.capacity())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lenient_readers_skip_hides_no_json() {
        for text in [
            "\u{b}{\"a\":1}",
            "\u{a0}{}",
            " \n\u{a0}\u{2003}\u{feff}[1]",
            "\u{1f} {}",
            "/*x*/{}",
            "// x\n{}",
            ")]}'\n{}",
            "\u{b}",
            "\u{3000}{",
        ] {
            assert!(may_begin_json(text.as_bytes()), "{text:?}");
        }
        for bytes in [&b"\xc2"[..], b"\xe2\x80", b"\xa0{", b"\x00{", b"\xff\xfe{", b"/", b")"] {
            assert!(may_begin_json(bytes), "{bytes:?}");
        }
        for bytes in [
            &b"hello {}"[..],
            b"/a/path",
            b"# Title",
            b"\x1f\x8b\x08\x00",
            b"\x89PNG",
            b"\xff\xd8\xff\xe0",
            b"PK\x03\x04",
            "\u{201c}hello\u{201d}".as_bytes(),
            b"--boundary",
        ] {
            assert!(!may_begin_json(bytes), "{bytes:?}");
        }
    }
}

//! The body, where policy may read it: held, validated whole, and exactly those bytes go on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aip_policy::Fact;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::json;
use super::protocol::Content;
use crate::proxy::limits::{BODY_READ_TIMEOUT, MAX_HELD_BODY, MAX_HELD_TOTAL};
use crate::request::Arrived;
use crate::request::body::Body;
use crate::request::refusal::{Refusal, Refused};

/// A share of the bytes that may be held for policy, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    total: Arc<AtomicUsize>,
    mine: usize,
}

impl Held {
    fn new(total: &Arc<AtomicUsize>) -> Self {
        Self {
            total: total.clone(),
            mine: 0,
        }
    }

    fn more(&mut self, bytes: usize) -> Result<(), Refused> {
        let before = self.total.fetch_add(bytes, Ordering::AcqRel);
        self.mine += bytes;
        if before + bytes > MAX_HELD_TOTAL {
            return Err(Refusal::Overloaded.because("this sidecar holds as many bodies for policy as it may"));
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.fetch_sub(self.mine, Ordering::AcqRel);
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
    let Some(body) = &arrived.body else {
        return Fact::Known(0);
    };
    match body.size_hint().exact() {
        Some(size) => Fact::Known(size),
        None => declared(&arrived.head.headers).map_or(Fact::Unestablished("body_streams"), Fact::Known),
    }
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads the body where it may be JSON. What is not, or is too large, streams on; a policy that reads it will not be
/// asked about what nobody knows.
pub(crate) async fn read(arrived: &mut Arrived) -> Result<(Content, Option<Held>), Refused> {
    let headers = &arrived.head.headers;
    let none = (Content::Other, None);
    if is_grpc(headers) {
        return Ok(none);
    }
    let declares_json = headers.contains_key(CONTENT_TYPE) && may_be_json(headers);
    let encoded = headers
        .get(CONTENT_ENCODING)
        .is_some_and(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity"));
    // Whatever type it claims: an agent that decompresses may read JSON all the same.
    let unread = if encoded {
        Some("body_encoded")
    } else if is_stream_of_json(headers) {
        Some("body_streams")
    } else if declares_json && declared(headers).is_some_and(|size| size > MAX_HELD_BODY as u64) {
        Some("body_too_large")
    } else {
        None
    };
    let body = arrived.body.take().unwrap_or_default();
    let incoming = match body.into_incoming() {
        Ok(incoming) if unread.is_none() => incoming,
        Ok(incoming) => {
            arrived.body = Some(Body::stream(incoming));
            return Ok((unread.map_or(Content::Other, Content::Unread), None));
        }
        Err(body) => {
            arrived.body = Some(body);
            return Ok(none);
        }
    };
    let reading = hold(incoming, declares_json, Held::new(&arrived.proxy.held));
    let read = tokio::time::timeout(BODY_READ_TIMEOUT, reading)
        .await
        .map_err(|_| Refusal::BodyTimeout)??;
    let (bytes, held) = match read {
        Read::Other(body, content) => {
            arrived.body = Some(body);
            return Ok((content, None));
        }
        Read::Whole(bytes, held) => (bytes, held),
    };
    arrived.body = Some(Body::whole(bytes.clone()));
    match json::parse(&bytes) {
        Ok(parsed) => Ok((Content::Json(parsed), Some(held))),
        Err(error) if declares_json => Err(Refusal::InvalidJson.because(error)),
        // It never said that it was; but it looks like it, and its reader may be lenient.
        Err(_) => Ok((Content::Unread("body_not_json"), Some(held))),
    }
}

/// Whether the body begins as JSON does in an encoding that lenient readers detect: a byte order mark, or the zero bytes
/// of UTF-16 and UTF-32 before a brace, a bracket or a blank (RFC 4627 section 3). A beginning that is cut short counts.
fn in_another_encoding(data: &[u8]) -> bool {
    let marks: [&[u8]; 4] = [b"\xef\xbb\xbf", b"\xfe\xff", b"\xff\xfe", b"\x00\x00"];
    let start = data.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(0);
    let data = &data[start..];
    let wide = matches!(data, [0, b'{' | b'[' | b' ' | b'\t' | b'\r' | b'\n', ..]);
    wide || marks
        .iter()
        .any(|mark| data.starts_with(mark) || mark.starts_with(data))
}

enum Read {
    /// Held, to its end.
    Whole(Bytes, Held),
    /// On its way again, and what is known of it.
    Other(Body, Content),
}

/// Holds a body to its end, unless its first byte says that it is no JSON, or it is too large.
async fn hold(mut incoming: Incoming, declares_json: bool, mut held: Held) -> Result<Read, Refused> {
    let mut parts: VecDeque<Bytes> = VecDeque::new();
    let mut size = 0;
    let mut looks_like_json = declares_json;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|e| Refusal::BodyBroken.because(e))?;
        // Trailers of a JSON body are nobody's: policy could not see them.
        let Ok(data) = frame.into_data() else { continue };
        if !looks_like_json && let Some(first) = data.iter().find(|b| !b.is_ascii_whitespace()) {
            looks_like_json = matches!(first, b'{' | b'[');
            if !looks_like_json {
                let content = match in_another_encoding(&data) {
                    true => Content::Unread("body_encoding"),
                    false => Content::Other,
                };
                parts.push_back(data);
                return Ok(Read::Other(Body::rest(parts, incoming), content));
            }
        }
        size += data.len();
        held.more(data.len())?;
        parts.push_back(data);
        if size > MAX_HELD_BODY {
            return Ok(Read::Other(
                Body::rest(parts, incoming),
                Content::Unread("body_too_large"),
            ));
        }
    }
    let whole = match parts.len() {
        1 => parts.pop_front().unwrap_or_default(),
        _ => {
            let parts: Vec<Bytes> = parts.into();
            Bytes::from(parts.concat())
        }
    };
    if looks_like_json {
        return Ok(Read::Whole(whole, held));
    }
    Ok(Read::Other(Body::whole(whole), Content::Other))
}

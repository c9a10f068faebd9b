//! Header hygiene: what ends at this hop, what is ours, and what nobody may send.

use aip_policy::Direction;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, EXPECT, HOST,
    HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

/// Headers that make some servers see another method or URL than the request line has.
const OVERRIDES: [&str; 8] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-override-url",
    "x-forwarded-uri",
];
/// Hop-by-hop without being named by `Connection` (RFC 9110 section 7.6.1, and what old clients still send).
const HOP_BY_HOP: [HeaderName; 6] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
];

/// What proxies write about a request's way before them, beside `Forwarded` and `X-Forwarded-*`.
const ORIGINS: [&str; 8] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
];
const FORWARDED_FAMILY: &[u8] = b"x-forwarded";

/// What trailers are never: framing, routing, credentials and what says how to read the content (RFC 9110 section
/// 6.5.1). Some servers merge them into the head.
const NOT_IN_TRAILERS: [HeaderName; 13] = [
    AUTHORIZATION,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    EXPECT,
    HOST,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    SET_COOKIE,
    TRAILER,
];

/// A header that overrides method or URL, if there is one, however it is spelled: servers fold `_` to `-` (CGI, WSGI).
pub(crate) fn overriding(headers: &HeaderMap) -> Option<&'static str> {
    headers.keys().find_map(overrides)
}

fn overrides(name: &HeaderName) -> Option<&'static str> {
    let bytes = name.as_str().as_bytes();
    if bytes.first() != Some(&b'x') {
        return None;
    }
    OVERRIDES
        .into_iter()
        .find(|known| bytes.len() == known.len() && folds_to(bytes, known.as_bytes()))
}

/// Whether `name` begins as `known`, with `_` for `-` or not.
fn folds_to(name: &[u8], known: &[u8]) -> bool {
    let fold = |b: &u8| if *b == b'_' { b'-' } else { *b };
    name.len() >= known.len() && name.iter().zip(known).all(|(b, k)| fold(b) == *k)
}

/// Every value of `name`, however that is spelled.
pub(super) fn spelled<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h HeaderValue> {
    let own = name.as_str().as_bytes();
    let alike = move |other: &HeaderName| other.as_str().len() == own.len() && folds_to(other.as_str().as_bytes(), own);
    headers
        .iter()
        .filter(move |(other, _)| alike(other))
        .map(|(_, value)| value)
}

/// Whether the name is the mesh's, however it is spelled: servers fold `_` to `-` (CGI, WSGI).
pub(crate) fn is_ours(name: &HeaderName) -> bool {
    let bytes = name.as_str().as_bytes();
    let dash = |b: Option<&u8>| matches!(b, Some(b'-' | b'_'));
    bytes.first() == Some(&b'x') && dash(bytes.get(1)) && bytes.get(2..5) == Some(b"aip") && dash(bytes.get(5))
}

/// Removes every header that folds to `x-aip-*`.
pub(crate) fn remove_ours(headers: &mut HeaderMap) {
    remove(headers, is_ours);
}

fn remove(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    if !headers.keys().any(&goes) {
        return;
    }
    let going: Vec<HeaderName> = headers.keys().filter(|name| goes(name)).cloned().collect();
    for name in going {
        headers.remove(name);
    }
}

/// What of trailers goes on: nothing that the head would not have been let through with, and nothing that belongs there
/// alone.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    let dashed = |name: &HeaderName, known: &HeaderName| {
        let (name, known) = (name.as_str().as_bytes(), known.as_str().as_bytes());
        name.len() == known.len() && folds_to(name, known)
    };
    remove(trailers, |name| {
        let belongs_to_head = NOT_IN_TRAILERS
            .iter()
            .chain(&HOP_BY_HOP)
            .any(|known| dashed(name, known));
        belongs_to_head || is_quoted(name) || is_ours(name) || is_origin(name) || overrides(name).is_some()
    });
}

/// Whether the name says where a request came from, however it is spelled.
fn is_origin(name: &HeaderName) -> bool {
    let bytes = name.as_str().as_bytes();
    if !matches!(bytes.first(), Some(b'x' | b'f' | b't' | b'c')) {
        return false;
    }
    let family =
        folds_to(bytes, FORWARDED_FAMILY) && matches!(bytes.get(FORWARDED_FAMILY.len()), None | Some(b'-' | b'_'));
    family
        || ORIGINS
            .iter()
            .any(|known| bytes.len() == known.len() && folds_to(bytes, known.as_bytes()))
}

/// Removes what a peer says of a request's way before it. Servers believe their own machine in this (uvicorn takes
/// address and scheme from `X-Forwarded-*` of 127.0.0.1 by default), and to the agent every call comes from there. Who
/// calls is in `x-aip-source`.
pub(crate) fn remove_origins(headers: &mut HeaderMap) {
    remove(headers, is_origin);
}

/// Whether HTTP/1.1 has no such name, though the library reads it in HTTP/2.
fn is_quoted(name: &HeaderName) -> bool {
    name.as_str().contains('"')
}

/// Leaves what HTTP/1.1 says, too: an agent that speaks it would read another value than policy where blanks stand at its
/// ends, which no value has (RFC 9110 section 5.5).
pub(crate) fn trim(headers: &mut HeaderMap) {
    remove(headers, is_quoted);
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    for value in headers.values_mut() {
        let bytes = value.as_bytes();
        if (is_blank(bytes.first()) || is_blank(bytes.last()))
            && let Ok(mut trimmed) = HeaderValue::from_bytes(bytes.trim_ascii())
        {
            trimmed.set_sensitive(value.is_sensitive());
            *value = trimmed;
        }
    }
}

/// Leaves one line of a length that stands more than once. Whether they all are the same.
pub(crate) fn one_length(headers: &mut HeaderMap) -> bool {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let (Some(first), Some(_)) = (all.next(), all.next()) else {
        return true;
    };
    let first = first.clone();
    let same = headers.get_all(CONTENT_LENGTH).iter().all(|length| *length == first);
    headers.insert(CONTENT_LENGTH, first);
    same
}

/// A transfer coding other than chunked, or chunked once more (RFC 9112 section 6.1): the parser undoes chunks only, and
/// once, so the rest would lose its name on the way.
pub(crate) fn foreign_coding(headers: &HeaderMap) -> Option<&str> {
    let mut chunked = false;
    tokens(headers, &TRANSFER_ENCODING)
        .find(|coding| !coding.eq_ignore_ascii_case("chunked") || std::mem::replace(&mut chunked, true))
}

/// Takes off how an answer of HTTP/1.1 was framed; beside chunks, its length says nothing (RFC 9112 section 6.3). `false`
/// where it has another transfer coding, or one that can't be read: the parser took such a body as it came.
pub(crate) fn end_framing(headers: &mut HeaderMap) -> bool {
    let Some(first) = headers.get(TRANSFER_ENCODING) else {
        return true;
    };
    let once = headers.get_all(TRANSFER_ENCODING).iter().count() == 1;
    let chunked = first
        .to_str()
        .is_ok_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"));
    headers.remove(TRANSFER_ENCODING);
    headers.remove(CONTENT_LENGTH);
    once && chunked
}

/// What `Upgrade` asks for, where `Connection` says that it counts.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let wanted = headers.get(UPGRADE).filter(|_| named)?;
    // Java offers h2c on every request; what we speak onwards is our own affair.
    let ignored = |v: &str| v.is_empty() || v.to_ascii_lowercase().starts_with("h2c") || v.contains(',');
    (!wanted.to_str().is_ok_and(ignored)).then(|| wanted.clone())
}

/// Removes what ends at this hop: first what `Connection` names, then what always does. A wish for trailers stays,
/// since we carry them; `Host` and the length can't be taken away by naming them.
pub(crate) fn end_hop(headers: &mut HeaderMap) {
    let trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|token| token.parse().ok())
            .collect();
        for name in named.iter().filter(|name| **name != HOST && **name != CONTENT_LENGTH) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what is between the agent and its own sidecar.
pub(crate) fn end_proxy(headers: &mut HeaderMap, direction: Direction) {
    if direction == Direction::Outbound {
        headers.remove(PROXY_AUTHORIZATION);
    }
    headers.remove(PROXY_AUTHENTICATE);
}

/// Bytes that a header takes beside its name and value: its place in the table, which is half empty, and the index.
const ENTRY: usize = 128;

/// Bytes of memory that they take.
pub(crate) fn size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| ENTRY + name.as_str().len() + value.len())
        .sum()
}

/// The comma-separated words of a header, all lines of it.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append(name, HeaderValue::clone(&value));
        }
        headers
    }

    #[test]
    fn our_names_are_ours_in_every_spelling() {
        for name in [
            "x-aip-source",
            "X-AIP-Hop",
            "x_aip_source",
            "x-aip_source",
            "X_Aip-x",
            "x-aip-",
        ] {
            assert!(is_ours(&name.parse().unwrap()), "{name}");
        }
        for name in ["x-aip", "x-aipx-a", "aip-x", "xx-aip-a", "x-ai-p"] {
            assert!(!is_ours(&name.parse().unwrap()), "{name}");
        }
        let mut headers = map(&[("x-aip-source", "a"), ("x_aip_hop", "b"), ("x-other", "c")]);
        remove_ours(&mut headers);
        assert_eq!(headers, map(&[("x-other", "c")]));
    }

    #[test]
    fn what_a_peer_says_of_the_way_is_removed_in_every_spelling() {
        for name in [
            "forwarded",
            "x-forwarded-for",
            "X_Forwarded_For",
            "x-forwarded",
            "x-forwarded-anything",
            "X-Real-IP",
            "x_real_ip",
            "true-client-ip",
        ] {
            assert!(is_origin(&name.parse().unwrap()), "{name}");
        }
        for name in [
            "x-forward",
            "x-forwardedness",
            "forwarded-by-me",
            "x-real-ips",
            "via",
            "from",
        ] {
            assert!(!is_origin(&name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn overrides_are_known_in_every_spelling() {
        for name in [
            "X-HTTP-Method-Override",
            "X_HTTP_Method_Override",
            "x_original-url",
            "X-Rewrite_URL",
        ] {
            assert!(overriding(&map(&[("accept", "*/*"), (name, "x")])).is_some(), "{name}");
        }
        assert!(overriding(&map(&[("x-http-methods", "x"), ("x-original-urls", "x")])).is_none());
    }

    #[test]
    fn trailers_have_nothing_that_is_the_head_s() {
        let mut trailers = map(&[
            ("x-checksum", "1"),
            ("grpc-status", "0"),
            ("x-aip-source", "a"),
            ("X_Forwarded_For", "a"),
            ("x-real-ip", "a"),
            ("x_http_method_override", "a"),
            ("authorization", "a"),
            ("cookie", "a"),
            ("set-cookie", "a"),
            ("host", "a"),
            ("content-length", "9"),
            ("content_length", "9"),
            ("content-type", "a"),
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("te", "trailers"),
        ]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("x-checksum", "1"), ("grpc-status", "0")]));
    }

    #[test]
    fn a_length_stands_once() {
        let mut twice = map(&[("content-length", "3"), ("content-length", "3")]);
        assert!(one_length(&mut twice));
        assert_eq!(twice, map(&[("content-length", "3")]));
        assert!(!one_length(&mut map(&[
            ("content-length", "3"),
            ("content-length", "4")
        ])));
        assert!(one_length(&mut map(&[("content-length", "3")])) && one_length(&mut map(&[])));
    }

    #[test]
    fn bodies_are_in_chunks_once_or_not_at_all() {
        let coded = |lines: &[&str]| map(&lines.iter().map(|l| ("transfer-encoding", *l)).collect::<Vec<_>>());
        for good in [&[][..], &["chunked"], &["Chunked"]] {
            assert_eq!(foreign_coding(&coded(good)), None, "{good:?}");
            assert!(end_framing(&mut coded(good)), "{good:?}");
        }
        for bad in [
            &["gzip, chunked"][..],
            &["chunked, chunked"],
            &["chunked", "chunked"],
            &["identity"],
        ] {
            assert!(foreign_coding(&coded(bad)).is_some(), "{bad:?}");
            assert!(!end_framing(&mut coded(bad)), "{bad:?}");
        }
        let mut both = map(&[("content-length", "3"), ("transfer-encoding", "chunked"), ("x", "1")]);
        assert!(end_framing(&mut both));
        assert_eq!(both, map(&[("x", "1")]));
    }

    #[test]
    fn connection_is_processed_first() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "te, host, content-length"),
            ("x-secret", "1"),
            ("te", "trailers, gzip"),
            ("keep-alive", "1"),
            ("transfer-encoding", "chunked"),
            ("host", "a"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        end_hop(&mut headers);
        assert_eq!(
            headers,
            map(&[
                ("te", "trailers"),
                ("host", "a"),
                ("content-length", "3"),
                ("accept", "*/*")
            ])
        );
    }

    #[test]
    fn an_upgrade_counts_only_when_connection_names_it() {
        let asked = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade(&asked).unwrap(), "websocket");
        assert!(upgrade(&map(&[("upgrade", "websocket")])).is_none());
        let java = map(&[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AA"),
        ]);
        assert!(upgrade(&java).is_none());
    }
}

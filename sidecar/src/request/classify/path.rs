//! Paths that everybody resolves alike. What policy saw must be what the agent serves.

use http::Method;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ambiguous {
    #[error("it has a dot segment")]
    DotSegment,
    #[error("it has an empty segment")]
    EmptySegment,
    #[error("it has a ';'")]
    Parameter,
    #[error("it has a '\\'")]
    Backslash,
    #[error("it has an encoded slash, dot, semicolon, backslash or NUL")]
    Encoded,
    #[error("decoded once, it has a percent sign before two hex digits")]
    DoublyEncoded,
    #[error("it has a '%' that encodes nothing")]
    BadEncoding,
    #[error("it is not UTF-8 once decoded")]
    NotUtf8,
}

/// Whether a request of this method can have this target: a path, or the `*` of OPTIONS. An authority alone, which has no path
/// that policy could read, is CONNECT's (RFC 9112 section 3.2).
pub(crate) fn is_target(method: &Method, path: &str) -> bool {
    path.starts_with('/') || path == "*" && *method == Method::OPTIONS
}

/// Checks a path, without its query.
pub(crate) fn check(path: &str) -> Result<(), Ambiguous> {
    if !path.starts_with('/') {
        // `*`, and nothing else gets here.
        return Ok(());
    }
    let mut rest = path.as_bytes();
    let mut start_of_segment = false;
    while let [byte, after @ ..] = rest {
        match byte {
            b'/' if start_of_segment => return Err(Ambiguous::EmptySegment),
            b'.' if start_of_segment && is_dots(rest) => return Err(Ambiguous::DotSegment),
            b';' => return Err(Ambiguous::Parameter),
            b'\\' => return Err(Ambiguous::Backslash),
            b'%' => match hex_pair(after).ok_or(Ambiguous::BadEncoding)? {
                b'/' | b'\\' | b'.' | b';' | 0 => return Err(Ambiguous::Encoded),
                _ => {}
            },
            _ => {}
        }
        start_of_segment = *byte == b'/';
        rest = after;
    }
    if !path.contains('%') {
        return Ok(());
    }
    let decoded = decode(path);
    if std::str::from_utf8(&decoded).is_err() {
        return Err(Ambiguous::NotUtf8);
    }
    // Looked for in what was decoded: the digits behind a percent sign may have been encoded, too.
    if decoded.windows(3).any(|w| w[0] == b'%' && hex_pair(&w[1..]).is_some()) {
        return Err(Ambiguous::DoublyEncoded);
    }
    Ok(())
}

/// Whether a segment that starts here is `.` or `..`.
fn is_dots(rest: &[u8]) -> bool {
    let end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
    matches!(&rest[..end], b"." | b"..")
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    match bytes {
        [high, low, ..] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

/// Percent-decodes once; what encodes nothing stays as it is.
fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        match (byte, hex_pair(after)) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                rest = &after[2..];
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

fn text(encoded: &str) -> String {
    if encoded.contains('%') {
        String::from_utf8_lossy(&decode(encoded)).into_owned()
    } else {
        encoded.to_owned()
    }
}

/// The segments, decoded once. `/` has none; a trailing slash ends in an empty one.
pub(crate) fn segments(path: &str) -> Vec<String> {
    match path.strip_prefix('/') {
        None | Some("") => Vec::new(),
        Some(rest) => rest.split('/').map(text).collect(),
    }
}

/// The parameters of a query, decoded: `+` is a space, as forms have it.
pub(crate) fn query(query: &str) -> Vec<(String, String)> {
    let decoded = |part: &str| {
        if part.contains('+') {
            text(&part.replace('+', " "))
        } else {
            text(part)
        }
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_servers_resolve_differently_are_refused() {
        for (path, expected) in [
            ("/a/../b", Ambiguous::DotSegment),
            ("/a/..", Ambiguous::DotSegment),
            ("/./a", Ambiguous::DotSegment),
            ("//a", Ambiguous::EmptySegment),
            ("/a//b", Ambiguous::EmptySegment),
            ("/a;x=1/b", Ambiguous::Parameter),
            ("/a\\b", Ambiguous::Backslash),
            ("/a%2fb", Ambiguous::Encoded),
            ("/a%2Fb", Ambiguous::Encoded),
            ("/a%5cb", Ambiguous::Encoded),
            ("/%2e%2e/b", Ambiguous::Encoded),
            ("/a%00", Ambiguous::Encoded),
            ("/a%3bx", Ambiguous::Encoded),
            ("/a%252fb", Ambiguous::DoublyEncoded),
            ("/a/%25%32%65%25%32%65/admin", Ambiguous::DoublyEncoded),
            ("/%25%36%31dmin", Ambiguous::DoublyEncoded),
            ("/%25%361dmin", Ambiguous::DoublyEncoded),
            ("/%2561dmin", Ambiguous::DoublyEncoded),
            ("/a%2", Ambiguous::BadEncoding),
            ("/a%zz", Ambiguous::BadEncoding),
            ("/a%ff", Ambiguous::NotUtf8),
        ] {
            assert_eq!(check(path), Err(expected), "{path}");
        }
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c",
            "/.well-known/x",
            "/...",
            "/a%20b",
            "/100%25",
            "/tasks/1:cancel",
            "*",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn a_target_has_a_path_or_is_the_asterisk_of_options() {
        let path = |target: &str| target.parse::<http::Uri>().unwrap().path().to_owned();
        for (method, target, allowed) in [
            (Method::GET, "/a", true),
            (Method::GET, "http://a.aip.internal", true),
            (Method::OPTIONS, "*", true),
            (Method::GET, "*", false),
            (Method::GET, "a.aip.internal:80", false),
            (Method::OPTIONS, "a.aip.internal:80", false),
        ] {
            assert_eq!(is_target(&method, &path(target)), allowed, "{method} {target}");
        }
    }

    #[test]
    fn segments_are_decoded_once() {
        assert!(segments("/").is_empty());
        assert_eq!(segments("/a/b%20c"), ["a", "b c"]);
        assert_eq!(segments("/a/"), ["a", ""]);
        assert_eq!(
            query("a=1&b=x+y&c&a=%32"),
            [
                ("a".to_owned(), "1".to_owned()),
                ("b".to_owned(), "x y".to_owned()),
                ("c".to_owned(), String::new()),
                ("a".to_owned(), "2".to_owned()),
            ]
        );
    }

    proptest! {
        /// Whatever passes has no segment that a second decoding or a resolver would read otherwise.
        #[test]
        fn what_passes_is_stable(path in "/([a-z./]|%25|%[2-7][0-9a-fA-F]|[%;\\\\2-6a-fA-F]){0,16}") {
            if check(&path).is_ok() {
                for segment in segments(&path) {
                    prop_assert!(segment != "." && segment != "..");
                    prop_assert!(!segment.contains(['/', '\\', ';', '\0']));
                    prop_assert_eq!(text(&segment), segment);
                }
            }
        }

        #[test]
        fn any_text_is_survived(path in "\\PC{0,40}") {
            let _ = (check(&path), segments(&path), query(&path));
        }
    }
}

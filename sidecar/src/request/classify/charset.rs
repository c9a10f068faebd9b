//! By what characters a body is to be read, as its type says.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// What the bytes of a body stand for, as its type says. Some servers decode by it what is JSON to us as it stands:
/// Node's decode UTF-7, in which `+AGgAYQByAG0-` is `harm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    /// UTF-8, or it says nothing, and JSON is that (RFC 8259 section 8.1).
    Utf8,
    /// Alike as long as all of it is ASCII.
    Ascii,
    /// Anything else, whatever policy would read in it.
    Other,
}

impl Charset {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(CONTENT_TYPE) else {
            return Self::Utf8;
        };
        // Headers of many readers' making: whatever calls itself so counts, wherever it stands, the strangest first.
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        let named = value
            .match_indices("charset")
            .map(|(at, word)| &value[at + word.len()..]);
        let one = |rest: &str| {
            let name = rest
                .trim_start()
                .strip_prefix('=')
                .map(|name| name.split([';', ',']).next().unwrap_or_default());
            match name.map(|name| name.trim_matches(|c: char| c.is_whitespace() || c == '"')) {
                Some("utf-8" | "utf8") => Charset::Utf8,
                Some("us-ascii" | "ascii" | "iso-8859-1" | "latin1" | "windows-1252") => Charset::Ascii,
                _ => Charset::Other,
            }
        };
        let said: Vec<Charset> = named.map(one).collect();
        match said.as_slice() {
            [] => Charset::Utf8,
            [first, rest @ ..] if rest.iter().all(|other| other == first) => *first,
            _ => Charset::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_charset_is_the_one_that_every_reader_takes() {
        let of = |content_type: &'static str| {
            let value = HeaderValue::from_static(content_type);
            Charset::of(&HeaderMap::from_iter([(CONTENT_TYPE, value)]))
        };
        assert_eq!(Charset::of(&HeaderMap::new()), Charset::Utf8);
        for (content_type, expected) in [
            ("application/json", Charset::Utf8),
            ("application/json; charset=utf-8", Charset::Utf8),
            ("application/json;Charset=\"UTF-8\" ; x=y", Charset::Utf8),
            ("text/plain; charset=ISO-8859-1", Charset::Ascii),
            ("application/json; charset=us-ascii; charset=us-ascii", Charset::Ascii),
            ("application/json; charset=utf-7", Charset::Other),
            ("application/json; charset=\"utf-16le\"", Charset::Other),
            ("application/json; charset", Charset::Other),
            ("application/json; charset=", Charset::Other),
            ("application/json; charset*=utf-8''utf-7", Charset::Other),
            ("application/json; charset*0=ut; charset*1=f-7", Charset::Other),
            ("application/json; charset=utf-8; charset=utf-7", Charset::Other),
            (
                "application/json; charset=utf-8, text/plain; charset=utf-7",
                Charset::Other,
            ),
            ("application/json; charset=utf-8\\", Charset::Other),
            (
                "application/json; x=\"; charset=utf-8\"; charset = utf-7",
                Charset::Other,
            ),
        ] {
            assert_eq!(of(content_type), expected, "{content_type}");
        }
    }
}

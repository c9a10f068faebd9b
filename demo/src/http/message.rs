//! Requests, responses, and how their heads and bodies are read from a socket.

use std::io::{self, BufRead, Read, Write};

use super::{MAX_BODY, MAX_HEAD};
use crate::json::Json;

/// A request as the server read it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, without its `?`; may be empty.
    pub query: String,
    /// Header names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// A query parameter, as sent (the demo's values need no decoding).
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(k, _)| *k == name)
            .map(|(_, v)| v)
    }

    /// The body as JSON; an empty body is an empty object.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn json(&self) -> Result<Json, String> {
        let text = std::str::from_utf8(&self.body).map_err(|_| "the body is not UTF-8".to_owned())?;
        if text.trim().is_empty() {
            Ok(Json::Object(Vec::new()))
        } else {
            Json::parse(text)
        }
    }
}

/// What fills the body of a response bit by bit; each call of the writer is sent at once.
type Streamer = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A response to send.
pub struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) stream: Option<Streamer>,
}

impl Response {
    /// A JSON answer.
    pub fn json(status: u16, body: &Json) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self {
            status,
            headers,
            body: body.to_string().into_bytes(),
            stream: None,
        }
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            stream: None,
        }
    }

    /// An error in one sentence.
    pub fn error(status: u16, message: &str) -> Self {
        Self::json(status, &Json::object([("error", message.into())]))
    }

    /// An answer whose body comes bit by bit, chunked.
    pub fn stream(content_type: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Self {
        let headers = vec![
            ("content-type", content_type.to_owned()),
            ("cache-control", "no-cache".to_owned()),
        ];
        Self {
            status: 200,
            headers,
            body: Vec::new(),
            stream: Some(Box::new(write)),
        }
    }
}

pub(super) fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
}

fn bad(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_owned())
}

/// Names in lower case, and values.
type Headers = Vec<(String, String)>;

/// Reads a start line and headers; `None` when the peer closed before the first byte.
pub(super) fn read_head(from: &mut impl BufRead) -> io::Result<Option<(String, Headers)>> {
    let mut limited = from.take(MAX_HEAD as u64);
    let mut line = String::new();
    if limited.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let start = line.trim_end().to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        if limited.read_line(&mut line)? == 0 {
            return Err(bad("the head is too long or cut off"));
        }
        let text = line.trim_end();
        if text.is_empty() {
            return Ok(Some((start, headers)));
        }
        let (name, value) = text.split_once(':').ok_or_else(|| bad("a header without a colon"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// How a body ends.
pub(super) enum Framing {
    Length(usize),
    Chunked,
    Close,
}

impl Framing {
    /// Of a message with these headers; `otherwise` where they say nothing.
    pub(super) fn of(headers: &[(String, String)], otherwise: Self) -> io::Result<Self> {
        if find(headers, "transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked")) {
            return Ok(Self::Chunked);
        }
        match find(headers, "content-length") {
            Some(length) => match length.parse() {
                Ok(length) if length <= MAX_BODY => Ok(Self::Length(length)),
                _ => Err(bad("the body is too long")),
            },
            None => Ok(otherwise),
        }
    }

    /// Reads the body, handing each part to `part` as it arrives; `part` says whether to go on.
    pub(super) fn read(self, from: &mut impl BufRead, part: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<()> {
        match self {
            Self::Length(length) => {
                let mut body = vec![0; length];
                from.read_exact(&mut body)?;
                part(&body);
                Ok(())
            }
            Self::Chunked => read_chunks(from, part),
            Self::Close => loop {
                let available = from.fill_buf()?;
                let n = available.len();
                if n == 0 || !part(available) {
                    return Ok(());
                }
                from.consume(n);
            },
        }
    }
}

fn read_chunks(from: &mut impl BufRead, part: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        from.take(MAX_HEAD as u64).read_line(&mut line)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| bad("a chunk without a size"))?;
        if size > MAX_BODY {
            return Err(bad("a chunk is too long"));
        }
        let mut chunk = vec![0; size];
        from.read_exact(&mut chunk)?;
        if size == 0 {
            // Trailers, up to the empty line.
            loop {
                line.clear();
                if from.take(MAX_HEAD as u64).read_line(&mut line)? == 0 || line.trim_end().is_empty() {
                    return Ok(());
                }
            }
        }
        from.read_exact(&mut [0; 2])?;
        if !part(&chunk) {
            return Ok(());
        }
    }
}

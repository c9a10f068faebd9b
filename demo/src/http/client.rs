//! An ordinary HTTP client: it honours `HTTP_PROXY` and `NO_PROXY`, as curl and most libraries do.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::MAX_BODY;
use super::message::{Framing, find, read_head};

/// How long a silent peer is waited for.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client with the proxy settings of its process.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// `host:port` of the proxy, and the value of `Proxy-Authorization`.
    proxy: Option<(String, Option<String>)>,
    no_proxy: Vec<String>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Header names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body so far as it was read.
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl Client {
    /// A client that does what the environment says.
    pub fn from_env() -> Self {
        let var = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|n| std::env::var(n).ok())
                .filter(|v| !v.is_empty())
        };
        let no_proxy = var(["no_proxy", "NO_PROXY"]).unwrap_or_default();
        Self::new(var(["http_proxy", "HTTP_PROXY"]).as_deref(), &no_proxy)
    }

    /// A client with this proxy URL and this list of hosts that are reached without it.
    pub fn new(proxy: Option<&str>, no_proxy: &str) -> Self {
        let proxy = proxy.map(|url| {
            let rest = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
            match rest.rsplit_once('@') {
                Some((user, host)) => (
                    host.to_owned(),
                    Some(format!("Basic {}", base64(&percent_decoded(user)))),
                ),
                None => (rest.to_owned(), None),
            }
        });
        Self {
            proxy,
            no_proxy: no_proxy.split(',').map(|h| h.trim().to_owned()).collect(),
        }
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// No connection, or an answer that is not HTTP.
    pub fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let mut whole = Vec::new();
        let mut reply = self.stream(method, url, headers, body, &mut |part| {
            whole.extend_from_slice(part);
            whole.len() <= MAX_BODY
        })?;
        reply.body = whole;
        Ok(reply)
    }

    /// Sends a request and hands each part of the answer's body to `part` as it arrives, as long as it says `true`.
    ///
    /// # Errors
    /// No connection, or an answer that is not HTTP.
    pub fn stream(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        part: &mut dyn FnMut(&[u8]) -> bool,
    ) -> io::Result<Reply> {
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| invalid(format!("{url} is not an http:// URL")))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let name = host.split(':').next().unwrap_or(host);
        let proxy = self.proxy.as_ref().filter(|_| !self.no_proxy.iter().any(|h| h == name));
        let (dial, target) = match proxy {
            Some((proxy, _)) => (proxy.clone(), url.to_owned()),
            None if host.contains(':') => (host.to_owned(), format!("/{path}")),
            None => (format!("{host}:80"), format!("/{path}")),
        };
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        if let Some((_, Some(authorization))) = proxy {
            head.push_str(&format!("proxy-authorization: {authorization}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        exchange(&dial, head, body, method == "HEAD", part)
    }
}

fn exchange(
    dial: &str,
    head: String,
    body: &[u8],
    headless: bool,
    part: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<Reply> {
    let stream = TcpStream::connect(dial)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    (&stream).write_all(&bytes)?;
    let mut reader = BufReader::new(&stream);
    loop {
        let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer");
        let (start, headers) = read_head(&mut reader)?.ok_or_else(closed)?;
        let status = start.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status: u16 = status.ok_or_else(|| invalid(format!("{start:?} is not an HTTP status line")))?;
        if status < 200 {
            continue;
        }
        if status != 204 && !headless {
            Framing::of(&headers, Framing::Close)?.read(&mut reader, part)?;
        }
        return Ok(Reply {
            status,
            headers,
            body: Vec::new(),
        });
    }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|d| std::str::from_utf8(d).ok());
        match hex.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .chain(&[0, 0])
            .take(3)
            .fold(0u32, |word, b| word << 8 | u32::from(*b));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 0x3f) as usize];
            out.push(if i > chunk.len() { '=' } else { digit as char });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Client, base64};

    #[test]
    fn base64_has_the_vectors_of_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn the_proxy_urls_userinfo_becomes_basic_credentials() {
        let client = Client::new(Some("http://aip:s%2Bx@127.0.0.1:9/"), "localhost");
        assert_eq!(
            client.proxy,
            Some(("127.0.0.1:9".into(), Some(format!("Basic {}", base64(b"aip:s+x")))))
        );
    }
}

//! HTTP/2 as no library would speak it: frames that a test makes itself (RFC 9113), heads in HPACK's literals (RFC 7541).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::pki::Leaf;
use crate::{wait, wire};

/// How a client begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
/// A whole request without a body.
pub const WHOLE: u8 = END_STREAM | END_HEADERS;

/// Codes of RFC 9113 section 7.
pub const PROTOCOL_ERROR: u32 = 1;
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame as it goes on the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// SETTINGS with these parameters.
pub fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in parameters {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// An integer with a prefix of `bits` (RFC 7541 section 5.1), below the bits of `first`.
pub fn integer(first: u8, bits: u8, value: usize) -> Vec<u8> {
    let most = (1_usize << bits) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![first | u8::try_from(most).unwrap()];
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [integer(0, 7, bytes.len()), bytes.to_vec()].concat()
}

/// A field as a literal that no table takes (RFC 7541 section 6.2.2), whatever is in it.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0], text(name), text(value)].concat()
}

/// A field as a literal that goes into the table (section 6.2.1).
pub fn indexed(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0x40], text(name), text(value)].concat()
}

/// Fields in their order.
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let each = fields.iter().map(|(n, v)| field(n.as_bytes(), v.as_bytes()));
    each.collect::<Vec<_>>().concat()
}

/// A head for the sidecar of `callee`: these fields, and a hop id of a caller's sidecar.
pub fn head(listed: &[(&str, &str)]) -> Vec<u8> {
    let hop = uuid::Uuid::now_v7().to_string();
    [fields(listed), field(b"x-aip-hop", hop.as_bytes())].concat()
}

/// The head of a good request to `callee`.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    let authority = (":authority", "callee.aip.internal");
    head(&[(":method", method), (":scheme", "http"), authority, (":path", path)])
}

/// A frame that came.
#[derive(Debug, Clone)]
pub struct Came {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Came {
    fn code(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// What became of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// An answer, with its body as text.
    Answered(String),
    /// The stream was reset, with this code.
    Reset(u32),
    /// The connection was ended: the code of its GOAWAY, where there was one.
    Ended(Option<u32>),
}

/// Bytes of bodies that are kept: what is said of a refusal fits.
const KEPT: usize = 64 * 1024;
/// How long a write may be stuck until the other end counts as one that reads no more.
const STUCK: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Heard {
    frames: Vec<Came>,
    bytes: usize,
    closed: bool,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection on which a test writes what it likes.
pub struct Raw {
    write: WriteHalf<Box<dyn Io>>,
    unread: Option<ReadHalf<Box<dyn Io>>>,
    heard: Arc<Mutex<Heard>>,
    reading: Option<JoinHandle<()>>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}

impl Raw {
    /// To a sidecar's outbound port, with prior knowledge; or to anybody who speaks so.
    pub async fn plain(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    /// To a sidecar's inbound port, past mutual TLS.
    pub async fn mutual(address: SocketAddr, leaf: &Leaf) -> Self {
        Self::encrypted(address, Some(leaf)).await
    }

    /// To the control plane's port, past TLS, as somebody whom it does not know.
    pub async fn stranger(address: SocketAddr) -> Self {
        Self::encrypted(address, None).await
    }

    async fn encrypted(address: SocketAddr, leaf: Option<&Leaf>) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        let tls = TlsConnector::from(wire::client(leaf, &[b"h2"]));
        let name = ServerName::try_from("aip.invalid").unwrap();
        Self::over(tls.connect(name, tcp).await.unwrap())
    }

    /// On a stream that is there.
    pub fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(Box::new(io) as Box<dyn Io>);
        Self {
            write,
            unread: Some(read),
            heard: Arc::default(),
            reading: None,
        }
    }

    /// Begins as a client does, and reads from now on. The other end's settings hold.
    pub async fn begin(mut self, parameters: &[(u16, u32)]) -> Self {
        assert!(self.send(&[PREFACE, &settings(parameters)].concat()).await);
        self.listen();
        wait::until("settings came", async || {
            (!self.came(SETTINGS).is_empty()).then_some(())
        })
        .await;
        assert!(self.send(&frame(SETTINGS, ACK, 0, &[])).await);
        self
    }

    /// Reads from now on: what is never read stops the other end from writing.
    pub fn listen(&mut self) {
        let mut read = self.unread.take().expect("not reading yet");
        let heard = self.heard.clone();
        self.reading = Some(tokio::spawn(async move {
            while let Ok(came) = next(&mut read).await {
                let mut heard = heard.lock().unwrap();
                if heard.bytes < KEPT || came.kind != DATA {
                    heard.bytes += came.payload.len();
                    heard.frames.push(came);
                }
            }
            heard.lock().unwrap().closed = true;
        }));
    }

    /// Writes; `false` where the other end has closed, or reads no more.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        let writing = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        matches!(tokio::time::timeout(STUCK, writing).await, Ok(Ok(())))
    }

    /// Writes this again and again, `times` or for as long as the other end takes it. How often it did.
    pub async fn flood(&mut self, times: usize, mut each: impl FnMut(usize) -> Vec<u8>) -> usize {
        const AT_ONCE: usize = 64;
        for n in (0..times).step_by(AT_ONCE) {
            let some: Vec<u8> = (n..(n + AT_ONCE).min(times)).flat_map(&mut each).collect();
            if self.is_closed() || !self.send(&some).await {
                return n;
            }
        }
        times
    }

    pub fn is_closed(&self) -> bool {
        self.heard.lock().unwrap().closed
    }

    /// The frames of a kind that came.
    pub fn came(&self, kind: u8) -> Vec<Came> {
        let heard = self.heard.lock().unwrap();
        heard.frames.iter().filter(|f| f.kind == kind).cloned().collect()
    }

    fn ended(&self) -> Option<Fate> {
        // A drain begins with a GOAWAY that ends nothing.
        let code = self.came(GOAWAY).iter().map(|f| f.code(4)).find(|code| *code != 0);
        (code.is_some() || self.is_closed()).then_some(Fate::Ended(code))
    }

    /// What became of a stream by now.
    pub fn fate(&self, stream: u32) -> Option<Fate> {
        let of = |kind| self.came(kind).into_iter().filter(move |f| f.stream == stream);
        let is_last = |f: &Came| f.flags & END_STREAM != 0;
        if of(HEADERS).any(|f| is_last(&f)) || of(DATA).any(|f| is_last(&f)) {
            let body: Vec<u8> = of(DATA).flat_map(|f| f.payload).collect();
            return Some(Fate::Answered(String::from_utf8_lossy(&body).into_owned()));
        }
        of(RST_STREAM).next().map(|f| Fate::Reset(f.code(0))).or(self.ended())
    }

    /// Waits for what becomes of a stream.
    pub async fn until(&self, stream: u32) -> Fate {
        wait::until(&format!("stream {stream} ends"), async || self.fate(stream)).await
    }

    /// Waits for the end of the connection, and its code.
    pub async fn until_ended(&self) -> Option<u32> {
        match wait::until("the connection is ended", async || self.ended()).await {
            Fate::Ended(code) => code,
            other => panic!("{other:?}"),
        }
    }
}

/// The next frame.
///
/// # Errors
/// There is none.
pub async fn next(read: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Came> {
    let mut head = [0; 9];
    read.read_exact(&mut head).await?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    read.read_exact(&mut payload).await?;
    let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff;
    Ok(Came {
        kind: head[3],
        flags: head[4],
        stream,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7541, sections C.1 and C.2.
    #[test]
    fn integers_and_literals_are_as_in_the_rfc() {
        assert_eq!(integer(0, 5, 10), [10]);
        assert_eq!(integer(0, 5, 1337), [31, 154, 10]);
        assert_eq!(
            indexed(b"custom-key", b"custom-header"),
            b"\x40\x0acustom-key\x0dcustom-header"
        );
        assert_eq!(settings(&[(3, 100)]), [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]);
    }
}

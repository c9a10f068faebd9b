//! One thread per connection, keep-alive.

use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::MAX_BODY;
use super::message::{Framing, Request, Response, find, read_head};

/// Connections served at once: one thread each.
const MAX_CONNECTIONS: usize = 128;
/// How long an idle connection is kept: longer than the usual 60 to 90 s of connection pools.
const IDLE: Duration = Duration::from_secs(120);

type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// Serves until the process ends.
///
/// # Errors
/// The listener broke.
pub fn serve(listener: TcpListener, handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> io::Result<()> {
    let handler: Arc<Handler> = Arc::new(handler);
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::SeqCst);
            let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            continue;
        }
        let (handler, open) = (handler.clone(), open.clone());
        std::thread::spawn(move || {
            let _ = connection(&stream, &*handler);
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
    Ok(())
}

fn connection(stream: &TcpStream, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some((start, headers)) = read_head(&mut reader)? {
        let mut words = start.split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1")) = (words.next(), words.next(), words.next()) else {
            return send(stream, Response::error(400, "not an HTTP/1.1 request"), false);
        };
        if find(&headers, "expect").is_some() {
            (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Vec::new();
        Framing::of(&headers, Framing::Length(0))?.read(&mut reader, &mut |part| {
            body.extend_from_slice(part);
            body.len() <= MAX_BODY
        })?;
        if body.len() > MAX_BODY {
            return send(stream, Response::error(413, "the body is too long"), false);
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let keep = !find(&headers, "connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        let request = Request {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            headers,
            body,
        };
        send(stream, handler(&request), keep)?;
        if !keep {
            break;
        }
    }
    Ok(())
}

fn send(mut stream: &TcpStream, response: Response, keep: bool) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, phrase(response.status));
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !keep {
        head.push_str("connection: close\r\n");
    }
    let Some(write) = response.stream else {
        // RFC 9110 section 8.6: a 204 has no Content-Length.
        if response.status != 204 {
            head.push_str(&format!("content-length: {}\r\n", response.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&response.body);
        return stream.write_all(&bytes);
    };
    head.push_str("transfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    write(&mut Chunks(stream))?;
    stream.write_all(b"0\r\n\r\n")
}

/// Sends every write as one chunk, at once.
struct Chunks<'a>(&'a TcpStream);

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
            chunk.extend_from_slice(bytes);
            chunk.extend_from_slice(b"\r\n");
            self.0.write_all(&chunk)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        502 => "Bad Gateway",
        _ => "Status",
    }
}

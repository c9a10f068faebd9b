//! An agent's event stream, of which the first event may say where to post to.

use std::net::SocketAddr;

use aip_sidecar::proxy::limits::MAX_ENDPOINT_EVENT;
use aip_sidecar::reading;

use crate::Seeds;

const AGENT: ([u8; 4], u16) = ([127, 0, 0, 1], 9000);
/// The agent to its peers.
const MESH: &str = "researcher.aip.internal";

/// A stream as it comes from the agent. Its peers get the same events, but that the first, where it is an endpoint of the
/// agent's own, leads to the mesh.
pub(crate) fn event_stream(bytes: &[u8]) -> bool {
    let went = |size: usize| reading::event_stream(bytes.chunks(size.max(1)), SocketAddr::from(AGENT), MESH);
    let out = went(bytes.len());
    for size in [1, 7] {
        assert!(went(size) == out, "in pieces of {size} it is another");
    }
    let (before, after) = (blocks(bytes), blocks(&out));
    let led = before.first().filter(|first| first.is_endpoint(bytes));
    let led = led.and_then(|first| led_to_the_mesh(first.data[0]));
    if out == bytes {
        assert!(led.is_none(), "the agent's own address goes on");
        return false;
    }
    assert_eq!(before.len(), after.len());
    assert!(bytes.starts_with(b"event:endpoint") || bytes.starts_with(b"event: endpoint"));
    assert!(
        bytes[before[0].end..] == out[after[0].end..],
        "what follows the first event is another"
    );
    let pairs = before[0].data.iter().zip(&after[0].data);
    let changed: Vec<_> = pairs.filter(|(came, went)| came != went).collect();
    assert_eq!((before[0].data.len(), changed.len()), (after[0].data.len(), 1));
    let (came, went) = changed[0];
    assert_eq!(led_to_the_mesh(came).as_deref(), Some(text(went)));
    assert_eq!((&before[0].kind, &before[0].id), (&after[0].kind, &after[0].id));
    true
}

fn text(line: &[u8]) -> &str {
    std::str::from_utf8(line).unwrap().trim()
}

/// What stands before an empty line, as the HTML standard reads an event stream (section 9.2.6).
#[derive(Default)]
struct Block<'b> {
    kind: &'b [u8],
    id: &'b [u8],
    data: Vec<&'b [u8]>,
    /// Behind its empty line.
    end: usize,
}

impl Block<'_> {
    /// Whether it is one of MCP's, of a spelling and size that is looked at.
    fn is_endpoint(&self, bytes: &[u8]) -> bool {
        let begins = bytes.starts_with(b"event:endpoint") || bytes.starts_with(b"event: endpoint");
        let whole = self.end <= MAX_ENDPOINT_EVENT && std::str::from_utf8(&bytes[..self.end]).is_ok();
        begins && whole && self.kind == b"endpoint" && self.data.len() == 1
    }
}

fn blocks(bytes: &[u8]) -> Vec<Block<'_>> {
    let (mut blocks, mut block, mut from) = (Vec::new(), Block::default(), 0);
    while let Some(length) = bytes[from..].iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let line = &bytes[from..from + length];
        from += length + 1 + usize::from(bytes[from + length..].starts_with(b"\r\n"));
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = colon.map_or((line, &b""[..]), |at| (&line[..at], &line[at + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"" if line.is_empty() => {
                block.end = from;
                blocks.push(std::mem::take(&mut block));
            }
            b"event" => block.kind = value,
            b"id" => block.id = value,
            b"data" => block.data.push(value),
            _ => {}
        }
    }
    blocks
}

/// Where a URL of the agent's own leads to in the mesh.
fn led_to_the_mesh(line: &[u8]) -> Option<String> {
    let url = text(line);
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme @ ("http" | "ws" | "grpc"), rest)) => (scheme, rest),
        Some(("https", rest)) => ("http", rest),
        _ => ("", url),
    };
    let end = if scheme.is_empty() {
        None
    } else {
        rest.find(['/', '?', '#'])
    };
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    let host = authority.strip_suffix(":9000")?.to_ascii_lowercase();
    if !["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::]"].contains(&host.as_str()) {
        return None;
    }
    Some(match scheme {
        "" => format!("{MESH}:9000"),
        scheme => format!("{scheme}://{MESH}{path}"),
    })
}

pub(crate) fn event_stream_seeds() -> Seeds {
    let of = |text: &str| text.as_bytes().to_vec();
    let own = "event: endpoint\ndata: http://127.0.0.1:9000/messages?session=1\n\n";
    let comment = format!(": {}\n", "x".repeat(MAX_ENDPOINT_EVENT));
    vec![
        ("own", of(own)),
        ("own_and_more", of(&format!("{own}event: message\ndata: {{}}\n\n"))),
        // More than an event may have comes with it at once.
        ("own_and_much_more", of(&format!("{own}{comment}\n"))),
        (
            "without_blanks",
            of("event:endpoint\ndata:LOCALHOST:9000\n\nevent:x\n\n"),
        ),
        ("crlf", of("event: endpoint\r\ndata: https://[::1]:9000/\r\n\r\n")),
        ("cr", of("event: endpoint\rdata: ws://0.0.0.0:9000\r\r")),
        ("mixed", of("event: endpoint\ndata: http://localhost:9000#a\r\r\n:\n")),
        // The same text twice: only one of them is data.
        (
            "id_is_the_url",
            of("event: endpoint\nid: 127.0.0.1:9000\ndata: 127.0.0.1:9000\n\n"),
        ),
        (
            "comment_has_data",
            of("event: endpoint\n: data: no\ndata: http://127.0.0.1:9000/\n\n"),
        ),
        ("relative", of("event: endpoint\ndata: /messages?session=1\n\n")),
        ("elsewhere", of("event: endpoint\ndata: http://127.0.0.1:9001/\n\n")),
        ("other_event", of("event: endpoints\ndata: http://127.0.0.1:9000/\n\n")),
        ("later", of(&format!("event: message\ndata: x\n\n{own}"))),
        ("too_long", of(&own.replacen("data", &format!("{comment}data"), 1))),
        ("without_end", of(own.trim_end())),
        (
            "not_utf8",
            b"event: endpoint\ndata: http://127.0.0.1:9000/\xff\n\n".to_vec(),
        ),
    ]
}

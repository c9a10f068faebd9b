//! Every bound of the data path, with the reason for its number.

use std::time::Duration;

use aip_runtime::door::Bounds;

/// Connections from peers' sidecars. Each peer holds a handful; past this a sidecar is not what limits the agent.
pub const MAX_INBOUND_CONNECTIONS: usize = 4_096;
/// Connections of the sidecar's own agent, tunnels included. Agents with more open more than they can serve.
pub const MAX_OUTBOUND_CONNECTIONS: usize = 1_024;
/// Connections of them on which nobody has shown the secret yet: half, so that the other half is the agent's.
pub const MAX_OUTBOUND_STRANGERS: usize = MAX_OUTBOUND_CONNECTIONS / 2;
/// How long the first byte may take where a secret must be shown: clients on this machine speak at once.
pub const STRANGER_FIRST_BYTE: Duration = Duration::from_secs(3);
/// How long the secret may take; from then on [`HEADER_READ_TIMEOUT`] holds.
pub const STRANGER_SECRET: Duration = Duration::from_secs(10);
/// Connections to the outbound port that are not the agent's and are told so, which takes up to two seconds each; more
/// are closed without a word. Told at all, since a client that is not tries again without end.
pub const MAX_REFUSED_CONNECTIONS: usize = 64;
/// Connections from one source, known peers included. Generous, since a whole cluster's sidecars may come from one
/// address; three quarters are the most that one source can take from all others.
pub const MAX_SOURCE_CONNECTIONS: usize = 3_072;
/// Connections in their handshake; past it one gives way, of the source that has most. Each may take ten seconds, hold
/// 64 KiB and cost a signature, and nobody is known yet.
pub const MAX_HANDSHAKES: usize = 512;
/// The door of the inbound port. Nobody gets past its handshake without a certificate.
pub const INBOUND: Bounds = Bounds {
    connections: MAX_INBOUND_CONNECTIONS,
    connections_per_source: MAX_SOURCE_CONNECTIONS,
    strangers: MAX_HANDSHAKES,
    anonymous: 0,
};

/// Connections of one verified peer, wherever they come from: [`MAX_PEER_CONNECTIONS`] of more than a hundred instances
/// of an agent. Past it they are closed after the handshake, so that whoever has one certificate leaves places to others.
pub const MAX_CONNECTIONS_OF_PEER: usize = 512;

/// HTTP/2 streams of one connection. A peer with more in flight opens another connection.
pub const MAX_STREAMS: u32 = 512;
/// Bytes of a head, as HTTP/2 counts them. Above what servers accept by default (8 to 16 KiB), so that the agent's own
/// limit is what a caller meets.
pub const MAX_HEADER_LIST: u32 = 64 * 1024;
/// Bytes that one HTTP/1 connection may buffer: one head of [`MAX_HEADER_LIST`] and some body.
pub const MAX_HTTP1_BUFFER: usize = 128 * 1024;
/// Flow-control window of a stream: 1 MiB fills a 100 Mbit/s line of 80 ms.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// Flow-control window of a connection: what a slow agent can make this process hold for one peer.
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Flow-control window of a stream to our own agent, which is on this machine: HTTP/2's own, so that the
/// answers of as many calls as the agent takes by default hold 64 MiB where none of their callers reads.
pub const AGENT_STREAM_WINDOW: u32 = 64 * 1024;
/// Flow-control window of a connection to it: as large as there are, more than all streams' together. All callers share
/// the connection, and none of them may use it up with answers that it does not read.
pub const AGENT_CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Bytes of an answer that wait, in each stream, for a client that does not read, whatever windows it grants: 64 MiB in
/// all [`MAX_STREAMS`] of a connection, and some frames each, so that a stream that flows is not held up.
pub const MAX_SEND_BUFFER: usize = 128 * 1024;
/// Bytes of answers that a peer may leave unread, over all its connections, before further ones wait: what all streams of one
/// connection may hold.
pub const MAX_UNREAD_OF_PEER: usize = MAX_STREAMS as usize * MAX_SEND_BUFFER;
/// Bytes of them that each of its connections may have in any case: two streams that flow, beside others that are not read.
pub const MAX_UNREAD_OF_CONNECTION: usize = 2 * MAX_SEND_BUFFER;
/// Streams that a peer may open and reset before we have looked at them (CVE-2023-44487, rapid reset).
pub const MAX_PENDING_RESETS: usize = 20;
/// Streams that we may have reset because of a peer's errors before its connection is closed.
pub const MAX_LOCAL_RESETS: usize = 256;
/// How often a quiet connection between sidecars is asked whether it is alive: under the idle limits of usual NATs.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the answer may take.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an HTTP/1 head may take, idle time between requests included (75 s is nginx' keep-alive).
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a TCP connection may take: three lost SYNs.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections to one endpoint of a peer; more are opened only when all are busy.
pub const MAX_PEER_CONNECTIONS: usize = 4;
/// Streams in flight on a connection to a peer that make us open the next one: half of what the peer allows.
pub const BUSY_STREAMS: u32 = MAX_STREAMS / 2;
/// Endpoints that one request tries, while nothing has been sent.
pub const MAX_ATTEMPTS: usize = 3;
/// How long an endpoint that could not be reached is passed over, while there are others.
pub const ENDPOINT_PENALTY: Duration = Duration::from_secs(5);
/// Idle connections to the agent. More than its own concurrency never pays.
pub const MAX_IDLE_AGENT: usize = 128;
/// How long one is kept: shorter than the 5 s after which uvicorn and Node close theirs, so that a request does not
/// meet a closing connection.
pub const AGENT_IDLE: Duration = Duration::from_secs(4);
/// How long one of them may take to notice that its last call is over: that is one turn of its task.
pub const AGENT_READY: Duration = Duration::from_millis(10);
/// A net for outbound calls, above the hour that a callee's own deadline can be: the callee's sidecar answers first.
pub const OUTBOUND_RESPONSE_TIMEOUT: Duration = Duration::from_secs(3_660);

/// Bytes of a body that policy may read. MCP arguments carry documents; a larger body streams past policy, and then a
/// policy that reads it denies.
pub const MAX_HELD_BODY: usize = 1024 * 1024;
/// Bytes of memory that one such body may take once it is read, and only while policy is asked: text takes its bytes,
/// decimals four times as much, rows of a table 15 to 30 times, `{"":0}` 95 times. So half a mebibyte of small rows and
/// any mebibyte of documents fit, and four bodies at once what all may hold. Past it, policy is told that it is not
/// known what the body says.
pub const MAX_JSON_MEMORY: usize = 16 * 1024 * 1024;
/// Bytes of all bodies together that are held, and of what they are read into: past it requests are shed before memory
/// grows.
pub const MAX_HELD_TOTAL: usize = 64 * 1024 * 1024;
/// Bytes of them that a single peer may have: the other half is for the others.
pub const MAX_HELD_OF_PEER: usize = MAX_HELD_TOTAL / 2;
/// Bytes that a request takes while its body is awaited, beside head and body: its futures, its record, its stream. So
/// that about 4,000 of one peer may wait, however small they are.
pub const WAITING_REQUEST: usize = 8 * 1024;
/// How long such a body may take to arrive.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Nested arrays and objects in it; documents that people write stay under ten, and recursive code walks them.
pub const MAX_JSON_DEPTH: usize = 64;
/// How long a refusal waits for the rest of a small body, so that the client reads the answer instead of a reset; and what is
/// answered already for the end of its request.
pub const REFUSED_BODY_WAIT: Duration = Duration::from_secs(1);
/// Bytes of a body that a refusal waits for.
pub const REFUSED_BODY_BYTES: usize = 256 * 1024;
/// Bytes of a body that are read and dropped when the other end has answered before it read them, as servers do themselves.
pub const ANSWERED_BODY_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of a request that are read at a time before it is refused for where it comes from.
pub const REFUSED_HEAD_BYTES: usize = 4 * 1024;

/// Hop ids of one source that are remembered, in each of two generations; what is older is refused by its time.
pub const HOPS_PER_GENERATION: usize = 65_536;
/// Hop ids of all sources together, about 32 bytes each, that are remembered without haste: past it each source has
/// smaller generations ([`FEW_HOPS`]).
pub const MANY_HOPS: usize = 1024 * 1024;
/// Hop ids in a generation while there are [`MANY_HOPS`]. Still seconds of traffic of one source: a hop that is
/// overtaken by this many others is refused.
pub const FEW_HOPS: usize = 4_096;
/// How often what idle sources left behind is looked through.
pub const SWEEP: Duration = Duration::from_secs(10);
/// Age at which a generation of hop ids is retired, and the oldest hop that is believed.
pub const HOP_WINDOW: Duration = Duration::from_secs(600);

/// Bytes of an agent card that is rewritten; a larger one passes as it is.
pub const MAX_CARD: usize = 256 * 1024;
/// How long such a card may take to come; a slower one passes as it comes. The agent is on this machine.
pub const CARD_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in which a legacy MCP `endpoint` event must end.
pub const MAX_ENDPOINT_EVENT: usize = 4 * 1024;

/// How long the first byte inside a tunnel may take.
pub const TUNNEL_FIRST_BYTE: Duration = Duration::from_secs(30);
/// Bytes of a TLS ClientHello; post-quantum key shares make them about 2 KiB.
pub const MAX_CLIENT_HELLO: usize = 16 * 1024;
/// How long a name may take to resolve.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are looked at; a name with more is refused, since each must be checked.
pub const MAX_RESOLVED: usize = 32;

/// How often open streams are looked at for silence. Idle limits are seconds to minutes.
pub const IDLE_TICK: Duration = Duration::from_millis(500);
/// At most this long before a certificate expires, its connection takes no more requests and says so (GOAWAY).
pub const RETIRE_BEFORE_EXPIRY: Duration = Duration::from_secs(30);
/// Bytes of access log that wait for a slow reader; past it lines are dropped and counted.
pub const MAX_LOG_BUFFER: usize = 4 * 1024 * 1024;
/// How long lines are gathered into one write.
pub const LOG_GATHER: Duration = Duration::from_millis(10);
/// Bytes of a refusal's detail in the access log.
pub const MAX_LOGGED_DETAIL: usize = 512;
/// Bytes of a host in access log, audit and spans: no name that can be resolved is longer (RFC 1035, section 2.3.4).
pub const MAX_LOGGED_HOST: usize = 255;
/// Bytes of a path in the access log.
pub const MAX_LOGGED_PATH: usize = 1_024;
/// How long what a drain cuts at its end may take to be recorded: its tasks only have to be woken.
pub const LAST_WORDS: Duration = Duration::from_millis(500);

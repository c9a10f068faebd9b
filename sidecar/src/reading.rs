//! What is read of a request before policy is asked, by the functions that the pipeline reads it with, without a request:
//! for whoever wants to know what becomes of some bytes. Tests and fuzzing do; nothing here is used to serve.

use std::net::SocketAddr;

use aip_api::id::DecisionId;
use aip_policy::{Direction, ProtocolFacts};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Uri};
use serde_json::Value;

use crate::proxy::egress::hello;
use crate::request::accept;
use crate::request::classify::content;
use crate::request::classify::headers as header;
use crate::request::classify::json;
use crate::request::classify::path;
use crate::request::classify::protocol::{self, Content};
use crate::request::relay::card::{self, Addresses};
use crate::request::relay::endpoint::First;
use crate::request::trace::Trace;

/// What a TLS ClientHello names, as far as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientHello {
    /// All of it, and the server name in it, in lower case.
    Whole(Option<String>),
    /// A part.
    Part,
    /// It is none.
    Malformed,
}

/// A body as strict JSON, and whether some integer in it is past what every reader holds. None where readers differ on it.
pub fn strict_json(bytes: &[u8]) -> Option<(Value, bool)> {
    let parsed = json::parse(bytes, None).ok()?;
    Some((parsed.value, parsed.large_integer))
}

/// Whether some reader may take what begins so for JSON.
pub fn may_begin_json(bytes: &[u8]) -> bool {
    content::may_begin_json(bytes)
}

/// The call inside a request. `carrier` is `http`, `grpc`, `websocket` or `tunnel`; a body that is no strict JSON counts as
/// unread.
pub fn call(carrier: &'static str, headers: &HeaderMap, body: &[u8]) -> ProtocolFacts {
    let content = json::parse(body, None).map_or(Content::Unread("body_not_json"), Content::Json);
    protocol::facts(carrier, headers, content)
}

/// Whether a request has a target that it can have.
pub fn has_target(head: &Parts) -> bool {
    path::is_target(&head.method, head.uri.path())
}

/// Why a path is refused that servers may resolve otherwise than policy reads it; none where it isn't.
pub fn ambiguous_path(path: &str) -> Option<String> {
    path::check(path).err().map(|why| why.to_string())
}

/// Segments of the path and parameters of the query, as policy sees them.
pub fn path_and_query(uri: &Uri) -> (Vec<String>, Vec<(String, String)>) {
    let query = uri.query().map(path::query).unwrap_or_default();
    (path::segments(uri.path()), query)
}

/// The host that a request names.
///
/// # Errors
/// None, or more than one: the stable reason.
pub fn authority(head: &Parts) -> Result<Authority, &'static str> {
    crate::request::classify::authority(head).map_err(|refused| refused.refusal.reason())
}

/// Takes off a request's headers what ends here, in the order of the pipeline.
///
/// # Errors
/// A header that refuses the request: a transfer coding that nobody undoes, lengths that differ, an override.
pub fn clean(headers: &mut HeaderMap, direction: Direction) -> Result<(), &'static str> {
    if header::foreign_coding(headers).is_some() {
        return Err("transfer_coding");
    }
    header::trim(headers);
    header::remove_ours(headers);
    header::end_hop(headers);
    header::end_proxy(headers, direction);
    if !header::one_length(headers) {
        return Err("invalid_content");
    }
    if header::overriding(headers).is_some() {
        return Err("override_header");
    }
    if direction == Direction::Inbound {
        header::remove_origins(headers);
    }
    Ok(())
}

/// Takes off trailers what is no trailer's.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    header::clean_trailers(trailers);
}

/// Carries the trace of a request on, with a span of this decision; answers the trace's id.
pub fn carry_trace(headers: &mut HeaderMap, decision: &DecisionId) -> String {
    let trace = Trace::of(headers, None);
    trace.write(headers, decision);
    trace.id
}

/// The server name in what a tunnel begins with.
pub fn client_hello(bytes: &[u8]) -> ClientHello {
    match hello::server_name(bytes) {
        hello::Parsed::Done(name) => ClientHello::Whole(name),
        hello::Parsed::More => ClientHello::Part,
        hello::Parsed::Malformed => ClientHello::Malformed,
    }
}

/// The card of an agent that serves at `agent` and is `mesh` to its peers, where it is rewritten.
pub fn agent_card(card: &[u8], agent: SocketAddr, mesh: &str) -> Option<Vec<u8>> {
    let card = serde_json::from_slice(card).ok()?;
    let addresses = Addresses::new(agent, mesh.to_owned());
    card::rewritten(&addresses, card).map(|bytes| bytes.to_vec())
}

/// What goes on of an event stream that comes in these pieces, from an agent that serves at `agent` and is `mesh` to its peers.
pub fn event_stream<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, agent: SocketAddr, mesh: &str) -> Vec<u8> {
    let mut first = First::new(Addresses::new(agent, mesh.to_owned()));
    let mut out = Vec::new();
    for piece in pieces {
        first.came(piece);
        out.extend(first.take().unwrap_or_default());
    }
    first.ended();
    out.extend(first.take().unwrap_or_default());
    out
}

/// Whether a request shows the secret of the proxy's URL.
pub fn shows_secret(headers: &HeaderMap, secret: &str) -> bool {
    accept::shows(headers, secret)
}

/// Makes the head of an extended CONNECT for WebSocket the one that HTTP/1.1 has for it; whether it is one.
pub fn extended_connect(head: &mut Parts) -> bool {
    crate::request::classify::extended_connect(head).is_some()
}

/// Whether a header's value is the salt of a hop.
pub fn is_salt(text: &str) -> bool {
    crate::audit::digest::Salt::parse(text).is_some()
}

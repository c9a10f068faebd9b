//! Phase 2, classify: whom the request is for, what it says, and the one version of the world that it is decided in.
//!
//! What is hop-by-hop, and what is the mesh's own, is taken off here: later phases see what one end says to the other.

mod charset;
pub(crate) mod content;
pub(crate) mod headers;
pub(crate) mod held;
pub(crate) mod json;
mod members;
pub(crate) mod path;
pub(crate) mod protocol;
mod target;

pub(crate) use target::authority;
pub(crate) use target::of_authority as target_of;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aip_api::AgentName;
use aip_api::id::HopId;
use aip_api::resource::AgentProtocol;
use aip_policy::{Direction, TraceFacts};
use aip_runtime::svid::Svid;
use aip_runtime::unix_now;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Version};
use hyper::ext::Protocol;

use super::record::Ends;
use super::refusal::{Refusal, Refused};
use super::told::{End, Told};
use super::trace::Trace;
use super::{Arrived, From, Peer, Target, admit, call};
use crate::audit::digest::{SALT, Salt};
use crate::mesh::Unlearned;
use crate::proxy::pair::{Pair, Pairs};
use crate::proxy::peers::PeerConnection;
use crate::snapshot::Snapshot;

/// The hop id, from sidecar to sidecar.
pub(crate) const HOP: &str = "x-aip-hop";
/// How many hops its trace has, this one included, where that is not the first; from sidecar to sidecar.
pub(crate) const HOPS: &str = "x-aip-hops";
/// The HTTP version that the caller spoke.
pub(crate) const HTTP: &str = "x-aip-http";

/// A request of which is known what can be known.
pub(crate) struct Classified {
    /// Unix seconds.
    pub(crate) now: u64,
    pub(crate) own: Arc<Svid>,
    pub(crate) pair: Arc<Pair>,
    pub(crate) end: End,
    pub(crate) told: Told,
    /// What the body says, until policy has been asked.
    pub(crate) content: protocol::Content,
    /// The protocol that the connection is to be switched to.
    pub(crate) upgrade: Option<HeaderValue>,
    pub(crate) hop: HopId,
    pub(crate) trace: Trace,
    /// Of its trace, this one included.
    pub(crate) hops: u32,
    /// What the caller spoke.
    pub(crate) version: Version,
    /// The host as the caller wrote it.
    pub(crate) authority: Authority,
    /// The connection whose certificate was decided on, and the endpoints that were tried for it.
    pub(crate) connection: Option<Connected>,
}

/// A connection to a peer, made before the decision.
pub(crate) struct Connected {
    pub(crate) connection: Arc<PeerConnection>,
    pub(crate) endpoints: Vec<SocketAddr>,
}

/// The ends of a request, before its content.
struct Meant {
    end: End,
    snapshot: Arc<Snapshot>,
    hop: HopId,
    /// What the caller's sidecar counted.
    hops: Option<u32>,
    version: Version,
    authority: Authority,
}

/// Classifies; the head is cleaned, and a body that policy reads is held.
pub(crate) async fn classify(arrived: &mut Arrived) -> Result<Classified, Refused> {
    let own = arrived.proxy.svid.current().ok_or(Refusal::NoIdentity)?;
    let upgrade = take_upgrade(arrived)?;
    if let Some(coding) = headers::foreign_coding(&arrived.head.headers) {
        return Err(Refusal::TransferCoding.because(coding));
    }
    let via = arrived.via.clone();
    let meant = match &via.from {
        From::Peer(peer) => inbound(arrived, peer).await?,
        From::Agent | From::Tunnel(_) => outbound(arrived).await?,
    };
    clean(arrived)?;
    let now = unix_now();
    let (pair, end, connection) = ends(arrived, &meant, &own, now).await?;
    arrived.record.ends = Ends::Pair(pair.clone());
    check_head(arrived, &pair, &end)?;
    let sampler = arrived.proxy.settings.spans.sampler();
    let trace = Trace::of(&arrived.head.headers, sampler);
    arrived.record.traced(&trace);
    let hops = meant.hops.unwrap_or_else(|| arrived.proxy.traces.next(&trace));
    let reads_body = pair.needs.body || arrived.proxy.settings.kill.names_tools(&pair.snapshot, &end);
    let read = match reads_body {
        true => Box::pin(read(arrived, &pair, &own, &end)).await?,
        false => content::Read::not_asked_for(arrived),
    };
    let told = Told {
        method: arrived.head.method.clone(),
        uri: arrived.head.uri.clone(),
        headers: arrived.head.headers.clone(),
        size: content::size(arrived),
        carrier: carrier(&arrived.head.headers, upgrade.as_ref()),
        body: read.kept,
        trace: TraceFacts {
            id: trace.id.clone(),
            hops: hops.into(),
        },
        held: read.held,
    };
    Ok(Classified {
        now,
        own,
        pair,
        end,
        told,
        content: read.content,
        upgrade,
        hop: meant.hop,
        trace,
        hops,
        version: meant.version,
        authority: meant.authority,
        connection,
    })
}

/// Reads the body. What is refused whatever it says is refused before: a client that asks whether to send it
/// (`Expect: 100-continue`) is told to when it is first looked at.
async fn read(arrived: &mut Arrived, pair: &Pair, own: &Svid, end: &End) -> Result<content::Read, Refused> {
    admit::admitted(&pair.snapshot, own.result(), end)?;
    if let End::Callee(name, _) = end
        && pair.snapshot.endpoints(name).is_empty()
    {
        return Err(Refusal::NoEndpoint.into());
    }
    content::read(arrived).await
}

/// What is to be switched to, with the head as if it had been asked for in HTTP/1.1. WebSocket alone: whatever else an
/// agent agreed to would be a tunnel that no policy reads (h2c behind an allowed GET is one).
fn take_upgrade(arrived: &mut Arrived) -> Result<Option<HeaderValue>, Refused> {
    let head = &mut arrived.head;
    if head.method == Method::CONNECT {
        let protocol = extended_connect(head);
        let protocol = protocol.ok_or_else(|| Refusal::UnsupportedTarget.because("CONNECT here is for WebSocket"))?;
        arrived.record.method = Method::GET;
        return Ok(Some(protocol));
    }
    // One with a body is answered as if it had not asked: a server may ignore the wish (RFC 9110 section 7.8).
    let bodiless = arrived.body.as_ref().is_none_or(http_body::Body::is_end_stream);
    let wish = headers::upgrade(&head.headers).filter(is_websocket);
    Ok(wish.filter(|_| bodiless && head.method == Method::GET))
}

/// Makes the head of an extended CONNECT (RFC 8441) the one that HTTP/1.1 has for the same; none where it is for something
/// else than WebSocket.
pub(crate) fn extended_connect(head: &mut Parts) -> Option<HeaderValue> {
    let protocol = head.extensions.remove::<Protocol>()?;
    let protocol = HeaderValue::from_str(protocol.as_str()).ok().filter(is_websocket)?;
    head.method = Method::GET;
    Some(protocol)
}

fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
}

fn carrier(headers: &HeaderMap, upgrade: Option<&HeaderValue>) -> &'static str {
    match upgrade {
        Some(_) => "websocket",
        _ if content::is_grpc(headers) => "grpc",
        _ => "http",
    }
}

fn clean(arrived: &mut Arrived) -> Result<(), Refused> {
    let direction = arrived.record.direction;
    headers::trim(&mut arrived.head.headers);
    headers::remove_ours(&mut arrived.head.headers);
    headers::end_hop(&mut arrived.head.headers);
    headers::end_proxy(&mut arrived.head.headers, direction);
    if headers::one_length(&mut arrived.head.headers) {
        return Ok(());
    }
    Err(Refusal::InvalidContent.because("Content-Length stands twice, and differs"))
}

/// What nobody may send, whatever policy says; and what a peer says of its own way here goes.
fn check_head(arrived: &mut Arrived, pair: &Pair, end: &End) -> Result<(), Refused> {
    let destination = match end {
        End::Caller(_) => Some(&pair.snapshot.me),
        End::Callee(name, _) => pair.snapshot.agent(name),
        End::Outside(..) => None,
    };
    let ambiguous_allowed = destination.is_some_and(|agent| agent.allow_ambiguous_paths);
    let http1 = destination.is_some_and(|agent| agent.protocol == AgentProtocol::Http1);
    let head = &mut arrived.head;
    if !path::is_target(&head.method, head.uri.path()) {
        return Err(Refusal::UnsupportedTarget.because("it has no path, and is not the `*` of OPTIONS"));
    }
    if http1 && content::is_grpc(&head.headers) {
        return Err(Refusal::InvalidContent.because("this agent speaks HTTP/1.1, and gRPC is HTTP/2"));
    }
    if let Err(why) = path::check(head.uri.path())
        && !ambiguous_allowed
    {
        return Err(Refusal::AmbiguousPath.because(why));
    }
    if let Some(name) = headers::overriding(&head.headers) {
        return Err(Refusal::OverrideHeader.because(name));
    }
    if arrived.record.direction == Direction::Inbound {
        headers::remove_origins(&mut head.headers);
    }
    Ok(())
}

async fn inbound(arrived: &mut Arrived, peer: &Peer) -> Result<Meant, Refused> {
    let value = |name| {
        arrived
            .head
            .headers
            .get(name)
            .and_then(|v: &HeaderValue| v.to_str().ok())
    };
    let hop: HopId = value(HOP).and_then(|v| v.parse().ok()).ok_or(Refusal::InvalidHop)?;
    let hops = match value(HOPS) {
        None => 1,
        Some(hops) => hops.parse::<u32>().map_err(|_| Refusal::InvalidHop)?.max(1),
    };
    let version = match value(HTTP) {
        Some("1.0") => Version::HTTP_10,
        Some("1.1") => Version::HTTP_11,
        _ => Version::HTTP_2,
    };
    let salt = match value(SALT) {
        None => None,
        Some(text) => Some(Salt::parse(text).ok_or(Refusal::InvalidHop)?),
    };
    arrived.record.on_hop(hop);
    if let Some(salt) = salt {
        arrived.record.exchange.salted(salt);
    }
    let me = arrived.proxy.mesh.snapshot().id.clone();
    let caller = &peer.live.peer.id;
    arrived.record.ends = Ends::Caller(peer.live.clone());
    if !peer.seen.admit(hop, unix_millis()) {
        return Err(Refusal::HopReplayed.into());
    }
    let authority = target::authority(&arrived.head)?;
    if me.trust_domain.agent_of_host(authority.host()).as_ref() != Some(&me.agent) {
        return Err(Refusal::WrongAgent.because(format!("{} lives here", me.agent)));
    }
    let snapshot = learn(arrived, &caller.agent)
        .await
        .map_err(|unlearned| match unlearned {
            Unlearned::Absent => Refusal::UnknownSource,
            other => refusal_of(other),
        })?;
    let end = End::Caller(peer.live.clone());
    Ok(Meant {
        end,
        snapshot,
        hop,
        hops: Some(hops),
        version,
        authority,
    })
}

async fn outbound(arrived: &mut Arrived) -> Result<Meant, Refused> {
    let hop = HopId::fresh();
    arrived.record.on_hop(hop);
    arrived.record.connect = matches!(arrived.via.from, From::Tunnel(_));
    let version = arrived.head.version;
    arrived.record.ends = Ends::asked("");
    let (authority, target) = target::target(arrived)?;
    arrived.record.ends = Ends::asked(authority.as_str());
    let (end, snapshot) = match target {
        Target::Agent(name) => {
            let snapshot = learn(arrived, &name).await.map_err(refusal_of)?;
            (End::Callee(name, None), snapshot)
        }
        Target::Outside(host, port) => (End::Outside(host, port), arrived.proxy.mesh.snapshot()),
    };
    Ok(Meant {
        end,
        snapshot,
        hop,
        hops: None,
        version,
        authority,
    })
}

/// The snapshot that holds `agent`; usually the current one.
async fn learn(arrived: &Arrived, agent: &AgentName) -> Result<Arc<Snapshot>, Unlearned> {
    let snapshot = arrived.proxy.mesh.snapshot();
    if snapshot.agent(agent).is_some() {
        return Ok(snapshot);
    }
    Box::pin(arrived.proxy.mesh.learn(agent)).await
}

fn refusal_of(unlearned: Unlearned) -> Refusal {
    match unlearned {
        Unlearned::Absent => Refusal::UnknownAgent,
        Unlearned::Unreachable => Refusal::RegistryUnreachable,
        Unlearned::TooMany => Refusal::TooManyPeers,
    }
}

type BothEnds = (Arc<Pair>, End, Option<Connected>);

/// Both ends as policy sees them. Where it reads what the callee runs, we connect first: only the callee can show it.
async fn ends(arrived: &Arrived, meant: &Meant, own: &Arc<Svid>, now: u64) -> Result<BothEnds, Refused> {
    let proxy = &arrived.proxy;
    let pair = Pairs::of(proxy, &meant.snapshot, own, meant.end.other(), now);
    let End::Callee(name, _) = &meant.end else {
        return Ok((pair, meant.end.clone(), None));
    };
    if !pair.needs.destination_attestation {
        return Ok((pair, meant.end.clone(), None));
    }
    let endpoints = super::route::endpoints(proxy, &meant.snapshot, name)?;
    let (connection, _) = call::connect(proxy, name, &endpoints).await?;
    let end = End::Callee(name.clone(), Some(connection.live.clone()));
    let pair = Pairs::of(proxy, &meant.snapshot, own, end.other(), now);
    let connected = Connected { connection, endpoints };
    Ok((pair, end, Some(connected)))
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

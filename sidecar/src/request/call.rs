//! Phase 7, call: the request goes out, to the agent, to a peer's sidecar, or to an outside host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aip_api::AgentName;
use aip_api::resource::{AgentProtocol, HostHeader};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, ORIGIN, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::Body;
use super::classify::{Classified, HOP, HOPS, HTTP};
use super::limit::Limits;
use super::refusal::{Refusal, Refused};
use super::relay::card;
use super::route::Route;
use super::told::{Decided, End, Told};
use super::{Arrived, admit};
use crate::audit::digest::SALT;
use crate::proxy::agent::{AgentPool, Returning};
use crate::proxy::gate::Permit;
use crate::proxy::limits::{MAX_ATTEMPTS, MAX_HTTP1_BUFFER};
use crate::proxy::peers::{Flight, PeerConnection, PeerPool};
use crate::proxy::{Proxy, egress};

/// Who calls, as the callee's agent is told.
const SOURCE: HeaderName = HeaderName::from_static("x-aip-source");

/// What came back.
pub(crate) enum Answer {
    /// This sidecar's own.
    Own(Response<Bytes>),
    /// The other end's.
    Sent(Box<Sent>),
}

/// A response that has begun, and what it holds until it ends.
pub(crate) struct Sent {
    pub(crate) response: Response<Incoming>,
    pub(crate) returning: Option<Returning>,
    pub(crate) flight: Option<Flight>,
    pub(crate) permit: Option<Permit>,
    /// Whether a switch of protocols was asked for, and the caller's end of it.
    pub(crate) upgrade: Option<(HeaderValue, OnUpgrade)>,
}

/// What a route gives back at once.
type Begun = (Response<Incoming>, Option<Returning>, Option<Flight>);

/// Sends the request; waits for the head of the response, the deadline, or the end of the world it was decided in.
pub(crate) async fn call(
    arrived: &mut Arrived,
    classified: &mut Classified,
    route: Route,
    limits: Limits,
) -> Result<Answer, Refused> {
    if let Route::WellKnown = route {
        let path = arrived.head.uri.path();
        let answer = arrived.proxy.wellknown.answer(path, &classified.pair.snapshot).await;
        return answer.map(Answer::Own).ok_or_else(|| Refusal::NoIdentity.into());
    }
    let told = std::mem::replace(&mut classified.told, Told::nothing());
    let carrier = told.carrier;
    let exchange = arrived.record.exchange.clone();
    exchange.decide(Decided {
        direction: arrived.record.direction,
        end: classified.end.clone(),
        told,
        idle: limits.idle,
    });
    if let End::Caller(live) = &classified.end {
        exchange.goes_over(live);
        arrived.record.in_trace(&classified.trace, classified.hops);
    }
    arrived.record.in_flight();
    // An order that came while the body was awaited: those from here on look at this exchange themselves.
    if let Some(decided) = exchange.decided() {
        let (kill, snapshot) = (&arrived.proxy.settings.kill, &classified.pair.snapshot);
        kill.admit(snapshot, classified.own.result(), &decided.end, &decided.told)?;
    }
    // The world may have changed while the body was awaited; from here on changes look at this exchange themselves.
    let current = arrived.proxy.mesh.snapshot();
    if !Arc::ptr_eq(&current, &classified.pair.snapshot)
        && let Some(cut) = super::told::recheck(&arrived.proxy, &current, &exchange)
    {
        return Err(Refusal::of_cut(cut).because(cut.reason()));
    }
    let downstream = arrived.head.extensions.remove::<OnUpgrade>();
    let upgrade = classified.upgrade.clone().zip(downstream);
    if carrier == "grpc"
        && let Some(body) = arrived.body.take()
    {
        arrived.body = Some(body.of_grpc());
    }
    // Asking for the body tells a client to send it, which is the callee's to say where the client waits for that.
    if !arrived.head.headers.contains_key(EXPECT)
        && let Some(body) = arrived.body.take()
    {
        arrived.body = Some(body.begun().await);
    }
    if arrived.body.as_ref().is_some_and(Body::is_no_grpc) {
        return Err(no_grpc());
    }
    let sent = tokio::select! {
        // What is cut sends nothing more, also where both are ready.
        biased;
        cut = exchange.ended() => return Err(Refusal::of_cut(cut).because(cut.reason())),
        sent = tokio::time::timeout(limits.response, send(arrived, classified, &route, carrier)) => {
            sent.map_err(|_| Refusal::ResponseTimeout)?
        }
    };
    let late = |error| match exchange.is_no_grpc.load(Ordering::Acquire) {
        true => no_grpc(),
        false => error,
    };
    let (response, returning, flight) = sent.map_err(late)?;
    Ok(Answer::Sent(Box::new(Sent {
        response,
        returning,
        flight,
        permit: limits.permit,
        upgrade,
    })))
}

fn no_grpc() -> Refused {
    Refusal::InvalidContent.because("it calls itself gRPC, and does not begin as a message of it")
}

async fn send(
    arrived: &mut Arrived,
    classified: &mut Classified,
    route: &Route,
    carrier: &str,
) -> Result<Begun, Refused> {
    match route {
        Route::Agent | Route::WellKnown => to_agent(arrived, classified, carrier).await,
        Route::Peer(name, endpoints) => to_peer(arrived, classified, name, endpoints).await,
        Route::Outside(host, port) => Box::pin(to_outside(arrived, classified, host, *port)).await,
    }
}

/// The request onwards: head as it was cleaned, body counted.
fn onwards(arrived: &mut Arrived, uri: Uri, version: Version) -> Request<Body> {
    let body = arrived.body.take().unwrap_or_default();
    if body.has_trailers() {
        // HTTP/1.1 has room for them after chunks alone.
        arrived.head.headers.remove(CONTENT_LENGTH);
    }
    let mut request = Request::new(body.of_request(arrived.record.exchange.clone()));
    *request.method_mut() = arrived.head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    // Moved, but for what a refusal's form is found by.
    std::mem::swap(request.headers_mut(), &mut arrived.head.headers);
    for name in [http::header::CONTENT_TYPE, http::header::EXPECT] {
        if let Some(value) = request.headers().get(&name) {
            arrived.head.headers.insert(name, value.clone());
        }
    }
    request
}

fn path_and_query(head: &Parts) -> PathAndQuery {
    head.uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn text(value: &str) -> HeaderValue {
    // All of these are ids and names of ours, in ASCII.
    HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A value that is never the same again: HTTP/2 must not fill its table of repeated headers with it (RFC 7541 section
/// 6.2.3; the flag is named for its other use).
pub(crate) fn once(value: &str) -> HeaderValue {
    let mut value = text(value);
    value.set_sensitive(true);
    value
}

async fn to_agent(arrived: &mut Arrived, classified: &Classified, carrier: &str) -> Result<Begun, Refused> {
    let me = &classified.pair.snapshot.me;
    let http2 = match me.protocol {
        _ if classified.upgrade.is_some() => false,
        AgentProtocol::Http1 => false,
        AgentProtocol::H2c => true,
        AgentProtocol::Auto => carrier == "grpc",
    };
    let original = classified.authority.clone();
    let host = match me.host {
        HostHeader::Local => arrived.proxy.settings.agent.to_string(),
        HostHeader::Original => original.to_string(),
    };
    let path = path_and_query(&arrived.head);
    let (uri, version) = match http2 {
        true => (absolute(Scheme::HTTP, &host, path)?, Version::HTTP_2),
        false => (Uri::from(path), Version::HTTP_11),
    };
    let proxy = arrived.proxy.clone();
    let mut request = onwards(arrived, uri, version);
    let headers = request.headers_mut();
    headers.remove(HOST);
    if !http2 {
        headers.insert(HOST, text(&host));
    }
    if me.host == HostHeader::Local {
        headers.insert(FORWARDED, text(&format!("host=\"{original}\";proto=http")));
        let mesh_origin = headers.get(ORIGIN).is_some_and(|o| is_origin_of(o, original.as_str()));
        if mesh_origin {
            headers.insert(ORIGIN, text(&format!("http://{host}")));
        }
    }
    headers.insert(SOURCE, classified.pair.source_id.clone());
    headers.insert(HOP, text(&classified.hop.to_string()));
    classified.trace.write(headers, &arrived.record.decision);
    if card::is_card(request.uri().path()) {
        // What is to be rewritten must come as it is.
        request.headers_mut().remove(ACCEPT_ENCODING);
    }
    if let Some(protocol) = &classified.upgrade {
        switch(&mut request, protocol, classified);
    } else if !http2 {
        if request.headers().contains_key(TE) {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("te"));
        }
        frame(&mut request);
    }
    if http2 {
        let response = AgentPool::send_http2(&proxy, request).await?;
        return Ok((response, None, None));
    }
    let (response, returning) = AgentPool::send_http1(&proxy, request).await?;
    Ok((response, Some(returning), None))
}

/// Says how a body of unknown length ends. hyper takes one of GET for none, and policy has read it.
fn frame(request: &mut Request<Body>) {
    let unknown = !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
    if unknown && !request.headers().contains_key(CONTENT_LENGTH) {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
}

/// Asks for the switch in HTTP/1.1. A caller that came by RFC 8441 sent no key: the accept that answers ours is dropped
/// on the way back.
fn switch(request: &mut Request<Body>, protocol: &HeaderValue, classified: &Classified) {
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
    if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") && !headers.contains_key("sec-websocket-key") {
        let hop = classified.hop.to_string().replace('-', "");
        let bytes = hex::decode(hop).unwrap_or_default();
        headers.insert("sec-websocket-key", text(&STANDARD.encode(bytes)));
    }
}

/// Whether an `Origin` is this authority's, in either scheme.
fn is_origin_of(origin: &HeaderValue, authority: &str) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let host = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
}

fn absolute(scheme: Scheme, authority: &str, path: PathAndQuery) -> Result<Uri, Refused> {
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build();
    uri.map_err(|e| Refusal::UnsupportedTarget.because(e))
}

async fn to_peer(
    arrived: &mut Arrived,
    classified: &mut Classified,
    name: &AgentName,
    endpoints: &[SocketAddr],
) -> Result<Begun, Refused> {
    let snapshot = classified.pair.snapshot.clone();
    let trust_domain = &snapshot.id.trust_domain;
    // An alias is not known at the other end.
    let named = trust_domain.agent_of_host(classified.authority.host()).is_some();
    let authority = if named {
        classified.authority.to_string()
    } else {
        format!("{name}.{trust_domain}")
    };
    let uri = absolute(Scheme::HTTPS, &authority, path_and_query(&arrived.head))?;
    let proxy = arrived.proxy.clone();
    let mut request = onwards(arrived, uri, Version::HTTP_2);
    tell_peer(&mut request, arrived, classified);
    for _ in 0..MAX_ATTEMPTS {
        let connected = classified.connection.take().map(|connected| connected.connection);
        let connection = match connected.filter(|connection| connection.is_usable()) {
            Some(connection) => connection,
            None => {
                let (connection, address) = connect(&proxy, name, endpoints).await?;
                arrived.record.endpoint = Some(address);
                connection
            }
        };
        check(classified, &connection)?;
        let (mut sender, flight) = connection.begin();
        arrived.record.exchange.goes_over(&connection.live);
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, None, Some(flight))),
            // Only what was dead before anything was sent is tried again.
            Err(mut error) => match error.take_message() {
                Some(unsent) => {
                    connection.retire();
                    request = unsent;
                }
                None => return Err(Refusal::ConnectionBroken.because(error.into_error())),
            },
        }
    }
    Err(Refusal::PeerUnreachable.because("its connections close as soon as they are made"))
}

/// What the callee's sidecar is told beside the request itself.
fn tell_peer(request: &mut Request<Body>, arrived: &Arrived, classified: &Classified) {
    let headers = request.headers_mut();
    headers.remove(HOST);
    headers.insert(HOP, once(&classified.hop.to_string()));
    if let Some(salt) = arrived.record.exchange.salt() {
        headers.insert(SALT, salt.header());
    }
    if classified.hops > 1 {
        headers.insert(HOPS, classified.hops.into());
    }
    let version = match classified.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    headers.insert(HTTP, HeaderValue::from_static(version));
    classified.trace.write(headers, &arrived.record.decision);
    if let Some(protocol) = &classified.upgrade {
        *request.method_mut() = Method::CONNECT;
        request
            .extensions_mut()
            .insert(Protocol::from(protocol.to_str().unwrap_or_default()));
    }
}

/// What the mesh requires of the callee, and that it is the one that was decided on.
fn check(classified: &Classified, connection: &PeerConnection) -> Result<(), Refused> {
    let peer = &connection.live.peer;
    admit::check(&peer.result, &classified.pair.snapshot.mesh.require)?;
    let decided = match &classified.end {
        End::Callee(_, Some(live)) => live,
        _ => return Ok(()),
    };
    if decided.peer.serial == peer.serial {
        return Ok(());
    }
    Err(Refusal::ConnectionBroken.because("the callee changed between decision and call; nothing was sent"))
}

/// A connection to one of the endpoints, in their order.
pub(crate) async fn connect(
    proxy: &Arc<Proxy>,
    name: &AgentName,
    endpoints: &[SocketAddr],
) -> Result<(Arc<PeerConnection>, SocketAddr), Refused> {
    let mut last = Refusal::NoEndpoint.into();
    for address in endpoints {
        match PeerPool::connection(proxy, name, *address).await {
            Ok(connection) => return Ok((connection, *address)),
            Err(refused) => last = refused,
        }
    }
    Err(last)
}

async fn to_outside(arrived: &mut Arrived, classified: &Classified, host: &str, port: u16) -> Result<Begun, Refused> {
    let (tcp, address) = egress::connect(&arrived.proxy, &classified.pair.snapshot, host, port).await?;
    arrived.record.endpoint = Some(address);
    let broken = |e: hyper::Error| Refusal::ConnectionBroken.because(e);
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HTTP1_BUFFER)
        .handshake(TokioIo::new(tcp));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let path = path_and_query(&arrived.head);
    let authority = text(classified.authority.as_str());
    let mut request = onwards(arrived, Uri::from(path), Version::HTTP_11);
    // Nothing of the mesh goes out.
    request.headers_mut().insert(HOST, authority);
    match &classified.upgrade {
        Some(protocol) => switch(&mut request, protocol, classified),
        None => frame(&mut request),
    }
    let response = sender.send_request(request).await.map_err(broken)?;
    Ok((response, None, None))
}

//! Phase 7, call: the request goes out, to the agent, to a peer's sidecar, or to an outside host.

mod agent;
mod deadline;
mod outside;
mod peer;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::Arrived;
use super::body::Body;
use super::classify::{Classified, headers};
use super::limit::Limits;
use super::refusal::{Refusal, Refused};
use super::route::Route;
use super::told::{self, Decided, End, Told};
use crate::proxy::agent::Returning;
use crate::proxy::gate::Permit;
use crate::proxy::peers::Flight;
use crate::proxy::streams::Exchange;
pub(crate) use peer::connect;

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
    limits: &mut Limits,
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
    still_allowed(arrived, classified, &exchange)?;
    let downstream = arrived.head.extensions.remove::<OnUpgrade>();
    let upgrade = classified.upgrade.clone().zip(downstream);
    begin_body(arrived, carrier).await?;
    let sent = {
        let sending = std::pin::pin!(send(arrived, classified, &route, carrier));
        tokio::select! {
            // What is cut sends nothing more, also where both are ready.
            biased;
            cut = exchange.ended() => return Err(Refusal::of_cut(cut).because(cut.reason())),
            sent = deadline::within(limits.response, &exchange, sending) => sent?,
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
        permit: limits.permit.take(),
        upgrade,
    })))
}

/// Looks at how the body begins, as far as that says whether it is what it calls itself.
async fn begin_body(arrived: &mut Arrived, carrier: &str) -> Result<(), Refused> {
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
    match arrived.body.as_ref().is_some_and(Body::is_no_grpc) {
        true => Err(no_grpc()),
        false => Ok(()),
    }
}

/// Looks once more: an order may have come, or the world may have changed, while the body was awaited. From here on both
/// look at this exchange themselves.
fn still_allowed(arrived: &Arrived, classified: &Classified, exchange: &Arc<Exchange>) -> Result<(), Refused> {
    let pair = &classified.pair;
    if let Some(decided) = exchange.decided() {
        let kill = &arrived.proxy.settings.kill;
        kill.admit(&pair.snapshot, classified.own.result(), &decided.end, &decided.told)?;
    }
    let current = arrived.proxy.mesh.snapshot();
    let cut = match told::identified(&arrived.proxy, exchange) {
        Ok(own) if Arc::ptr_eq(&current, &pair.snapshot) && Arc::ptr_eq(&own, &classified.own) => None,
        Ok(_) => told::recheck(&arrived.proxy, &current, exchange),
        Err(cut) => Some(cut),
    };
    cut.map_or(Ok(()), |cut| Err(Refusal::of_cut(cut).because(cut.reason())))
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
        Route::Agent | Route::WellKnown => agent::to_agent(arrived, classified, carrier).await,
        Route::Peer(name, endpoints) => peer::to_peer(arrived, classified, name, endpoints).await,
        Route::Outside(host, port) => Box::pin(outside::to_outside(arrived, classified, host, *port)).await,
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

/// Says how a body of unknown length ends. hyper takes one of GET for none, and policy has read it.
fn frame(request: &mut Request<Body>) {
    let unknown = !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
    if unknown && !request.headers().contains_key(CONTENT_LENGTH) {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
}

/// An answer of HTTP/1.1 as it goes on: how it was framed is taken off, and nobody's connection is switched who did not ask.
fn unframed(mut response: Response<Incoming>, asked: bool) -> Result<Response<Incoming>, Refused> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !asked {
        return Err(Refusal::ConnectionBroken.because("the answer switches protocols, and nobody asked for that"));
    }
    match headers::end_framing(response.headers_mut()) {
        true => Ok(response),
        false => Err(Refusal::ConnectionBroken.because("the answer has a transfer coding that is not `chunked`")),
    }
}

/// Asks for the switch in HTTP/1.1. A caller that came by RFC 8441 sent no key: the accept that answers ours is dropped
/// on the way back.
fn switch(request: &mut Request<Body>, protocol: &HeaderValue, classified: &Classified) {
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
    if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") && !headers.contains_key("sec-websocket-key") {
        headers.insert("sec-websocket-key", text(&STANDARD.encode(classified.hop.as_bytes())));
    }
}

fn absolute(scheme: Scheme, authority: &str, path: PathAndQuery) -> Result<Uri, Refused> {
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build();
    uri.map_err(|e| Refusal::UnsupportedTarget.because(e))
}

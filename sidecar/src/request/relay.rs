//! Phase 8, relay: the response comes back, cleaned and marked; bodies stream, and switched connections are spliced.

pub(crate) mod card;
pub(crate) mod endpoint;
mod splice;

use std::sync::Arc;

use aip_policy::Direction;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_TYPE, LOCATION, UPGRADE};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::{Body, Tail, Waits};
use super::call::{Answer, Sent, once};
use super::classify::{HOP, headers};
use super::record::Record;
use super::refusal::Refused;
use super::{Arrived, From, Via};
use crate::audit::digest::{Tally, Way};
use crate::proxy::agent::Returning;
use crate::proxy::gate::Permit;
use crate::proxy::outbound::Place;
use crate::proxy::peers::Flight;
use crate::proxy::stalled::OpenEnd;
use endpoint::EndpointEvent;
pub(crate) use splice::splice;

/// Who decided what: `<id>;<verdict>;<caller|callee>`, one line for each end.
const DECISION: HeaderName = HeaderName::from_static("x-aip-decision");
/// A success that is no switch, in answer to a wish for one: as a success of CONNECT it would mean the switch.
const STATUS: HeaderName = HeaderName::from_static("x-aip-status");
/// Under what such a success travels between sidecars.
const NOT_SWITCHED: StatusCode = StatusCode::MISDIRECTED_REQUEST;

/// A response that is ready to go, and what it holds until its end.
pub(crate) struct Relayed {
    head: Parts,
    body: Body,
    returning: Option<Returning>,
    flight: Option<Flight>,
    permit: Option<Permit>,
    backlog: Option<Waits>,
    switched: Option<Switched>,
}

/// Both ends of a connection that was switched to another protocol.
struct Switched {
    caller: OnUpgrade,
    callee: OnUpgrade,
    drain: Option<aip_runtime::drain::DrainWatch>,
    /// The place of the caller's connection.
    place: Option<Arc<Place>>,
    /// The tunnel that it is in.
    tunnel: Option<Arc<OpenEnd>>,
}

/// Makes the answer ready.
pub(crate) async fn relay(arrived: &mut Arrived, answer: Answer) -> Result<Relayed, Refused> {
    match answer {
        Answer::Own(response) => {
            arrived.record.own = true;
            let (head, body) = response.into_parts();
            let body = if arrived.head.method == Method::HEAD {
                Body::empty()
            } else {
                Body::whole(body)
            };
            Ok(Relayed {
                head,
                body,
                returning: None,
                flight: None,
                permit: None,
                backlog: backlog(&arrived.via),
                switched: None,
            })
        }
        Answer::Sent(sent) => Ok(of_other(arrived, *sent).await),
    }
}

async fn of_other(arrived: &mut Arrived, mut sent: Sent) -> Relayed {
    let callee_upgrade = hyper::upgrade::on(&mut sent.response);
    let (mut head, incoming) = sent.response.into_parts();
    let decisions = of_callee(arrived, &head.headers);
    let accepted = match arrived.record.direction {
        // A switch is 101 in HTTP/1.1 and 200 in HTTP/2.
        Direction::Outbound if head.version == Version::HTTP_2 => StatusCode::OK,
        _ => StatusCode::SWITCHING_PROTOCOLS,
    };
    let switches = sent.upgrade.is_some() && head.status == accepted;
    restore(arrived.record.direction, &mut head, sent.upgrade.is_some());
    headers::remove_ours(&mut head.headers);
    headers::end_hop(&mut head.headers);
    for decision in decisions {
        head.headers.append(DECISION, decision);
    }
    let switched = match sent.upgrade {
        Some((protocol, caller)) if switches => {
            switch_head(arrived, &mut head, &protocol);
            Some(Switched {
                caller,
                callee: callee_upgrade,
                drain: arrived.via.drain.clone(),
                place: arrived.via.place.clone(),
                tunnel: arrived.via.tunnel.clone(),
            })
        }
        asked => {
            if asked.is_some() && head.status.is_success() && arrived.head.version == Version::HTTP_2 {
                head.headers.insert(STATUS, HeaderValue::from(head.status.as_u16()));
                head.status = NOT_SWITCHED;
            }
            None
        }
    };
    let body = match &switched {
        Some(_) => Body::empty(),
        None => transform(arrived, &mut head, incoming).await,
    };
    Relayed {
        head,
        body,
        returning: sent.returning.filter(|_| switched.is_none()),
        flight: sent.flight,
        permit: sent.permit,
        backlog: backlog(&arrived.via),
        switched,
    }
}

/// Where what the caller does not read is counted: our own agent may leave unread what it likes.
fn backlog(via: &Via) -> Option<Waits> {
    match &via.from {
        From::Peer(peer) => Some(Waits::on(peer.backlog.clone())),
        From::Agent | From::Tunnel(_) => None,
    }
}

/// The status that the callee's agent gave, where it could not travel as such.
fn restore(direction: Direction, head: &mut Parts, asked: bool) {
    let original = head
        .headers
        .get(STATUS)
        .and_then(|v| v.to_str().ok()?.parse::<u16>().ok());
    if direction == Direction::Outbound && asked && head.status == NOT_SWITCHED {
        head.status = original
            .and_then(|s| StatusCode::from_u16(s).ok())
            .unwrap_or(head.status);
    }
}

/// What the callee's sidecar says that it decided: it alone may say so, and only of itself.
fn of_callee(arrived: &mut Arrived, headers: &HeaderMap) -> Vec<HeaderValue> {
    if arrived.record.direction == Direction::Inbound {
        return Vec::new();
    }
    let is_its_own = |value: &&HeaderValue| value.to_str().is_ok_and(|v| v.ends_with(";callee") && v.len() < 80);
    let decisions: Vec<_> = headers
        .get_all(DECISION)
        .iter()
        .filter(is_its_own)
        .take(1)
        .cloned()
        .collect();
    arrived.record.callee = decisions.first().and_then(|v| v.to_str().ok()).map(str::to_owned);
    decisions
}

fn switch_head(arrived: &Arrived, head: &mut Parts, protocol: &HeaderValue) {
    if arrived.head.version == Version::HTTP_2 {
        head.status = StatusCode::OK;
    } else {
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol.clone());
    }
}

/// What of the agent's own response is rewritten, so that callers stay on the mesh: cards, legacy endpoints, redirects.
async fn transform(arrived: &Arrived, head: &mut Parts, incoming: hyper::body::Incoming) -> Body {
    if arrived.record.direction == Direction::Outbound {
        return Body::stream(incoming);
    }
    let addresses = || card::Addresses::of(&arrived.proxy);
    let exchange = &arrived.record.exchange;
    for name in [LOCATION, CONTENT_LOCATION] {
        let location = head.headers.get(&name).and_then(|v| v.to_str().ok());
        let rewritten = location.and_then(|location| addresses().rewrite(location));
        if let Some(value) = rewritten.and_then(|v| HeaderValue::from_str(&v).ok()) {
            head.headers.insert(name, value);
        }
    }
    let asked = arrived.head.method == Method::GET;
    let events = head
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    if asked && head.status == StatusCode::OK && card::is_card(arrived.head.uri.path()) {
        let (body, received) = Box::pin(card::rewrite(&addresses(), head, incoming)).await;
        if let (Some(seed), Some(received)) = (exchange.seed(), received) {
            let _ = exchange.response_in.set(Tally::of(seed, Way::Response, &received));
        }
        body
    } else if asked && events {
        head.headers.remove(CONTENT_LENGTH);
        Body::events(EndpointEvent::new(addresses(), exchange.clone()), incoming)
    } else {
        Body::stream(incoming)
    }
}

/// The mesh's own headers on a response.
pub(crate) fn mark<B>(response: &mut Response<B>, record: &Record) {
    let headers = response.headers_mut();
    headers.append(DECISION, once(&record.header()));
    if let Some(hop) = record.hop.filter(|_| record.direction == Direction::Outbound) {
        headers.insert(HOP, once(&hop.to_string()));
    }
}

impl Relayed {
    /// The response, with the record that is written when it is over.
    pub(crate) fn into_response(self, mut record: Record) -> Response<Body> {
        record.answered(self.head.status.as_u16());
        let mut response = Response::from_parts(self.head, ());
        *response.version_mut() = Version::HTTP_11;
        mark(&mut response, &record);
        let Some(switched) = self.switched else {
            let exchange = record.exchange.clone();
            let tail = Tail {
                record,
                returning: self.returning,
                flight: self.flight,
                permit: self.permit,
                backlog: self.backlog,
                passed: exchange.seed().map(|seed| Tally::new(seed, Way::Response)),
            };
            return response.map(|()| self.body.of_response(exchange, tail));
        };
        let ends = (OpenEnd::here(), switched.tunnel, switched.place);
        let held = (self.flight, self.permit, switched.drain, ends);
        tokio::spawn(async move {
            let _held = held;
            let exchange = record.exchange.clone();
            let both = async { Ok::<_, hyper::Error>((switched.caller.await?, switched.callee.await?)) };
            let both = tokio::select! {
                biased;
                // The caller's end is there when the head has gone out, which may be never.
                _ = exchange.ended() => return,
                both = both => both,
            };
            if let Ok((caller, callee)) = both {
                splice(TokioIo::new(caller), TokioIo::new(callee), record).await;
            }
        });
        response.map(|()| Body::empty())
    }
}

//! The phases in their order.

use std::sync::Arc;

use aip_api::id::DecisionId;
use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::body::{Body, Tail};
use super::classify::content;
use super::classify::held::Held;
use super::refusal::{self, Form, Refusal, Refused};
use super::{Arrived, From, Via, accept, admit, call, classify, decide, limit, relay, route};
use crate::audit::digest::{Tally, Way};
use crate::proxy::Proxy;
use crate::proxy::limits::{REFUSED_BODY_BYTES, REFUSED_BODY_WAIT};
use crate::request::record::Record;

/// Answers one request. Never fails: what goes wrong is an answer, too.
pub(crate) async fn handle(proxy: Arc<Proxy>, via: Arc<Via>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut record = Record::begin(&proxy, via.direction(), head.method.clone(), head.uri.path());
    if let From::Peer(peer) = &via.from {
        record.caller = Some(peer.live.clone());
    }
    let mut arrived = Box::new(Arrived {
        proxy,
        via,
        head,
        body: Some(Body::stream(body)),
        record,
    });
    let decision = arrived.record.decision;
    // On the heap: what a connection keeps for its next request is then only what is above.
    let mut response = match Box::pin(phases(&mut arrived)).await {
        Ok(relayed) => relayed.into_response(arrived.record),
        Err(refused) => Box::pin(refuse(*arrived, refused)).await,
    };
    // An answer without a body ends with its head.
    let recorded = match response.body_mut().recorded() {
        Some(wait) => wait.await,
        None => true,
    };
    if recorded { response } else { unrecorded(decision) }
}

/// In place of an answer whose end can't be recorded.
fn unrecorded(decision: DecisionId) -> Response<Body> {
    let refused = Refusal::AuditUnavailable.because("how the request ended can't be recorded");
    refusal::answer(&refused, &Form::Problem, &decision.to_string()).map(Body::whole)
}

async fn phases(arrived: &mut Arrived) -> Result<relay::Relayed, Refused> {
    accept::request(arrived)?;
    let mut classified = classify::classify(arrived).await?;
    admit::admit(&arrived.proxy, &classified)?;
    decide::decide(arrived, &mut classified)?;
    let mut limits = limit::limit(arrived, &classified)?;
    let route = route::route(arrived, &classified)?;
    arrived.record.decided().await?;
    let answer = call::call(arrived, &mut classified, route, &mut limits).await?;
    arrived.record.settled().await?;
    relay::relay(arrived, answer).await
}

/// The answer to a request that was refused or failed, in its caller's own form.
pub(crate) async fn refuse(mut arrived: Arrived, refused: Refused) -> Response<Body> {
    let unsent = arrived.body.as_ref().and_then(Body::in_memory).unwrap_or_default();
    let form = form(&mut arrived, &refused).await;
    let mut record = arrived.record;
    record.unsent(&unsent);
    record.refused(&refused);
    let answer = refusal::answer(&refused, &form, &record.decision.to_string());
    respond(record, answer)
}

/// An answer of this sidecar's own.
pub(super) fn respond(mut record: Record, answer: Response<Bytes>) -> Response<Body> {
    record.answered(answer.status().as_u16());
    let mut response = answer.map(Body::whole);
    relay::mark(&mut response, &record);
    let exchange = record.exchange.clone();
    response.map(|body| {
        // A refusal is not cut: it is the last word already.
        let tail = Tail {
            record,
            returning: None,
            flight: None,
            permit: None,
            backlog: None,
            passed: exchange.seed().map(|seed| Tally::new(seed, Way::Response)),
        };
        body.of_answer(exchange, tail)
    })
}

/// How the caller reads a refusal. For JSON-RPC the body has the id; so a small one is read now, where it was not.
async fn form(arrived: &mut Arrived, refused: &Refused) -> Form {
    if content::is_grpc(&arrived.head.headers) {
        return Form::Grpc;
    }
    // These are answered before a single byte of the body is looked at.
    let unread = matches!(
        refused.refusal,
        Refusal::RateLimited | Refusal::ProxyAuth | Refusal::NotLoopback
    );
    if unread {
        return Form::Problem;
    }
    let bytes = match arrived.body.take() {
        Some(body) => match body.in_memory() {
            Some(whole) => whole,
            None if wants_continue(arrived) => return Form::Problem,
            None => small(body, Held::nothing(arrived)).await.unwrap_or_default(),
        },
        // It was sent on; what policy read of it is kept.
        None => arrived
            .record
            .exchange
            .decided()
            .map_or(Bytes::new(), |decided| decided.told.body.bytes()),
    };
    if !content::may_be_json(&arrived.head.headers) {
        return Form::Problem;
    }
    let call = classify::json::parse(&bytes, None).ok();
    match call.and_then(|parsed| classify::protocol::call_id(&parsed, &arrived.head.headers)) {
        Some((id, true)) => Form::JsonRpcOk(id),
        Some((id, false)) => Form::JsonRpc(id),
        None => Form::Problem,
    }
}

/// A client that asks before it sends its body must not be told to.
fn wants_continue(arrived: &Arrived) -> bool {
    arrived.head.headers.contains_key(EXPECT)
}

/// The rest of a small body, if it comes in a moment. Also without use for it: a client that is still sending reads a
/// reset instead of the answer.
async fn small(mut body: Body, mut held: Held) -> Option<Bytes> {
    let read = async {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.ok()?.into_data() else { continue };
            if bytes.len() + data.len() > REFUSED_BODY_BYTES {
                return None;
            }
            bytes.extend_from_slice(&data);
            held.body(bytes.capacity()).ok()?;
        }
        Some(Bytes::from(bytes))
    };
    tokio::time::timeout(REFUSED_BODY_WAIT, read).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream's task holds one of these for as long as its agent thinks.
    #[test]
    fn what_a_request_holds_is_small() {
        fn size<F: Future>(_: impl FnOnce(Arc<Proxy>, Arc<Via>, Request<Incoming>) -> F) -> usize {
            size_of::<F>()
        }
        fn size_of_phases<F: Future>(_: impl FnOnce(&'static mut Arrived) -> F) -> usize {
            size_of::<F>()
        }
        let (all, phases) = (size(handle), size_of_phases(phases));
        assert!(all <= 2_048 && phases <= 3_200, "{all} and {phases} bytes");
    }
}

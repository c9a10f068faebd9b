//! To the sidecar of another agent.

use std::net::SocketAddr;
use std::sync::Arc;

use aip_api::AgentName;
use http::header::HOST;
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Version};
use hyper::ext::Protocol;

use super::{Begun, absolute, once, onwards, path_and_query};
use crate::audit::digest::SALT;
use crate::proxy::Proxy;
use crate::proxy::limits::MAX_ATTEMPTS;
use crate::proxy::peers::{PeerConnection, PeerPool};
use crate::request::body::Body;
use crate::request::classify::{Classified, HOP, HOPS, HTTP};
use crate::request::refusal::{Refusal, Refused};
use crate::request::told::End;
use crate::request::{Arrived, admit};

pub(super) async fn to_peer(
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
                Some(unsent) if connection.refusal().is_none() => {
                    connection.retire();
                    request = unsent;
                }
                _ => return Err(broken(&connection, &error.into_error())),
            },
        }
    }
    Err(Refusal::PeerUnreachable.because("its connections close as soon as they are made"))
}

/// Why nothing came back. Whose certificate was not taken sent its request to nobody.
fn broken(connection: &PeerConnection, error: &hyper::Error) -> Refused {
    match connection.refusal() {
        Some(refused) => Refusal::PeerNotVerified.because(format!("{refused} ({})", refused.reason())),
        None => Refusal::ConnectionBroken.because(error),
    }
}

/// What the callee's sidecar is told beside the request itself.
fn tell_peer(request: &mut Request<Body>, arrived: &Arrived, classified: &Classified) {
    let headers = request.headers_mut();
    headers.remove(HOST);
    headers.insert(HOP, once(&classified.hop.to_string()));
    if let Some(seed) = arrived.record.exchange.seed() {
        headers.insert(SALT, seed.salt.header());
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

//! To the agent behind this sidecar.

use http::header::{ACCEPT_ENCODING, CONNECTION, FORWARDED, HOST, ORIGIN, TE};
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Uri, Version};

use aip_api::resource::{AgentProtocol, HostHeader};

use super::{Begun, absolute, frame, onwards, path_and_query, switch, text, unframed};
use crate::proxy::agent::AgentPool;
use crate::request::Arrived;
use crate::request::classify::{Classified, HOP};
use crate::request::refusal::{Refusal, Refused};
use crate::request::relay::card;

/// Who calls, as the callee's agent is told.
const SOURCE: HeaderName = HeaderName::from_static("x-aip-source");

pub(super) async fn to_agent(arrived: &mut Arrived, classified: &Classified, carrier: &str) -> Result<Begun, Refused> {
    if !arrived.proxy.settings.serves {
        return Err(Refusal::ServesNothing.into());
    }
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
    Ok((unframed(response, classified.upgrade.is_some())?, Some(returning), None))
}

/// Whether an `Origin` is this authority's, in either scheme.
fn is_origin_of(origin: &HeaderValue, authority: &str) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let host = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
}

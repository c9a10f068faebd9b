//! To a host outside of the mesh, in the clear.

use http::header::HOST;
use http::{Uri, Version};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::{Begun, frame, onwards, path_and_query, switch, text, unframed};
use crate::proxy::egress;
use crate::proxy::limits::MAX_HTTP1_BUFFER;
use crate::proxy::recorded::Recorded;
use crate::proxy::stalled::UntilGivenUp;
use crate::request::Arrived;
use crate::request::classify::Classified;
use crate::request::refusal::{Refusal, Refused};

pub(super) async fn to_outside(
    arrived: &mut Arrived,
    classified: &Classified,
    host: &str,
    port: u16,
) -> Result<Begun, Refused> {
    let (tcp, address) = egress::connect(&arrived.proxy, &classified.pair.snapshot, host, port).await?;
    arrived.record.endpoint = Some(address);
    let broken = |e: hyper::Error| Refusal::ConnectionBroken.because(e);
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HTTP1_BUFFER)
        .handshake(TokioIo::new(Recorded::new(tcp, &arrived.proxy.settings.audit)));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    tokio::spawn(async move {
        let _ = UntilGivenUp::new(connection.with_upgrades()).await;
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
    Ok((unframed(response, classified.upgrade.is_some())?, None, None))
}

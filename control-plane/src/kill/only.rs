//! A connection that is for orders to stop gets nothing else: its SVID may be revoked. Whatever is asked on it but the `Kill`
//! stream is refused before anything reads it, also what a later version adds.

use std::task::{Context, Poll};

use aip_runtime::grpc::PeerInfo;
use futures_util::future::{Either, Ready, ready};
use tower::Service;

use crate::refusal::{Reason, Refusal};

/// The one thing that is served there.
const KILL_STREAM: &str = "/aip.mesh.v1.Kill/Stream";

/// All services of the mesh port.
#[derive(Debug, Clone)]
pub(crate) struct OrdersOnly<S>(pub(crate) S);

impl<S, A, B> Service<http::Request<A>> for OrdersOnly<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>>,
    B: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<A>) -> Self::Future {
        let peer = request.extensions().get::<PeerInfo>();
        let is_stranger_to_all_else = peer.is_none_or(|peer| peer.orders_only.is_some());
        if is_stranger_to_all_else && request.uri().path() != KILL_STREAM {
            let detail = "this connection is for orders to stop, and for nothing else";
            let refused = Refusal::new(Reason::SvidRevoked, detail).status();
            return Either::Right(ready(Ok(refused.into_http())));
        }
        Either::Left(self.0.call(request))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{Service as _, service_fn};

    use super::*;

    #[tokio::test]
    async fn whatever_is_added_later_is_refused_too_and_so_is_a_connection_that_says_nothing_of_itself() {
        let served = service_fn(async |_: http::Request<()>| Ok::<_, Infallible>(http::Response::new(String::new())));
        let mut port = OrdersOnly(served);
        let address = "192.0.2.1:1".parse().unwrap();
        let ordinary = PeerInfo {
            identity: None,
            orders_only: None,
            address,
        };
        for (peer, path, is_served) in [
            (Some(&ordinary), "/aip.mesh.v1.Later/Do", true),
            (None, "/aip.mesh.v1.Later/Do", false),
            (None, "/aip.mesh.v1.Kill/Later", false),
            (None, "/aip.mesh.v1.kill/Stream", false),
            (None, "/aip.mesh.v1.Kill/Stream/", false),
            (None, KILL_STREAM, true),
        ] {
            let mut request = http::Request::post(path).body(()).unwrap();
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer.clone());
            }
            let answer = port.call(request).await.unwrap();
            let reason = answer.headers().get(aip_runtime::grpc::REASON);
            assert_eq!(reason.is_none(), is_served, "{path}");
        }
    }
}

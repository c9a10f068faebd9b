//! Who joins has no SVID yet, and is a stranger: their requests are read in a bounded number of places, before a byte of
//! them is kept.

use std::sync::Arc;

use aip_runtime::grpc::PeerInfo;
use tonic::{Request, Status};

use crate::quota::{Place, Quota};
use crate::refusal::{Reason, Refusal};

/// Requests of strangers that are read at once: each may hold 4 MiB. A fleet that joins at once repeats some of them.
const MAX_STRANGERS: usize = 128;
/// Of one address: a rack behind one, and not all places.
const MAX_STRANGERS_EACH: usize = 32;

/// The places of strangers.
#[derive(Debug, Clone)]
pub struct Strangers(Arc<Quota>);

/// A place that a request holds until its handler has it.
#[derive(Debug, Clone)]
struct Held {
    _place: Arc<Place>,
}

impl Default for Strangers {
    fn default() -> Self {
        Self(Arc::new(Quota::new(MAX_STRANGERS, MAX_STRANGERS_EACH)))
    }
}

impl tonic::service::Interceptor for Strangers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<PeerInfo>();
        if peer.is_some_and(|p| p.identity.is_some()) {
            return Ok(request);
        }
        let source = peer
            .map(|p| p.address.ip().to_canonical().to_string())
            .unwrap_or_default();
        let place = self.0.try_take(&source).ok_or_else(|| {
            let detail = "too many strangers at once; try again";
            Refusal::new(Reason::Overloaded, detail).status()
        })?;
        request.extensions_mut().insert(Held {
            _place: Arc::new(place),
        });
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use tonic::service::Interceptor as _;

    use super::*;

    fn from(address: &str) -> Request<()> {
        let mut request = Request::new(());
        let (identity, address) = (None, address.parse().unwrap());
        request.extensions_mut().insert(PeerInfo { identity, address });
        request
    }

    #[test]
    fn strangers_wait_for_places_and_one_address_does_not_take_them_all() {
        let mut strangers = Strangers::default();
        let mut call = |address: &str| strangers.call(from(address));
        let mut read: Vec<_> = (1..=MAX_STRANGERS_EACH).map(|_| call("192.0.2.1:1").unwrap()).collect();
        let refused = call("192.0.2.1:2").unwrap_err();
        assert_eq!(aip_runtime::grpc::reason(&refused), Some("overloaded"));
        call("192.0.2.2:1").expect("another address has places of its own");
        read.pop();
        call("192.0.2.1:3").expect("a request that was read gives its place back");
    }
}

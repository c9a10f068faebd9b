//! Requests for identity are read in a bounded number of places, before a byte of them is kept: those of who joins and has
//! no SVID yet, and those of who shows one. Neither takes the places of the other, and nobody those of all.

use std::net::IpAddr;
use std::sync::Arc;

use aip_api::AgentName;
use aip_runtime::door::source_of;
use aip_runtime::grpc::PeerInfo;
use tonic::{Request, Status};

use crate::quota::{Place, Quota};
use crate::refusal::{Reason, Refusal};

/// Requests of strangers that are read at once: each may hold 4 MiB. A fleet that joins at once repeats some of them.
const MAX_STRANGERS: usize = 128;
/// Of one address: a rack behind one, and not all places.
const MAX_STRANGERS_EACH: usize = 32;
/// Requests of who shows an SVID: a renewal is read within milliseconds, and made anew where there is no place.
const MAX_KNOWN: usize = 128;
/// Of one agent, all its sidecars together.
const MAX_KNOWN_EACH: usize = 16;

/// The places.
#[derive(Debug, Clone)]
pub struct Places {
    strangers: Arc<Quota>,
    known: Arc<Quota>,
}

/// A place that a request holds until its handler has it.
#[derive(Debug, Clone)]
struct Held {
    _place: Arc<Place>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            strangers: Arc::new(Quota::new(MAX_STRANGERS, MAX_STRANGERS_EACH)),
            known: Arc::new(Quota::new(MAX_KNOWN, MAX_KNOWN_EACH)),
        }
    }
}

impl Places {
    fn take(&self, known: Option<&AgentName>, address: Option<IpAddr>) -> Option<Place> {
        match known {
            Some(agent) => self.known.try_take(agent.as_str()),
            None => self.strangers.try_take(
                &address
                    .map(|address| source_of(address).to_string())
                    .unwrap_or_default(),
            ),
        }
    }
}

impl tonic::service::Interceptor for Places {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<PeerInfo>();
        let known = peer.and_then(|peer| peer.identity.as_ref());
        let place = self.take(known.map(|known| &known.id.agent), peer.map(|peer| peer.address.ip()));
        let place = place.ok_or_else(|| {
            let detail = "too many requests for identity at once; try again";
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
        request.extensions_mut().insert(PeerInfo {
            identity,
            orders_only: None,
            address,
        });
        request
    }

    #[test]
    fn strangers_wait_for_places_and_one_address_does_not_take_them_all() {
        let mut strangers = Places::default();
        let mut call = |address: &str| strangers.call(from(address));
        let mut read: Vec<_> = (1..=MAX_STRANGERS_EACH).map(|_| call("192.0.2.1:1").unwrap()).collect();
        let refused = call("192.0.2.1:2").unwrap_err();
        assert_eq!(aip_runtime::grpc::reason(&refused), Some("overloaded"));
        call("192.0.2.2:1").expect("another address has places of its own");
        read.pop();
        call("192.0.2.1:3").expect("a request that was read gives its place back");
        let mut site = |n: usize| strangers.call(from(&format!("[2001:db8::{n:x}]:1")));
        let _read: Vec<_> = (1..=MAX_STRANGERS_EACH).map(|n| site(n).unwrap()).collect();
        assert!(site(0x77).is_err(), "a site of IPv6 is one source, by whatever address");
    }

    #[test]
    fn one_agent_does_not_take_the_places_of_all_and_no_stranger_those_of_agents() {
        let (places, name) = (Places::default(), |n: usize| {
            format!("a{n}").parse::<AgentName>().unwrap()
        });
        let stranger = "192.0.2.1".parse().ok();
        let _strangers: Vec<_> = std::iter::from_fn(|| places.take(None, stranger)).collect();
        let of_one: Vec<_> = std::iter::from_fn(|| places.take(Some(&name(1)), stranger)).collect();
        assert_eq!(of_one.len(), MAX_KNOWN_EACH);
        assert!(places.take(Some(&name(2)), stranger).is_some());
        let all: Vec<_> = (2..100).filter_map(|n| places.take(Some(&name(n)), stranger)).collect();
        assert_eq!(all.len(), 98, "each has some");
        let most = MAX_KNOWN - MAX_KNOWN_EACH - all.len();
        let rest: Vec<_> = (2..).map_while(|n| places.take(Some(&name(n)), stranger)).collect();
        assert_eq!(rest.len(), most, "and no more are read at once than that");
    }
}

//! The egress guard: which outside hosts may be reached, and by which addresses. The same guard is for tunnels and for
//! plain HTTP.

mod address;
pub(crate) mod hello;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use aip_api::resource::{EgressRule, MeshConfig};
use tokio::net::TcpStream;

use super::limits::{CONNECT_TIMEOUT, MAX_ATTEMPTS, MAX_RESOLVED, RESOLVE_TIMEOUT};
use super::{Proxy, metrics};
use crate::request::refusal::{Refusal, Refused};
use crate::snapshot::Snapshot;

/// The rule of the mesh that lists this host and port, if there is one.
pub(crate) fn listed<'a>(mesh: &'a MeshConfig, host: &str, port: u16) -> Option<&'a EgressRule> {
    let address: Option<IpAddr> = host.parse().ok();
    mesh.egress
        .iter()
        .filter(|rule| rule.port == port)
        .find(|rule| match address {
            // Several spellings of one address are one.
            Some(address) => rule.host.parse::<IpAddr>().is_ok_and(|allowed| allowed == address),
            None => covers(&rule.host, host),
        })
}

fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => {
            let (len, own) = (host.len(), domain.len());
            len > own + 1
                && host.is_char_boundary(len - own)
                && host[len - own..].eq_ignore_ascii_case(domain)
                && host.as_bytes()[len - own - 1] == b'.'
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// Connects to an outside host: resolved by us, every address checked, and connected to exactly one of those.
///
/// # Errors
/// Not listed, not resolved, an address that is never reached, or nobody answers.
pub(crate) async fn connect(
    proxy: &Arc<Proxy>,
    snapshot: &Snapshot,
    host: &str,
    port: u16,
) -> Result<(TcpStream, SocketAddr), Refused> {
    let rule = listed(&snapshot.mesh, host, port);
    let rule = rule.ok_or_else(|| Refusal::EgressNotListed.because(format!("{host}:{port}")))?;
    let addresses = resolve(host, port).await?;
    let own = |address: &SocketAddr| is_the_meshes_own(proxy, snapshot, address);
    if let Some(address) = forbidden(&addresses, rule.allow_private, own) {
        return Err(Refusal::EgressAddress.because(format!("{host} is {}", address.ip())));
    }
    let mut last = "no address".to_owned();
    for address in addresses.into_iter().take(MAX_ATTEMPTS) {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                metrics::dialled("egress", "connected");
                let _ = tcp.set_nodelay(true);
                return Ok((tcp, address));
            }
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer in time"),
        }
    }
    metrics::dialled("egress", "failed");
    Err(Refusal::EgressUnreachable.because(last))
}

/// The first that is not to be reached. One is enough: whoever answers with a good and a bad one lets chance, or who listens,
/// choose.
fn forbidden(addresses: &[SocketAddr], allow_private: bool, own: impl Fn(&SocketAddr) -> bool) -> Option<&SocketAddr> {
    addresses.iter().find(|address| {
        let ip = address.ip();
        address::is_never_reached(ip) || own(address) || (address::is_private(ip) && !allow_private)
    })
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Refused> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let looked_up = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    let unresolved = |why: &dyn std::fmt::Display| Refusal::EgressUnresolved.because(format!("{host}: {why}"));
    let found = looked_up
        .map_err(|_| unresolved(&"no answer in time"))?
        .map_err(|e| unresolved(&e))?;
    let addresses: Vec<SocketAddr> = found.take(MAX_RESOLVED + 1).collect();
    match addresses.len() {
        0 => Err(unresolved(&"it has no address")),
        n if n > MAX_RESOLVED => Err(unresolved(&"it has too many addresses to check")),
        _ => Ok(addresses),
    }
}

/// Ports of this process, of its control plane and of the mesh's sidecars: reached through the mesh or not at all.
fn is_the_meshes_own(proxy: &Proxy, snapshot: &Snapshot, address: &SocketAddr) -> bool {
    let ip = address::plain(address.ip());
    let is = |own: &SocketAddr| {
        let same_ip =
            own.ip() == ip || (own.ip().is_unspecified() && (address::is_private(ip) || is_of_this_machine(ip)));
        own.port() == address.port() && same_ip
    };
    let endpoints = snapshot
        .endpoints
        .values()
        .flat_map(|list| list.iter())
        .map(|endpoint| &endpoint.address);
    let listeners = proxy.listeners.load();
    listeners
        .iter()
        .chain(&proxy.settings.reserved)
        .chain([&proxy.settings.agent])
        .chain(endpoints)
        .any(is)
}

/// Whether the address is one of this machine's: those can be bound, and no others.
fn is_of_this_machine(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aip_api::resource::MeshMode;

    #[test]
    fn an_address_of_this_machine_is_known_from_others() {
        assert!(is_of_this_machine([127, 0, 0, 1].into()));
        // Documentation (RFC 5737): nobody's.
        assert!(!is_of_this_machine([192, 0, 2, 1].into()));
    }

    #[test]
    fn one_bad_address_among_good_ones_forbids_the_name() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (public, private, metadata) = (at("8.8.8.8:443"), at("10.0.0.1:443"), at("169.254.169.254:443"));
        let ours = at("9.9.9.9:15006");
        let bad = |addresses: &[SocketAddr], allow_private| {
            forbidden(addresses, allow_private, |address| *address == ours).copied()
        };
        assert_eq!(bad(&[public], false), None);
        assert_eq!(bad(&[public, private], false), Some(private));
        assert_eq!(bad(&[public, private], true), None);
        for forbids in [metadata, ours] {
            for allow_private in [false, true] {
                assert_eq!(bad(&[public, forbids], allow_private), Some(forbids));
                assert_eq!(bad(&[forbids, public], allow_private), Some(forbids));
            }
        }
    }

    #[test]
    fn a_host_is_listed_by_name_wildcard_or_address_and_port() {
        let mut mesh = MeshConfig::new("aip.internal".parse().unwrap(), MeshMode::Dev);
        let rule = |host: &str, port| EgressRule {
            host: host.into(),
            port,
            allow_private: false,
        };
        mesh.egress = vec![
            rule("api.example.com", 443),
            rule("*.example.org", 443),
            rule("2001:db8::1", 443),
        ];
        for (host, port) in [
            ("api.example.com", 443),
            ("API.Example.com", 443),
            ("a.b.example.org", 443),
            ("2001:DB8:0::1", 443),
        ] {
            assert!(listed(&mesh, host, port).is_some(), "{host}");
        }
        for (host, port) in [
            ("api.example.com", 80),
            ("x.api.example.com", 443),
            ("example.org", 443),
            ("evilexample.org", 443),
            (".example.org", 443),
            ("2001:db8::2", 443),
            ("", 443),
        ] {
            assert!(listed(&mesh, host, port).is_none(), "{host}:{port}");
        }
    }
}

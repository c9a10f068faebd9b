//! Whom a request is for: its host, said exactly once.

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, Scheme};

use crate::proxy::Proxy;
use crate::proxy::alias;
use crate::request::refusal::{Refusal, Refused};
use crate::request::{Arrived, From, Target};

/// The host that a request names, in its target or its `Host`; where both stand, they must be one.
pub(crate) fn authority(head: &Parts) -> Result<Authority, Refused> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::InvalidHost.because("Host stands more than once"));
    }
    let header = match header {
        None => None,
        Some(value) => Some(
            Authority::try_from(value.as_bytes()).map_err(|_| Refusal::InvalidHost.because("Host can't be read"))?,
        ),
    };
    // Before anything is said of them: what stands before an `@` is a user's name and password.
    let named = [head.uri.authority(), header.as_ref()];
    if named.iter().flatten().any(|authority| authority.as_str().contains('@')) {
        return Err(Refusal::InvalidHost.because("a host has no user name"));
    }
    let authority = match (head.uri.authority(), header) {
        (None, None) => return Err(Refusal::InvalidHost.because("it names none")),
        (None, Some(header)) => header,
        (Some(target), None) => target.clone(),
        (Some(target), Some(header)) if same(target, &header) => target.clone(),
        (Some(target), Some(header)) => return Err(Refusal::HostMismatch.because(format!("{header} and {target}"))),
    };
    if authority.host().is_empty() {
        return Err(Refusal::InvalidHost.because("a host is not empty"));
    }
    Ok(authority)
}

fn port(authority: &Authority) -> u16 {
    authority.port_u16().unwrap_or(80)
}

fn same(a: &Authority, b: &Authority) -> bool {
    let host = |authority: &Authority| authority.host().trim_end_matches('.').to_ascii_lowercase();
    host(a) == host(b) && port(a) == port(b)
}

/// Whom `authority` stands for.
///
/// # Errors
/// A host in the mesh's own domain that can't be an agent.
pub(crate) fn of_authority(proxy: &Proxy, authority: &str) -> Result<Target, Refused> {
    let snapshot = proxy.mesh.snapshot();
    let trust_domain = &snapshot.id.trust_domain;
    let (host, port) = alias::split(authority);
    if let Some(agent) = trust_domain.agent_of_host(host) {
        return Ok(Target::Agent(agent));
    }
    let outside = host.trim_end_matches('.').to_ascii_lowercase();
    if trust_domain.owns_host(host) || trust_domain.owns_host(&outside) {
        return Err(Refusal::UnknownAgent.because(format!("{host} is not <agent>.{trust_domain}")));
    }
    let port = port.unwrap_or(80);
    // What the mesh lists as outside is outside: no agent takes it over.
    if crate::proxy::egress::listed(&snapshot.mesh, &outside, port).is_none()
        && let Some(agent) = alias::of(&snapshot, &outside, port)
    {
        return Ok(Target::Agent(agent));
    }
    Ok(Target::Outside(outside.into(), port))
}

/// Whether it is HTTP in the clear. aiohttp writes the URL of a WebSocket as its user did; what goes on is ours.
fn is_plain(scheme: &Scheme) -> bool {
    *scheme == Scheme::HTTP || scheme.as_str().eq_ignore_ascii_case("ws")
}

/// Whom a request of our own agent is for.
pub(crate) fn target(arrived: &Arrived) -> Result<(Authority, Target), Refused> {
    let authority = authority(&arrived.head)?;
    // RFC 8441 clients without TLS say http, too; those with TLS are inside a tunnel and refused there.
    if !arrived.head.uri.scheme().is_none_or(is_plain) {
        return Err(Refusal::UnsupportedTarget.because("only http:// and ws:// are for a proxy to read"));
    }
    let target = of_authority(&arrived.proxy, authority.as_str())?;
    match &arrived.via.from {
        // What CONNECT named holds for all that is inside.
        From::Tunnel(named) if *named != target && !same_host(named, &target) => {
            Err(Refusal::HostMismatch.because(format!("{authority} is not what CONNECT named")))
        }
        From::Tunnel(named) => Ok((authority, named.clone())),
        From::Agent | From::Peer(_) => Ok((authority, target)),
    }
}

/// Clients leave the port away from `Host` more freely than from CONNECT.
fn same_host(a: &Target, b: &Target) -> bool {
    matches!((a, b), (Target::Outside(a, _), Target::Outside(b, _)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn of(uri: &str, hosts: &[&str]) -> Result<String, &'static str> {
        let mut request = Request::get(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        authority(&head)
            .map(|a| a.to_string())
            .map_err(|refused| refused.refusal.reason())
    }

    #[test]
    fn a_host_is_named_exactly_once() {
        assert_eq!(of("/p", &["a.aip.internal"]), Ok("a.aip.internal".into()));
        assert_eq!(
            of("http://a.aip.internal:8080/p", &["A.aip.internal:8080"]),
            Ok("a.aip.internal:8080".into())
        );
        assert_eq!(of("http://a/p", &["a:80"]), Ok("a".into()));
        assert_eq!(of("http://a/p", &[]), Ok("a".into()));
        assert_eq!(of("/p", &[]), Err("invalid_host"));
        assert_eq!(of("/p", &["a", "a"]), Err("invalid_host"));
        assert_eq!(of("/p", &["u@a"]), Err("invalid_host"));
        assert_eq!(of("/p", &["a b"]), Err("invalid_host"));
        assert_eq!(of("http://a/p", &["b"]), Err("host_mismatch"));
        assert_eq!(of("http://u:secret@a/p", &["b"]), Err("invalid_host"));
        assert_eq!(of("http://a/p", &["u:secret@b"]), Err("invalid_host"));
    }
}

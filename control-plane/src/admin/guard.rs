//! What a request must be by the way it came in. Against browsers: no page may use this API, whatever name resolves to
//! it (DNS rebinding, CSRF). In a `prod` mesh: changes come over the Unix socket.

use std::net::SocketAddr;
use std::path::Path;

use axum::extract::Request;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::ApiError;
use crate::refusal::{Reason, Refusal};

/// What a listener lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    // Reached by loopback names only.
    loopback: bool,
    // Takes changes.
    changes: bool,
}

impl Port {
    /// The TCP port at `address`; that of a `prod` mesh is for reading.
    pub fn tcp(address: SocketAddr, prod: bool) -> Self {
        Self {
            loopback: address.ip().is_loopback(),
            changes: !prod,
        }
    }

    /// The Unix socket.
    pub fn socket() -> Self {
        Self {
            loopback: true,
            changes: true,
        }
    }
}

/// Refuses a foreign Host (on loopback) and every Origin but the API's own.
pub(super) async fn check(port: Port, request: Request, next: Next) -> Response {
    match allowed(port.loopback, request.headers(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => ApiError(refusal).into_response(),
    }
}

/// Requests that are no GET and yet change nothing.
const READS: &[&str] = &["/v1/policies/check"];

/// Refuses changes where none are taken.
pub(super) async fn changes(port: Port, socket: &Path, request: Request, next: Next) -> Response {
    let reads =
        request.method() == Method::GET || request.method() == Method::HEAD || READS.contains(&request.uri().path());
    if port.changes || reads {
        return next.run(request).await;
    }
    let socket = socket.display();
    let detail = format!("a prod mesh takes changes over its Unix socket only: AIP_ADMIN=unix:{socket}");
    ApiError(Refusal::new(Reason::SocketRequired, detail)).into_response()
}

fn allowed(loopback: bool, headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let named = hosts.next().and_then(|h| h.to_str().ok());
    let host = uri.authority().map(|a| a.as_str()).or(named).unwrap_or_default();
    if hosts.next().is_some() || loopback && !is_loopback(host) {
        let shown: String = host.chars().take(100).collect();
        let detail = format!("{shown:?} is not this API: use 127.0.0.1, [::1] or localhost");
        return Err(Refusal::new(Reason::HostRefused, detail));
    }
    // A browser says where a page that asks comes from, also where it sends no Origin; `none` is a person's own doing.
    let mut sites = headers.get_all("sec-fetch-site").iter();
    if !sites.all(|site| site == "same-origin" || site == "none") {
        return Err(Reason::OriginRefused.into());
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let own = |origin: &str| {
        let authority = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"));
        authority.is_some_and(|a| a.eq_ignore_ascii_case(host))
    };
    match (origins.next(), origins.next()) {
        (None, _) => Ok(()),
        (Some(origin), None) if origin.to_str().is_ok_and(own) => Ok(()),
        (Some(_), _) => Err(Reason::OriginRefused.into()),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(loopback: bool, headers: &[(&'static str, &'static str)]) -> Option<&'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        allowed(loopback, &map, &"/v1/mesh".parse().unwrap())
            .err()
            .map(|r| r.reason())
    }

    #[test]
    fn rebinding_and_foreign_pages_are_refused() {
        for host in [
            "127.0.0.1:15014",
            "localhost:1",
            "LOCALHOST",
            "[::1]:15014",
            "127.0.0.1",
        ] {
            assert_eq!(verdict(true, &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.com",
            "evil.com:15014",
            "127.0.0.1.evil.com",
            "10.0.0.1:1",
            "",
            "localhost.evil.com",
        ] {
            assert_eq!(verdict(true, &[("host", host)]), Some("host_refused"), "{host}");
        }
        assert_eq!(verdict(true, &[]), Some("host_refused"));
        assert_eq!(
            verdict(true, &[("host", "localhost"), ("host", "evil.com")]),
            Some("host_refused")
        );
        assert_eq!(
            verdict(false, &[("host", "aip.example.com")]),
            None,
            "beyond loopback there is TLS"
        );
        let map = HeaderMap::from_iter([(header::HOST, "127.0.0.1:15014".parse().unwrap())]);
        let absolute = allowed(true, &map, &"http://evil.com/v1/mesh".parse().unwrap());
        assert_eq!(
            absolute.unwrap_err().reason(),
            "host_refused",
            "the target counts where it names a host"
        );
        let ours = ("host", "127.0.0.1:15014");
        assert_eq!(verdict(true, &[ours, ("origin", "http://127.0.0.1:15014")]), None);
        for origin in ["http://evil.com", "null", "http://127.0.0.1:1", "file://"] {
            assert_eq!(
                verdict(true, &[ours, ("origin", origin)]),
                Some("origin_refused"),
                "{origin}"
            );
        }
    }
}

//! Against browsers: no page may use this API, whatever name resolves to it (DNS rebinding, CSRF).

use axum::extract::Request;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::ApiError;
use crate::refusal::{Reason, Refusal};

/// Refuses a foreign Host (on loopback) and every Origin but the API's own.
pub(super) async fn check(loopback: bool, request: Request, next: Next) -> Response {
    match allowed(loopback, request.headers(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => ApiError(refusal).into_response(),
    }
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

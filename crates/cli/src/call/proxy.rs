//! The caller's sidecar, as its agent uses it.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response};

use crate::exit::{Exit, Failure};
use crate::http::{self, HttpError};
use crate::run::state::State;

/// The caller's sidecar: where it listens for its agent, and the secret that its agent shows.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) userinfo: Option<String>,
}

impl Proxy {
    pub(super) fn of_url(url: &str) -> Result<Self, Failure> {
        let bad = || {
            Failure::new(
                Exit::Usage,
                "--proxy is not a URL like http://user:secret@127.0.0.1:15001",
            )
        };
        let rest = url.strip_prefix("http://").ok_or_else(bad)?.trim_end_matches('/');
        let (userinfo, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user.to_owned()), authority),
            None => (None, rest),
        };
        Ok(Self {
            address: authority.parse().map_err(|_| bad())?,
            userinfo,
        })
    }

    /// The sidecar of an agent that `aip run` runs here.
    pub(crate) fn of_state(state: &State) -> Option<Self> {
        let secret = std::fs::read_to_string(&state.proxy_secret_file).ok()?;
        Some(Self {
            address: state.outbound?,
            userinfo: Some(format!("aip:{}", secret.trim())),
        })
    }

    /// Sends a request to a mesh name through the sidecar, and hands out the body as it arrives.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(String, String)],
        body: Bytes,
        silence: Duration,
        part: &mut dyn FnMut(&[u8]),
    ) -> Result<Response<Bytes>, HttpError> {
        let broken = |e: hyper::http::Error| HttpError::Broken(e.to_string());
        let authority = url
            .strip_prefix("http://")
            .and_then(|r| r.split('/').next())
            .unwrap_or_default();
        let mut request = Request::builder().method(method).uri(url).header("host", authority);
        if let Some(userinfo) = &self.userinfo {
            request = request.header("proxy-authorization", format!("Basic {}", STANDARD.encode(userinfo)));
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(broken)?;
        http::send_each(self.address, request, silence, part).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_url_is_taken_apart() {
        let proxy = Proxy::of_url("http://aip:s3@127.0.0.1:9/").unwrap();
        assert_eq!((proxy.address.port(), proxy.userinfo.as_deref()), (9, Some("aip:s3")));
        assert!(Proxy::of_url("https://127.0.0.1:9").is_err());
    }
}

//! What a receiver outside the mesh is told of orders to stop: where it is, what it gets, and how it knows from whom.

use serde::{Deserialize, Serialize};

use super::Order;
use crate::TrustDomain;
use crate::problem::FieldError;

/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 2_048;
/// Largest list of root certificates, in bytes: a few of a company's own.
pub const MAX_CA_BYTES: usize = 32 * 1024;
/// Longest name of a secret, in bytes.
pub const MAX_SECRET_NAME_BYTES: usize = 64;
/// The header that names what happened.
pub const EVENT_HEADER: &str = "aip-event";
/// The header that is the same for each attempt to deliver the same event: whoever has seen it ignores it.
pub const DELIVERY_HEADER: &str = "aip-delivery";
/// The header with [`signature`].
pub const SIGNATURE_HEADER: &str = "aip-signature";

/// Who is told when an order to stop is given or lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// `https://…`, or `http://…` on loopback only.
    pub url: String,
    /// The name of the secret that signs what is sent: a file of this name in the control plane's `--secrets` directory.
    pub secret: String,
    /// Root certificates (PEM) that the receiver's must come from, instead of the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// Where a receiver is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// Over TLS; else in the clear, on loopback.
    pub tls: bool,
    /// A DNS name, or an address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// With the query; begins with `/`.
    pub path: String,
}

/// What happened to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// It is in force.
    #[serde(rename = "kill.activated")]
    Activated,
    /// It is no more: it was resumed, or has expired.
    #[serde(rename = "kill.lifted")]
    Lifted,
}

/// What a receiver gets, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Version of this document: 1.
    pub v: u32,
    /// The same for each attempt: the order's id, and what happened.
    pub delivery: String,
    /// What happened.
    pub event: What,
    /// In which mesh.
    pub trust_domain: TrustDomain,
    /// Of the set that did it.
    pub term: u64,
    /// Of the set that did it.
    pub epoch: u64,
    /// Unix seconds.
    pub at: u64,
    /// The order.
    pub order: Order,
}

impl What {
    /// The word in documents and headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Activated => "kill.activated",
            Self::Lifted => "kill.lifted",
        }
    }
}

impl Webhook {
    /// Every mistake in it, by field path below `at`.
    pub fn validate(&self, at: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, message: String| errors.push(FieldError::new(format!("{at}.{field}"), message));
        if let Err(why) = self.receiver() {
            wrong("url", why);
        }
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.secret.is_empty() || self.secret.len() > MAX_SECRET_NAME_BYTES || !self.secret.chars().all(named) {
            wrong(
                "secret",
                format!("a name of 1 to {MAX_SECRET_NAME_BYTES} of a to z, 0 to 9 and -; not the secret itself"),
            );
        }
        if self.ca.as_ref().is_some_and(|ca| ca.len() > MAX_CA_BYTES) {
            wrong("ca", format!("at most {MAX_CA_BYTES} bytes"));
        }
        errors
    }

    /// Where it is.
    ///
    /// # Errors
    /// What is wrong with its URL, in words; the URL itself may hold a secret and is not in them.
    pub fn receiver(&self) -> Result<Receiver, String> {
        let printable = self.url.bytes().all(|b| b.is_ascii_graphic());
        if self.url.len() > MAX_URL_BYTES || !printable || self.url.contains(['#', '\\', '"', '<', '>']) {
            return Err(format!(
                "at most {MAX_URL_BYTES} printable ASCII characters, and no fragment"
            ));
        }
        let (tls, rest) = match (self.url.strip_prefix("https://"), self.url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            (None, None) => return Err("begins with https://, or with http:// on loopback".into()),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if authority.contains('@') {
            return Err("no user or password: it is signed with the secret".into());
        }
        let (host, port) = split_port(authority, if tls { 443 } else { 80 })?;
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if !tls && !loopback {
            return Err("https, since it is not on loopback".into());
        }
        let path = if path.starts_with('/') {
            path.into()
        } else {
            format!("/{path}")
        };
        Ok(Receiver { tls, host, port, path })
    }
}

fn split_port(authority: &str, default: u16) -> Result<(String, u16), String> {
    let wrong = || "a host, and a port after a colon where it is another than the scheme's".to_owned();
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (
                host,
                port.strip_prefix(':')
                    .map(str::to_owned)
                    .or((!port.is_empty()).then(String::new)),
            )
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port.to_owned())),
            None => (authority, None),
        },
    };
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(named) {
        return Err(wrong());
    }
    let port = port.map_or(Ok(default), |port| port.parse().map_err(|_| wrong()))?;
    if port == 0 {
        return Err(wrong());
    }
    Ok((host.to_ascii_lowercase(), port))
}

/// The signature of a delivery: `t=<unix seconds>,v1=<hex of HMAC-SHA256 over "<unix seconds>.<body>">`. The receiver
/// computes it anew over the bytes that it got, compares in constant time, and refuses an old time.
pub fn signature(secret: &[u8], at: u64, body: &[u8]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let signed = [format!("{at}.").as_bytes(), body].concat();
    let tag = ring::hmac::sign(&key, &signed);
    format!("t={at},v1={}", hex::encode(tag.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str) -> Webhook {
        Webhook {
            url: url.into(),
            secret: "on-call".into(),
            ca: None,
        }
    }

    #[test]
    fn a_receiver_is_reached_over_tls_or_is_on_loopback() {
        let at = |url: &str| webhook(url).receiver().map(|r| (r.tls, r.host, r.port, r.path));
        let is = |tls, host: &str, port, path: &str| Ok((tls, host.to_owned(), port, path.to_owned()));
        assert_eq!(
            at("https://Hooks.example.com/a?b=c"),
            is(true, "hooks.example.com", 443, "/a?b=c")
        );
        assert_eq!(at("https://10.0.0.7:8443"), is(true, "10.0.0.7", 8443, "/"));
        assert_eq!(at("https://[fd00::1]:8443/x"), is(true, "fd00::1", 8443, "/x"));
        assert_eq!(at("http://127.0.0.1:9/"), is(false, "127.0.0.1", 9, "/"));
        assert_eq!(at("http://[::1]:9/"), is(false, "::1", 9, "/"));
        for url in [
            "http://hooks.example.com/",
            "http://10.0.0.7/",
            "http://127.0.0.1.evil.example/",
            "http://localhost@evil.example/",
            "https://user:secret@example.com/",
            "https://example.com/#x",
            "https://exa mple.com/",
            "https://example.com\\@evil/",
            "https://:443/",
            "https://example.com:0/",
            "https://example.com:99999/",
            "https://[::1/",
            "https://[::1]9/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "",
        ] {
            assert!(at(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_secret_is_named_and_not_told() {
        for secret in ["", "../x", "a/b", "UPPER", "whsec_0123", &"a".repeat(65)] {
            let webhook = Webhook {
                secret: secret.into(),
                ..webhook("https://example.com/")
            };
            assert_eq!(webhook.validate("w").len(), 1, "{secret}");
        }
        assert!(webhook("https://example.com/").validate("w").is_empty());
    }

    /// RFC 4231, test case 2, with our time before the data.
    #[test]
    fn a_signature_covers_time_and_body() {
        let signed = signature(b"Jefe", 7, b"what do ya want for nothing?");
        assert!(signed.starts_with("t=7,v1=") && signed.len() == 7 + 64, "{signed}");
        assert_ne!(signed[7..], signature(b"Jefe", 8, b"what do ya want for nothing?")[7..]);
        assert_ne!(signed, signature(b"jefe", 7, b"what do ya want for nothing?"));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"Jefe");
        let tag = hex::decode(&signed[7..]).unwrap();
        ring::hmac::verify(&key, b"7.what do ya want for nothing?", &tag).unwrap();
    }
}

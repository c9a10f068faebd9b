//! One attempt to deliver one event.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use aip_api::kill::webhook::{DELIVERY_HEADER, EVENT_HEADER, Event, Receiver, SIGNATURE_HEADER, Webhook, signature};
use aip_runtime::tls::web::{WebRoots, connect_web};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How long one attempt may take, from the name to the answer's head: a receiver answers first and works then.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Bounds of a secret, in bytes: below it can be guessed, and above it is another file.
const SECRET_BYTES: std::ops::RangeInclusive<u64> = 16..=4_096;

/// Why an event was not delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsent {
    /// The URL can't be used.
    #[error("the URL can't be used: {0}")]
    Url(String),
    /// The secret can't be read. Says nothing of what it is.
    #[error("the secret {0:?} can't be read from the secrets directory: {1}")]
    Secret(String, String),
    /// The roots can't be used.
    #[error("the root certificates can't be used: {0}")]
    Roots(String),
    /// The name has no address.
    #[error("its host has no address: {0}")]
    Resolve(String),
    /// An address where no receiver may be.
    #[error("{0} is no address that a receiver may have")]
    Address(IpAddr),
    /// Nobody answers, or not who it must be.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke, or what came isn't HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// It took too long.
    #[error("no answer within {} s", ATTEMPT.as_secs())]
    Timeout,
    /// It was answered, and not with a 2xx.
    #[error("it answered {0}")]
    Answered(StatusCode),
}

impl Unsent {
    /// The stable reason.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Url(_) => "url",
            Self::Secret(..) => "secret",
            Self::Roots(_) => "roots",
            Self::Resolve(_) => "resolve",
            Self::Address(_) => "address",
            Self::Connect(_) => "connect",
            Self::Broken(_) => "broken",
            Self::Timeout => "timeout",
            Self::Answered(_) => "answered",
        }
    }

    /// Whether the same again would end the same: a redirect is not followed, and what was refused is not repeated.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Answered(status) => {
                let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                !status.is_server_error() && !later.contains(status)
            }
            _ => false,
        }
    }
}

/// An event that is ready to be sent.
pub(super) struct Delivery {
    receiver: Receiver,
    roots: Option<WebRoots>,
    request: Request<Full<Bytes>>,
}

impl Delivery {
    /// Signs it, with the secret as it is now.
    pub(super) async fn prepare(webhook: &Webhook, secrets: &Path, event: &Event, now: u64) -> Result<Self, Unsent> {
        let receiver = webhook.receiver().map_err(Unsent::Url)?;
        let secret = secret(secrets, &webhook.secret).await?;
        let roots = match (&webhook.ca, receiver.tls) {
            (_, false) => None,
            (Some(pem), true) => Some(WebRoots::of(pem.as_bytes())),
            (None, true) => Some(WebRoots::of_machine()),
        };
        let roots = roots.transpose().map_err(|e| Unsent::Roots(e.to_string()))?;
        let body = serde_json::to_vec(event).map_err(|e| Unsent::Broken(e.to_string()))?;
        let host = match receiver.host.contains(':') {
            true => format!("[{}]:{}", receiver.host, receiver.port),
            false => format!("{}:{}", receiver.host, receiver.port),
        };
        let request = Request::post(&receiver.path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("aip/", env!("CARGO_PKG_VERSION")))
            .header(EVENT_HEADER, event.event.as_str())
            .header(DELIVERY_HEADER, &event.delivery)
            .header(SIGNATURE_HEADER, signature(&secret, now, &body))
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Unsent::Url(e.to_string()))?;
        Ok(Self {
            receiver,
            roots,
            request,
        })
    }

    /// Sends it once.
    pub(super) async fn send(self) -> Result<(), Unsent> {
        let sent = tokio::time::timeout(ATTEMPT, self.exchange()).await;
        sent.map_err(|_| Unsent::Timeout)?
    }

    async fn exchange(self) -> Result<(), Unsent> {
        let io = connect(&self.receiver).await?;
        let status = match &self.roots {
            Some(roots) => {
                let tls = connect_web(&self.receiver.host, roots, io).await;
                answer(tls.map_err(|e| Unsent::Connect(e.to_string()))?, self.request).await?
            }
            None => answer(io, self.request).await?,
        };
        match status.is_success() {
            true => Ok(()),
            false => Err(Unsent::Answered(status)),
        }
    }
}

async fn secret(secrets: &Path, name: &str) -> Result<Vec<u8>, Unsent> {
    // A name has no slash and no dot, so that it stays in its directory.
    let path = secrets.join(name);
    let read = tokio::task::spawn_blocking(move || {
        let metadata = std::fs::metadata(&path)?;
        if !metadata.is_file() || !SECRET_BYTES.contains(&metadata.len()) {
            let (from, to) = (SECRET_BYTES.start(), SECRET_BYTES.end());
            return Err(std::io::Error::other(format!("not a file of {from} to {to} bytes")));
        }
        std::fs::read(&path)
    });
    let read = read.await.map_err(std::io::Error::other).flatten();
    let mut secret = read.map_err(|e| Unsent::Secret(name.to_owned(), e.to_string()))?;
    // Editors end a file with a line end that is not meant.
    while secret.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
        secret.pop();
    }
    Ok(secret)
}

/// Connects to an address that was looked at: the name is not resolved again.
async fn connect(receiver: &Receiver) -> Result<TcpStream, Unsent> {
    let found = tokio::net::lookup_host((receiver.host.as_str(), receiver.port)).await;
    let found: Vec<SocketAddr> = found.map_err(|e| Unsent::Resolve(e.to_string()))?.collect();
    let mut last = Unsent::Resolve("none".into());
    for address in found {
        if !may_be_receiver(address.ip(), receiver) {
            last = Unsent::Address(address.ip());
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Unsent::Connect(error.to_string()),
        }
    }
    Err(last)
}

/// Link-local addresses are where clouds keep credentials, and loopback is this machine's own business unless the URL
/// names it: a name that resolves to them is refused, whoever answers for it.
fn may_be_receiver(ip: IpAddr, receiver: &Receiver) -> bool {
    let ip = ip.to_canonical();
    let special = ip.is_unspecified() || ip.is_multicast();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
    };
    let named = receiver.host == "localhost" || receiver.host.parse::<IpAddr>().is_ok_and(|named| named.is_loopback());
    match ip.is_loopback() {
        true => named,
        // In the clear to loopback alone, whatever `localhost` is made to mean.
        false => receiver.tls && !special && !link_local,
    }
}

/// The status that the request is answered with; what else is in the answer is nobody's business.
async fn answer<IO>(io: IO, request: Request<Full<Bytes>>) -> Result<StatusCode, Unsent>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |e: hyper::Error| Unsent::Broken(e.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    let exchange = async move { sender.send_request(request).await.map(|answer| answer.status()) };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        status = &mut exchange => status.map_err(broken),
        // The receiver may close as soon as it has answered: the answer is there then.
        ended = connection => match ended {
            Ok(()) => exchange.await.map_err(broken),
            Err(error) => Err(broken(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_to_this_machine_or_to_credentials_is_refused() {
        let receiver = |tls, host: &str| Receiver {
            tls,
            host: host.into(),
            port: 443,
            path: "/".into(),
        };
        let outside = receiver(true, "hooks.example.com");
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for refused in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!may_be_receiver(ip(refused), &outside), "{refused}");
        }
        for taken in ["10.0.0.7", "192.0.2.1", "fd00::7", "2001:db8::1"] {
            assert!(may_be_receiver(ip(taken), &outside), "{taken}");
        }
        assert!(may_be_receiver(ip("127.0.0.1"), &receiver(false, "127.0.0.1")));
        assert!(may_be_receiver(ip("127.0.0.1"), &receiver(true, "localhost")));
        assert!(!may_be_receiver(ip("10.0.0.7"), &receiver(false, "localhost")));
    }

    #[test]
    fn what_was_refused_is_not_repeated() {
        let last = |status: u16| Unsent::Answered(StatusCode::from_u16(status).unwrap()).is_final();
        assert!(last(400) && last(302) && last(410));
        assert!(!last(500) && !last(503) && !last(429) && !last(408));
    }
}

//! A2A agent cards: an unsigned one that points at the agent's own address is rewritten to the mesh's, at the callee. A
//! signed one passes as it is; what it advertises leads to its agent where the registry lists it among its `aliases`.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::proxy::Proxy;
use crate::proxy::limits::{CARD_READ_TIMEOUT, MAX_CARD};
use crate::request::body::Body;

/// Where cards are (A2A 1.0 section 8.2, and 0.2).
const CARDS: [&str; 2] = ["/.well-known/agent-card.json", "/.well-known/agent.json"];

/// Whether a path is an agent card's.
pub(crate) fn is_card(path: &str) -> bool {
    // A mounted server has its card below its own root.
    CARDS.iter().any(|card| path.ends_with(card))
}

/// The agent's own addresses, as it writes them, and its address in the mesh.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    own: Vec<String>,
    mesh: String,
    port: u16,
}

impl Addresses {
    pub(crate) fn of(proxy: &Proxy) -> Self {
        Self::new(proxy.settings.agent, proxy.mesh.snapshot().id.authority())
    }

    /// Those of an agent that serves at `agent` and is `mesh` to its peers.
    pub(crate) fn new(agent: SocketAddr, mesh: String) -> Self {
        let port = agent.port();
        let mut own: Vec<String> = ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::]"]
            .iter()
            .map(|host| format!("{host}:{port}"))
            .collect();
        own.push(agent.to_string());
        Self { own, mesh, port }
    }

    /// `url` with the mesh's address, where it is the agent's own; also `host:port` alone, as gRPC interfaces have it.
    pub(crate) fn rewrite(&self, url: &str) -> Option<String> {
        for (scheme, mesh) in [
            ("http://", "http://"),
            ("https://", "http://"),
            ("ws://", "ws://"),
            ("grpc://", "grpc://"),
        ] {
            let Some(rest) = url.strip_prefix(scheme) else { continue };
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            return self.is_own(authority).then(|| format!("{mesh}{}{path}", self.mesh));
        }
        // A target without a port would be dialled at 443.
        self.is_own(url).then(|| format!("{}:{}", self.mesh, self.port))
    }

    fn is_own(&self, authority: &str) -> bool {
        self.own.iter().any(|own| own.eq_ignore_ascii_case(authority))
    }
}

/// Whether somebody signed the card.
fn is_signed(card: &Value) -> bool {
    card.get("signatures")
        .and_then(Value::as_array)
        .is_some_and(|signatures| !signatures.is_empty())
}

/// A card in memory, or the body as it was.
enum Read {
    Card(Bytes, Value),
    Other(Body),
}

async fn read(mut incoming: Incoming) -> Read {
    let (bytes, came) = gather(&mut incoming).await;
    match came {
        Came::Whole => match serde_json::from_slice(&bytes) {
            Ok(card) => Read::Card(bytes, card),
            Err(_) => Read::Other(Body::whole(bytes)),
        },
        // As it comes: whoever waits for it has a deadline of its own.
        Came::Part => Read::Other(Body::rest(bytes, None, incoming)),
        Came::Broken(error) => Read::Other(Body::broken(error, incoming)),
    }
}

/// How a body came.
enum Came<E> {
    Whole,
    /// Too much of it, or too slowly.
    Part,
    Broken(E),
}

/// What comes of a body within [`MAX_CARD`] and [`CARD_READ_TIMEOUT`].
async fn gather<B: HttpBody<Data = Bytes> + Unpin>(incoming: &mut B) -> (Bytes, Came<B::Error>) {
    let mut bytes = Vec::new();
    let deadline = Instant::now() + CARD_READ_TIMEOUT;
    let came = loop {
        let frame = match timeout_at(deadline, incoming.frame()).await {
            Err(_) => break Came::Part,
            Ok(None) => break Came::Whole,
            Ok(Some(Err(error))) => break Came::Broken(error),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        bytes.extend_from_slice(&data);
        if bytes.len() > MAX_CARD {
            break Came::Part;
        }
    };
    (bytes.into(), came)
}

/// At the callee: the card with the mesh's addresses, unless it is signed; and as it came, where it was rewritten.
pub(crate) async fn rewrite(addresses: &Addresses, head: &mut Parts, incoming: Incoming) -> (Body, Option<Bytes>) {
    let (bytes, card) = match read(incoming).await {
        Read::Card(bytes, card) => (bytes, card),
        Read::Other(body) => return (body, None),
    };
    let Some(rewritten) = rewritten(addresses, card) else {
        return (Body::whole(bytes), None);
    };
    head.headers.insert(CONTENT_LENGTH, rewritten.len().into());
    (Body::whole(rewritten), Some(bytes))
}

/// The card with the mesh's addresses, where it is not signed and has one of the agent's own.
pub(crate) fn rewritten(addresses: &Addresses, mut card: Value) -> Option<Bytes> {
    (!is_signed(&card) && rewrite_urls(addresses, &mut card)).then(|| Bytes::from(card.to_string()))
}

/// Rewrites every `url` in it; whether there was one.
fn rewrite_urls(addresses: &Addresses, value: &mut Value) -> bool {
    match value {
        Value::Array(items) => {
            let mut any = false;
            for item in items {
                any |= rewrite_urls(addresses, item);
            }
            any
        }
        Value::Object(members) => {
            let mut any = false;
            for (name, member) in members {
                match member {
                    Value::String(url) if name == "url" => {
                        if let Some(rewritten) = addresses.rewrite(url) {
                            *url = rewritten;
                            any = true;
                        }
                    }
                    other => any |= rewrite_urls(addresses, other),
                }
            }
            any
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn addresses() -> Addresses {
        Addresses {
            own: vec!["127.0.0.1:9000".into(), "localhost:9000".into()],
            mesh: "researcher.aip.internal".into(),
            port: 9000,
        }
    }

    #[test]
    fn only_the_agent_s_own_address_is_rewritten() {
        let a = addresses();
        assert_eq!(
            a.rewrite("http://localhost:9000/rpc").unwrap(),
            "http://researcher.aip.internal/rpc"
        );
        assert_eq!(
            a.rewrite("http://LOCALHOST:9000").unwrap(),
            "http://researcher.aip.internal"
        );
        assert_eq!(a.rewrite("127.0.0.1:9000").unwrap(), "researcher.aip.internal:9000");
        for other in [
            "http://localhost:9001/rpc",
            "http://localhost:9000.evil.com/",
            "/relative",
            "http://example.com/localhost:9000",
        ] {
            assert_eq!(a.rewrite(other), None, "{other}");
        }
    }

    #[test]
    fn every_interface_of_a_card_is_rewritten() {
        let mut card = json!({
            "name": "x", "url": "http://127.0.0.1:9000/", "documentationUrl": "http://127.0.0.1:9000/docs",
            "supportedInterfaces": [{"url": "http://localhost:9000/rpc"}, {"url": "https://example.com"}],
        });
        assert!(rewrite_urls(&addresses(), &mut card));
        assert_eq!(card["url"], "http://researcher.aip.internal/");
        assert_eq!(
            card["supportedInterfaces"][0]["url"],
            "http://researcher.aip.internal/rpc"
        );
        assert_eq!(card["supportedInterfaces"][1]["url"], "https://example.com");
    }

    /// An agent that begins a card and doesn't end it: what came goes on, and the rest when it comes.
    #[tokio::test(start_paused = true)]
    async fn a_card_that_does_not_end_is_not_waited_for() {
        use futures_util::{StreamExt as _, stream};
        use http_body::Frame;
        use http_body_util::StreamBody;
        let begun = Instant::now();
        let first = stream::once(async { Ok::<_, std::io::Error>(Frame::data(Bytes::from("{\"name\":"))) });
        // A byte a second, so that it is never silent for long.
        let drip = stream::unfold((), |()| async {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            Some((Ok(Frame::data(Bytes::from(" "))), ()))
        });
        let mut body = StreamBody::new(first.chain(drip).boxed());
        let (bytes, came) = gather(&mut body).await;
        assert!(matches!(came, Came::Part) && bytes.starts_with(b"{\"name\":"));
        assert_eq!(begun.elapsed().as_secs(), CARD_READ_TIMEOUT.as_secs());

        let broken = stream::iter([
            Ok(Frame::data(Bytes::from("{}"))),
            Err(std::io::Error::other("it broke")),
        ]);
        let (_, came) = gather(&mut StreamBody::new(broken)).await;
        assert!(matches!(came, Came::Broken(_)), "what ended early is not whole");
        let large = stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![
            b' ';
            MAX_CARD + 1
        ])))]);
        assert!(matches!(gather(&mut StreamBody::new(large)).await.1, Came::Part));
    }
}

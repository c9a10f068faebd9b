//! A2A agent cards: an unsigned one that points at the agent's own address is rewritten to the mesh's, at the callee. A
//! signed one passes as it is; what it advertises leads to its agent where the registry lists it among its `aliases`.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use crate::proxy::Proxy;
use crate::proxy::limits::MAX_CARD;
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
        let agent = proxy.settings.agent;
        let port = agent.port();
        let mut own: Vec<String> = ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::]"]
            .iter()
            .map(|host| format!("{host}:{port}"))
            .collect();
        own.push(agent.to_string());
        Self {
            own,
            mesh: proxy.mesh.snapshot().id.authority(),
            port,
        }
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
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = incoming.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        bytes.extend_from_slice(&data);
        if bytes.len() > MAX_CARD {
            return Read::Other(Body::rest(bytes.into(), None, incoming));
        }
    }
    let bytes = Bytes::from(bytes);
    match serde_json::from_slice(&bytes) {
        Ok(card) => Read::Card(bytes, card),
        Err(_) => Read::Other(Body::whole(bytes)),
    }
}

/// At the callee: the card with the mesh's addresses, unless it is signed.
pub(crate) async fn rewrite(addresses: &Addresses, head: &mut Parts, incoming: Incoming) -> Body {
    let (bytes, mut card) = match read(incoming).await {
        Read::Card(bytes, card) => (bytes, card),
        Read::Other(body) => return body,
    };
    if is_signed(&card) || !rewrite_urls(addresses, &mut card) {
        return Body::whole(bytes);
    }
    let bytes = Bytes::from(card.to_string());
    head.headers.insert(CONTENT_LENGTH, bytes.len().into());
    Body::whole(bytes)
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
}

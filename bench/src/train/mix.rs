//! What is sent: kinds of requests, how often each, in which order.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;

/// What texts are made of: words, and what JSON has to escape or spells in several bytes.
const SENTENCE: &str =
    "Revenue by region, compared with the year before: \"north\" +4.2 %, Zürich −1.3 %.\n\tSee C:\\reports. ";

/// What a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Nothing,
    /// JSON of no protocol.
    Json,
    /// Bytes that nothing reads.
    Bytes,
    /// The same, of a length that is not said.
    Unsized,
    /// A JSON-RPC call of MCP: its method.
    Mcp(&'static str),
    /// A notification of MCP, which has no id.
    Notice(&'static str),
    /// An MCP tool call: the tool.
    Tool(&'static str),
    /// A JSON-RPC call of A2A: its method.
    A2a(&'static str),
}

/// A kind of request.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) name: &'static str,
    /// How often in one round of the mix.
    weight: usize,
    pub(super) method: Method,
    /// Another agent than the one that is there.
    pub(super) to: Option<&'static str>,
    /// What the agent shall answer is in the query.
    pub(super) path: &'static str,
    pub(super) content: Content,
    /// About so many bytes of body.
    bytes: usize,
    expected: StatusCode,
    /// What is answered where policy reads bodies.
    where_read: StatusCode,
    text: String,
}

/// All kinds, in an order that spreads each evenly.
pub(super) struct Mix {
    errands: Vec<Errand>,
    order: Vec<usize>,
}

impl Mix {
    pub(super) fn new() -> Self {
        let errands = errands();
        let order = spread(&errands.iter().map(|errand| errand.weight).collect::<Vec<_>>());
        Self { errands, order }
    }

    /// The request with number `number`, from round to round.
    pub(super) fn at(&self, number: usize) -> &Errand {
        &self.errands[self.order[number % self.order.len()]]
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> &[Errand] {
        &self.errands
    }
}

/// Each index as often as its weight, at equal distances as far as that goes.
fn spread(weights: &[usize]) -> Vec<usize> {
    let mut places: Vec<(f64, usize)> = weights
        .iter()
        .enumerate()
        .flat_map(|(index, weight)| (0..*weight).map(move |k| ((k as f64 + 0.5) / *weight as f64, index)))
        .collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    places.into_iter().map(|(_, index)| index).collect()
}

fn errands() -> Vec<Errand> {
    use Content::{A2a, Bytes, Json, Mcp, Nothing, Notice, Tool, Unsized};
    let get = |weight, name, path| Errand::new(weight, name, Method::GET, path, Nothing, 0);
    let post = |weight, name, path, content, bytes| Errand::new(weight, name, Method::POST, path, content, bytes);
    vec![
        get(5, "a small page", "/page?bytes=200"),
        get(3, "a page of 4 KiB", "/reports/2026/north?bytes=4096&language=en"),
        get(1, "a file of 64 KiB", "/files/archive.bin?bytes=65536"),
        get(1, "a page of a length not said", "/search?chunks=4&bytes=4096"),
        get(2, "events", "/events?events=8"),
        get(1, "what is not there", "/nowhere?status=404&bytes=80"),
        get(1, "another agent", "/page?bytes=200").to("nobody.aip.internal", StatusCode::NOT_FOUND),
        Errand::new(2, "a refused method", Method::DELETE, "/files/1", Nothing, 0).answered(StatusCode::FORBIDDEN),
        post(3, "a small order", "/orders?bytes=120", Json, 120),
        post(3, "an order of 2 KiB", "/orders?bytes=600", Json, 2048),
        post(2, "a document of 16 KiB", "/documents?bytes=120", Json, 16 * 1024),
        post(1, "an upload of 64 KiB", "/files?bytes=80", Bytes, 64 * 1024),
        post(
            1,
            "an upload of a length not said",
            "/files?bytes=80",
            Unsized,
            8 * 1024,
        ),
        post(2, "MCP initialize", "/mcp?bytes=600", Mcp("initialize"), 200),
        post(
            1,
            "MCP initialized",
            "/mcp?status=202&bytes=0",
            Notice("notifications/initialized"),
            60,
        ),
        post(2, "MCP tools/list", "/mcp?bytes=4096", Mcp("tools/list"), 80),
        post(6, "a tool call", "/mcp?bytes=300", Tool("summarize"), 250),
        post(3, "a tool call of 4 KiB", "/mcp?bytes=2048", Tool("translate"), 4096),
        post(1, "a tool call of 32 KiB", "/mcp?bytes=8192", Tool("index"), 32 * 1024),
        post(2, "a tool call answered by events", "/mcp?events=8", Tool("watch"), 300),
        post(
            1,
            "a tool call that policy on bodies refuses",
            "/mcp?bytes=300",
            Tool("transfer"),
            200,
        )
        .refused_where_read(),
        post(4, "A2A message/send", "/a2a?bytes=1024", A2a("message/send"), 700),
        post(
            1,
            "A2A with a file of 16 KiB",
            "/a2a?bytes=1024",
            A2a("message/send"),
            16 * 1024,
        ),
        post(2, "A2A message/stream", "/a2a?events=8", A2a("message/stream"), 500),
    ]
}

impl Errand {
    fn new(
        weight: usize,
        name: &'static str,
        method: Method,
        path: &'static str,
        content: Content,
        bytes: usize,
    ) -> Self {
        let expected = match path.split_once("status=") {
            Some((_, status)) if status.starts_with("404") => StatusCode::NOT_FOUND,
            Some((_, status)) if status.starts_with("202") => StatusCode::ACCEPTED,
            _ => StatusCode::OK,
        };
        Self {
            name,
            weight,
            method,
            to: None,
            path,
            content,
            bytes,
            expected,
            where_read: expected,
            text: text(bytes),
        }
    }

    fn to(mut self, host: &'static str, status: StatusCode) -> Self {
        self.to = Some(host);
        self.answered(status)
    }

    fn answered(mut self, status: StatusCode) -> Self {
        self.expected = status;
        self.where_read = status;
        self
    }

    fn refused_where_read(mut self) -> Self {
        self.where_read = StatusCode::FORBIDDEN;
        self
    }

    /// The status that says that all went as it should.
    pub(super) fn expected(&self, bodies_read: bool) -> StatusCode {
        if bodies_read { self.where_read } else { self.expected }
    }

    pub(super) fn content_type(&self) -> Option<&'static str> {
        match self.content {
            Content::Nothing => None,
            Content::Bytes | Content::Unsized => Some("application/octet-stream"),
            _ => Some("application/json"),
        }
    }

    /// The body of the request with number `number`: no two calls have the same id.
    pub(super) fn body(&self, number: usize) -> Bytes {
        let call = |method: &str, params: serde_json::Value| {
            json!({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).to_string()
        };
        let text = self.text.as_str();
        let body = match self.content {
            Content::Nothing => String::new(),
            Content::Json => json!({"order": number, "items": [{"of": text, "count": 3, "price": 12.5}]}).to_string(),
            Content::Bytes | Content::Unsized => return file(self.bytes),
            Content::Mcp(method) => call(
                method,
                json!({"clientInfo": {"name": "train", "version": "1"}, "note": text}),
            ),
            Content::Notice(method) => {
                json!({"jsonrpc": "2.0", "method": method, "params": {"note": text}}).to_string()
            }
            Content::Tool(tool) => {
                let arguments =
                    json!({"text": text, "amount": 5000, "filters": {"language": "de", "years": [2025, 2026]}});
                call("tools/call", json!({"name": tool, "arguments": arguments}))
            }
            Content::A2a(method) => {
                let message = json!({
                    "role": "user",
                    "messageId": format!("message-{number}"),
                    "parts": [{"kind": "text", "text": text}],
                });
                call(method, json!({"message": message}))
            }
        };
        Bytes::from(body)
    }
}

/// A file of `bytes` bytes, which begins as a picture does: what begins like JSON would have to be some.
fn file(bytes: usize) -> Bytes {
    let rest = (0..bytes).map(|at| (at * 31 % 251) as u8);
    b"\x89PNG\r\n\x1a\n".iter().copied().chain(rest).take(bytes).collect()
}

/// A text of about `bytes` bytes.
fn text(bytes: usize) -> String {
    let mut text = SENTENCE.repeat(bytes / SENTENCE.len() + 1);
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_comes_as_often_as_its_weight_and_never_in_a_row_where_it_can_be_helped() {
        let order = spread(&[1, 2, 4]);
        assert_eq!(order.len(), 7);
        for (index, weight) in [1, 2, 4].into_iter().enumerate() {
            assert_eq!(order.iter().filter(|i| **i == index).count(), weight);
        }
        assert!(order.windows(3).all(|w| !(w[0] == w[1] && w[1] == w[2])), "{order:?}");
    }

    #[test]
    fn the_mix_reaches_from_no_body_to_64_kib() {
        let sizes: Vec<usize> = Mix::new().all().iter().map(|errand| errand.body(7).len()).collect();
        assert_eq!(sizes.iter().min(), Some(&0));
        assert_eq!(sizes.iter().max(), Some(&(64 * 1024)));
    }

    #[test]
    fn what_calls_itself_json_is_json_and_each_call_has_an_id_of_its_own() {
        for errand in Mix::new().all() {
            if errand.content_type() != Some("application/json") {
                continue;
            }
            let of = |number| serde_json::from_slice::<serde_json::Value>(&errand.body(number)).unwrap();
            if errand.content != Content::Json && !matches!(errand.content, Content::Notice(_)) {
                assert_eq!(of(7)["id"], 7, "{}", errand.name);
                assert_ne!(of(7), of(8), "{}", errand.name);
            }
        }
    }

    #[test]
    fn the_request_of_the_benchmark_is_none_of_them() {
        for errand in Mix::new().all() {
            assert_ne!(errand.body(1), crate::load::BODY.as_bytes(), "{}", errand.name);
        }
    }

    #[test]
    fn a_text_is_cut_between_letters() {
        for bytes in 0..300 {
            let text = text(bytes);
            assert!(text.len() <= bytes && text.len() + 3 > bytes, "{bytes}: {}", text.len());
        }
    }
}

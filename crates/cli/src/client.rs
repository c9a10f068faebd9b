//! The control plane's admin API, as every verb uses it: JSON in, JSON out, problems become failures.

mod events;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use aip_api::Digest;
use aip_api::problem::Problem;
use bytes::Bytes;
use http_body_util::Full;
use hyper::http::request::Builder;
use hyper::{Method, Request, StatusCode};
use serde_json::Value;

use crate::bounded;
use crate::exit::{Exit, Failure};
use crate::http::{self, HttpError};
use crate::{Globals, home::Home};

pub(crate) use events::{Event, Events};

/// How long an ordinary answer may take: the slowest, a policy's admission, has a deadline of its own below this.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest token file that is read.
const MAX_TOKEN_FILE: u64 = 16 * 1024;
/// Pages of a list that are followed: at 1,000 a page, more than a command line can show.
const MAX_PAGES: usize = 1_000;

/// The way to an admin API.
#[derive(Debug, Clone)]
enum Way {
    /// Plain HTTP on loopback.
    Plain(SocketAddr),
    /// TLS to a control plane whose root has this digest.
    Pinned(SocketAddr, Digest),
    /// A Unix socket: the file's permissions say who may use it.
    Socket(PathBuf),
}

/// What a URL of a Unix socket begins with.
const SOCKET: &str = "unix:";

/// A client of the admin API.
#[derive(Clone)]
pub(crate) struct Admin {
    way: Way,
    authority: String,
    /// None where the request is what proves who asks.
    token: Option<String>,
}

impl Admin {
    /// The admin API that the flags, the environment or `aip up`'s context name, with the token that goes with it.
    pub(crate) fn open(globals: &Globals) -> Result<Self, Failure> {
        let home = globals.home()?;
        // The URL first: a token is not even read for one that it must not be sent to.
        let client = Self::without_token(globals)?;
        let token_file = globals.token_file.clone().or_else(|| Some(home.context()?.token_file));
        let token_file = token_file.unwrap_or_else(|| default_token_file(&home));
        Ok(Self {
            token: Some(read_token(&token_file)?),
            ..client
        })
    }

    /// As [`Self::open`], for what is asked without a token. What `aip up` started is reached over its socket: a prod
    /// mesh takes changes nowhere else.
    pub(crate) fn without_token(globals: &Globals) -> Result<Self, Failure> {
        let home = globals.home()?;
        let context = home.context();
        let url = globals
            .admin
            .clone()
            .or_else(|| Some(format!("{SOCKET}{}", context.as_ref()?.socket.as_ref()?.display())))
            .or_else(|| context.as_ref().map(|c| c.admin.clone()))
            .ok_or_else(|| {
                Failure::new(Exit::NotReachable, "no control plane is known here")
                    .why(format!(
                        "{} holds no context, and no --admin was given",
                        home.path().display()
                    ))
                    .next("start one with `aip up`, or pass --admin and --token-file")
            })?;
        let root = globals.mesh_root.or_else(|| context?.root.parse().ok());
        Self::to(&url, root, None)
    }

    /// A client of the admin API at `url` with this token. Plain HTTP is for loopback; TLS checks the mesh's root.
    pub(crate) fn to(url: &str, root: Option<Digest>, token: Option<&str>) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::new(Exit::Usage, format!("{url:?} is not the URL of an admin API"))
                .why(why)
                .next("it looks like http://127.0.0.1:15014 or unix:/path/admin.sock on this machine, https://HOST:15014 with --mesh-root elsewhere")
        };
        let token = token.map(str::to_owned);
        if let Some(path) = url.strip_prefix(SOCKET) {
            let path = PathBuf::from(path);
            if !path.is_absolute() {
                return Err(wrong("the socket's path is not absolute"));
            }
            return Ok(Self {
                way: Way::Socket(path),
                authority: "localhost".into(),
                token,
            });
        }
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it names no scheme"))?;
        let authority = rest.trim_end_matches('/');
        let address = authority.to_socket_addrs().ok().and_then(|mut a| a.next());
        let address = address.ok_or_else(|| wrong("the host and port can't be resolved"))?;
        let way = match (scheme, root) {
            ("http", _) if address.ip().is_loopback() => Way::Plain(address),
            ("http", _) => return Err(wrong("the admin token would cross the network in plain text")),
            ("https", Some(root)) => Way::Pinned(address, root),
            ("https", None) => return Err(wrong("without --mesh-root, whoever answers would get the admin token")),
            _ => return Err(wrong("the scheme is neither http nor https")),
        };
        Ok(Self {
            way,
            authority: authority.to_owned(),
            token,
        })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(Method::GET, path, None, &format!("{path} can't be read"))
            .await
    }

    /// `None` where there is no such thing.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(failure) if failure.exit == Exit::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// All entries of a list, page after page.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut all = Vec::new();
        let mut next: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let (entries, cursor) = page_of(self.get(&page_path(path, next.as_deref())).await?);
            all.extend(entries);
            match cursor {
                Some(cursor) => next = Some(cursor),
                None => return Ok(all),
            }
        }
        Ok(all)
    }

    /// Sends a change; `what` says what did not happen if it fails.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        what: &str,
    ) -> Result<Value, Failure> {
        self.send_within(DEADLINE, method, path, body, what).await
    }

    /// Replaces a document that is at `revision`; fails where it was changed meanwhile.
    pub(crate) async fn replace(
        &self,
        path: &str,
        document: &Value,
        revision: u64,
        what: &str,
    ) -> Result<Value, Failure> {
        let request = self
            .request(Method::PUT, path)
            .header("if-match", format!("\"{revision}\""));
        self.exchange(DEADLINE, request, Some(document), what).await
    }

    /// As [`Self::send`], for answers that the control plane holds back on purpose.
    pub(crate) async fn send_within(
        &self,
        deadline: Duration,
        method: Method,
        path: &str,
        body: Option<&Value>,
        what: &str,
    ) -> Result<Value, Failure> {
        self.exchange(deadline, self.request(method, path), body, what).await
    }

    fn request(&self, method: Method, path: &str) -> Builder {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("accept", "application/json, application/problem+json");
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// A file as it is; `None` where there is no such thing.
    pub(crate) async fn bytes(&self, path: &str) -> Result<Option<Bytes>, Failure> {
        let what = format!("{path} can't be read");
        let request = self.request(Method::GET, path);
        match self.answer(DEADLINE, request, None, &what).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(failure) if failure.exit == Exit::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn exchange(
        &self,
        deadline: Duration,
        request: Builder,
        body: Option<&Value>,
        what: &str,
    ) -> Result<Value, Failure> {
        let body = self.answer(deadline, request, body, what).await?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .map_err(|e| Failure::new(Exit::Failed, what).why(format!("the answer is not JSON: {e}")))
    }

    async fn answer(
        &self,
        deadline: Duration,
        mut request: Builder,
        body: Option<&Value>,
        what: &str,
    ) -> Result<Bytes, Failure> {
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(bytes))
            .map_err(|e| Failure::new(Exit::Failed, what).why(e.to_string()))?;
        let answer = async { http::send_over(self.connect().await?, request, deadline).await };
        let answer = answer.await.map_err(|e| self.unreachable(what, &e))?;
        let (status, body) = (answer.status(), answer.into_body());
        match status.is_success() {
            true => Ok(body),
            false => Err(refused(what, status, &body)),
        }
    }

    async fn connect(&self) -> Result<http::Connection, HttpError> {
        match &self.way {
            Way::Plain(address) => http::plain(*address).await,
            Way::Pinned(address, root) => http::pinned(*address, *root).await,
            Way::Socket(path) => http::socket(path).await,
        }
    }

    /// Follows a stream of server-sent events.
    pub(crate) async fn events(&self, path: &str) -> Result<Events, Failure> {
        let what = format!("{path} can't be followed");
        let request = self.request(Method::GET, path).header("accept", "text/event-stream");
        let request = request.body(Full::default());
        let request = request.map_err(|e| Failure::new(Exit::Failed, &what).why(e.to_string()))?;
        let answer = async { http::open(self.connect().await?, request, DEADLINE).await };
        let answer = answer.await.map_err(|e| self.unreachable(&what, &e))?;
        let (status, mut body) = (answer.status(), answer.into_body());
        if status.is_success() {
            return Ok(Events::new(body));
        }
        let problem = body.part(DEADLINE).await.ok().flatten().unwrap_or_default();
        Err(refused(&what, status, &problem))
    }

    fn unreachable(&self, what: &str, error: &HttpError) -> Failure {
        let exit = if matches!(error, HttpError::Timeout) {
            Exit::TimedOut
        } else {
            Exit::NotReachable
        };
        let place = match &self.way {
            Way::Socket(path) => path.display().to_string(),
            Way::Plain(_) | Way::Pinned(..) => self.authority.clone(),
        };
        Failure::new(exit, what)
            .why(format!("the control plane at {place}: {error}"))
            .next("start it with `aip up`, or pass --admin")
    }
}

/// A problem document, or what stands in its place.
fn refused(what: &str, status: StatusCode, body: &[u8]) -> Failure {
    let problem = serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body).chars().take(500).collect::<String>();
        Problem::new(status.as_u16(), "unexpected_answer", format!("{status} {text}"))
    });
    Failure::of_problem(what, &problem)
}

/// Rows of a page: the most that the control plane gives.
const PAGE: usize = 500;

/// Lists that come whole and take no cursor.
const WHOLE: [&str; 2] = ["/v1/sidecars", "/revisions"];

fn page_path(path: &str, cursor: Option<&str>) -> String {
    if WHOLE.iter().any(|end| path.ends_with(end)) {
        return path.to_owned();
    }
    let joint = if path.contains('?') { '&' } else { '?' };
    let cursor = cursor.map(|c| format!("&cursor={}", encoded(c))).unwrap_or_default();
    format!("{path}{joint}limit={PAGE}{cursor}")
}

/// A page is a list, or an object with `items` and the cursor of the `next` one.
fn page_of(page: Value) -> (Vec<Value>, Option<String>) {
    match page {
        Value::Array(items) => (items, None),
        Value::Object(mut page) => {
            let cursor = page.get("next").and_then(Value::as_str).map(str::to_owned);
            let items = page
                .remove("items")
                .and_then(|i| if let Value::Array(i) = i { Some(i) } else { None });
            (items.unwrap_or_default(), cursor)
        }
        _ => (Vec::new(), None),
    }
}

fn default_token_file(home: &Home) -> PathBuf {
    home.control_plane().join("admin.jwt")
}

fn read_token(path: &std::path::Path) -> Result<String, Failure> {
    let fail = |why: String| {
        Failure::new(
            Exit::NotAuthorized,
            format!("the admin token in {} can't be read", path.display()),
        )
        .why(why)
        .next("pass --token-file or set AIP_TOKEN_FILE; `aip up` writes the first one to <data>/admin.jwt")
    };
    let token = bounded::text(path, MAX_TOKEN_FILE).map_err(|e| fail(e.to_string()))?;
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(fail("it holds no token".into()));
    }
    Ok(token.to_owned())
}

/// A path segment or query value, percent-encoded (RFC 3986 unreserved characters stay).
pub(crate) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_token_never_leaves_loopback_in_plain_text() {
        assert!(Admin::to("http://127.0.0.1:1", None, Some("t")).is_ok());
        let root = Digest::sha256(b"root");
        assert!(Admin::to("https://192.0.2.1:15014", Some(root), Some("t")).is_ok());
        assert!(Admin::to("unix:/run/aip/admin.sock", None, Some("t")).is_ok());
        for bad in [
            "unix:admin.sock",
            "http://192.0.2.1:15014",
            "https://192.0.2.1:1",
            "127.0.0.1:1",
            "http://nowhere.invalid",
            "x://[::1]:1",
        ] {
            assert_eq!(
                Admin::to(bad, None, Some("t")).err().map(|f| f.exit),
                Some(Exit::Usage),
                "{bad}"
            );
        }
    }

    #[test]
    fn pages_and_plain_lists_read_alike() {
        assert_eq!(page_of(json!([1, 2])), (vec![json!(1), json!(2)], None));
        assert_eq!(
            page_of(json!({"items": [1], "next": "c"})),
            (vec![json!(1)], Some("c".into()))
        );
        assert_eq!(encoded("a/b c"), "a%2Fb%20c");
    }
}

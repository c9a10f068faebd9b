//! Bodies that are wrong, or that two readers take for two things: what policy saw is what the agent reads, or the agent
//! hears of none of it. At the caller's sidecar, and at the callee's from a peer without one.

use aip_api::id::HopId;
use aip_sidecar::proxy::limits::{MAX_HELD_BODY, MAX_JSON_DEPTH};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::client::{Answer, Stranger, collect, get, post, send};
use crate::mesh::{Pair, Side, until};
use crate::pki::Says;
use crate::refuse::{POLICY, pair_with};

const HARM: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"harm","arguments":{}}}"#;
const JSON: &str = "application/json";

/// What becomes of a body that a policy reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is no body that everybody reads alike.
    Invalid,
    /// What it says is not established, for this reason, and a policy that reads it denies.
    Unread(&'static str),
    /// It is read, and denied for what it says.
    Denied,
    /// It is read, and passes.
    Passes,
}
use Fate::{Denied, Invalid, Passes, Unread};

/// What it is, its headers, its bytes, and what becomes of it.
type Case = (&'static str, Vec<(&'static [u8], &'static [u8])>, Vec<u8>, Fate);

fn typed(what: &'static str, content_type: &'static str, body: impl Into<Vec<u8>>, fate: Fate) -> Case {
    (
        what,
        vec![(b"content-type", content_type.as_bytes())],
        body.into(),
        fate,
    )
}

/// As `{"arguments": …}` of a call that is allowed.
fn with_arguments(arguments: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"good","arguments":{arguments}}}}}"#)
}

fn nested(levels: usize, open: &str, close: &str) -> String {
    with_arguments(&format!("{{\"a\":{}1{}}}", open.repeat(levels), close.repeat(levels)))
}

/// Keys and texts that parsers differ on.
fn ambiguous() -> Vec<Case> {
    vec![
        typed(
            "a key that stands twice",
            JSON,
            with_arguments(r#"{"a":1,"a":2}"#),
            Invalid,
        ),
        typed("twice but for case", JSON, with_arguments(r#"{"a":1,"A":2}"#), Invalid),
        typed(
            "twice, once escaped",
            JSON,
            with_arguments(r#"{"a":1,"\u0061":2}"#),
            Invalid,
        ),
        typed(
            "twice, in another script",
            JSON,
            with_arguments(r#"{"k":1,"\u212a":2}"#),
            Invalid,
        ),
        typed("half a surrogate", JSON, with_arguments(r#"{"a":"\ud83d"}"#), Invalid),
        typed(
            "surrogates the wrong way round",
            JSON,
            with_arguments(r#"{"a":"\ude00\ud83d"}"#),
            Invalid,
        ),
        typed(
            "bytes that are no UTF-8",
            JSON,
            [&HARM.as_bytes()[..50], b"\xff", &HARM.as_bytes()[50..]].concat(),
            Invalid,
        ),
        typed(
            "surrogates in UTF-8",
            JSON,
            [b"{\"a\":\"", &b"\xed\xa0\x80"[..], b"\"}"].concat(),
            Invalid,
        ),
        typed(
            "a slash in too many bytes",
            JSON,
            [b"{\"a\":\"", &b"\xc0\xaf"[..], b"\"}"].concat(),
            Invalid,
        ),
        typed(
            "the same, as text",
            "text/plain",
            b"{\"a\":\"\xff\"}",
            Unread("body_not_json"),
        ),
    ]
}

/// Depths.
fn deep() -> Vec<Case> {
    // The body, its params, its arguments and one more are around it.
    let around = 4;
    vec![
        typed("10,000 lists", JSON, nested(10_000, "[", "]"), Invalid),
        typed("10,000 objects", JSON, nested(10_000, "{\"a\":", "}"), Invalid),
        typed("10,000 lists that never end", JSON, "[".repeat(10_000), Invalid),
        typed(
            "10,000 lists, as text",
            "text/plain",
            nested(10_000, "[", "]"),
            Unread("body_not_json"),
        ),
        typed(
            "as deep as is read",
            JSON,
            nested(MAX_JSON_DEPTH - around, "[", "]"),
            Passes,
        ),
    ]
}

/// Numbers and sizes.
fn large() -> Vec<Case> {
    let digits = "1".repeat(1_000_000);
    vec![
        typed(
            "an integer of a megabyte",
            JSON,
            with_arguments(&format!("{{\"a\":{digits}}}")),
            Invalid,
        ),
        typed(
            "a decimal of a megabyte",
            JSON,
            with_arguments(&format!("{{\"a\":0.{digits}}}")),
            Passes,
        ),
        typed(
            "an exponent of a megabyte",
            JSON,
            with_arguments(&format!("{{\"a\":1e{digits}}}")),
            Invalid,
        ),
        typed(
            "an integer that floats round",
            JSON,
            with_arguments(r#"{"a":9007199254740993}"#),
            Unread("integer_past_2_53"),
        ),
        typed("no number", JSON, with_arguments(r#"{"a":NaN}"#), Invalid),
        typed("two documents", JSON, HARM.repeat(2), Invalid),
        typed("half a document", JSON, &HARM[..60], Invalid),
        typed(
            "more than is read",
            JSON,
            with_arguments(&format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_HELD_BODY))),
            Unread("body_too_large"),
        ),
        typed(
            "more than is read, as text",
            "text/plain",
            format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_HELD_BODY)),
            Unread("body_too_large"),
        ),
    ]
}

/// `harm` as readers find it who go by the charset, and we don't.
const UTF_7: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"+AGgAYQByAG0-","arguments":{}}}"#;

fn wide(text: &str, big: bool) -> Vec<u8> {
    let unit = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
    text.encode_utf16().flat_map(unit).collect()
}

/// Types and charsets that say something else than the bytes do.
fn labelled() -> Vec<Case> {
    let charset = Unread("body_charset");
    vec![
        typed(
            "UTF-7 under its name",
            "application/json; charset=utf-7",
            UTF_7,
            charset,
        ),
        typed("UTF-7 as text", "text/plain;charset=\"UTF-7\"", "+AHs-", charset),
        typed(
            "UTF-7 behind UTF-8",
            "application/json; charset=utf-8; charset=utf-7",
            UTF_7,
            charset,
        ),
        typed(
            "UTF-7 in the way of RFC 2231",
            "application/json; charset*=utf-8''utf-7",
            UTF_7,
            charset,
        ),
        typed("EBCDIC", "application/json; charset=ibm037", HARM, charset),
        typed(
            "UTF-16 under its name",
            "application/json; charset=utf-16",
            wide(HARM, true),
            charset,
        ),
        typed(
            "UTF-8 under the name of UTF-16",
            "application/json; charset=utf-16le",
            HARM,
            charset,
        ),
    ]
}

/// Bytes that say more than their type does, and types that say nothing.
fn unlabelled() -> Vec<Case> {
    let charset = Unread("body_charset");
    vec![
        typed("UTF-16 under no name", JSON, wide(HARM, false), Invalid),
        typed(
            "UTF-16 as text",
            "text/plain",
            wide(HARM, true),
            Unread("body_encoding"),
        ),
        typed(
            "a mark, then UTF-16",
            "text/plain",
            [b"\xff\xfe".to_vec(), wide(HARM, false)].concat(),
            Unread("body_encoding"),
        ),
        typed(
            "a mark, then JSON",
            JSON,
            [b"\xef\xbb\xbf", HARM.as_bytes()].concat(),
            Invalid,
        ),
        typed(
            "more than ASCII under Latin-1",
            "application/json; charset=iso-8859-1",
            with_arguments(r#"{"a":"é"}"#),
            charset,
        ),
        typed(
            "ASCII under Latin-1",
            "application/json; charset=iso-8859-1",
            HARM,
            Denied,
        ),
        typed(
            "UTF-8 under its name",
            "application/json; charset=\"UTF-8\"",
            HARM,
            Denied,
        ),
        typed("a type of two", "text/plain, application/json", HARM, Denied),
        typed("a type that is none", "application", HARM, Denied),
        (
            "a type in no letters",
            vec![(b"content-type", b"application/j\xffson")],
            HARM.into(),
            Denied,
        ),
        typed("a form", "application/x-www-form-urlencoded", HARM, Denied),
        typed(
            "documents one after the other",
            "application/x-ndjson",
            HARM,
            Unread("body_streams"),
        ),
    ]
}

/// Bodies that are no JSON, and say to their readers what JSON could say.
fn foreign() -> Vec<Case> {
    let no_json = Unread("body_not_json");
    let part = "--x\r\ncontent-disposition: form-data; name=\"amount\"\r\n\r\n5000\r\n--x--\r\n";
    vec![
        typed("text", "text/plain; charset=utf-8", "hello", no_json),
        typed(
            "a plain form",
            "application/x-www-form-urlencoded",
            "amount=5000",
            no_json,
        ),
        typed("a form in parts", "multipart/form-data; boundary=x", part, no_json),
        typed("YAML", "application/yaml", "amount: 5000\n", no_json),
        typed(
            "msgpack",
            "application/msgpack",
            b"\x81\xa6amount\xcd\x13\x88".to_vec(),
            no_json,
        ),
        typed("blanks", "text/plain", "\n \n", no_json),
        typed("nothing", "text/plain", "", Passes),
    ]
}

/// Bodies that are packed: nobody unpacks them here, whatever they would become.
fn packed() -> Vec<Case> {
    let coded = |what, headers: &[(&'static [u8], &'static [u8])]| {
        let headers = [&[(&b"content-type"[..], JSON.as_bytes())], headers].concat();
        // The head of a gzip file, of which nobody asks for more.
        (
            what,
            headers,
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec(),
            Unread("body_encoded"),
        )
    };
    let name = b"content-encoding";
    vec![
        coded("gzip", &[(name, b"gzip")]),
        coded("gzip of gzip", &[(name, b"gzip, gzip")]),
        coded("gzip of gzip in two lines", &[(name, b"gzip"), (name, b"gzip")]),
        coded("gzip behind nothing", &[(name, b"identity"), (name, b"gzip")]),
        coded("gzip behind nothing, in one line", &[(name, b"identity, gzip")]),
        coded("a coding of nobody", &[(name, b"x-none")]),
        coded("a coding without a name", &[(name, b"")]),
        coded("gzip as CGI reads it", &[(b"content_encoding", b"gzip")]),
        (
            "no coding, in words",
            vec![(b"content-type", JSON.as_bytes()), (name, b"Identity")],
            HARM.into(),
            Denied,
        ),
    ]
}

fn cases() -> Vec<Case> {
    let all = [ambiguous, deep, large, labelled, unlabelled, foreign, packed];
    all.into_iter().flat_map(|cases| cases()).collect()
}

fn request(uri: &str, (_, headers, body, _): &Case) -> Request<Full<Bytes>> {
    let mut request = Request::post(uri).body(Full::new(Bytes::from(body.clone()))).unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_bytes(value).unwrap();
        request
            .headers_mut()
            .append(HeaderName::from_bytes(name).unwrap(), value);
    }
    request
}

fn fate(answer: &Answer) -> String {
    if answer.status == StatusCode::OK && answer.header("x-aip-status").is_empty() {
        let said: Option<Value> = serde_json::from_slice(&answer.body).ok();
        if said.is_none_or(|said| said["error"].is_null()) {
            return "passes".into();
        }
    }
    let said = answer.json();
    let problem = match said["error"]["data"].clone() {
        Value::Null => said,
        data => data,
    };
    format!("{} {} {}", problem["reason"], problem["rule"], problem["detail"])
}

/// Holds that the answer is what is due, and the agent has heard of nothing but what passed, of that every byte.
fn met(case: &Case, at: &str, answer: &Answer, agent: &Agent) {
    let (what, _, body, due) = case;
    let (fate, seen) = (fate(answer), agent.seen());
    let right = match due {
        Passes => fate == "passes",
        Invalid => fate.starts_with("\"invalid_json\""),
        Denied => fate.starts_with("\"policy_denied\" \"no_tool\""),
        Unread(why) => fate.starts_with("\"policy_denied\" \"fact_unestablished\"") && fate.contains(why),
    };
    assert!(right, "{what} at {at}: {due:?}, and not {fate}");
    match due {
        Passes => assert!(seen.last().unwrap().body == body, "{what} at {at}: other bytes"),
        _ => assert!(seen.is_empty(), "{what} at {at}: the agent heard of it"),
    }
    agent.forget();
}

fn held(side: &Side) -> u64 {
    side.proxy.connections()["held_bytes"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policy_reads_of_a_body_is_what_the_agent_reads() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    for case in cases() {
        let asked = request("http://ledger.aip.internal/mcp", &case);
        met(&case, "the caller", &send(pair.caller.outbound, asked).await, &agent);
        let stranger = Stranger::new(&pair.pki, "planner", Says::default());
        let mut sender = stranger.connect(pair.callee.inbound, "ledger").await;
        let mut asked = request("https://ledger.aip.internal/mcp", &case);
        let hop = HopId::fresh().to_string().parse().unwrap();
        asked.headers_mut().insert("x-aip-hop", hop);
        let answer = collect(sender.send_request(asked).await.unwrap()).await;
        met(&case, "the callee", &answer, &agent);
    }
    for side in [&pair.caller, &pair.callee] {
        until("everything is given back", async || (held(side) == 0).then_some(())).await;
    }
    assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
}

/// Where no policy reads bodies, each arrives as it was sent, whatever is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_no_policy_reads_arrives_as_it_was_sent() {
    let agent = Agent::start().await;
    let pair = Pair::start(agent.address).await;
    for case in cases() {
        let answer = send(pair.caller.outbound, request("http://ledger.aip.internal/x", &case)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", case.0);
        assert!(agent.only().body == case.2, "{}", case.0);
        agent.forget();
    }
}

/// Nobody here knows the arguments of a body that is no JSON; that it calls no tool of MCP is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_json_has_no_arguments_that_are_known() {
    let agent = Agent::start().await;
    let by_amount = POLICY.replace("arguments.message.text == \"harm\"", "arguments.amount > 100");
    let by_tool = by_amount.replace(
        "input.protocol.arguments.amount > 100",
        "input.protocol.method == \"x\"",
    );
    for (rego, passes) in [(by_amount, false), (by_tool, true)] {
        let pair = pair_with(&agent, &rego).await;
        for case in foreign() {
            let answer = send(pair.caller.outbound, request("http://ledger.aip.internal/pay", &case)).await;
            let due = if passes { Passes } else { case.3 };
            met(&(case.0, case.1, case.2, due), "the caller", &answer, &agent);
        }
        let dear = typed("JSON", JSON, r#"{"amount": 5000}"#, Passes);
        let answer = send(pair.caller.outbound, request("http://ledger.aip.internal/pay", &dear)).await;
        assert_eq!(answer.status == StatusCode::OK, passes);
        agent.forget();
        // What is open is decided again in the same way.
        if passes {
            let form = post("/slow", "application/x-www-form-urlencoded", "amount=5000");
            let waiting = tokio::spawn(send(pair.caller.outbound, form));
            until("the agent has it", async || agent.seen().pop()).await;
            pair.callee
                .push(|world| world.policies[0].1 = rego.replace("method == \"x\"", "arguments.amount > 100"));
            assert_eq!(waiting.await.unwrap().status, StatusCode::FORBIDDEN);
            agent.forget();
        }
    }
}

/// A body that ends before its end is none, whatever of it had come.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_cut_short_reaches_nobody() {
    let agent = Agent::start().await;
    let pair = pair_with(&agent, POLICY).await;
    let whole = with_arguments("{}");
    let head = "POST http://ledger.aip.internal/mcp HTTP/1.1\r\nhost: ledger.aip.internal\r\n";
    let sent = [
        format!("{head}content-type: {JSON}\r\ncontent-length: 500\r\n\r\n{whole}"),
        format!(
            "{head}content-type: {JSON}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{whole}\r\n",
            whole.len()
        ),
        format!("{head}content-type: {JSON}\r\ntransfer-encoding: chunked\r\n\r\n500\r\n{whole}"),
    ];
    for (n, bytes) in sent.iter().enumerate() {
        let mut tcp = TcpStream::connect(pair.caller.outbound).await.unwrap();
        tcp.write_all(bytes.as_bytes()).await.unwrap();
        tcp.shutdown().await.unwrap();
        let lines = pair.caller.lines(n + 1).await;
        assert_eq!(lines[n]["reason"], "body_broken", "{:?}", lines[n]);
    }
    assert!(agent.seen().is_empty() && pair.callee.log.lines().is_empty());
    until("everything is given back", async || {
        (held(&pair.caller) == 0).then_some(())
    })
    .await;
    assert_eq!(send(pair.caller.outbound, get("/x")).await.status, StatusCode::OK);
}

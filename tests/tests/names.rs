//! Paths and names that two readers read in two ways: refused, or read by policy as the agent gets them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::http::to_the_end;
use aip_tests::pair::Pair;
use aip_tests::wait;
use tokio::sync::OnceCell;

static PAIR: OnceCell<Pair> = OnceCell::const_new();

async fn pair() -> &'static Pair {
    PAIR.get_or_init(async || Pair::start().await).await
}

async fn ask(pair: &Pair, target: &str, host: &str) -> String {
    let bytes = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    pair.raw(&bytes, to_the_end).await
}

/// The policy denies whatever has `denied` for a segment.
const DENIED: [&str; 6] = [
    "/t/denied",
    "/t/%64enied",
    "/t/%64%65%6e%69%65%64/x",
    "/t/denied?x=1",
    "/t/denied/",
    "/t/denied#x",
];

const AMBIGUOUS: [&str; 22] = [
    "/t/x/../denied",
    "/t/x/..",
    "/t/./denied",
    "/t//denied",
    "//t/denied",
    "/t/%2e%2e/denied",
    "/t/.%2e/denied",
    "/t/%2e/denied",
    "/t%2fdenied",
    "/t%2Fdenied",
    "/t%5cdenied",
    "/t/x%3b/denied",
    "/t/denied;x",
    "/t/%252e%252e/denied",
    "/t%252fdenied",
    "/t/%25%36%34enied",
    "/t/%%36%34enied",
    "/t/%c0%ae%c0%ae/denied",
    "/t/%e0%80%afdenied",
    "/t/%f0%80%80%af/denied",
    "/t/denied%00",
    "/t/%u0064enied",
];

/// Look like others, and are none of them.
const THEMSELVES: [&str; 6] = [
    "/t/DENIED",
    "/t/denied%20",
    "/t/d%d0%b5nied",
    "/t/%ef%bc%8e%ef%bc%8e/x",
    "/t/...",
    "/t/x?/../denied",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_path_means_to_policy_what_it_means_to_the_agent() {
    let pair = pair().await;
    for target in DENIED {
        let answer = ask(pair, target, "callee.aip.internal").await;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("no_denied_path"),
            "{target}: {answer}"
        );
    }
    for target in AMBIGUOUS {
        let answer = ask(pair, target, "callee.aip.internal").await;
        let refused = answer.starts_with("HTTP/1.1 400") && answer.contains("ambiguous_path");
        assert!(refused, "{target}: {answer}");
    }
    assert!(pair.agent.seen("/t").is_empty() && pair.agent.seen("denied").is_empty());
    for target in THEMSELVES {
        let answer = ask(pair, target, "callee.aip.internal").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{target}: {answer}");
        pair.agent.only(target);
        let path = target.split('?').next().unwrap();
        wait::until("both ends recorded what the agent got", async || {
            let both = [&pair.caller, &pair.callee];
            both.iter()
                .all(|side| side.records().0.iter().any(|r| r.path() == path))
                .then_some(())
        })
        .await;
    }
}

/// Not in HTTP at all, or no text.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_path_are_refused() {
    let pair = pair().await;
    for path in [
        &b"/bytes/\xc0\xae"[..],
        b"/bytes/\xff",
        b"/bytes/\xed\xa0\x80",
        b"/bytes/\xf0\x80\x80\xaf",
        b"/by\ttes",
    ] {
        let bytes = [
            b"GET ",
            path,
            b" HTTP/1.1\r\nHost: callee.aip.internal\r\nConnection: close\r\n\r\n",
        ]
        .concat();
        let answer = aip_tests::http::raw(pair.caller.outbound, &bytes, to_the_end).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path:?}: {answer}");
    }
    assert!(pair.agent.seen("/by").is_empty());
}

/// Who is meant by each, or why nobody is.
const HOSTS: &[(&str, Result<(), &str>)] = &[
    ("callee.aip.internal", Ok(())),
    ("CALLEE.aip.Internal", Ok(())),
    ("callee.aip.internal.", Ok(())),
    ("callee.aip.internal:80", Ok(())),
    ("callee.aip.internal:8080", Ok(())),
    ("callee.aip.internal..", Err("unknown_agent")),
    ("callee..aip.internal", Err("unknown_agent")),
    (".callee.aip.internal", Err("unknown_agent")),
    ("aip.internal", Err("unknown_agent")),
    ("x.callee.aip.internal", Err("unknown_agent")),
    ("xcallee.aip.internal", Err("unknown_agent")),
    ("callee_.aip.internal", Err("unknown_agent")),
    ("xn--allee-zye.aip.internal", Err("unknown_agent")),
    ("callee%2eaip.internal", Err("")),
    ("callee.aip.internal%2e", Err("")),
    ("callee.aip.internal.example.com", Err("egress_not_listed")),
    ("callee.aip-internal", Err("egress_not_listed")),
    ("calleeaip.internal", Err("egress_not_listed")),
    ("user@callee.aip.internal", Err("invalid_host")),
    ("callee.aip.internal@example.com", Err("invalid_host")),
    ("callee.aip.internal:80:80", Err("invalid_host")),
    ("callee.aip.internal, caller.aip.internal", Err("invalid_host")),
    ("callee.aip.internal/x", Err("invalid_host")),
    ("callee.aip.internal?x", Err("invalid_host")),
    ("callee.aip.internal#x", Err("invalid_host")),
    ("callee.aip.internal\\x", Err("invalid_host")),
    ("callee .aip.internal", Err("invalid_host")),
    // Cyrillic с, full-width ｃ, an ideographic full stop, a soft hyphen.
    ("\u{441}allee.aip.internal", Err("invalid_host")),
    ("\u{ff43}allee.aip.internal", Err("invalid_host")),
    ("callee\u{3002}aip.internal", Err("invalid_host")),
    ("call\u{ad}ee.aip.internal", Err("invalid_host")),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_one_agent_s_or_nobody_s() {
    let pair = pair().await;
    for (n, (host, expected)) in HOSTS.iter().enumerate() {
        let path = format!("/host-{n}-");
        let answer = ask(pair, &path, host).await;
        match expected {
            Ok(()) => {
                assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
                pair.agent.only(&path);
                wait::until("the record names who got it", async || {
                    let records = pair.records_of(&pair.caller, &path);
                    let record = records.0.first()?;
                    assert_eq!(
                        record.text("destination"),
                        "spiffe://aip.internal/agent/callee",
                        "{host}"
                    );
                    Some(())
                })
                .await;
            }
            Err(reason) => {
                assert!(
                    answer.starts_with("HTTP/1.1 4") && answer.contains(reason),
                    "{host}: {answer}"
                );
                assert!(pair.agent.seen(&path).is_empty(), "{host}");
            }
        }
    }
}

/// A target, a `Host`, and why they are refused.
const ABSOLUTE: &[(&str, &str, &str)] = &[
    (
        "http://callee.aip.internal/absolute",
        "caller.aip.internal",
        "host_mismatch",
    ),
    (
        "http://caller.aip.internal/absolute",
        "callee.aip.internal",
        "host_mismatch",
    ),
    (
        "http://callee.aip.internal:81/absolute",
        "callee.aip.internal",
        "host_mismatch",
    ),
    (
        "http://user:pass@callee.aip.internal/absolute",
        "callee.aip.internal",
        "",
    ),
    (
        "http://callee.aip.internal@example.com/absolute",
        "callee.aip.internal",
        "",
    ),
    (
        "https://callee.aip.internal/absolute",
        "callee.aip.internal",
        "unsupported_target",
    ),
    (
        "ftp://callee.aip.internal/absolute",
        "callee.aip.internal",
        "unsupported_target",
    ),
    (
        "wss://callee.aip.internal/absolute",
        "callee.aip.internal",
        "unsupported_target",
    ),
    (
        "ws://caller.aip.internal/absolute",
        "callee.aip.internal",
        "host_mismatch",
    ),
    ("http:///absolute", "callee.aip.internal", ""),
    ("http:callee.aip.internal/absolute", "callee.aip.internal", ""),
    (
        "http://callee.aip.internal\\@example.com/absolute",
        "callee.aip.internal",
        "",
    ),
    (
        "http://callee.aip.internal/absolute/../denied",
        "callee.aip.internal",
        "ambiguous_path",
    ),
];

/// In absolute form the target says who is meant, and `Host` the same or nothing; nobody's name stands before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_in_absolute_form_means_one_agent() {
    let pair = pair().await;
    for (target, host, reason) in ABSOLUTE {
        let answer = ask(pair, target, host).await;
        assert!(
            answer.starts_with("HTTP/1.1 4") && answer.contains(reason),
            "{target}: {answer}"
        );
    }
    assert!(pair.agent.seen("absolute").is_empty());
    assert!(
        ask(pair, "http://CALLEE.aip.internal./absolute", "callee.aip.internal:80")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert_eq!(pair.agent.only("absolute").target, "/absolute");
}

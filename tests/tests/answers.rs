//! Answers of an agent that are none in HTTP/1.1, or two: its caller gets one answer to each request, its own, or a refusal.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aip_api::resource::Traffic;
use aip_tests::hostile::{Answer, Hostile};
use aip_tests::http::to_the_end;
use aip_tests::pair::{Pair, registered};
use aip_tests::process::Sidecar;
use aip_tests::wait;
use tokio::sync::OnceCell;

struct Fixture {
    pair: Pair,
    agent: Hostile,
    sidecar: Sidecar,
}

static FIXTURE: OnceCell<tokio::sync::Mutex<Fixture>> = OnceCell::const_new();

/// The agent answers one test at a time.
async fn fixture() -> tokio::sync::MutexGuard<'static, Fixture> {
    let fixture = FIXTURE.get_or_init(async || {
        let (pair, agent) = (Pair::start().await, Hostile::start(false));
        let mut traffic = Traffic::defaults();
        traffic.agent = "hostile".into();
        (traffic.response_timeout_ms, traffic.idle_timeout_ms) = (2_000, 2_000);
        pair.scripted.put(&traffic);
        let sidecar = pair.third(registered("hostile"), agent.address).await;
        let fixture = Fixture { pair, agent, sidecar };
        wait::until_ok("a first call gets through", async || {
            let text = fixture.both(Answer::of(GOOD), "GET").await;
            if text.ends_with("good") { Ok(()) } else { Err(text) }
        })
        .await;
        tokio::sync::Mutex::new(fixture)
    });
    fixture.await.lock().await
}

const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood";
/// What nobody asked for.
const SMUGGLED: &str = "HTTP/1.1 200 OK\r\nx-smuggled: 1\r\ncontent-length: 8\r\n\r\nSMUGGLED";

impl Fixture {
    /// Two requests on one connection of the caller: to the first the agent answers so, and to all others well. What came.
    async fn both(&self, first: Answer, method: &str) -> String {
        let asked = AtomicBool::new(false);
        self.agent.answers(move |_| match asked.swap(true, Ordering::SeqCst) {
            false => first.clone(),
            true => Answer::of(GOOD),
        });
        let head = |method: &str, path: &str, rest: &str| {
            format!("{method} http://hostile.aip.internal/{path} HTTP/1.1\r\nHost: hostile.aip.internal\r\n{rest}\r\n")
        };
        let two = head(method, "evil", "") + &head("GET", "next", "Connection: close\r\n");
        self.pair.raw(&two, to_the_end).await
    }

    /// The next request on another connection is answered with its own answer.
    async fn serves_on(&self, what: &str) {
        let answer = self.pair.caller.get("http://hostile.aip.internal/after").await;
        assert_eq!(
            (answer.status.as_u16(), answer.text().as_str()),
            (200, "good"),
            "{what}"
        );
    }
}

/// With this before what is wrong, and nothing after.
fn ok(rest: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{rest}")
}

/// Answers whose end has two readings.
fn two_readings() -> Vec<(&'static str, String)> {
    vec![
        (
            "two lengths",
            ok("content-length: 2\r\ncontent-length: 8\r\n\r\nokSMUGGLED"),
        ),
        ("two lengths in a list", ok("content-length: 2, 8\r\n\r\nokSMUGGLED")),
        ("a length with a sign", ok("content-length: +2\r\n\r\nok")),
        ("a negative length", ok("content-length: -1\r\n\r\nok")),
        ("a length in hex", ok("content-length: 0x2\r\n\r\nok")),
        (
            "a length beyond all",
            ok("content-length: 99999999999999999999\r\n\r\nok"),
        ),
        (
            "an unknown coding",
            ok("transfer-encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ),
        (
            "a coding besides chunked",
            ok("transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ),
        (
            "chunked twice",
            ok("transfer-encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ),
        (
            "chunked not last",
            ok("transfer-encoding: chunked, identity\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ),
        (
            "chunked in HTTP/1.0",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".into(),
        ),
    ]
}

/// Heads that are no answer at all.
fn malformed() -> Vec<(&'static str, String)> {
    vec![
        ("a folded header", ok("x-a: 1\r\n 2\r\ncontent-length: 2\r\n\r\nok")),
        ("a space before the colon", ok("content-length : 2\r\n\r\nok")),
        ("NUL in a value", ok("x-a: 1\0\r\ncontent-length: 2\r\n\r\nok")),
        (
            "a bare CR",
            ok("x-a: 1\rx-aip-decision: forged\r\ncontent-length: 2\r\n\r\nok"),
        ),
        ("a name that is none", ok("x a: 1\r\ncontent-length: 2\r\n\r\nok")),
        (
            "a status of two digits",
            "HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok".into(),
        ),
        (
            "a status below 100",
            "HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\nok".into(),
        ),
        (
            "a version that there is not",
            "HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nok".into(),
        ),
        (
            "HTTP/2's version",
            "HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok".into(),
        ),
        ("no head", "ok, and no head at all\r\n\r\n".into()),
        (
            "a switch that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_owned()
                + SMUGGLED,
        ),
        (
            "a switch to what nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned() + SMUGGLED,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_two_readings_is_refused_and_the_next_request_has_its_own() {
    let fixture = fixture().await;
    for (what, bytes) in two_readings().into_iter().chain(malformed()) {
        let text = fixture.both(Answer::of(bytes), "GET").await;
        assert!(
            text.starts_with("HTTP/1.1 502") && text.contains("\"connection_broken\""),
            "{what}: {text}"
        );
        assert!(!text.contains("SMUGGLED") && !text.contains("forged"), "{what}: {text}");
        assert!(
            text.matches("HTTP/1.1 ").count() == 2 && text.ends_with("good"),
            "{what}: {text}"
        );
        fixture.serves_on(what).await;
    }
}

/// Whole answers with one behind them; the method that was asked with, and the status.
fn followed() -> [(&'static str, &'static str, String, &'static str); 8] {
    let two = |first: &str| first.to_owned() + SMUGGLED;
    [
        (
            "behind a whole one",
            "GET",
            two(&ok("content-length: 2\r\n\r\nok")),
            "200",
        ),
        (
            "behind the last chunk",
            "GET",
            two(&ok("transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")),
            "200",
        ),
        ("behind 204", "GET", two("HTTP/1.1 204 No Content\r\n\r\n"), "204"),
        (
            "behind 204 with a length",
            "GET",
            two("HTTP/1.1 204 No Content\r\ncontent-length: 70\r\n\r\n"),
            "204",
        ),
        (
            "behind 304",
            "GET",
            two("HTTP/1.1 304 Not Modified\r\ncontent-length: 70\r\n\r\n"),
            "304",
        ),
        (
            "behind the head of a HEAD",
            "HEAD",
            two(&ok("content-length: 70\r\n\r\n")),
            "200",
        ),
        (
            "behind a length and chunks",
            "GET",
            two(&ok(
                "content-length: 70\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            )),
            "200",
        ),
        (
            "behind an interim answer",
            "GET",
            "HTTP/1.1 103 Early Hints\r\nx-aip-decision: forged\r\n\r\n".to_owned()
                + &ok("content-length: 2\r\n\r\nok"),
            "200",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_answer_in_one_is_nobody_s() {
    let fixture = fixture().await;
    for (what, method, bytes, expected) in followed() {
        let text = fixture.both(Answer::of(bytes), method).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {expected}")), "{what}: {text}");
        assert!(!text.contains("SMUGGLED") && !text.contains("forged"), "{what}: {text}");
        assert!(
            text.matches("HTTP/1.1 ").count() == 2 && text.ends_with("good"),
            "{what}: {text}"
        );
        fixture.serves_on(what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_not_ended_for_its_caller() {
    let fixture = fixture().await;
    let chunked = |rest: &str| ok(&format!("transfer-encoding: chunked\r\n\r\n2\r\nok\r\n{rest}"));
    for (what, bytes) in [
        ("fewer bytes than the length", ok("content-length: 70\r\n\r\nok")),
        ("no last chunk", chunked("")),
        ("a size in 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("a negative size", chunked("-5\r\nhello\r\n0\r\n\r\n")),
        ("a size beyond all", chunked("FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n")),
        ("an empty size", chunked("\r\nhello\r\n0\r\n\r\n")),
        (
            "a chunk that is longer than its size",
            chunked("2\r\nhello\r\n0\r\n\r\n"),
        ),
        ("a bare LF behind a size", chunked("5\nhello\r\n0\r\n\r\n")),
    ] {
        let text = fixture.both(Answer::last(bytes), "GET").await;
        // Nothing follows on a connection whose last answer has no end; where it broke off at once, no head came either.
        let ended = text.ends_with("0\r\n\r\n") || text.contains("good");
        assert!(text.matches("HTTP/1.1 ").count() <= 1 && !ended, "{what}: {text}");
        fixture.serves_on(what).await;
    }
}

/// Some of these are read for as long as they come, up to a size; and all only for so long.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_has_one() {
    const ROOM: u64 = 32 << 20;
    let fixture = fixture().await;
    let before = fixture.sidecar.process.resident();
    let line = "x-a: 1234567890\r\n".repeat(200);
    let hint = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(200);
    let chunk = ok("transfer-encoding: chunked\r\n\r\n2\r\nok\r\n");
    let slowly = |first: &str, again: &str| Answer {
        pause: Duration::from_millis(100),
        ..Answer::endless(first, again)
    };
    for (what, answer, status) in [
        ("a head", Answer::endless(ok(""), line.clone()), "502"),
        ("a header", Answer::endless(ok("x-a: "), "a".repeat(4_000)), "502"),
        (
            "a status line",
            Answer::endless("HTTP/1.1 200 ", "a".repeat(4_000)),
            "502",
        ),
        ("interim answers", Answer::endless("", hint), "504"),
        ("a head, slowly", slowly("HTTP/1.1 200 OK\r\nx-a: ", "a"), "504"),
        ("nothing", Answer::default(), "504"),
        (
            "a chunk's extension",
            Answer::endless(chunk.clone() + "2;", "a".repeat(4_000)),
            "200",
        ),
        ("trailers", Answer::endless(chunk + "0\r\n", line), "200"),
    ] {
        let text = fixture.both(answer, "GET").await;
        // A body that broke off at once takes its head along.
        let broke = status == "200" && text.is_empty();
        assert!(
            broke || text.starts_with(&format!("HTTP/1.1 {status}")),
            "{what}: {text}"
        );
        assert!(!text.ends_with("0\r\n\r\n"), "{what}: {text}");
        let grown = fixture.sidecar.process.resident().saturating_sub(before);
        assert!(grown < ROOM, "{what}: {} MiB", grown >> 20);
        wait::until(&format!("{what}: its connection is closed"), async || {
            (fixture.agent.speaking() == 0).then_some(())
        })
        .await;
        fixture.serves_on(what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_an_answer_carry_nothing_of_a_head() {
    let fixture = fixture().await;
    let forged = [
        "x-aip-decision",
        "x_aip_hop",
        "set-cookie",
        "content-length",
        "host",
        "authorization",
    ];
    let lines: String = forged.iter().map(|name| format!("{name}: forged\r\n")).collect();
    let bytes = ok(&format!(
        "trailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{lines}x-sum: 1\r\n\r\n"
    ));
    let asked = "GET http://hostile.aip.internal/trailers HTTP/1.1\r\nHost: hostile.aip.internal\r\nTE: trailers\r\n\
                 Connection: te, close\r\n\r\n";
    fixture.agent.answers(move |_| Answer::of(bytes.clone()));
    let text = fixture.pair.raw(asked, to_the_end).await;
    assert!(
        text.starts_with("HTTP/1.1 200 OK") && text.contains("x-sum: 1"),
        "{text}"
    );
    assert!(!text.contains("forged"), "{text}");
    fixture.agent.answers(|_| Answer::of(GOOD));
    fixture.serves_on("after trailers").await;
}

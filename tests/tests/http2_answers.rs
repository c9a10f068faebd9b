//! An agent that speaks HTTP/2 as no server does: its caller gets a refusal or a body that breaks off, and the next request
//! is answered.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_api::resource::{AgentProtocol, Traffic};
use aip_tests::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PUSH_PROMISE, RST_STREAM, SETTINGS,
    WHOLE, fields, frame,
};
use aip_tests::hostile::{Answer, Hostile};
use aip_tests::http::to_the_end;
use aip_tests::pair::{Pair, registered};
use aip_tests::process::Sidecar;
use aip_tests::wait;

struct Fixture {
    pair: Pair,
    agent: Hostile,
    sidecar: Sidecar,
}

const OK: (&str, &str) = (":status", "200");

fn good(stream: u32) -> Answer {
    let head = frame(HEADERS, END_HEADERS, stream, &fields(&[OK]));
    Answer::of([head, frame(DATA, END_STREAM, stream, b"good")].concat())
}

impl Fixture {
    async fn start() -> Self {
        let (pair, agent) = (Pair::start().await, Hostile::start(true));
        let mut traffic = Traffic::defaults();
        traffic.agent = "hostile".into();
        (traffic.response_timeout_ms, traffic.idle_timeout_ms) = (1_500, 1_500);
        pair.scripted.put(&traffic);
        let mut document = registered("hostile");
        document.protocol = AgentProtocol::H2c;
        let sidecar = pair.third(document, agent.address).await;
        let fixture = Self { pair, agent, sidecar };
        fixture.serves_on("at first").await;
        fixture
    }

    async fn serves_on(&self, what: &str) {
        self.agent.answers(good);
        wait::until_ok(&format!("{what}: the next is answered"), async || {
            let answer = self.pair.caller.get("http://hostile.aip.internal/after").await;
            match (answer.status.as_u16(), answer.text().as_str()) {
                (200, "good") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// What the caller gets where the agent answers so.
    async fn ask(&self, answer: impl Fn(u32) -> Answer + Send + Sync + 'static) -> String {
        self.agent.answers(answer);
        let asked = "POST http://hostile.aip.internal/evil HTTP/1.1\r\nHost: hostile.aip.internal\r\nContent-Length: 2\r\n\
                     Connection: close\r\n\r\nhi";
        self.pair.raw(asked, to_the_end).await
    }
}

type Evil = (&'static str, fn(u32) -> Answer);

/// An answer whose head has these fields, and no body.
fn head(stream: u32, listed: &[(&str, &str)]) -> Answer {
    Answer::of(frame(HEADERS, WHOLE, stream, &fields(listed)))
}

const REFUSED: &[Evil] = &[
    ("no status", |n| head(n, &[("x-a", "1")])),
    ("two statuses", |n| head(n, &[OK, (":status", "404")])),
    ("a status that is none", |n| head(n, &[(":status", "2000")])),
    ("a status behind a header", |n| head(n, &[("x-a", "1"), OK])),
    ("connection", |n| head(n, &[OK, ("connection", "x-aip-decision")])),
    ("transfer-encoding", |n| {
        head(n, &[OK, ("transfer-encoding", "chunked")])
    }),
    ("a name in upper case", |n| head(n, &[OK, ("X-Upper", "1")])),
    ("a value with a line end", |n| {
        head(n, &[OK, ("x-a", "1\r\nx-aip-decision: forged")])
    }),
    ("a length and no body", |n| head(n, &[OK, ("content-length", "8")])),
    ("a switch", |n| head(n, &[(":status", "101")])),
    ("a body before its head", |n| {
        Answer::of(frame(DATA, END_STREAM, n, b"SMUGGLED"))
    }),
    ("an answer to nobody", |n| {
        Answer::of(frame(HEADERS, WHOLE, n + 100, &fields(&[OK])))
    }),
    ("a stream of its own", |_| {
        Answer::of(frame(HEADERS, WHOLE, 2, &fields(&[OK])))
    }),
    ("a promise", |n| {
        Answer::of(frame(
            PUSH_PROMISE,
            END_HEADERS,
            n,
            &[&[0, 0, 0, 2][..], &frames::request("GET", "/x")].concat(),
        ))
    }),
    ("a reset", |n| Answer::of(frame(RST_STREAM, 0, n, &[0, 0, 0, 2]))),
    ("good-bye", |_| Answer::last(frame(GOAWAY, 0, 0, &[0; 8]))),
    ("a frame above the limit", |n| {
        Answer::of(frame(DATA, 0, n, &[0; 20_000]))
    }),
    ("HTTP/1.1", |_| {
        Answer::of("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nSMUGGLED")
    }),
    ("nothing", |_| Answer::default()),
    ("interim answers without end", |n| {
        Answer::endless(
            "",
            frame(HEADERS, END_HEADERS, n, &fields(&[(":status", "103")])).repeat(100),
        )
    }),
    ("a head without end", |n| {
        Answer::endless(
            frame(HEADERS, 0, n, &fields(&[OK])),
            frame(CONTINUATION, 0, n, &[]).repeat(100),
        )
    }),
    ("pings without end", |_| {
        Answer::endless("", frame(PING, 0, 0, &[7; 8]).repeat(100))
    }),
    ("settings without end", |_| {
        Answer::endless("", frame(SETTINGS, 0, 0, &[]).repeat(100))
    }),
    ("a head that unfolds to a great one", |n| {
        let large = frames::indexed(b"x-large", &[b'x'; 3_900]);
        Answer::of(frame(
            HEADERS,
            WHOLE,
            n,
            &[fields(&[OK]), large, vec![0xbe; 10_000]].concat(),
        ))
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_http_2_is_a_refusal_and_the_next_request_is_served() {
    const ROOM: u64 = 32 << 20;
    let fixture = Fixture::start().await;
    let before = fixture.sidecar.process.resident();
    for (what, answer) in REFUSED {
        let text = fixture.ask(answer).await;
        let refused = ["502", "504"]
            .iter()
            .any(|status| text.starts_with(&format!("HTTP/1.1 {status}")));
        let reasoned = text.contains("\"connection_broken\"") || text.contains("\"response_timeout\"");
        assert!(refused && reasoned, "{what}: {text}");
        assert!(!text.contains("SMUGGLED") && !text.contains("forged"), "{what}: {text}");
        fixture.serves_on(what).await;
    }
    let grown = fixture.sidecar.process.resident().saturating_sub(before);
    assert!(grown < ROOM, "{} MiB", grown >> 20);
}

/// What its body is, is told by its end alone.
const BROKEN: &[Evil] = &[
    ("more than the length", |n| body(n, "2", &[b"too much"])),
    ("less than the length", |n| body(n, "70", &[b"few"])),
    ("a reset", |n| {
        let begun = [
            frame(HEADERS, END_HEADERS, n, &fields(&[OK])),
            frame(DATA, 0, n, b"begun"),
        ]
        .concat();
        Answer::of([begun, frame(RST_STREAM, 0, n, &[0, 0, 0, 2])].concat())
    }),
    ("silence", |n| {
        Answer::of(
            [
                frame(HEADERS, END_HEADERS, n, &fields(&[OK])),
                frame(DATA, 0, n, b"begun"),
            ]
            .concat(),
        )
    }),
    ("the end of its connection", |n| {
        Answer::last(
            [
                frame(HEADERS, END_HEADERS, n, &fields(&[OK])),
                frame(DATA, 0, n, b"begun"),
            ]
            .concat(),
        )
    }),
];

fn body(stream: u32, length: &str, pieces: &[&[u8]]) -> Answer {
    let mut said = frame(HEADERS, END_HEADERS, stream, &fields(&[OK, ("content-length", length)]));
    for piece in pieces {
        said.extend(frame(DATA, 0, stream, piece));
    }
    said.extend(frame(DATA, END_STREAM, stream, b""));
    Answer::of(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_http_2_that_breaks_off_is_not_ended_for_its_caller() {
    let fixture = Fixture::start().await;
    for (what, answer) in BROKEN {
        let text = fixture.ask(answer).await;
        let whole = text.starts_with("HTTP/1.1 200") && text.ends_with("0\r\n\r\n");
        assert!(!whole && !text.contains("too much"), "{what}: {text}");
        fixture.serves_on(what).await;
    }
}

/// An agent that takes no streams, or no body, is late: its caller is told, and the place is free.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_takes_nothing_is_late() {
    let fixture = Fixture::start().await;
    for (what, parameter) in [("no streams", (3, 0)), ("no body", (4, 0))] {
        // Said in the first answer on a connection; each worker of the sidecar has its own.
        let says = move |n| match parameter.0 {
            3 => Answer::of([frames::settings(&[parameter]), good(n).first].concat()),
            _ => Answer::of(frames::settings(&[parameter])),
        };
        let body = "x".repeat(300_000);
        let asked = format!(
            "POST http://hostile.aip.internal/late HTTP/1.1\r\nHost: hostile.aip.internal\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        fixture.agent.answers(says);
        wait::until(what, async || {
            let text = fixture.pair.raw(&asked, to_the_end).await;
            (text.starts_with("HTTP/1.1 504") && text.contains("\"response_timeout\"")).then_some(())
        })
        .await;
        wait::until("nothing is in flight", async || {
            let page = fixture.sidecar.look("/connections").await.json();
            (page["requests"].as_u64() == Some(0)).then_some(())
        })
        .await;
    }
}

//! Floods of HTTP/2 frames at both ports of a sidecar: each ends its own connection, or is only work; none takes memory
//! or places from others.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_api::resource::Traffic;
use aip_tests::agent::LARGE;
use aip_tests::frames::{
    self, CONTINUATION, DATA, END_HEADERS, ENHANCE_YOUR_CALM, Fate, HEADERS, PING, REFUSED_STREAM, RST_STREAM, Raw,
    SETTINGS, WHOLE, WINDOW_UPDATE, frame, request,
};
use aip_tests::pair::{Pair, Port};
use aip_tests::wait;
use tokio::sync::OnceCell;

static PAIR: OnceCell<Pair> = OnceCell::const_new();

async fn pair() -> &'static Pair {
    PAIR.get_or_init(async || Pair::start().await).await
}

const BOTH: [Port; 2] = [Port::Outbound, Port::Inbound];
/// Bytes of memory that a flood may leave behind, in a process that allocates in mebibytes: each of these sends more, or would be
/// read into more.
const ROOM: u64 = 48 << 20;

fn stream(n: usize) -> u32 {
    u32::try_from(2 * n + 1).unwrap()
}

/// Floods a port, and sees that its sidecar has its memory, nothing in flight, and serves others: also while the flood's
/// connection is there.
async fn flooded<T>(port: Port, path: &str, flood: impl AsyncFnOnce(&mut Raw) -> T) -> T {
    let pair = pair().await;
    let mut raw = pair.frames(port, &[]).await;
    let before = pair.behind(port).process.resident();
    let result = flood(&mut raw).await;
    let grown = pair.behind(port).process.resident().saturating_sub(before);
    assert!(grown < ROOM, "{port:?}: {path}: {} MiB", grown >> 20);
    let good = format!("{path}-{port:?}");
    assert_eq!(pair.get(&good).await.status, 200, "{good}");
    pair.agent.only(&good);
    drop(raw);
    is_at_rest(pair, port).await;
    result
}

/// Nothing is in flight, and nothing is held.
async fn is_at_rest(pair: &Pair, port: Port) {
    wait::until_ok("everything is given back", async || {
        let page = pair.behind(port).look("/connections").await.json();
        match (page["requests"].as_u64(), page["held_bytes"].as_u64()) {
            (Some(0), Some(0)) => Ok(()),
            _ => Err(page.to_string()),
        }
    })
    .await;
}

/// CVE-2023-44487.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_at_once_end_their_connection() {
    for port in BOTH {
        flooded(port, "/after-resets", async |raw| {
            raw.flood(50_000, |n| {
                let reset = frame(RST_STREAM, 0, stream(n), &8_u32.to_be_bytes());
                [frame(HEADERS, WHOLE, stream(n), &request("GET", "/reset")), reset].concat()
            })
            .await;
            assert_eq!(raw.until_ended().await, Some(ENHANCE_YOUR_CALM), "{port:?}");
        })
        .await;
    }
}

/// CVE-2025-8671: what makes the server reset, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_the_server_is_made_to_reset_end_their_connection() {
    for port in BOTH {
        flooded(port, "/after-made-resets", async |raw| {
            raw.flood(5_000, |n| {
                let head = [request("POST", "/reset"), frames::field(b"content-length", b"0")].concat();
                [
                    frame(HEADERS, END_HEADERS, stream(n), &head),
                    frame(DATA, 0, stream(n), b"x"),
                ]
                .concat()
            })
            .await;
            assert_eq!(raw.until_ended().await, Some(ENHANCE_YOUR_CALM), "{port:?}");
        })
        .await;
    }
    assert!(pair().await.agent.seen("/reset").is_empty(), "none was whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end_ends_its_connection() {
    for port in BOTH {
        for (what, piece) in [("large", vec![b'x'; 16_000]), ("empty", Vec::new())] {
            flooded(port, &format!("/after-endless-{what}"), async |raw| {
                let begun = [
                    frames::fields(&[(":method", "GET")]),
                    vec![0, 1, b'x', 0x7f, 0xff, 0xff, 0x7f],
                ]
                .concat();
                assert!(raw.send(&frame(HEADERS, 0, 1, &begun)).await);
                let taken = raw.flood(20_000, |_| frame(CONTINUATION, 0, 1, &piece)).await;
                assert!(raw.until_ended().await.is_some() || taken < 20_000, "{port:?}: {what}");
            })
            .await;
        }
    }
}

/// 4 KB that stand in the table, and are named by one byte each.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_unfolds_to_a_great_one_is_no_request() {
    for port in BOTH {
        flooded(port, "/after-unfolding", async |raw| {
            let large = frames::indexed(b"x-large", &[b'x'; 3_900]);
            let head = [request("GET", "/unfolded"), large, vec![0xbe; 10_000]].concat();
            for n in 0..20 {
                raw.send(&frame(HEADERS, WHOLE, stream(n), &head)).await;
            }
            let fate = raw.until(stream(0)).await;
            assert!(
                !matches!(&fate, Fate::Answered(body) if !body.is_empty()),
                "{port:?}: {fate:?}"
            );
        })
        .await;
    }
    assert!(pair().await.agent.seen("/unfolded").is_empty());
}

/// A ping and a change of settings are answered each. Who never reads the answers is read no further.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_no_answers_is_not_listened_to_without_end() {
    const TIMES: usize = 2_000_000;
    let pair = pair().await;
    let one = async |port: Port, bytes: Vec<u8>| {
        let mut raw = pair.unbegun(port).await;
        let before = pair.behind(port).process.resident();
        assert!(raw.send(&[frames::PREFACE, &frames::settings(&[])].concat()).await);
        let taken = raw.flood(TIMES, |_| bytes.clone()).await;
        assert!(taken < TIMES, "{port:?}: all of {} MiB", (TIMES * bytes.len()) >> 20);
        let grown = pair.behind(port).process.resident().saturating_sub(before);
        assert!(grown < ROOM, "{port:?}: {} MiB", grown >> 20);
    };
    let (ping, settings) = (|| frame(PING, 0, 0, &[7; 8]), || frames::settings(&[(3, 100)]));
    tokio::join!(
        one(Port::Outbound, ping()),
        one(Port::Inbound, ping()),
        one(Port::Outbound, settings()),
        one(Port::Inbound, settings()),
    );
    assert_eq!(pair.get("/after-unread").await.status, 200);
}

/// What is answered at once, or means nothing, is only work.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_say_nothing_are_only_work() {
    const TIMES: usize = 50_000;
    for port in BOTH {
        flooded(port, "/after-nothing", async |raw| {
            for bytes in [
                frame(PING, 0, 0, &[7; 8]),
                frame(SETTINGS, 0, 0, &[]),
                frame(frames::PRIORITY, 0, 1, &[0, 0, 0, 3, 1]),
                frame(0xbb, 0xff, 5, &[0; 256]),
            ] {
                assert_eq!(raw.flood(TIMES, |_| bytes.clone()).await, TIMES, "{port:?}: {bytes:?}");
            }
            assert!(
                raw.send(&frame(HEADERS, WHOLE, 3, &request("GET", "/after-all-that")))
                    .await
            );
            assert!(matches!(raw.until(3).await, Fate::Answered(_)), "{port:?}");
        })
        .await;
    }
}

/// CVE-2019-9518.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_nothing_without_end_ends_its_connection() {
    for port in BOTH {
        flooded(port, "/after-empty", async |raw| {
            assert!(
                raw.send(&frame(HEADERS, END_HEADERS, 1, &request("POST", "/empty-body")))
                    .await
            );
            raw.flood(1_000_000, |_| frame(DATA, 0, 1, &[])).await;
            assert_eq!(raw.until_ended().await, Some(ENHANCE_YOUR_CALM), "{port:?}");
        })
        .await;
    }
    assert!(pair().await.agent.seen("/empty-body").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_past_the_limit_are_refused_and_their_places_given_back() {
    const STREAMS: usize = 700;
    for port in BOTH {
        let refused = flooded(port, "/after-streams", async |raw| {
            let open = |n| frame(HEADERS, END_HEADERS, stream(n), &request("POST", "/never-ends"));
            assert_eq!(raw.flood(STREAMS, open).await, STREAMS);
            wait::until("the last is refused", async || raw.fate(stream(STREAMS - 1))).await
        })
        .await;
        assert_eq!(refused, Fate::Reset(REFUSED_STREAM), "{port:?}");
    }
    assert!(pair().await.agent.seen("/never-ends").is_empty());
}

/// A pair whose callee takes so many requests at once, of all and of one peer, and cuts them after this silence.
async fn with_limits(all: u32, of_peer: u32, idle_ms: u64) -> Pair {
    let pair = Pair::start().await;
    let mut traffic = Traffic::defaults();
    (traffic.agent, traffic.idle_timeout_ms) = ("callee".into(), idle_ms);
    (traffic.max_concurrency, traffic.peer_max_concurrency) = (all, Some(of_peer));
    let revision = pair.scripted.put(&traffic);
    wait::until("the callee has its limits", async || {
        (pair.callee.snapshot().await["revision"].as_u64() >= Some(revision)).then_some(())
    })
    .await;
    pair
}

/// Bytes of an answer for a client that takes none: what the library holds of each, and no place after the idle time.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_opens_no_window_keeps_its_places_for_the_idle_time_only() {
    const WAITING: usize = 4;
    let pair = with_limits(8, 4, 5_000).await;
    let mut raw = pair.frames(Port::Inbound, &[(4, 0)]).await;
    // More than the library holds of an answer.
    let body = vec![b'x'; 16_000];
    for n in 0..WAITING {
        assert!(
            raw.send(&frame(HEADERS, END_HEADERS, stream(n), &request("POST", "/unread")))
                .await
        );
        for last in 0..30 {
            let flags = if last == 29 { frames::END_STREAM } else { 0 };
            assert!(raw.send(&frame(DATA, flags, stream(n), &body)).await);
        }
    }
    wait::until("all are with the agent", async || {
        (pair.agent.seen("/unread").len() == WAITING).then_some(())
    })
    .await;
    for n in 0..WAITING {
        let fate = raw.until(stream(n)).await;
        assert!(matches!(fate, Fate::Reset(_)), "{fate:?}");
    }
    is_at_rest(&pair, Port::Inbound).await;
    let cut = pair.callee.metric("aip_streams_cut_total", &["idle"]).await;
    assert_eq!(cut, WAITING as f64);
    assert_eq!(pair.get("/after-windows").await.status, 200);
}

/// Whole answers, of which nobody reads a byte, though every window is open: what the library holds of them is bounded over
/// all of a peer's connections. The rest waits, and is cut after the idle time.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_leaves_unread_on_all_its_connections_is_bounded() {
    const EACH: usize = 400;
    /// So few that none of them is silent for long before it is with the agent.
    const AT_ONCE: usize = 50;
    /// As docs/security.md has them.
    const OF_PEER: usize = 64 << 20;
    const MAX_WINDOW: u32 = (1 << 31) - 1;
    let pair = with_limits(2_000, 2_000, 2_000).await;
    let before = pair.callee.process.resident();
    let mut open = [pair.unbegun(Port::Inbound).await, pair.unbegun(Port::Inbound).await];
    for raw in &mut open {
        let window = frame(WINDOW_UPDATE, 0, 0, &(MAX_WINDOW - 65_535).to_be_bytes());
        let begun = [frames::PREFACE, &frames::settings(&[(4, MAX_WINDOW)]), &window].concat();
        assert!(raw.send(&begun).await);
    }
    for n in (0..EACH).step_by(AT_ONCE) {
        for raw in &mut open {
            let ask = |n| frame(HEADERS, WHOLE, stream(n), &request("GET", "/great"));
            let asked: Vec<u8> = (n..n + AT_ONCE).flat_map(ask).collect();
            assert!(raw.send(&asked).await);
        }
        wait::until("all of them are with the agent", async || {
            (pair.agent.seen("/great").len() == 2 * (n + AT_ONCE)).then_some(())
        })
        .await;
    }
    is_at_rest(&pair, Port::Inbound).await;
    let cut = pair.callee.metric("aip_streams_cut_total", &["idle"]).await;
    // Some is in the buffers of both connections' sockets, besides.
    let fit = (OF_PEER + (16 << 20)) / LARGE;
    assert!(cut >= (2 * EACH - fit) as f64, "{cut}");
    assert_eq!(pair.get("/after-unread-answers").await.status, 200);
    drop(open);
    wait::until_ok("it is given back", async || {
        match pair.callee.process.resident().saturating_sub(before) {
            grown if grown < ROOM => Ok(()),
            grown => Err(format!("{} MiB", grown >> 20)),
        }
    })
    .await;
}

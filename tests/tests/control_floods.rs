//! Floods of HTTP/2 frames at the control plane's port, of somebody who has no SVID: each ends its own connection, or is only
//! work, and orders to stop go out meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aip_tests::agent::Agent;
use aip_tests::frames::{
    self, CONTINUATION, DATA, END_HEADERS, ENHANCE_YOUR_CALM, Fate, HEADERS, PING, REFUSED_STREAM, RST_STREAM, Raw,
    SETTINGS, frame,
};
use aip_tests::process::{Mesh, Sidecar};
use aip_tests::wait;
use http::Method;
use serde_json::json;

/// Bytes of memory that a flood may leave behind, in a process that allocates in mebibytes.
const ROOM: u64 = 48 << 20;

fn stream(n: usize) -> u32 {
    u32::try_from(2 * n + 1).unwrap()
}

/// The head of a call of `method`.
fn call(method: &str) -> Vec<u8> {
    frames::fields(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "aip.invalid"),
        (":path", &format!("/aip.mesh.v1.{method}")),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

struct Rig {
    mesh: Mesh,
    sidecar: Sidecar,
    _agent: Agent,
}

impl Rig {
    async fn start() -> Self {
        let (mesh, agent) = (Mesh::start().await, Agent::start());
        let sidecar = mesh.sidecar("planner", agent.address).await;
        let rig = Self {
            mesh,
            sidecar,
            _agent: agent,
        };
        rig.orders_go_out("before").await;
        rig
    }

    /// An order is acknowledged, and so is its end.
    async fn orders_go_out(&self, when: &str) {
        let admin = self.mesh.admin();
        let order = json!({"scope": {"kind": "agent", "agent": "planner"}, "mode": "pause", "reason": when});
        let order = admin.ok(Method::POST, "/v1/kills", Some(&order)).await;
        let (term, epoch) = (&order["term"], &order["epoch"]);
        let path = format!("/v1/kills/progress?term={term}&epoch={epoch}&wait_ms=10000");
        wait::until_ok("it is enforced", async || {
            let shown = admin.get(&path).await;
            let enforced = shown["enforced"].as_array().map_or(0, Vec::len);
            match enforced == 1 && shown["missing"] == json!([]) {
                true => Ok(()),
                false => Err(format!("{when}: {shown}")),
            }
        })
        .await;
        let orders = json!({"orders": [order["order"]]});
        admin.ok(Method::POST, "/v1/kills/resume", Some(&orders)).await;
        wait::until("it serves again", async || {
            let get = aip_tests::http::get(self.sidecar.probes, "/readyz").await;
            get.is_ok_and(|ready| ready.status.is_success()).then_some(())
        })
        .await;
    }

    /// Floods the port, and sees that the control plane has its memory and its work, also while the flood's connection is there.
    async fn flooded(&self, what: &str, flood: impl AsyncFnOnce(&mut Raw)) {
        let plane = &self.mesh.control_plane;
        let mut raw = Raw::stranger(plane.mesh).await.begin(&[]).await;
        let before = plane.process.resident();
        flood(&mut raw).await;
        self.holds(what, before).await;
        drop(raw);
    }

    async fn holds(&self, what: &str, before: u64) {
        let grown = self.mesh.control_plane.process.resident().saturating_sub(before);
        assert!(grown < ROOM, "{what}: {} MiB", grown >> 20);
        self.orders_go_out(what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_their_connection_and_orders_go_out() {
    let rig = Rig::start().await;
    rig.flooded("rapid reset", async |raw| {
        raw.flood(50_000, |n| {
            let reset = frame(RST_STREAM, 0, stream(n), &8_u32.to_be_bytes());
            [
                frame(HEADERS, END_HEADERS, stream(n), &call("Identity/Challenge")),
                reset,
            ]
            .concat()
        })
        .await;
        assert_eq!(raw.until_ended().await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
    rig.flooded("resets of the server", async |raw| {
        raw.flood(20_000, |n| {
            let head = [call("Identity/Challenge"), frames::field(b"content-length", b"0")].concat();
            [
                frame(HEADERS, END_HEADERS, stream(n), &head),
                frame(DATA, 0, stream(n), b"x"),
            ]
            .concat()
        })
        .await;
        assert_eq!(raw.until_ended().await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
    for piece in [vec![b'x'; 16_000], Vec::new()] {
        rig.flooded("a head without end", async |raw| {
            let begun = [
                frames::fields(&[(":method", "POST")]),
                vec![0, 1, b'x', 0x7f, 0xff, 0xff, 0x7f],
            ]
            .concat();
            assert!(raw.send(&frame(HEADERS, 0, 1, &begun)).await);
            let taken = raw.flood(20_000, |_| frame(CONTINUATION, 0, 1, &piece)).await;
            assert!(raw.until_ended().await.is_some() || taken < 20_000);
        })
        .await;
    }
    rig.flooded("a body of nothing", async |raw| {
        assert!(raw.send(&frame(HEADERS, END_HEADERS, 1, &call("Identity/Issue"))).await);
        raw.flood(1_000_000, |_| frame(DATA, 0, 1, &[])).await;
        assert_eq!(raw.until_ended().await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_unfolds_is_no_call_and_streams_past_the_limit_are_refused() {
    let rig = Rig::start().await;
    rig.flooded("a head that unfolds", async |raw| {
        // For the agent `x`: what answers it has a nonce.
        let message = [0, 0, 0, 0, 3, 0x0a, 1, b'x'];
        let is_challenged = |fate: &Fate| matches!(fate, Fate::Answered(body) if !body.is_empty());
        let good = call("Identity/Challenge");
        let large = frames::indexed(b"x-large", &[b'x'; 3_900]);
        let unfolds = [good.clone(), large, vec![0xbe; 10_000]].concat();
        for n in 0..20 {
            let head = if n == 0 { &good } else { &unfolds };
            raw.send(&frame(HEADERS, END_HEADERS, stream(n), head)).await;
            raw.send(&frame(DATA, frames::END_STREAM, stream(n), &message)).await;
            if n == 0 {
                let fate = raw.until(stream(0)).await;
                assert!(is_challenged(&fate), "a good head: {fate:?}");
            }
        }
        let fate = raw.until(stream(1)).await;
        assert!(!is_challenged(&fate), "one that unfolds: {fate:?}");
    })
    .await;
    rig.flooded("many streams", async |raw| {
        const STREAMS: usize = 100;
        let open = |n| frame(HEADERS, END_HEADERS, stream(n), &call("Identity/Issue"));
        assert_eq!(raw.flood(STREAMS, open).await, STREAMS);
        let last = wait::until("the last is refused", async || raw.fate(stream(STREAMS - 1))).await;
        assert_eq!(last, Fate::Reset(REFUSED_STREAM));
    })
    .await;
}

/// Who never reads the answers is read no further; who does, gets all of them.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_answered_are_only_work_and_who_reads_no_answers_is_not_listened_to() {
    const TIMES: usize = 2_000_000;
    let rig = Rig::start().await;
    let (ping, settings) = (frame(PING, 0, 0, &[7; 8]), frames::settings(&[(3, 100)]));
    rig.flooded("frames that say nothing", async |raw| {
        for bytes in [&ping, &frame(SETTINGS, 0, 0, &[]), &frame(0xbb, 0xff, 5, &[0; 256])] {
            assert_eq!(raw.flood(20_000, |_| bytes.clone()).await, 20_000, "{bytes:?}");
        }
        assert!(
            raw.send(&frame(HEADERS, END_HEADERS, 1, &call("Identity/Challenge")))
                .await
        );
        assert!(raw.send(&frame(DATA, frames::END_STREAM, 1, &[0, 0, 0, 0, 0])).await);
        assert!(matches!(raw.until(1).await, Fate::Answered(_)));
    })
    .await;
    let plane = &rig.mesh.control_plane;
    let before = plane.process.resident();
    let one = async |bytes: Vec<u8>| {
        let mut raw = Raw::stranger(plane.mesh).await;
        assert!(raw.send(&[frames::PREFACE, &frames::settings(&[])].concat()).await);
        let taken = raw.flood(TIMES, |_| bytes.clone()).await;
        assert!(taken < TIMES, "all of {} MiB", (TIMES * bytes.len()) >> 20);
        raw
    };
    let _open = tokio::join!(one(ping.clone()), one(settings));
    rig.holds("answers that nobody reads", before).await;
}

//! The calls, each with what it must be answered.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip_tests::http::{Answer, send};
use aip_tests::process::Sidecar;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use super::{LANES, STANDING, name};

/// Between two calls of a lane: what two cores do beside everything else.
const PAUSE: Duration = Duration::from_millis(50);
/// Every so many calls, one that policy denies, and one with a body of many frames.
const DENIED: u64 = 10;
const LARGE: u64 = 25;
const LARGE_BYTES: usize = 256 * 1024;
/// What is kept of what went wrong.
const SHOWN: usize = 50;

/// What became of all calls.
#[derive(Debug, Default)]
pub(super) struct Tally {
    answered: AtomicU64,
    denied: AtomicU64,
    failed: AtomicU64,
    shown: Mutex<Vec<String>>,
}

impl Tally {
    pub(super) fn failed(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut shown = self.shown.lock().unwrap();
        if shown.len() < SHOWN {
            eprintln!("{what}");
            shown.push(what);
        }
    }

    /// # Panics
    /// A call was answered otherwise than it must be, or there were none.
    pub(super) fn is_clean(&self) {
        let failed = self.failed.load(Ordering::Relaxed);
        assert_eq!(failed, 0, "{:#?}", self.shown.lock().unwrap());
        for (what, count) in [("answered", &self.answered), ("denied", &self.denied)] {
            assert!(count.load(Ordering::Relaxed) > 100, "few calls were {what}: {self}");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (answered, denied, failed) = (count(&self.answered), count(&self.denied), count(&self.failed));
        write!(
            f,
            "{answered} calls answered, {denied} denied as they must be, {failed} failed"
        )
    }
}

/// One agent's calls, one after the other.
pub(super) struct Lane {
    number: usize,
    from: SocketAddr,
}

impl Lane {
    pub(super) fn of(number: usize, standing: &[Sidecar]) -> Self {
        Self {
            number,
            from: standing[number / LANES].outbound,
        }
    }

    pub(super) async fn run(self, stop: Arc<AtomicBool>, tally: Arc<Tally>) {
        let own = self.number / LANES;
        for n in 0_u64.. {
            if stop.load(Ordering::Acquire) {
                return;
            }
            // Each of the others in turn.
            let nth = usize::try_from(n).unwrap() % (STANDING - 1);
            let to = name((own + 1 + nth) % STANDING);
            let body = if n % LARGE == 0 { LARGE_BYTES } else { 100 };
            let path = if n % DENIED == 0 { "/denied" } else { "/soak" };
            call(self.from, &to, path, body, &tally).await;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A call that must be echoed, or denied where its path says so.
pub(super) async fn call(from: SocketAddr, to: &str, path: &str, bytes: usize, tally: &Tally) {
    let body = Bytes::from(vec![b'x'; bytes]);
    let answer = send(from, request(to, path, body.clone())).await;
    let is_denied = path == "/denied";
    let what = match &answer {
        Ok(answer) if is_denied && answer.status == 403 && reason(answer) == "no_denied" => {
            tally.denied.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Ok(answer) if !is_denied && answer.status == 200 && answer.body == body => {
            tally.answered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Ok(answer) => format!(
            "{} with {} bytes: {:.300}",
            answer.status,
            answer.body.len(),
            answer.text()
        ),
        Err(why) => why.clone(),
    };
    tally.failed(format!("{path} at {to}, with {bytes} bytes: {what}"));
}

pub(super) fn request(to: &str, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    let host = format!("{to}.aip.internal");
    let request = Request::post(format!("http://{host}{path}")).header("host", host);
    request.body(Full::new(body)).unwrap()
}

fn reason(answer: &Answer) -> String {
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    problem["rule"].as_str().unwrap_or_default().to_owned()
}

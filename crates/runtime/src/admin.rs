//! Probes, metrics, and servers on a thread of their own: a busy data path can't starve what an operator looks at.

mod stall;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

pub use stall::Stalling;

use crate::door::{Bounds, Door, Place};
use crate::ready::Readiness;
use crate::telemetry::Metrics;

/// How long a request's head may take, and how long a connection may be idle between two: what stalls here stalls on
/// purpose.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// Headers of a request, and their bytes: what tools and browsers send, several times over.
const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Connections of one such port, many times what probes and scrapers open. Nobody shows who they are here, so past it the
/// oldest gives way: connections that ask nothing keep no probe from its answer.
const MAX_CONNECTIONS: usize = 64;
const BOUNDS: Bounds = Bounds {
    connections: MAX_CONNECTIONS,
    connections_per_source: MAX_CONNECTIONS,
    strangers: MAX_CONNECTIONS,
    anonymous: MAX_CONNECTIONS,
};

/// How HTTP/1.1 is served to people and their tools: heads are bounded, and have to come.
pub fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
}

/// `GET /livez` (the process answers) and `GET /readyz` (all gates are open; else 503 and which are not).
pub fn probes(ready: Readiness) -> Router {
    async fn readyz(State(ready): State<Readiness>) -> impl IntoResponse {
        let missing = ready.missing();
        if missing.is_empty() {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: waiting for {}\n", missing.join(", ")),
            )
        }
    }
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .with_state(ready)
}

/// `GET /metrics`, Prometheus text exposition.
pub fn metrics(metrics: Metrics) -> Router {
    let render = async |State(metrics): State<Metrics>| {
        (
            [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
            metrics.render(),
        )
    };
    Router::new().route("/metrics", get(render)).with_state(metrics)
}

/// A server on its own thread; it ends when this is dropped.
#[derive(Debug)]
pub struct AdminThread {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for AdminThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves `router` on `listener` (non-blocking, as [`crate::settings::listen`] makes it) on a thread of its own.
///
/// # Errors
/// The thread or its runtime can't be made.
pub fn serve_on_own_thread(name: &'static str, listener: TcpListener, router: Router) -> io::Result<AdminThread> {
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        runtime.block_on(async move {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, name, "the server can't listen");
                    return;
                }
            };
            // Not a graceful shutdown: an idle keep-alive connection must not hold the process.
            tokio::select! {
                () = accept(listener, router) => {}
                _ = stopped => {}
            }
        });
    })?;
    Ok(AdminThread {
        address,
        stop: Some(stop),
        thread: Some(thread),
    })
}

async fn accept(listener: tokio::net::TcpListener, router: Router) {
    let door = Door::new(BOUNDS);
    loop {
        let (tcp, guest) = door.guest(&listener).await;
        tokio::spawn(connection(tcp, guest.plain(), router.clone()));
    }
}

async fn connection(tcp: TcpStream, place: Place, router: Router) {
    let io = TokioIo::new(Stalling::new(tcp));
    let serving = http1().serve_connection(io, TowerToHyperService::new(router));
    tokio::select! {
        _ = serving => {}
        () = place.gives_way() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;
    use crate::settings::listen;

    /// The answer to one request on a connection of its own.
    fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let request = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn requests_that_never_end_keep_no_probe_from_its_answer_and_do_not_stay() {
        let listener = listen("probes", "--probes", SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let server = serve_on_own_thread("probes", listener, probes(Readiness::new(&[]))).unwrap();
        let held: Vec<TcpStream> = (0..3 * MAX_CONNECTIONS)
            .map(|_| {
                let mut stream = TcpStream::connect(server.address).unwrap();
                let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nx-half: ");
                stream
            })
            .collect();
        assert!(ask(server.address).ends_with("alive\n"));
        // All but as many as may be were closed: a read ends at once, also where it ends with a reset.
        let mut closed = 0;
        for mut stream in held.into_iter().take(2 * MAX_CONNECTIONS) {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let waits = |e: &io::Error| matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            closed += usize::from(!stream.read(&mut [0]).is_err_and(|e| waits(&e)));
        }
        assert_eq!(closed, 2 * MAX_CONNECTIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_to_come() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, mut far) = tokio::io::duplex(1024);
        let router = TowerToHyperService::new(probes(Readiness::new(&[])));
        let serving = tokio::spawn(http1().serve_connection(TokioIo::new(near), router));
        far.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let began = tokio::time::Instant::now();
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        assert!(began.elapsed() >= HEAD_DEADLINE && began.elapsed() < 2 * HEAD_DEADLINE);
        assert!(serving.await.unwrap().is_err());
    }
}

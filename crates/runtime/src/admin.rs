//! Probes, metrics, and servers on a thread of their own: a busy data path can't starve what an operator looks at.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::oneshot;

use crate::ready::Readiness;
use crate::telemetry::Metrics;

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
                served = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()) => {
                    if let Err(error) = served {
                        tracing::error!(%error, name, "the server ended");
                    }
                }
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

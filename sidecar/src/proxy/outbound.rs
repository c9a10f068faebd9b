//! 15001: the sidecar's own agent, on this machine. HTTP/1.1 or HTTP/2 with prior knowledge; requests in absolute form
//! or by `Host`, and CONNECT.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aip_policy::Direction;
use aip_runtime::drain::DrainWatch;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::io::{Speaks, sniff};
use super::limits::{
    CONNECTION_WINDOW, HEADER_READ_TIMEOUT, MAX_HEADER_LIST, MAX_HTTP1_BUFFER, MAX_LOCAL_RESETS,
    MAX_OUTBOUND_CONNECTIONS, MAX_PENDING_RESETS, MAX_STREAMS, STREAM_WINDOW,
};
use super::{Proxy, inbound, metrics, tunnel};
use crate::request::body::Body;
use crate::request::refusal::{self, Refusal};
use crate::request::{From, Via, pipeline};

/// How long the loop waits after `accept` failed: out of file descriptors, usually, and then trying at once is a spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The next connection, however long the system has none to give.
pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                inbound::tune(&tcp);
                return tcp;
            }
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

pub(super) async fn serve(listener: TcpListener, proxy: Arc<Proxy>, drain: DrainWatch) {
    let connections = Arc::new(Semaphore::new(MAX_OUTBOUND_CONNECTIONS));
    let mut drain = Some(drain);
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let draining = async {
            match &mut drain {
                Some(drain) => drain.draining().await,
                None => std::future::pending().await,
            }
        };
        let tcp = tokio::select! {
            tcp = accept(&listener) => tcp,
            () = draining => {
                // From now on nobody waits for this loop, nor for what it accepts.
                drain = None;
                continue;
            }
        };
        let (proxy, drain) = (proxy.clone(), drain.clone());
        let workers = proxy.settings.workers.clone();
        workers.serve(tcp, async move |tcp| {
            let _permit = permit;
            connection(proxy, tcp, drain).await;
        });
    }
}

async fn connection(proxy: Arc<Proxy>, mut tcp: TcpStream, drain: Option<DrainWatch>) {
    if !tcp.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
        metrics::refused(Direction::Outbound, Refusal::NotLoopback);
        let _ = tcp.write_all(&refusal::raw(&Refusal::NotLoopback.into(), "")).await;
        return;
    }
    proxy.metrics.connections(Direction::Outbound, 1.0);
    if let Ok((speaks, stream)) = sniff(tcp, HEADER_READ_TIMEOUT).await {
        let via = Via {
            from: From::Agent,
            drain,
        };
        serve_http(proxy.clone(), via, speaks, stream).await;
    }
    proxy.metrics.connections(Direction::Outbound, -1.0);
}

/// Serves HTTP on a stream of the agent's: a connection of its own, or the inside of a tunnel. Boxed, since a tunnel
/// inside a connection is served by the same code.
pub(super) fn serve_http<IO>(
    proxy: Arc<Proxy>,
    via: Via,
    speaks: Speaks,
    stream: IO,
) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Box::pin(serve_stream(proxy, via, speaks, stream))
}

async fn serve_stream<IO>(proxy: Arc<Proxy>, via: Via, speaks: Speaks, mut stream: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let drain = via.drain.clone();
    let via = Arc::new(via);
    match speaks {
        Speaks::Tls => {
            metrics::refused(Direction::Outbound, Refusal::TlsInsideTunnel);
            let _ = stream
                .write_all(&refusal::raw(&Refusal::TlsInsideTunnel.into(), ""))
                .await;
            let _ = stream.shutdown().await;
        }
        Speaks::Http1 => {
            let service = service_fn(move |request| answer(proxy.clone(), via.clone(), request));
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .header_read_timeout(HEADER_READ_TIMEOUT)
                .max_buf_size(MAX_HTTP1_BUFFER)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::pin!(serving);
            tokio::select! {
                _ = serving.as_mut() => return,
                () = draining(drain) => serving.as_mut().graceful_shutdown(),
            }
            let _ = serving.await;
        }
        Speaks::Http2 => {
            let service = service_fn(move |request| answer(proxy.clone(), via.clone(), request));
            // No pings: the other end is on this machine, and gRPC clients count them.
            let serving = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .enable_connect_protocol()
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEADER_LIST)
                .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
                .max_local_error_reset_streams(MAX_LOCAL_RESETS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(serving);
            tokio::select! {
                _ = serving.as_mut() => return,
                () = draining(drain) => serving.as_mut().graceful_shutdown(),
            }
            let _ = serving.await;
        }
    }
}

async fn draining(drain: Option<DrainWatch>) {
    match drain {
        Some(mut drain) => drain.draining().await,
        None => std::future::pending().await,
    }
}

async fn answer(proxy: Arc<Proxy>, via: Arc<Via>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    // RFC 8441's CONNECT is a request like any other.
    let tunnel = request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_none();
    Ok(if tunnel && matches!(via.from, From::Agent) {
        tunnel::connect(proxy, via, request).await
    } else {
        pipeline::handle(proxy, via, request).await
    })
}

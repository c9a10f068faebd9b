//! 15006: peers' sidecars, over mutual TLS and HTTP/2. Nothing else is let in.

use std::convert::Infallible;
use std::sync::Arc;

use aip_policy::Direction;
use aip_runtime::drain::DrainWatch;
use aip_runtime::tls::{self, Clients, TlsError};
use aip_runtime::x509::PeerIdentity;
use arc_swap::ArcSwap;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::connections::Connections;
use super::hops::Seen;
use super::limits::{
    CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_HANDSHAKES, MAX_HEADER_LIST, MAX_INBOUND_CONNECTIONS,
    MAX_LOCAL_RESETS, MAX_PENDING_RESETS, MAX_STREAMS, STREAM_WINDOW,
};
use super::{Proxy, metrics};
use crate::request::{From, Peer, Via, pipeline};

pub(super) async fn serve(listener: TcpListener, proxy: Arc<Proxy>, mut drain: DrainWatch) {
    let config = match tls::server_config(proxy.svid.slot(), &proxy.trust, Clients::Required, tls::ALPN_H2) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "the inbound port can't serve");
            return;
        }
    };
    let connections = Arc::new(Semaphore::new(MAX_INBOUND_CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        // Before `accept`: what can't be served waits in the kernel's bounded queue.
        let permits = async {
            let connection = connections.clone().acquire_owned().await.ok()?;
            Some((connection, handshakes.clone().acquire_owned().await.ok()?))
        };
        let (connection, handshake) = tokio::select! {
            () = drain.draining() => return,
            permits = permits => match permits {
                Some(permits) => permits,
                None => return,
            },
        };
        let tcp = tokio::select! {
            () = drain.draining() => return,
            tcp = super::outbound::accept(&listener) => tcp,
        };
        let (proxy, drain, config) = (proxy.clone(), drain.clone(), config.clone());
        let workers = proxy.settings.workers.clone();
        workers.serve(tcp, async move |tcp| {
            let _connection = connection;
            let accepted = tls::accept(&config, &proxy.trust, tcp).await;
            drop(handshake);
            match accepted {
                Ok((tls, Some(peer))) => connection_of(proxy, tls, peer, drain).await,
                Ok((_, None)) => failed(&TlsError::NoCertificate),
                Err(error) => failed(&error),
            }
        });
    }
}

fn failed(error: &TlsError) {
    metrics::handshake_failed(error.reason());
        share: proxy.shares.of(agent),
    // A stranger can cause any number of these: the counter is what an operator looks at.
    tracing::debug!(reason = error.reason(), %error, "handshake refused");
}

async fn connection_of<IO>(proxy: Arc<Proxy>, tls: IO, peer: PeerIdentity, mut drain: DrainWatch)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(own) = proxy.svid.current() else { return };
    let registered = Connections::register(&proxy, peer, Direction::Inbound, own.identity.not_after);
    let live = registered.live.clone();
    let agent = &live.peer.id.agent;
    let gate = proxy.gates.of(agent, &proxy.mesh.snapshot().traffic);
    let seen = proxy
        .hops
        .entry(agent.clone())
        .or_insert_with(|| Arc::new(Seen::new()))
        .clone();
    let from = From::Peer(Peer {
        live: live.clone(),
        gate: ArcSwap::new(gate),
        seen,
    });
    let via = Arc::new(Via {
        from,
        drain: Some(drain.clone()),
    });
    let service = service_fn(move |request| {
        let (proxy, via) = (proxy.clone(), via.clone());
        async move { Ok::<_, Infallible>(pipeline::handle(proxy, via, request).await) }
    });
    let serving = builder().serve_connection(TokioIo::new(tls), service);
    tokio::pin!(serving);
    let retires = live.retires();
    tokio::pin!(retires);
    let mut ending = false;
    loop {
        tokio::select! {
            // Its errors are the peer's: it hung up, or broke the protocol.
            _ = serving.as_mut() => return,
            // Dropped with all its streams.
            cut = live.ended() => return registered.cut_streams(cut),
            () = drain.draining(), if !ending => ending = true,
            () = &mut retires, if !ending => ending = true,
        }
        serving.as_mut().graceful_shutdown();
    }
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder
}

/// Sets what every connection of ours has.
pub(super) fn tune(tcp: &TcpStream) {
    // Nagle's algorithm would hold back small frames of a stream.
    let _ = tcp.set_nodelay(true);
}

//! 15006: peers' sidecars, over mutual TLS and HTTP/2. Nothing else is let in.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use aip_policy::Direction;
use aip_runtime::door::{Door, Known};
use aip_runtime::drain::DrainWatch;
use aip_runtime::preface::Prefaced;
use aip_runtime::tls::{self, Clients, TlsError};
use aip_runtime::x509::PeerIdentity;
use arc_swap::ArcSwap;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::backlog::Backlog;
use super::connections::Connections;
use super::cork::Corked;
use super::limits::{INBOUND, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use super::recorded::Recorded;
use super::{Proxy, http2, metrics};
use crate::request::{From, Peer, Via, pipeline};

pub(super) async fn serve(listener: TcpListener, proxy: Arc<Proxy>, mut drain: DrainWatch) {
    let config = match tls::server_config(proxy.svid.slot(), &proxy.trust, Clients::Required, tls::ALPN_H2) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "the inbound port can't serve");
            return;
        }
    };
    let door = Door::new(INBOUND);
    loop {
        let (tcp, guest) = tokio::select! {
            () = drain.draining() => return,
            guest = door.guest(&listener) => guest,
        };
        let (proxy, drain, config) = (proxy.clone(), drain.clone(), config.clone());
        let workers = proxy.settings.workers.clone();
        let from = tcp.peer_addr().ok();
        workers.serve(tcp, async move |tcp, _worker| {
            match guest.handshake(tcp, &config, &proxy.trust).await {
                Ok(Known {
                    stream,
                    peer: Some(peer),
                    place: _place,
                }) => connection_of(proxy, stream, peer, drain).await,
                Ok(_) => failed(&proxy, from, &TlsError::NoCertificate),
                Err(error) => failed(&proxy, from, &error),
            }
        });
    }
}

fn failed(proxy: &Proxy, from: Option<SocketAddr>, error: &TlsError) {
    metrics::handshake_failed(error.reason());
    let sample = || from.map(|from| from.ip().to_string()).unwrap_or_default();
    proxy.settings.audit.stranger(error.reason(), sample);
    // A stranger can cause any number of these: the counter is what an operator looks at.
    tracing::debug!(reason = error.reason(), %error, "handshake refused");
}

async fn connection_of<IO>(proxy: Arc<Proxy>, tls: IO, peer: PeerIdentity, mut drain: DrainWatch)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(own) = proxy.svid.current() else { return };
    let share = proxy.shares.of(&peer.id.agent);
    let Some(_connection) = share.connect() else {
        metrics::handshake_failed("peer_connections");
        tracing::debug!(peer = %peer.id, "as many connections of this peer are open as may be");
        return;
    };
    let registered = Connections::register(&proxy, peer, Direction::Inbound, own.identity.not_after);
    let live = registered.live.clone();
    let agent = &live.peer.id.agent;
    let gate = proxy.gates.of(agent, &proxy.mesh.snapshot().traffic);
    let seen = proxy.hops.of(agent);
    let from = From::Peer(Peer {
        live: live.clone(),
        gate: ArcSwap::new(gate),
        backlog: Backlog::new(&share.unread),
        share,
        seen,
    });
    let via = Arc::new(Via {
        from,
        drain: Some(drain.clone()),
        // HTTP/2, whose connection is served for as long as any stream of it is open.
        place: None,
        tunnel: None,
    });
    let stream = Corked::new(Recorded::new(Prefaced::new(tls), &proxy.settings.audit));
    let service = service_fn(move |request| {
        let (proxy, via) = (proxy.clone(), via.clone());
        async move { Ok::<_, Infallible>(pipeline::handle(proxy, via, request).await) }
    });
    let serving = http2::server()
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
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

//! 15001: the sidecar's own agent, on this machine. HTTP/1.1 or HTTP/2 with prior knowledge; requests in absolute form
//! or by `Host`, and CONNECT.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use aip_api::id::DecisionId;
use aip_policy::Direction;
use aip_runtime::door;
use aip_runtime::drain::DrainWatch;
use aip_runtime::sockets;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cork::Corked;
use super::io::{Speaks, sniff};
use super::limits::{
    HEADER_READ_TIMEOUT, MAX_HTTP1_BUFFER, MAX_OUTBOUND_CONNECTIONS, MAX_REFUSED_CONNECTIONS, REFUSED_BODY_WAIT,
    REFUSED_HEAD_BYTES, STRANGER_FIRST_BYTE, STRANGER_SECRET,
};
use super::recorded::Recorded;
use super::stalled::UntilGivenUp;
use super::strangers::{Stranger, Strangers};
use super::{Proxy, http2, metrics, tunnel, workers};
use crate::request::body::Body;
use crate::request::refusal::{self, Refusal};
use crate::request::{From, Via, accept, pipeline};

pub(super) async fn serve(listener: TcpListener, proxy: Arc<Proxy>, drain: DrainWatch) {
    let connections = Arc::new(Semaphore::new(MAX_OUTBOUND_CONNECTIONS));
    let refusals = Arc::new(Semaphore::new(MAX_REFUSED_CONNECTIONS));
    let strangers = Strangers::default();
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
            (tcp, _) = door::accept(&listener) => tcp,
            () = draining => {
                // From now on nobody waits for this loop, nor for what it accepts.
                drain = None;
                continue;
            }
        };
        let (proxy, drain) = (proxy.clone(), drain.clone());
        let refusals = refusals.clone();
        // Where there is no secret to show, everybody who comes so far is let in.
        let stranger = proxy.settings.proxy_secret.is_some().then(|| strangers.enter());
        let workers = proxy.settings.workers.clone();
        workers.serve(tcp, async move |tcp, worker| {
            if let Err(refusal) = is_our_agent(&proxy, &tcp).await {
                let decision = DecisionId::fresh();
                refused(&proxy, &tcp, refusal, &decision);
                // The places are the agent's: a stranger has none while he is told.
                drop((permit, drain));
                if let Ok(_refused) = refusals.try_acquire() {
                    refuse(tcp, refusal, &decision).await;
                }
                return;
            }
            let place = Place::of(&proxy, permit, worker);
            connection(proxy, tcp, drain, stranger, place).await;
        });
    }
}

/// A connection of the agent among those that there may be, for as long as anything of it is open: a tunnel and a switched
/// stream outlive what serves its requests.
pub(crate) struct Place {
    proxy: Arc<Proxy>,
    _permit: OwnedSemaphorePermit,
    _worker: workers::Place,
}

impl Place {
    fn of(proxy: &Arc<Proxy>, permit: OwnedSemaphorePermit, worker: workers::Place) -> Arc<Self> {
        proxy.metrics.connections(Direction::Outbound, 1.0);
        Arc::new(Self {
            proxy: proxy.clone(),
            _permit: permit,
            _worker: worker,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.proxy.metrics.connections(Direction::Outbound, -1.0);
    }
}

async fn connection(
    proxy: Arc<Proxy>,
    tcp: TcpStream,
    drain: Option<DrainWatch>,
    stranger: Option<Arc<Stranger>>,
    place: Arc<Place>,
) {
    let serving = async {
        let first_byte = match stranger {
            Some(_) => STRANGER_FIRST_BYTE,
            None => HEADER_READ_TIMEOUT,
        };
        if let Ok((speaks, stream)) = sniff(tcp, first_byte).await {
            let via = Via {
                from: From::Agent,
                drain,
                place: Some(place),
                tunnel: None,
            };
            serve_http(proxy.clone(), via, stranger.clone(), speaks, stream).await;
        }
    };
    match stranger.as_ref().map(|stranger| stranger.stays()) {
        None => serving.await,
        Some(stays) => {
            tokio::pin!(serving);
            let stays = tokio::select! {
                biased;
                stays = stays => Some(stays),
                () = &mut serving => None,
                () = tokio::time::sleep(STRANGER_SECRET) => None,
            };
            match stays {
                // From here on nothing more is polled than what serves it.
                Some(true) => serving.await,
                Some(false) => metrics::gave_way(),
                None => {}
            }
        }
    }
}

/// Whether the connection comes from where the agent is. What it shows in its requests is looked at there.
async fn is_our_agent(proxy: &Proxy, tcp: &TcpStream) -> Result<(), Refusal> {
    if !tcp.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
        return Err(Refusal::NotLoopback);
    }
    match proxy.settings.agent_uid {
        Some(uid) if !sockets::is_of(tcp, uid).await => Err(Refusal::NotTheAgent),
        _ => Ok(()),
    }
}

/// Takes note of a connection that is not the agent's.
fn refused(proxy: &Proxy, tcp: &TcpStream, refusal: Refusal, decision: &DecisionId) {
    let from = || tcp.peer_addr().map(|from| from.ip().to_string()).unwrap_or_default();
    metrics::refused(Direction::Outbound, refusal);
    proxy.settings.audit.stranger(refusal.reason(), from);
    tracing::warn!(%decision, reason = refusal.reason(), from = from(), "a connection that is not the agent's was refused");
}

/// Answers whatever the client says with a whole response: clients try again without end when a connection is closed
/// without a word, and never read an answer to which they have not asked yet.
async fn refuse(mut tcp: TcpStream, refusal: Refusal, decision: &DecisionId) {
    let mut asked = vec![0; REFUSED_HEAD_BYTES];
    // Also one who says nothing is answered.
    let _ = tokio::time::timeout(REFUSED_BODY_WAIT, tcp.read(&mut asked)).await;
    let _ = tcp
        .write_all(&refusal::raw(&refusal.into(), &decision.to_string()))
        .await;
    let _ = tcp.shutdown().await;
    // Closing with something unread would be a reset, and the answer might be lost.
    let rest = async { while tcp.read(&mut asked).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(REFUSED_BODY_WAIT, rest).await;
}

/// Serves HTTP on a stream of the agent's: a connection of its own, or the inside of a tunnel. Boxed, since a tunnel
/// inside a connection is served by the same code. `stranger` is known from the first request on that shows the secret.
pub(super) fn serve_http<IO>(
    proxy: Arc<Proxy>,
    via: Via,
    stranger: Option<Arc<Stranger>>,
    speaks: Speaks,
    stream: IO,
) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Box::pin(serve_stream(proxy, via, stranger, speaks, stream))
}

async fn serve_stream<IO>(proxy: Arc<Proxy>, via: Via, stranger: Option<Arc<Stranger>>, speaks: Speaks, mut stream: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let drain = via.drain.clone();
    let via = Arc::new(via);
    let audit = proxy.settings.audit.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        if let Some(stranger) = &stranger {
            stranger.learns(|| accept::of_agent(&proxy, request.headers()).is_ok());
        }
        answer(proxy.clone(), via.clone(), request)
    });
    match speaks {
        Speaks::Tls => {
            metrics::refused(Direction::Outbound, Refusal::TlsInsideTunnel);
            let _ = stream
                .write_all(&refusal::raw(&Refusal::TlsInsideTunnel.into(), ""))
                .await;
            let _ = stream.shutdown().await;
        }
        Speaks::Http1 => {
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .header_read_timeout(HEADER_READ_TIMEOUT)
                .max_buf_size(MAX_HTTP1_BUFFER)
                .serve_connection(TokioIo::new(Corked::new(Recorded::new(stream, &audit))), service)
                .with_upgrades();
            let mut serving = UntilGivenUp::new(serving);
            tokio::select! {
                _ = &mut serving => return,
                () = draining(drain) => if let Some(serving) = serving.inner() {
                    serving.graceful_shutdown();
                }
            }
            let _ = serving.await;
        }
        Speaks::Http2 => {
            // No pings: the other end is on this machine, and gRPC clients count them.
            let stream = Corked::new(Recorded::new(stream, &audit));
            let serving = http2::server().serve_connection(TokioIo::new(stream), service);
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

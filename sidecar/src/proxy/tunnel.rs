//! CONNECT in its three meanings: to a name of the mesh, it is answered and what is inside is read like any other
//! connection; to an outside host, TLS goes through untouched once the guard and the name in it agree, and plain HTTP
//! is read, too.

use std::sync::Arc;
use std::time::Duration;

use aip_policy::{Direction, Fact, TraceFacts};
use aip_runtime::unix_now;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::egress::{self, hello};
use super::io::{Prefixed, Speaks, sniff};
use super::limits::TUNNEL_FIRST_BYTE;
use super::pair::{Other, Pairs};
use super::stalled::OpenEnd;
use super::{Proxy, outbound};
use crate::request::body::Body;
use crate::request::classify::content::Kept;
use crate::request::classify::protocol::Content;
use crate::request::classify::target_of;
use crate::request::decide::refusal as refusal_of;
use crate::request::record::{Ends, Record, Said};
use crate::request::refusal::{self, Cut, Refusal, Refused};
use crate::request::told::{self, Decided, End, Told};
use crate::request::{Arrived, From, Target, Via, accept, pipeline, relay};
use aip_api::id::HopId;

/// Answers a CONNECT of the agent.
pub(super) async fn connect(proxy: Arc<Proxy>, via: Arc<Via>, request: Request<Incoming>) -> Response<Body> {
    let (mut head, _) = request.into_parts();
    let upgrade = head.extensions.remove::<OnUpgrade>();
    let asked = target(&proxy, &head).and_then(|target| {
        let upgrade = upgrade.ok_or(Refusal::UpgradeFailed)?;
        if let Target::Outside(host, port) = &target {
            // What is refused by name is refused before the 200: a client then reads why.
            decide(&proxy, host, *port, None)?;
        }
        Ok((target, upgrade))
    });
    let (target, upgrade) = match asked {
        Ok(asked) => asked,
        Err(refused) => return refuse(proxy, via, head, refused).await,
    };
    let (drain, place, tunnel) = (via.drain.clone(), via.place.clone(), Some(Arc::new(OpenEnd::here())));
    tokio::spawn(async move {
        let tunnel = tunnel;
        let Ok(upgraded) = upgrade.await else { return };
        let Ok((speaks, inner)) = sniff(TokioIo::new(upgraded), TUNNEL_FIRST_BYTE).await else {
            return;
        };
        match (speaks, target) {
            (Speaks::Tls, Target::Outside(host, port)) => blind(proxy, host, port, inner).await,
            (speaks, target) => {
                let via = Via {
                    from: From::Tunnel(target),
                    drain,
                    place,
                    tunnel,
                };
                outbound::serve_http(proxy, via, None, speaks, inner).await;
            }
        }
    });
    Response::new(Body::empty())
}

fn authority(head: &Parts) -> &str {
    head.uri
        .authority()
        .map(|authority| authority.as_str())
        .unwrap_or_default()
}

/// Whom a CONNECT asks for, where the agent may ask at all.
fn target(proxy: &Arc<Proxy>, head: &Parts) -> Result<Target, Refused> {
    accept::serves(proxy)?;
    accept::of_agent(proxy, &head.headers)?;
    accept::is_not_stopped(proxy, None)?;
    let authority = authority(head);
    if authority.contains('@') {
        return Err(Refusal::UnsupportedTarget.because("CONNECT takes no user"));
    }
    let target = target_of(proxy, authority)?;
    match head.uri.port_u16() {
        Some(_) => Ok(target),
        None => Err(Refusal::UnsupportedTarget.because("CONNECT needs host:port")),
    }
}

async fn refuse(proxy: Arc<Proxy>, via: Arc<Via>, head: Parts, refused: Refused) -> Response<Body> {
    let mut record = Record::begin(&proxy, Direction::Outbound, Method::CONNECT, "");
    record.connect = true;
    record.on_hop(HopId::fresh());
    record.ends = Ends::asked(authority(&head));
    let arrived = Arrived {
        proxy,
        via,
        head,
        body: None,
        record,
    };
    pipeline::refuse(arrived, refused).await
}

/// Policy and the mesh's list, for a tunnel to an outside host.
fn decide(proxy: &Arc<Proxy>, host: &Arc<str>, port: u16, record: Option<&mut Record>) -> Result<Told, Refused> {
    let own = proxy.svid.current().ok_or(Refusal::NoIdentity)?;
    accept::is_not_stopped(proxy, None)?;
    let (snapshot, now) = (proxy.mesh.snapshot(), unix_now());
    if egress::listed(&snapshot.mesh, host, port).is_none() {
        return Err(Refusal::EgressNotListed.because(format!("{host}:{port}")));
    }
    let pair = Pairs::of(proxy, &snapshot, &own, Other::Outside(host, port), now);
    let told = Told {
        method: Method::CONNECT,
        uri: Uri::default(),
        headers: HeaderMap::new(),
        size: Fact::Unestablished("tunnel"),
        carrier: "tunnel",
        body: Kept::Nothing,
        trace: TraceFacts {
            id: String::new(),
            hops: 1,
        },
        held: None,
    };
    let (decision, _, kept) = told::decision(
        proxy,
        Direction::Outbound,
        &pair,
        &told,
        Content::Other,
        now,
        record.is_some(),
    )?;
    let refused = refusal_of(&decision);
    let enforced = snapshot.me.mode.enforces(now);
    if let Some(record) = record {
        record.verdict = decision.verdict.as_str();
        record.rule = decision.rule().to_owned();
        record.tags.clone_from(&decision.obligations.tags);
        if let Some(refused) = refused.as_ref().filter(|_| !enforced) {
            record.observed = true;
            record.reason = refused.refusal.reason().to_owned();
            proxy.metrics.observed(Direction::Outbound);
        }
        record.ends = Ends::Pair(pair);
        record.audited(decision.obligations.audit, kept);
    }
    match refused {
        Some(refused) if enforced => Err(refused),
        _ => Ok(told),
    }
}

/// TLS to an outside host: guarded, its name compared, and then passed through unread.
async fn blind(proxy: Arc<Proxy>, host: Arc<str>, port: u16, mut inner: Prefixed<TokioIo<Upgraded>>) {
    let mut record = Record::begin(&proxy, Direction::Outbound, Method::CONNECT, "");
    record.connect = true;
    record.blind = true;
    record.on_hop(HopId::fresh());
    record.protocol = Said {
        name: "tunnel".into(),
        ..Said::default()
    };
    match open(&proxy, &host, port, &mut inner, &mut record).await {
        Ok((first, mut outside)) => {
            record.answered(200);
            if outside.write_all(&first).await.is_ok() {
                record
                    .exchange
                    .received
                    .fetch_add(first.len() as u64, std::sync::atomic::Ordering::Relaxed);
                relay::splice(inner, outside, record).await;
            }
        }
        Err(refused) => {
            record.own = true;
            record.refused(&refused);
            record.answered(refused.refusal.nature().status);
            // Inside a tunnel that was answered: still a whole response, for whoever reads it.
            let _ = inner
                .write_all(&refusal::raw(&refused, &record.decision.to_string()))
                .await;
            let _ = inner.shutdown().await;
        }
    }
}

type Opened = (bytes::Bytes, tokio::net::TcpStream);

async fn open<IO: AsyncRead + AsyncWrite + Unpin>(
    proxy: &Arc<Proxy>,
    host: &Arc<str>,
    port: u16,
    inner: &mut IO,
    record: &mut Record,
) -> Result<Opened, Refused> {
    // First: an agent may take its time for it, and what is decided must hold when the tunnel opens.
    let hello = hello::read(inner, TUNNEL_FIRST_BYTE).await;
    let told = decide(proxy, host, port, Some(record))?;
    let (first, name) = hello.map_err(|error| Refusal::SniMismatch.because(error))?;
    // An address has no server name (RFC 6066 section 3).
    let expected = host.parse::<std::net::IpAddr>().is_err().then_some(&**host);
    if name.as_deref() != expected {
        let named = name.as_deref().unwrap_or("no name");
        return Err(Refusal::SniMismatch.because(format!("{named} inside, {host} outside")));
    }
    record.decided().await?;
    let snapshot = proxy.mesh.snapshot();
    let (tcp, address) = egress::connect(proxy, &snapshot, host, port).await?;
    record.endpoint = Some(address);
    record.exchange.decide(Decided {
        direction: Direction::Outbound,
        end: End::Outside(host.clone(), port),
        told,
        idle: Some(Duration::from_millis(snapshot.traffic.idle_timeout_ms)),
    });
    record.exchange.moved();
    record.in_flight();
    still_allowed(proxy, record)?;
    record.settled().await?;
    // From where it was in flight on, whoever changes the world looks at it.
    record.exchange.is_cut().map_or(Ok(()), |cut| Err(refused_by(cut)))?;
    Ok((first, tcp))
}

/// Looks once more: an order may have come, or the world may have changed, while the host was looked up and reached.
fn still_allowed(proxy: &Arc<Proxy>, record: &Record) -> Result<(), Refused> {
    accept::is_not_stopped(proxy, None)?;
    match told::recheck(proxy, &proxy.mesh.snapshot(), &record.exchange) {
        Some(cut) => Err(refused_by(cut)),
        None => Ok(()),
    }
}

fn refused_by(cut: Cut) -> Refused {
    Refusal::of_cut(cut).because(cut.reason())
}

//! CONNECT in its three meanings: to a name of the mesh, it is answered and what is inside is read like any other
//! connection; to an outside host, TLS goes through untouched once the guard and the name in it agree, and plain HTTP
//! is read, too.

use std::sync::Arc;

use aip_policy::{Direction, Fact, TraceFacts, Verdict};
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
    let (drain, tunnel) = (via.drain.clone(), Some(Arc::new(OpenEnd::here())));
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
    let allowed = decision.verdict == Verdict::Allow;
    let enforced = snapshot.me.mode.enforces(now);
    if let Some(record) = record {
        record.verdict = decision.verdict.as_str();
        record.rule = decision.rule().to_owned();
        record.observed = !allowed && !enforced;
        record.ends = Ends::Pair(pair);
        record.audited(decision.obligations.audit, kept);
    }
    if allowed || !enforced {
        return Ok(told);
    }
    Err(Refused {
        refusal: Refusal::PolicyDenied,
        detail: Some(decision.reason().to_owned()),
        rule: Some(decision.rule().to_owned()),
        retry_after: None,
    })
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
        Ok((first, mut outside, told)) => {
            record.answered(200);
            let idle = std::time::Duration::from_millis(proxy.mesh.snapshot().traffic.idle_timeout_ms);
            record.exchange.decide(Decided {
                direction: Direction::Outbound,
                end: End::Outside(host, port),
                told,
                idle: Some(idle),
            });
            record.in_flight();
            // An order that came while it was opened: those from here on look at it themselves.
            if accept::is_not_stopped(&proxy, None).is_err() {
                record.exchange.cut(Cut::Killed);
                return;
            }
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

type Opened = (bytes::Bytes, tokio::net::TcpStream, Told);

async fn open<IO: AsyncRead + AsyncWrite + Unpin>(
    proxy: &Arc<Proxy>,
    host: &Arc<str>,
    port: u16,
    inner: &mut IO,
    record: &mut Record,
) -> Result<Opened, Refused> {
    let told = decide(proxy, host, port, Some(record))?;
    let hello = hello::read(inner, TUNNEL_FIRST_BYTE).await;
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
    record.settled().await?;
    Ok((first, tcp, told))
}

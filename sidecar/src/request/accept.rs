//! Phase 1, accept: may this connection's next request come in at all? Nothing of it but the head has been read.

use aip_runtime::unix_now;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::PROXY_AUTHORIZATION;

use aip_api::Digest;

use super::refusal::{Refusal, Refused};
use super::{Arrived, From, Peer};
use crate::kill::gate;
use crate::proxy::Proxy;

/// The checks that need no body: certificate, rate, the agent's secret.
pub(crate) fn request(arrived: &Arrived) -> Result<(), Refused> {
    serves(&arrived.proxy)?;
    let peer = match &arrived.via.from {
        From::Peer(peer) => Some(peer),
        From::Agent | From::Tunnel(_) => None,
    };
    match &arrived.via.from {
        From::Peer(peer) => of_peer(&arrived.proxy, peer),
        From::Agent => of_agent(&arrived.proxy, &arrived.head.headers),
        // Authenticated by its CONNECT.
        From::Tunnel(_) => Ok(()),
    }?;
    is_not_stopped(&arrived.proxy, peer)
}

/// Whether no order stops this agent, or the peer that calls. After what is cheap: whoever shows no secret learns
/// nothing of orders.
pub(crate) fn is_not_stopped(proxy: &Proxy, peer: Option<&Peer>) -> Result<(), Refused> {
    if proxy.settings.kill.any()?.is_none() {
        return Ok(());
    }
    let (snapshot, svid) = (proxy.mesh.snapshot(), proxy.svid.current());
    let own = gate::own(&snapshot, svid.as_ref().map(|svid| svid.result()));
    let peer = peer.map(|peer| &peer.live.peer);
    let peer = peer.map(|peer| gate::peer(&snapshot, &peer.id.agent, Some(&peer.result)));
    proxy.settings.kill.accept(own, peer)
}

/// Whether this sidecar serves at all.
pub(crate) fn serves(proxy: &Proxy) -> Result<(), Refused> {
    if proxy.settings.suspension.is_on() {
        return Err(Refusal::Drifted.into());
    }
    // Also in the moment before an expired one is taken away.
    match proxy.svid.current() {
        Some(svid) if svid.identity.not_after <= unix_now() => Err(Refusal::NoIdentity.because("the SVID has expired")),
        _ => Ok(()),
    }
}

fn of_peer(proxy: &Proxy, peer: &Peer) -> Result<(), Refused> {
    peer.live.count_request();
    // Of an expired or revoked connection nothing more is taken, even in the moment before it is cut.
    if unix_now() >= peer.live.expires {
        return Err(Refusal::CertificateExpired.into());
    }
    if let Some(cut) = peer.live.is_cut() {
        return Err(Refusal::of_cut(cut).into());
    }
    if let Some(reason) = proxy.trust.load().revoked(&peer.live.peer) {
        let refusal = if reason == "revoked_serial" {
            Refusal::RevokedSerial
        } else {
            Refusal::RevokedGeneration
        };
        return Err(refusal.into());
    }
    if peer.gate.load().passes() {
        return Ok(());
    }
    // Before it is refused by a limit, that limit must be the one that holds now.
    let snapshot = proxy.mesh.snapshot();
    let gate = proxy.gates.of(&peer.live.peer.id.agent, &snapshot.traffic);
    let replaced = !std::sync::Arc::ptr_eq(&gate, &peer.gate.load());
    peer.gate.store(gate.clone());
    if replaced && gate.passes() {
        Ok(())
    } else {
        Err(Refusal::RateLimited.into())
    }
}

/// Whether the request shows the secret of the proxy URL. The user name in it is nobody's.
pub(crate) fn of_agent(proxy: &Proxy, headers: &HeaderMap) -> Result<(), Refused> {
    let Some(secret) = &proxy.settings.proxy_secret else {
        return Ok(());
    };
    if shows(headers, secret) {
        Ok(())
    } else {
        Err(Refusal::ProxyAuth.into())
    }
}

/// Whether they show this secret, as clients show what stands in a proxy's URL (RFC 7617).
pub(crate) fn shows(headers: &HeaderMap, secret: &str) -> bool {
    let shown = headers.get(PROXY_AUTHORIZATION).and_then(|v| v.to_str().ok());
    let encoded = shown
        .and_then(|v| v.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let decoded = encoded
        .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok())
        .unwrap_or_default();
    let password = decoded.splitn(2, |b| *b == b':').nth(1).unwrap_or_default();
    // Digests are compared: how long that takes says nothing about the secret.
    Digest::sha256(password) == Digest::sha256(secret.as_bytes())
}

//! Looks again at what is open when the world changes: revocations end connections, and requests in flight that would
//! be refused now are cut.

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::Proxy;
use super::limits::{IDLE_TICK, SWEEP};
use crate::identity::revoked::Said;
use crate::request::refusal::Cut;
use crate::request::told;

/// Runs until the proxy is gone.
pub(super) async fn run(proxy: Weak<Proxy>) {
    let Some(strong) = proxy.upgrade() else { return };
    let (mut world, mut svid) = (strong.mesh.subscribe(), strong.svid.subscribe());
    drop(strong);
    let mut tick = tokio::time::interval(IDLE_TICK);
    let mut swept = Instant::now();
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let changed = tokio::select! {
            _ = tick.tick() => false,
            changed = world.changed() => changed.is_ok(),
            changed = svid.changed() => changed.is_ok(),
        };
        let Some(proxy) = proxy.upgrade() else { return };
        if changed {
            recheck(&proxy).await;
        }
        proxy.streams.cut_idle();
        if swept.elapsed() >= SWEEP {
            swept = Instant::now();
            proxy.hops.sweep();
            proxy.gates.sweep();
            proxy.shares.sweep();
        }
    }
}

/// Cuts everything when this sidecar suspends itself. Apart from the above, which may be asking policy about each of
/// many streams.
pub(super) async fn suspended(proxy: Weak<Proxy>) {
    let Some(strong) = proxy.upgrade() else { return };
    let mut suspension = strong.settings.suspension.subscribe();
    drop(strong);
    while suspension.wait_for(|on| *on).await.is_ok() {
        let Some(strong) = proxy.upgrade() else { return };
        strong.live.each(|live| live.cut(Cut::Drifted));
        for exchange in strong.streams.all() {
            exchange.cut(Cut::Drifted);
        }
        drop(strong);
        if suspension.wait_for(|on| !*on).await.is_err() {
            return;
        }
    }
}

async fn recheck(proxy: &Arc<Proxy>) {
    let own = proxy.svid.current();
    let trust = proxy.trust.load_full();
    let ours = own.as_ref().map(|svid| trust.revoked(&svid.identity));
    if let (Some(svid), Some(Some(reason))) = (&own, ours) {
        // The streams may be open under the SVID before this one, and go on.
        let serial = svid.identity.serial.clone();
        let reason = reason.to_owned();
        proxy.settings.revoked.say(Said { serial, reason });
    }
    proxy.live.each(|live| match (ours, trust.revoked(&live.peer)) {
        (None, _) => live.cut(live.without_ours()),
        (Some(Some(reason)), _) | (_, Some(reason)) => live.cut(Cut::of_revocation(reason)),
        (Some(None), None) => {}
    });
    if let Some(svid) = &own {
        proxy
            .peers
            .iter()
            .for_each(|pool| pool.retire_all_but(&svid.identity.serial));
    }
    let snapshot = proxy.mesh.snapshot();
    // Each holds the snapshot that it was built from, and is built anew for the next request anyway.
    proxy.pairs.forget_all_but(&snapshot);
    for exchange in proxy.streams.all() {
        let cut = if own.is_none() {
            Some(exchange.live().map_or(Cut::Suspended, |live| live.without_ours()))
        } else {
            told::recheck(proxy, &snapshot, &exchange)
        };
        if let Some(cut) = cut {
            exchange.cut(cut);
        }
        // A body may have to be read again for each: the connections of this thread go on in between.
        tokio::task::yield_now().await;
    }
}

//! What is open is cut: streams, tunnels and waiting requests first, then the connections that they were on.

use crate::kill::gate;
use crate::proxy::Proxy;
use crate::request::refusal::Cut;

/// What was cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cuts {
    pub(crate) connections: u64,
    pub(crate) streams: u64,
}

/// Cuts whatever the orders that hold stop. When it returns, nothing of that takes or passes another byte.
pub(crate) async fn enforce(proxy: &Proxy) -> Cuts {
    let mut cuts = Cuts::default();
    let snapshot = proxy.mesh.snapshot();
    let svid = proxy.svid.current();
    let result = svid.as_ref().map(|svid| svid.result());
    for exchange in proxy.streams.all() {
        let cut = match (result, exchange.decided()) {
            (Some(own), Some(decided)) => proxy.settings.kill.cut(&snapshot, own, decided),
            // It is not known whose it is, or what was decided: nothing to go on with.
            _ => Some(Cut::Killed),
        };
        if let Some(cut) = cut.filter(|_| exchange.is_cut().is_none()) {
            exchange.cut(cut);
            cuts.streams += 1;
        }
        // Many streams, and the connections of this thread go on in between.
        tokio::task::yield_now().await;
    }
    let lost = proxy.settings.kill.any().is_err();
    let all = proxy.settings.kill.kills(gate::own(&snapshot, result)).is_some();
    proxy.live.each(|live| {
        let (name, result) = (&live.peer.id.agent, Some(&*live.peer.result));
        let killed = all || proxy.settings.kill.kills(gate::peer(&snapshot, name, result)).is_some();
        if (killed || lost) && live.is_cut().is_none() {
            live.cut(if lost { Cut::LeaseLost } else { Cut::Killed });
            cuts.connections += 1;
        }
    });
    cuts
}

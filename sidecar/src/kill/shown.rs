//! With which SVID the `Kill` stream is opened, and as what. One that is good opens it as any stream. A sidecar that has
//! suspended itself, or whose SVID is revoked, is told of orders to stop all the same, so that its agent's process can be
//! ended: on a connection that is for nothing else, and that grants no lease.

use std::sync::Arc;

use aip_runtime::svid::SvidSource;
use aip_runtime::tls::{self, ClientConfig, TlsError};
use aip_runtime::trust::Trust;
use aip_runtime::unix_now;

use crate::drift::Suspension;
use crate::identity::revoked::Revoked;

/// As what a stream is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    /// A sidecar that serves, or soon will.
    Sidecar,
    /// One that serves nothing, and hears of orders.
    OrdersOnly,
}

/// What this process has to show.
pub(super) struct Shown {
    svid: SvidSource,
    revoked: Revoked,
    suspension: Suspension,
}

impl Shown {
    pub(super) fn new(svid: SvidSource, revoked: Revoked, suspension: Suspension) -> Self {
        Self {
            svid,
            revoked,
            suspension,
        }
    }

    /// As what a stream can be opened now; `None`: there is nothing to show.
    pub(super) fn now(&self) -> Option<As> {
        let svid = self.svid.current();
        if svid.is_some() && !self.suspension.is_on() {
            return Some(As::Sidecar);
        }
        let held = svid.or_else(|| self.revoked.given_up().current())?;
        (held.identity.not_after > unix_now()).then_some(As::OrdersOnly)
    }

    /// Waits until a stream can be opened.
    pub(super) async fn any(&self) -> As {
        self.until(|now| now).await
    }

    /// Waits until a stream is to be opened as something else.
    pub(super) async fn other_than(&self, opened: As) {
        self.until(|now| now.filter(|now| *now != opened)).await;
    }

    async fn until(&self, wanted: impl Fn(Option<As>) -> Option<As>) -> As {
        let (mut held, mut given_up) = (self.svid.subscribe(), self.revoked.given_up().subscribe());
        let mut suspended = self.suspension.subscribe();
        loop {
            if let Some(found) = wanted(self.now()) {
                return found;
            }
            // Their senders live as long as this.
            tokio::select! {
                _ = held.changed() => {}
                _ = given_up.changed() => {}
                _ = suspended.changed() => {}
            }
        }
    }

    /// The serial of the SVID that is shown, where it is one to serve with.
    pub(super) fn serial(&self) -> Option<String> {
        self.svid.current().map(|svid| svid.identity.serial.clone())
    }

    /// How the control plane is connected to.
    pub(super) fn client(&self, opened: As, trust: &Trust) -> Result<Arc<ClientConfig>, TlsError> {
        let source = match self.svid.current() {
            Some(_) => &self.svid,
            None => self.revoked.given_up(),
        };
        match opened {
            As::Sidecar => tls::control_plane_client(Some(source.slot()), trust),
            As::OrdersOnly => tls::orders_client(source.slot(), trust),
        }
    }
}

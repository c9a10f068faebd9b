//! How the control plane's port is served: to whoever joins or has an SVID, and, apart from that, to whoever is to be told
//! of orders to stop and of nothing else, though its SVID is revoked.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::ClientHello;

use super::{ALPN_H2, ALPN_ORDERS, Clients, IdentitySlot, TlsError, server_config};
use crate::trust::Trust;

/// What one handshake is answered with.
pub(crate) type Answered<'a> = (&'a Arc<ServerConfig>, Clients);

/// Both ways in. A revoked SVID passes the handshake on one of them alone, which a client takes by what it offers before
/// anything is known of it.
#[derive(Debug, Clone)]
pub struct MeshTls {
    ordinary: Arc<ServerConfig>,
    orders: Arc<ServerConfig>,
}

impl MeshTls {
    /// Presents `identity`.
    ///
    /// # Errors
    /// The provider lacks TLS 1.3.
    pub fn new(identity: &IdentitySlot, trust: &Trust) -> Result<Self, TlsError> {
        Ok(Self {
            ordinary: server_config(identity, trust, Clients::Optional, ALPN_H2)?,
            orders: server_config(identity, trust, Clients::OrRevoked, ALPN_ORDERS)?,
        })
    }

    /// What this client is answered with: orders alone where it offers that and nothing beside it.
    pub(crate) fn answer(&self, hello: &ClientHello<'_>) -> Answered<'_> {
        let offers_orders = hello
            .alpn()
            .is_some_and(|offered| offered.eq(ALPN_ORDERS.iter().copied()));
        match offers_orders {
            true => (&self.orders, Clients::OrRevoked),
            false => (&self.ordinary, Clients::Optional),
        }
    }
}

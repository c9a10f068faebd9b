//! The listening sockets: taken before anything else, so that a taken port is the first thing said.

use std::net::{SocketAddr, TcpListener};

use aip_runtime::{files, settings};
use anyhow::Context as _;

use crate::config::Config;

/// The sockets.
pub(super) struct Listeners {
    pub(super) inbound: TcpListener,
    pub(super) outbound: TcpListener,
    pub(super) admin: TcpListener,
    pub(super) probes: TcpListener,
}

/// Where they listen: the ports that were asked for, or those that the system chose for port 0.
pub(super) struct Addresses {
    pub(super) inbound: SocketAddr,
    pub(super) outbound: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) probes: SocketAddr,
}

impl Listeners {
    pub(super) fn bind(config: &Config) -> Result<Self, settings::SettingsError> {
        Ok(Self {
            inbound: settings::listen("calls from peers", "--inbound", config.inbound)?,
            outbound: settings::listen("calls of the agent", "--outbound", config.outbound)?,
            admin: settings::listen("admin", "--admin", config.admin)?,
            probes: settings::listen("probes", "--probes", config.probes)?,
        })
    }

    pub(super) fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            inbound: self.inbound.local_addr()?,
            outbound: self.outbound.local_addr()?,
            admin: self.admin.local_addr()?,
            probes: self.probes.local_addr()?,
        })
    }

    /// Says in `run.json` where each listens, and where the secret lies that the agent must show: for whoever started
    /// this process.
    pub(super) fn announce(&self, config: &Config) -> anyhow::Result<()> {
        let addresses = self.addresses()?;
        let run = serde_json::json!({
            "pid": std::process::id(),
            "inbound": addresses.inbound,
            "outbound": addresses.outbound,
            "admin": addresses.admin,
            "probes": addresses.probes,
            "proxy_secret_file": config.access.proxy_secret_file,
        });
        let path = config.data.join("run.json");
        files::write_private(&path, run.to_string().as_bytes()).context("run.json can't be written")
    }
}

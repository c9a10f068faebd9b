//! Where the process listens. Everything is bound before a mesh is made: a port that is taken costs nothing.

use std::net::SocketAddr;
use std::path::PathBuf;

use aip_api::Digest;
use aip_runtime::settings::listen;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::admin::socket::{SOCKET_FILE, Socket};
use crate::bootstrap::StartError;
use crate::settings::Settings;

/// Where a running control plane says how it is reached.
pub const RUN_FILE: &str = "run.json";

/// What `run.json` says.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The process.
    pub pid: u32,
    /// Where sidecars connect.
    pub mesh: SocketAddr,
    /// Where the admin API is.
    pub admin: SocketAddr,
    /// The admin API's Unix socket: the only place where a `prod` mesh takes changes.
    pub socket: PathBuf,
    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub root: Digest,
}

/// The two ports; they touch no file.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) mesh: TcpListener,
    pub(super) admin: TcpListener,
}

impl Ports {
    /// Binds both.
    pub(super) fn bind(settings: &Settings) -> Result<Self, StartError> {
        let mesh = listen("sidecars", "--mesh-listen", settings.mesh_listen)?;
        let admin = listen("the admin API", "--admin-listen", settings.admin_listen)?;
        Ok(Self {
            mesh: TcpListener::from_std(mesh)?,
            admin: TcpListener::from_std(admin)?,
        })
    }

    /// How the process is reached.
    pub(super) fn run(&self, socket: &Socket, root: Digest) -> Result<Run, StartError> {
        Ok(Run {
            pid: std::process::id(),
            mesh: self.mesh.local_addr()?,
            admin: self.admin.local_addr()?,
            socket: socket.path.to_path_buf(),
            root,
        })
    }
}

/// Binds the socket. The data directory is there and locked: nobody else of this mesh is alive.
pub(super) fn socket(settings: &Settings) -> Result<Socket, StartError> {
    let beside = || settings.data.join(SOCKET_FILE);
    Ok(Socket::listen(&settings.admin_socket.clone().unwrap_or_else(beside))?)
}

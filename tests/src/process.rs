//! The mesh as processes.

mod access;
mod admin;
mod binaries;
mod child;
mod mesh;
mod run;
mod sidecar;

pub use access::{Record, Records, pairs};
pub use admin::Admin;
pub use binaries::binary;
pub(crate) use binaries::repository;
pub use child::{Process, ended_badly, fails, free_port};
pub(crate) use mesh::sweep_after_us;
pub use mesh::{ControlPlane, DEV, Mesh};
pub use run::RunAgent;
pub use sidecar::{FREE, OPEN, Sidecar, SidecarSpec};
